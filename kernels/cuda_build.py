"""Compiles ``csrc/`` once per machine into the user's cache folder, and loads the result by ctypes.

A library is named after everything it is made from: sources, command, compiler version. No build tool, no torch
headers. Not here: what the functions mean (:mod:`~forethought.kernels.cuda_attention`).

``python -m forethought.kernels.cuda_build > kernels/csrc/resources.json`` writes what each kernel takes of a card.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
WIDTHS = (64, 128, 256)
"""What the kernels are compiled for, each alone: room for heads of up to so many numbers."""
ARCHS = ("sm_80", "sm_90")
"""What they are written for, and checked for where nvcc exists."""


def cache_folder() -> Path:
    """Where built libraries are kept: ``$XDG_CACHE_HOME/forethought/kernels``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forethought" / "kernels"


@functools.cache
def nvcc() -> str:
    """The path of nvcc: of ``$CUDA_HOME``, else the PATH's, else of ``/usr/local/cuda``. ``RuntimeError`` without one."""
    home = os.environ.get("CUDA_HOME")
    for place in (str(Path(home) / "bin" / "nvcc") if home else "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(place):
            return found
    raise RuntimeError(f"impl='cuda' compiles its kernels on first use, and found no nvcc: CUDA_HOME={home!r}, PATH, /usr/local")


def nvcc_flags(width: int, arch: str) -> list[str]:
    """How the kernels for heads of up to ``width`` numbers are compiled for ``arch``, e.g. "sm_90"."""
    return ["-std=c++17", "-O3", "-ftz=true", f"-DWIDTH={width}", f"-arch={arch}", "-Xcompiler", "-fPIC"]


@functools.cache
def cuda_library(width: int, arch: str) -> ctypes.CDLL:
    """The kernels for heads of up to ``width`` numbers, compiled for ``arch`` on first use. ``RuntimeError`` if that fails."""
    return built("attention.cu", [nvcc(), *nvcc_flags(width, arch), "-shared"])


def built(source: str, command: Sequence[str], more: Sequence[Path] = ()) -> ctypes.CDLL:
    """``csrc/<source>`` compiled by ``command``, from the cache if it was built before.

    ``more``: further files the result depends on. Raises ``RuntimeError`` with the compiler's words if it fails.
    """
    digest = hashlib.sha256("\0".join([source, *command, _version(command[0])]).encode())
    for path in [*sorted(SOURCES.glob("*.cu*")), *more]:
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
        _compile_to(half_made, source, command)
        os.replace(half_made, target)  # at once: whoever looks sees a whole library or none


def _compile_to(target: Path, source: Path, command: Sequence[str]) -> str:
    """What the compiler said."""
    done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join([*command, str(source)])} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@functools.cache
def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{compiler} --version: {error}") from error


def resources(width: int, arch: str) -> dict[str, dict[str, int]]:
    """What each kernel takes when compiled for ``arch``, by name: registers a thread, bytes of shared memory a block, and of
    spills and stack a thread. Any warning is an error (``RuntimeError``)."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "attention.so"
        strict = ["-shared", "-Werror", "all-warnings", "-Xptxas", "-v"]
        words = _compile_to(target, SOURCES / "attention.cu", [nvcc(), *nvcc_flags(width, arch), *strict])
        library = ctypes.CDLL(str(target))
    table = {}
    for kernel, used in re.findall(r"Compiling entry function '(\w+)'((?:(?!Compiling entry).)*)", words, re.DOTALL):
        shape = r"(?:Li(\d+)ELi(\d+)ELi(\d+)ELi(\d+))?"
        found = re.search(rf"(attend_items|merge_pairs)I(?:NS_5ShapeI)?(f|4Half|6Bfloat){shape}", kernel)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", used)
        registers = re.search(r"Used (\d+) registers", used)
        if found is None or spills is None or registers is None:
            raise RuntimeError(f"nvcc says of {kernel} what cannot be read: {used}")
        name, element, *sizes = found.groups()
        element, shared = {"f": "float32", "4Half": "float16", "6Bfloat": "bfloat16"}[element], 0
        if sizes[0]:
            name += "_{}x{}_warps_{}_keys_{}_stages".format(*sizes)
            shared = library.forethought_shared_bytes(4 if element == "float32" else 2, int(sizes[0]))
        stack, stores, loads = map(int, spills.groups())
        table[f"{name} {element} {width} {arch}"] = {
            "registers": int(registers.group(1)), "shared": shared, "spills": stores + loads, "stack": stack,
        }  # fmt: skip
    return table


def all_resources() -> dict[str, dict[str, int]]:
    """:func:`resources` of all that is shipped, compiled side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tables = pool.map(lambda job: resources(*job), [(width, arch) for arch in ARCHS for width in WIDTHS])
        return {name: used for table in tables for name, used in sorted(table.items())}


def release() -> str:
    """The release of nvcc, e.g. "13.0"."""
    found = re.search(r"release ([\d.]+)", _version(nvcc()))
    return found.group(1) if found else "unknown"


if __name__ == "__main__":
    made_by = "python -m forethought.kernels.cuda_build > kernels/csrc/resources.json"
    lines = [f"  {json.dumps(name)}: {json.dumps(used)}" for name, used in all_resources().items()]
    print(json.dumps({"made by": made_by, "nvcc": release()})[:-1] + ',\n "kernels": {\n' + ",\n".join(lines) + "\n }}")
