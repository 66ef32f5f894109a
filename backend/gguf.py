"""GGUF files, llama.cpp's format, through transformers and the ``gguf`` package: weights dequantised, tokenizer, config.

Computes what the file's quantised weights stand for, in the dtype asked for: memory and speed are those of that dtype. Which
architectures there are is transformers' matter. What its reader passes over without a word is applied or refused here: rotary
scaling, and tensors that it has no place for.
"""

from __future__ import annotations

import importlib.metadata
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How Llama 3.1 to 3.3 scale their rotation; a file has the result alone, as ``rope_freqs.weight``."""
FREQUENCIES = "rope_freqs.weight"


def read(path: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The transformers model in ``dtype`` on the CPU, and its tokenizer.

    Raises ``ImportError`` without the package, ``ValueError`` for a file that cannot be read.
    """
    import transformers

    found = config(path)
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    quantised: dict[str, Any] = {}
    if "GgufConfig" in dir(transformers):  # since 5.2x weights may stay quantised
        quantised["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with _alone(path) as folder:
            model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=found, dtype=dtype, output_loading_info=True, **options, **quantised
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception as e:  # the readers raise what they like
        raise ValueError(f"{path}: transformers cannot read it ({type(e).__name__}: {e})") from e
    if missing := sorted(loaded["missing_keys"]):  # transformers would make them up
        raise ValueError(f"{path}: the file has no tensor {', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}")
    _complete(path, model)
    model.config.quantization_config = None
    return model.eval(), tokenizer


def config(path: Path) -> Any:
    """The transformers config that the file's metadata describe, with the causal model's class named."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    _package()
    try:
        with _alone(path) as folder:
            found = AutoConfig.from_pretrained(folder, gguf_file=path.name, local_files_only=True)
    except Exception as e:
        raise ValueError(f"{path}: transformers cannot read it ({type(e).__name__}: {e})") from e
    found.architectures = found.architectures or [CLASSES[found.model_type]] if found.model_type in CLASSES else None
    _scale(path, found)
    return found


def parameters(path: Path) -> int:
    """How many numbers the file holds, from its header."""
    return sum(_sizes(path).values())


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder with nothing but the file: transformers would rather take a tokenizer or settings that lie beside it."""
    with tempfile.TemporaryDirectory(prefix="forethought-") as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder


def _scale(path: Path, found: Any) -> None:
    """The file's rotary scaling, into the config. Raises ``ValueError`` for one that is not known."""
    reader = _open(path)
    fields = {name.partition(".rope.scaling.")[2]: field for name, field in reader.fields.items() if ".rope.scaling." in name}
    said = {name: field.contents() for name, field in fields.items()}
    kind = said.get("type", "none")
    settings = dict(getattr(found, "rope_parameters", None) or {})
    if settings.get("rope_type", "default") == "default" and kind != "none":
        known = {"type", "factor", "original_context_length", "finetuned"}
        if kind not in ("linear", "yarn") or not said.get("factor") or (kind == "yarn" and said.keys() - known):
            raise ValueError(f"{path}: rotary scaling that is not read here, {said}")
        settings |= {"rope_type": kind, "factor": float(said["factor"])}
        if kind == "yarn":
            settings["original_max_position_embeddings"] = int(
                said.get("original_context_length", found.max_position_embeddings)
            )
        found.rope_parameters = settings
    divisors = next((torch.tensor(t.data).float() for t in reader.tensors if t.name == FREQUENCIES), None)
    if divisors is not None and not bool((divisors == 1).all()):
        found.rope_parameters = _llama3(path, found, divisors)


def _llama3(path: Path, found: Any, divisors: torch.Tensor) -> dict[str, Any]:
    """The settings of Llama 3's scaling that divide the plain frequencies so. Raises ``ValueError`` if there are none."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    own = found.rope_parameters
    for factor in (8.0, 32.0, float(divisors.max())):
        settings: dict[str, Any] = own | LLAMA3 | {"factor": factor}
        found.rope_parameters = settings
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](found, torch.device("cpu"))
        plain = 1.0 / own["rope_theta"] ** (torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled)))
        if divisors.shape == scaled.shape and torch.allclose(plain / scaled, divisors, rtol=1e-3):
            return settings
    raise ValueError(f"{path}: {FREQUENCIES} scales the rotation in a way that is not read here")


def _complete(path: Path, model: Any) -> None:
    """Raise ``ValueError`` unless every number of the file is one of ``model``: its reader drops tensors without a word."""
    sizes = _sizes(path)
    sizes.pop(FREQUENCIES, None)
    if model.config.tie_word_embeddings:
        sizes.pop("output.weight", None)
    held, taken = sum(sizes.values()), sum(parameter.numel() for parameter in model.parameters())
    if held != taken:
        reads = f"transformers reads {taken:,} into a {type(model).__name__}"
        raise ValueError(f"{path}: it holds {held:,} numbers, and {reads}")


def _sizes(path: Path) -> dict[str, int]:
    return {tensor.name: math.prod(map(int, tensor.shape)) for tensor in _open(path).tensors}


def _open(path: Path) -> Any:
    _package()
    from gguf import GGUFReader

    return GGUFReader(path)


def _package() -> None:
    try:
        importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError as e:
        raise ImportError("a GGUF file is read by the gguf package: pip install 'forethought[gguf]'") from e
