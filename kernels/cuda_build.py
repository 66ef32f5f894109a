"""Compiles ``csrc/`` once per machine into the user's cache folder, and loads the result by ctypes.

A library is named after everything it is made from: sources, command, compiler version. No build tool, no torch
headers. Not here: what the functions mean (:mod:`~forethought.kernels.cuda_attention`).
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"


def cache_folder() -> Path:
    """Where built libraries are kept: ``$XDG_CACHE_HOME/forethought/kernels``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forethought" / "kernels"


@functools.cache
def nvcc() -> str:
    """The path of nvcc: of ``$CUDA_HOME``, else the PATH's, else of ``/usr/local/cuda``. ``RuntimeError`` without one."""
    home = os.environ.get("CUDA_HOME")
    for place in (Path(home) / "bin" / "nvcc" if home else "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(place):
            return found
    raise RuntimeError(f"impl='cuda' compiles its kernels on first use and found no nvcc (CUDA_HOME={home!r}, PATH, /usr/local/cuda)")


def nvcc_flags(width: int, arch: str) -> list[str]:
    """How the kernels for heads of up to ``width`` numbers are compiled for ``arch``, e.g. "sm_90"."""
    return ["-std=c++17", "-O3", f"-DWIDTH={width}", f"-arch={arch}", "-Xcompiler", "-fPIC"]


@functools.cache
def cuda_library(width: int, arch: str) -> ctypes.CDLL:
    """The kernels for heads of up to ``width`` numbers, compiled for ``arch`` on first use. ``RuntimeError`` if that fails."""
    return library("attention.cu", [nvcc(), *nvcc_flags(width, arch), "-shared"])


def library(source: str, command: Sequence[str], more: Sequence[Path] = ()) -> ctypes.CDLL:
    """``csrc/<source>`` compiled by ``command``, from the cache if it was built before.

    ``more``: further files the result depends on. Raises ``RuntimeError`` with the compiler's words if it fails.
    """
    digest = hashlib.sha256("\0".join([source, *command, _version(command[0])]).encode())
    for path in [*sorted(SOURCES.iterdir()), *more]:
        digest.update(path.read_bytes())
    target = cache_folder() / f"{Path(source).stem}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(SOURCES / source, command, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise RuntimeError(f"cannot load {target}: {error}; delete it to have it built again") from error


def _compile(source: Path, command: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        half_made = Path(folder) / target.name
        done = subprocess.run([*command, str(source), "-o", str(half_made)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join([*command, str(source)])} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        os.replace(half_made, target)  # at once: whoever looks sees a whole library or none


@functools.cache
def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{compiler} --version: {error}") from error
