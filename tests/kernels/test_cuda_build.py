"""Building the CUDA kernels: what nvcc says of them for each card they are written for, and the cache of built libraries."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from forethought.kernels import cuda_attention, cuda_build
from forethought.kernels.attention import attend, choose
from forethought.kernels.cuda_attention import width_for

PLUS = 'extern "C" int plus(int a, int b) { return a + b; }\n'
has_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def nvcc_or_skip() -> str:
    try:
        return cuda_build.nvcc()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", cuda_build.ARCHS)
@pytest.mark.parametrize("width", cuda_build.WIDTHS)
def test_no_warnings_no_spills_and_the_committed_table(width, arch):
    """All kernels. Registers are nvcc's choice: they are compared for the release that wrote the table."""
    nvcc_or_skip()
    committed = json.loads((cuda_build.SOURCES / "resources.json").read_text())
    expected = {name: used for name, used in committed["kernels"].items() if name.endswith(f" {width} {arch}")}
    table = cuda_build.resources(width, arch)
    assert len(table) == 8
    for kernel, used in table.items():
        assert used["spills"] == used["stack"] == 0, kernel
        assert used["shared"] <= (166912 if arch == "sm_80" else 232448), kernel
    if committed["nvcc"] != cuda_build.release():
        for used in (*table.values(), *expected.values()):
            del used["registers"]
    assert table == expected, committed["made by"]


# ---- the cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources with one small function, and an empty cache."""
    monkeypatch.setattr(cuda_build, "SOURCES", tmp_path / "csrc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "plus.cu").write_text(PLUS)
    return tmp_path / "csrc"


def counting_compiler(folder: Path) -> tuple[list[str], Path]:
    """g++ by a script that notes each call."""
    script, log = folder / "compiler", folder / "calls"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec g++ "$@"\n')
    script.chmod(0o755)
    return [str(script), "-shared", "-fPIC", "-x", "c++"], log


def compilations(log: Path) -> int:
    return sum("--version" not in line for line in log.read_text().splitlines())


@has_gcc
def test_built_once_and_again_when_anything_changes(sources, tmp_path):
    command, log = counting_compiler(tmp_path)
    assert cuda_build.built("plus.cu", command).plus(2, 3) == 5
    assert cuda_build.built("plus.cu", command).plus(2, 3) == 5
    assert compilations(log) == 1
    cuda_build.built("plus.cu", [*command, "-O1"])
    assert compilations(log) == 2
    (sources / "plus.cu").write_text(PLUS.replace("+ b", "+ b + 1"))
    assert cuda_build.built("plus.cu", command).plus(2, 3) == 6
    (sources / "device.cuh").write_text("// a header")
    cuda_build.built("plus.cu", command)
    assert compilations(log) == 4
    assert cuda_build.cache_folder() == tmp_path / "cache" / "forethought" / "kernels"
    assert {path.suffix for path in cuda_build.cache_folder().iterdir()} == {".so", ".lock"}


@has_gcc
def test_a_failed_build_shows_the_compilers_words_and_leaves_nothing(sources):
    (sources / "plus.cu").write_text("int broken(\n")
    with pytest.raises(RuntimeError, match=r"(?s)g\+\+ -shared .*plus\.cu.*failed \(1\).*error:"):
        cuda_build.built("plus.cu", ["g++", "-shared", "-x", "c++"])
    assert not list(cuda_build.cache_folder().glob("*.so"))


def test_a_library_that_does_not_load_says_what_to_delete(sources, tmp_path):
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\nfor last; do :; done\ncase "$last" in --version) ;; *) echo junk > "$last" ;; esac\n')
    script.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"cannot load .*delete it"):
        cuda_build.built("plus.cu", [str(script)])


def test_no_compiler(sources, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="no-such-compiler"):
        cuda_build.built("plus.cu", ["no-such-compiler"])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=f"no nvcc: CUDA_HOME='{tmp_path}'"):
        cuda_build.nvcc.__wrapped__()


def test_where_nvcc_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    mine = tmp_path / "bin" / "nvcc"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda_build.nvcc.__wrapped__() == str(mine)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    assert cuda_build.nvcc.__wrapped__() == str(mine)


# ---- what is refused ------------------------------------------------------------------------------------------------------


def test_widths():
    sizes = {8: 64, 32: 64, 64: 64, 72: 128, 80: 128, 96: 128, 128: 128, 136: 256, 256: 256}
    assert {dim: width_for(dim, dim) for dim in sizes} == sizes
    assert width_for(128, 64) == width_for(64, 128) == 128


@pytest.mark.parametrize("sizes", [(264, 64), (64, 512), (100, 100), (0, 64)])
def test_head_sizes_refused(sizes):
    bad = next(size for size in sizes if size != 64)
    why = cuda_attention.refuses_heads(torch.float16, *sizes)
    assert why == f"head size {bad}: multiples of 8 (16 bytes) up to 256"


def test_what_is_refused_and_what_is_not():
    assert cuda_attention.refuses_heads(torch.float32, 36, 4) is None
    assert cuda_attention.refuses_heads(torch.bfloat16, 32, 256) is None
    assert "dtype float64: one of float16, bfloat16, float32" in str(cuda_attention.refuses_heads(torch.float64, 64, 64))


@pytest.mark.parametrize("call", [attend, cuda_attention.attend])
def test_a_named_implementation_never_runs_another(write, call):
    views = write.views([write.Row([1], [write.Part([0, 1])])])
    named = {"impl": "cuda"} if call is attend else {}
    with pytest.raises(ValueError, match=r"impl='cuda': it runs on a CUDA device, not on cpu"):
        call(*write.inputs(views, torch.float16, dim=64), views, scale=1.0, **named)
    with pytest.raises(ValueError, match="not on cpu"):
        choose("cuda", torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "compiler", "why"),
    [((7, 5), True, "7.5: at least 8.0"), ((9, 0), False, "no nvcc"), ((9, 0), True, None)],
)
def test_cards_and_machines_refused(monkeypatch, capability, compiler, why):
    def missing():
        raise RuntimeError("there is no nvcc")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(cuda_attention, "nvcc", (lambda: "nvcc") if compiler else missing)
    said = cuda_attention.refuses(torch.device("cuda", 0), torch.float16, 64, 64)
    assert said is None if why is None else why in said


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="for a machine without a driver")
def test_no_driver(tmp_path, monkeypatch):
    """The library nvcc builds loads and knows its call; preparing it names what the machine lacks."""
    nvcc_or_skip()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = cuda_build.cuda_library.__wrapped__(64, "sm_90")
    with pytest.raises(RuntimeError, match=r"CUDA error (35|100|3): .*driver|CUDA error 100: no CUDA-capable"):
        cuda_attention.prepare(library)
