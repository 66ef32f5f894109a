"""Tensors of a Hugging Face checkpoint folder, by name, from one or several safetensors files.

Names lose their ``model.`` prefix, so that backbones and full models read alike. Pickles are never opened.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor


class Checkpoint:
    """A read-only mapping from tensor name to tensor that remembers what was read."""

    def __init__(self, tensors: dict[str, Tensor], source: str = "these weights") -> None:
        self.source = source
        self._tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._read: dict[str, Tensor] = {}

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read every safetensors file that the folder's index names, or its only one."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        index = path / "model.safetensors.index.json"
        if index.exists():
            files = sorted({path / name for name in json.loads(index.read_text())["weight_map"].values()})
        else:
            files = [path / "model.safetensors"]
        tensors: dict[str, Tensor] = {}
        for file in files:
            if not file.exists():
                pickles = [p.name for p in path.glob("*.bin")]
                hint = f"; {', '.join(pickles)} is a pickle, and only safetensors are read" if pickles else ""
                raise FileNotFoundError(f"{path}: no {file.name}{hint}")
            try:
                tensors.update(load_file(file))
            except SafetensorError as e:
                raise ValueError(f"{file}: not a readable safetensors file ({e})") from e
        return cls(tensors, str(path))

    def on(self, device: torch.device, dtype: torch.dtype) -> Checkpoint:
        """The same tensors, converted as they are read."""
        self._device, self._dtype = device, dtype
        return self

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._read:
            if name not in self._tensors:
                raise ValueError(f"{self.source}: the checkpoint has no tensor {name}")
            self._read[name] = self._tensors[name].to(self._device, self._dtype)
        return self._read[name]

    @property
    def parameters(self) -> int:
        """Weights read so far, each once."""
        return sum(tensor.numel() for tensor in self._read.values())

    def finish(self) -> None:
        """Check that nothing but known leftovers stayed unread."""
        ignored = ("rotary_emb.inv_freq", "lm_head.weight")
        left = [n for n in self._tensors if n not in self._read and not n.endswith(ignored)]
        if left:
            raise ValueError(f"{self.source}: tensors this block has no place for: {', '.join(sorted(left)[:4])}")
