"""One door to every checkpoint: a built-in name, a folder, a GGUF file, a Hugging Face Hub id, or a model in memory, in.

A ready model, out. Picks our own transformer where it knows the block and the adapter for the rest, reads the tokenizer and
the decoding defaults, and says what is missing where something is. Safetensors, and GGUF files, dequantised (``gguf.py``).
Not here: pickled weights, running on quantised ones.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..checks import read_json
from ..kernels.attention import choose
from ..kernels.transfer import numbered
from . import gguf, settings
from .batch import Row, TokenBatch
from .checkpoint import Checkpoint, safetensors_files
from .model import Defaults, Model
from .text import Text
from .transformer import HEADLESS, Transformer, supports

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUILT_IN = Path(__file__).resolve().parent.parent / "nano" / "weights"
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.txt", "*.model", "*.tiktoken")
UNWANTED = ("onnx/*", "original/*", "consolidated*")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


def load(
    name_or_path: str | Path | PreTrainedModel,
    tokenizer: Any = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    ignore: Collection[str] = (),
    impl: str = "auto",
    graphs: bool = True,
) -> Model:
    """A model ready for an engine.

    ``name_or_path``: a built-in name ("nano"), a folder (a path needs a separator: "./nano"), a GGUF file ("./nano.gguf"), a
    Hub id ("org/name"), or a transformers model, which is left as it is: weights are shared where they can be and copied
    where not, so load it again after training it further. ``tokenizer``: a fast transformers tokenizer in place of the
    checkpoint's own; a model in memory has none. ``device`` "auto": CUDA where there is one, else the CPU. ``dtype`` "auto":
    the checkpoint's own, but float32 on a CPU, where half precision is slow. A model in memory stays where and what it is.
    ``device_map`` (accelerate's; "auto" too) spreads the model over devices, CPU memory and disk, by the adapter.
    ``ignore``: settings of ``generation_config.json``, by name, that are left out: those that cannot be applied are an error.
    ``impl``: the attention implementation, see :func:`forethought.kernels.attention.attend`.
    ``graphs``: whether our own transformer's decode steps on CUDA are recorded and replayed as CUDA graphs.

    Raises ``FileNotFoundError`` for a path, file or Hub id that is not there, ``ValueError`` for one that cannot be used,
    ``ImportError`` for a GGUF file without the package that reads it.
    """
    choose(impl)
    if not isinstance(name_or_path, str | Path):
        if (device, dtype, device_map) != ("auto", "auto", None):
            raise ValueError("device, dtype and device_map: a model in memory stays where and what it is; move it beforehand")
        return of_memory(name_or_path, tokenizer, ignore=ignore, impl=impl, graphs=graphs)
    name, path = _find(name_or_path, trust_remote_code)
    where = _where(device)
    if path.is_file():
        if device_map is not None:
            raise ValueError(f"device_map={device_map!r}: a GGUF file goes to one device")
        kind = dtype if dtype == "auto" and where.type != "cpu" else _dtype(dtype, None, path, where)
        model, own = gguf.read(path, kind)
        found = own if tokenizer is None else tokenizer
        return of_memory(model.to(where), found, name=name, ignore=ignore, impl=impl, graphs=graphs)
    config = _config(path, trust_remote_code)
    kind = _dtype(dtype, config, path, where)
    text = _text(path, trust_remote_code) if tokenizer is None else Text(tokenizer)
    defaults = _defaults(path, config, text, ignore)
    foreign = trust_remote_code and getattr(config, "auto_map", None)
    if device_map is None and not foreign and supports(config):
        return Transformer(config, Checkpoint.open(path), name=name, device=where, dtype=kind, defaults=defaults, text=text,
                           impl=impl, graphs=graphs)  # fmt: skip
    from .hf import Adapter

    return Adapter.load(path, config, name=name, device=where, dtype=kind, device_map=device_map, defaults=defaults, text=text,
                        trust_remote_code=trust_remote_code, impl=impl)  # fmt: skip


def of_memory(
    model: Any, tokenizer: Any = None, *, name: str = "", ignore: Collection[str] = (), impl: str = "auto", graphs: bool = True
) -> Model:
    """A transformers model as ours; it is not changed. Raises ``TypeError`` for what is none, ``ValueError`` as :func:`load`."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        hint = "; call its merge_and_unload() first" if type(model).__module__.startswith("peft.") else ""
        raise TypeError(f"a name, a path or a transformers model, not {type(model).__name__}{hint}")
    name = name or Path(model.name_or_path).name or type(model).__name__
    text = None if tokenizer is None else Text(tokenizer)
    config, modules = copy.copy(model.config), list(model.modules())
    places = {tensor.device for tensor in model.parameters()}
    if len(places) > 1 or "meta" in {place.type for place in places}:
        where = ", ".join(sorted(map(str, places)))
        raise ValueError(f"{name}: on {where}; a model in memory is on one device, with its weights")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{name}: quantised weights in memory; load its folder, or dequantize() it first")
    if altered := [type(module).__name__ for module in modules if "forward" in vars(module)]:
        raise ValueError(f"{name}: the forward of {altered[0]} was replaced, so its modules do not say what it computes")
    own = model.generation_config if model.can_generate() else None
    said = {} if own is None else own.to_dict()
    defaults = _decoding(said, None, config, text, ignore, name)
    config.architectures = [type(model).__name__]
    homes = {type(module).__module__.partition(".")[0] for module in modules}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    mixed = len({tensor.dtype for tensor in model.parameters()}) > 1
    if homes <= {"torch", "transformers"} and not hooked and not mixed and supports(config):
        weights = Checkpoint(model.state_dict(), name)
        ours = Transformer(config, weights, name=name, device=model.device, dtype=model.dtype, defaults=defaults, text=text,
                           impl=impl, graphs=graphs)  # fmt: skip
        if _agree(ours, model):
            return ours  # else some module computes what its config does not say: the model's own code does it
    from .hf import Adapter

    return Adapter.of(model, name=name, defaults=defaults, text=text, impl=impl)


@torch.inference_mode()
def _agree(ours: Model, theirs: Any) -> bool:
    """Whether two models compute the same of some tokens. True in half precision, where roundings alone make right logits differ
    by more than a wrong module would."""
    if ours.info.dtype not in (torch.float32, torch.float64):
        return True
    ids = [(7919 + i * 104729) % ours.info.vocab_size for i in range(min(12, ours.info.max_positions))]
    pool = ours.new_pool(len(ids))
    found = ours.forward(TokenBatch(pool, [Row(pool.new_context(), ids)])).logits
    assert found is not None
    training = [module for module in theirs.modules() if module.training]
    theirs.eval()
    try:
        logits = theirs(input_ids=torch.tensor([ids], device=ours.info.device), use_cache=False).logits[0].float()
    finally:
        for module in training:
            module.training = True
    error = (found.float() - logits).norm(dim=-1) / logits.sub(logits.mean(-1, keepdim=True)).norm(dim=-1)
    return bool(error.max() < 1e-3)


def load_backbone(
    name_or_path: str | Path, *heads: str, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto",
    impl: str = "auto",
) -> tuple[Model, dict[str, Tensor], Any]:  # fmt: skip
    """A checkpoint that has a head of its own in place of an LM head, such as a reward model's.

    Returns the model, of which only hidden states mean something; the tensors of the modules ``heads``, on its device in its
    dtype; and the transformers config. Nothing of the checkpoint's own code runs. Raises as :func:`load`.
    """
    choose(impl)
    name, path = _find(name_or_path, code=False)
    if path.is_file():
        raise ValueError(f"{name}: a GGUF file holds no head but an LM's")
    config = _config(path, code=False)
    where = _where(device)
    kind = _dtype(dtype, config, path, where)
    text, weights = _text(path, code=False), Checkpoint.open(path)
    tensors = weights.on(where, kind).under(*heads)
    bare = copy.copy(config)
    bare.architectures = [HEADLESS.get(config.model_type, "")]
    if supports(bare):
        return Transformer(bare, weights, name=name, device=where, dtype=kind, text=text, impl=impl), tensors, config
    from .hf import Adapter

    model = Adapter.load(path, config, name=name, device=where, dtype=kind, device_map=None, text=text, trust_remote_code=False,
                         impl=impl, headless=True)  # fmt: skip
    return model, tensors, config


def architecture(name_or_path: str | Path) -> str:
    """The class that a checkpoint's config names; empty where it names none. Raises as :func:`load`."""
    _, path = _find(name_or_path, code=False)
    named = gguf.config(path).architectures if path.is_file() else _config(path, code=False).architectures
    return str(named[0]) if named else ""


def weights_hash(name_or_path: str | Path) -> str:
    """What tells checkpoints apart: sha256 over the config and all weights. Reads every byte, about as long as loading does."""
    _, path = _find(name_or_path, code=False)
    whole = hashlib.sha256()
    for file in [path] if path.is_file() else (path / "config.json", *safetensors_files(path)):
        with open(file, "rb") as data:
            whole.update(file.name.encode() + hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest()


def parameters(name_or_path: str | Path) -> int:
    """How many numbers a checkpoint holds, heads included, from the files' headers alone."""
    _, path = _find(name_or_path, code=False)
    if path.is_file():
        return gguf.parameters(path)
    total = 0
    for file in safetensors_files(path):
        with safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no mapping
    return total


def _find(name_or_path: str | Path, code: bool) -> tuple[str, Path]:
    """The name to show and the folder, or GGUF file, to read."""
    name = str(name_or_path)
    built_in = sorted(p.name for p in BUILT_IN.iterdir() if p.is_dir()) if BUILT_IN.is_dir() else []
    if isinstance(name_or_path, str) and name in built_in:
        return name, BUILT_IN / name
    path = Path(name).expanduser()
    local = isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf"
    if not local and "/" not in name:
        raise ValueError(f"{name!r} is no built-in model ({', '.join(built_in) or 'none there'}); for a folder write ./{name}")
    if path.is_dir():
        return path.resolve().name, path
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path.stem, path
    if path.exists():
        raise NotADirectoryError(f"{name}: a file; a checkpoint is a folder with config.json and safetensors, or a .gguf file")
    if local or name.count("/") != 1 or name.endswith("/"):
        raise FileNotFoundError(f"{name}: no such {'file' if path.suffix.lower() == '.gguf' else 'folder'}")
    return name, _download(name, code)


def _download(name: str, code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [*WANTED, *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=list(UNWANTED)))
    except (OSError, HFValidationError) as e:  # the Hub's own errors are OSErrors
        raise FileNotFoundError(f"{name}: no such folder, and not to be had from the Hugging Face Hub ({_first_line(e)})") from e


def _config(path: Path, code: bool) -> Any:
    from transformers import AutoConfig

    if not read_json(path / "config.json"):
        raise FileNotFoundError(f"{path}: no config.json, so not a Hugging Face checkpoint")
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{path}/adapter_config.json: an adapter beside the weights; merge it (merge_and_unload) and save that")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=code, local_files_only=True)
    except Exception as e:  # its validators raise types of their own
        raise ValueError(f"{path}/config.json: transformers cannot read it ({_first_line(e)})") from e
    return config


def _where(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as e:
        raise ValueError(f"device={device!r}: {_first_line(e).removesuffix('.')}") from e
    if where.type == "meta":
        raise ValueError("device='meta': a device that holds no weights")
    if where.type == "cuda" and (where.index or 0) >= (there := torch.cuda.device_count()):
        raise ValueError(f"device={str(where)!r}: there {'is' if there == 1 else 'are'} {there} here")
    return numbered(where)


def _dtype(asked: str | torch.dtype, config: Any, path: Path, device: torch.device) -> torch.dtype:
    if asked == "auto":
        if device.type == "cpu":
            return torch.float32
        found = config.get_text_config().dtype
        return found if isinstance(found, torch.dtype) else Checkpoint.open(path).dtype
    kind = getattr(torch, asked.removeprefix("torch."), None) if isinstance(asked, str) else asked
    if kind not in DTYPES:
        raise ValueError(f"dtype={asked!r}: 'auto', or one of {', '.join(str(one).removeprefix('torch.') for one in DTYPES)}")
    assert isinstance(kind, torch.dtype)
    return kind


def _text(path: Path, code: bool) -> Text | None:
    from transformers import AutoTokenizer

    if not any((path / file).exists() for file in TOKENIZERS):
        return None
    try:
        return Text(AutoTokenizer.from_pretrained(path, trust_remote_code=code, local_files_only=True))
    except Exception as e:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"{path}: its tokenizer cannot be read ({_first_line(e)})") from e


def _defaults(path: Path, config: Any, text: Text | None, ignore: Collection[str]) -> Defaults:
    """What ``generation_config.json`` says, or where there is none, as in old checkpoints, ``config.json``."""
    source, old = path / "generation_config.json", read_json(path / "config.json")
    said = read_json(source)
    if not source.exists():
        source, said = path / "config.json", old
    # What the file says, not what the config's class would have it be: of that transformers takes no notice either.
    ends = old.get("eos_token_id", (old.get("text_config") or {}).get("eos_token_id"))
    return _decoding(said, ends, config, text, ignore, str(source))


def _decoding(said: dict[str, Any], ends: Any, config: Any, text: Text | None, ignore: Collection[str], source: str) -> Defaults:
    if ends is None and text is not None:
        ends = text.tokenizer.eos_token_id
    return settings.decoding(said, ends, config.get_text_config().vocab_size, ignore=ignore, source=source)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
