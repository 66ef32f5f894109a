"""GGUF files, llama.cpp's format, through transformers and the ``gguf`` package: weights dequantised, tokenizer, config.

Computes what the file's quantised weights stand for, in the dtype asked for: memory and speed are those of that dtype. Which
architectures there are is transformers' matter.
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import torch


def read(path: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The transformers model in ``dtype`` on the CPU, and its tokenizer.

    Raises ``ImportError`` without the package, ``ValueError`` for a file that cannot be read.
    """
    import transformers

    found = config(path)
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    if "GgufConfig" in dir(transformers):  # since 5.2x weights may stay quantised
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, config=found, dtype=dtype, output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as e:  # the readers raise what they like
        raise ValueError(f"{path}: transformers cannot read it ({type(e).__name__}: {e})") from e
    if missing := sorted(loaded["missing_keys"]):  # transformers would make them up
        raise ValueError(f"{path}: the file has no tensor {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}")
    model.config.quantization_config = None
    return model.eval(), tokenizer


def config(path: Path) -> Any:
    """The transformers config that the file's metadata describe, with the causal model's class named."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    _package()
    try:
        found = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as e:
        raise ValueError(f"{path}: transformers cannot read it ({type(e).__name__}: {e})") from e
    found.architectures = found.architectures or [CLASSES[found.model_type]] if found.model_type in CLASSES else None
    return found


def parameters(path: Path) -> int:
    """How many numbers the file holds, from its header."""
    _package()
    from gguf import GGUFReader

    return sum(math.prod(map(int, tensor.shape)) for tensor in GGUFReader(path).tensors)


def _package() -> None:
    try:
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as e:
        raise ImportError("a GGUF file is read by the gguf package: pip install 'forethought[gguf]'") from e
