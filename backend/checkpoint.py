"""Tensors of a Hugging Face checkpoint folder, by name, from one or several safetensors files.

Names lose their ``model.`` prefix, so that backbones and full models read alike. A tensor is read from disk when it is
asked for, and not kept here. Pickles are never opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import read_json

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """Tensors by name, read-only; remembers what was read."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str = "these weights") -> None:
        self.source = source
        self._tensors = tensors
        self._names = {name.removeprefix("model."): name for name in tensors}
        if len(self._names) < len(tensors):
            twice = next(name for name in self._names if name in tensors and f"model.{name}" in tensors)
            raise ValueError(f"{source}: both {twice} and model.{twice}: one tensor too many")
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._read: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Every safetensors file that the folder's index names, or its only one.

        Raises ``FileNotFoundError`` for a file that is not there, ``ValueError`` for one that cannot be read.
        """
        return cls(_Files(path), str(path))

    def on(self, device: torch.device, dtype: torch.dtype) -> Checkpoint:
        """The same tensors, converted as they are read."""
        self._device, self._dtype = device, dtype
        return self

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        """One tensor. Raises ``ValueError`` if it is not there or not of ``shape``."""
        if name not in self._names:
            raise ValueError(f"{self.source}: the checkpoint has no tensor {name}")
        tensor = self._tensors[self._names[name]]
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{self.source}: {name} has shape {tuple(tensor.shape)}; the config says {tuple(shape)}")
        self._read[name] = tensor.numel()
        return tensor.to(self._device, self._dtype)

    def tied(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embedding and head of a checkpoint whose config says that they are one; the same tensor if they are.

        As transformers has it, the file wins: two that differ are two, and one alone is both, whichever it is.
        """
        embedding, head = EMBEDDING, HEAD
        if embedding not in self._names and head in self._names:
            embedding = head
        one = self.read(embedding, shape)
        if embedding == head or head not in self._names:
            return one, one
        other = self.read(head, shape)
        if not torch.equal(one, other):
            return one, other
        del self._read[head]
        return one, one

    def under(self, *prefixes: str) -> dict[str, Tensor]:
        """Every tensor of the modules ``prefixes``, of whatever shape."""
        dotted = tuple(f"{prefix}." for prefix in prefixes)
        names = [name for name in self._names if name.startswith(dotted)]
        return {name: self.read(name, self._tensors[self._names[name]].shape) for name in names}

    @property
    def dtype(self) -> torch.dtype:
        """Of its first floating-point tensor; float32 for one without."""
        return next((t.dtype for t in self._tensors.values() if t.is_floating_point()), torch.float32)

    @property
    def parameters(self) -> int:
        """Weights read so far, each once."""
        return sum(self._read.values())

    def finish(self) -> None:
        """Check that nothing but known leftovers stayed unread."""
        ignored = ("rotary_emb.inv_freq", HEAD)
        left = [n for n in self._names if n not in self._read and not n.endswith(ignored)]
        if left:
            raise ValueError(f"{self.source}: tensors this block has no place for: {', '.join(sorted(left)[:4])}")


class _Files(Mapping[str, Tensor]):
    """Tensors of a folder's safetensors files, read from disk one by one."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for file in safetensors_files(path):
            if not file.exists():
                pickles = sorted(p.name for p in path.glob("*.bin"))
                hint = f"; {', '.join(pickles)}: pickles, and only safetensors are read" if pickles else ""
                raise FileNotFoundError(f"{path}: no {file.name}{hint}")
            try:
                handle = safe_open(file, framework="pt")
            except SafetensorError as e:
                raise ValueError(f"{file}: not a readable safetensors file ({e})") from e
            self._files |= dict.fromkeys(handle.keys(), handle)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def safetensors_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder that count; whether they exist is not checked.

    As transformers has it: the file or index that the config names, else the whole file, else what the index names.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if named := read_json(path / "config.json").get("transformers_weights"):
        file = path / str(named)
        if file.parent != path or not file.name.endswith((".safetensors", ".safetensors.index.json")):
            raise ValueError(f"{path}/config.json: transformers_weights={named!r} is no safetensors file of this folder")
        if file.suffix == ".safetensors" or not file.exists():
            return [file]
        whole, index = path / "none", file
    if whole.exists() or not index.exists():
        return [whole]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{index}: no weight_map, so not an index of safetensors files")
    files = [path / name if isinstance(name, str) else path for name in names.values()]
    fits = [file.parent == path and file.suffix == ".safetensors" for file in files]
    if strange := [name for fit, name in zip(fits, names.values(), strict=True) if not fit]:
        raise ValueError(f"{index}: {strange[0]!r} is no safetensors file of this folder")
    return sorted(set(files))
