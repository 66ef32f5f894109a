"""The Triton kernels compile for the cards they are meant for, and fit: no card is needed for that, only time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOM = {80: 163 << 10, 90: 227 << 10}
"""Shared memory of a block, bytes, by compute capability (CUDA C++ Programming Guide, table of technical specifications)."""

SCRIPT = Path(__file__).parents[1] / "lib" / "compile_triton.py"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ROOM)
def test_compiles_and_fits(capability, tmp_path):
    """The widest heads and the tallest tiles, with all that can be asked of a kernel at once."""
    tiles = [(64, 2, 16), (128, 2, 128), (256, 2, 64), (128, 4, 16), (256, 4, 32)]
    asked = [json.dumps([capability, *tile]) for tile in tiles]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT), *asked], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(f["kernel"] == "attend_items" for f in found) == len(tiles)
    for f in found:
        assert f["shared"] <= ROOM[f["capability"]], f
        if f["kernel"] == "attend_items":
            assert f["tensor cores"] == (f["itemsize"] == 2)
