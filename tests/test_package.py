"""The package as its users get it: a light import, the public names, and a wheel that holds what the repository does."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import forethought

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Tom has 3 pens. He buys 4 more pens. How many pens does Tom have?"

NO_NETWORK = '''
import socket

def refuse(*_):
    raise OSError("no network in this test")

socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = refuse
'''


def public_names() -> set[str]:
    """What the stub of the package binds, dunders aside."""
    names = set()
    for node in ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("__")}


def tracked_files() -> list[str]:
    """Tracked files that exist, as paths from the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]


def shipped(name: str) -> bool:
    """Does this tracked file belong in the wheel? The folders of code do, and of the root what Python reads."""
    folder, _, rest = name.partition("/")
    if rest:
        return folder[0] != "." and folder not in ("tests", "benchmarks", "docs")
    return Path(name).suffix in (".py", ".pyi", ".typed")


def test_import_is_light(tmp_path: Path) -> None:
    heavy = ["torch", "numpy", "transformers", "accelerate", "hydra", "omegaconf"]
    code = f"import sys, forethought; dir(forethought); print(*(set({heavy}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_public_names_are_the_stubs() -> None:
    names = public_names()
    assert set(forethought.__all__) - {"__version__"} == names
    assert names <= set(dir(forethought))
    for name in names:
        assert getattr(forethought, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        forethought.no_such_name  # noqa: B018


def test_every_folder_is_a_listed_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent for name in tracked_files() if name.endswith(".py") and shipped(name)}
    assert set(listed) == {".".join(("forethought", *folder.parts)) for folder in folders}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tracked files, built from a copy: a ``build/`` left in the tree would ship modules since deleted."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run(build, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_tracked_files(wheel: Path) -> None:
    held = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    metadata = f"forethought-{forethought.__version__}.dist-info"
    assert {name.split("/")[0] for name in held} == {"forethought", metadata}
    expected = {f"forethought/{name}" for name in tracked_files() if shipped(name)}
    assert {name for name in held if name.startswith("forethought/")} == expected
    assert f"{metadata}/licenses/LICENSE" in held


@pytest.mark.slow
def test_wheel_answers_without_network(wheel: Path, tmp_path: Path) -> None:
    home, environment = tmp_path / "home", tmp_path / "environment"
    home.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)

    # What the package depends on is borrowed from this environment rather than downloaded again. Nothing else is: a path
    # added by a .pth file comes last, and .pth files in it, such as those of an editable install, are not read.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "no_network.py").write_text(NO_NETWORK)
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\nimport no_network\n")

    def run(*command: str | Path) -> str:
        clean = {"PATH": os.defpath, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run(python, "-c", "import forethought; print(forethought.__file__)").strip()).is_relative_to(site)
    answer = run(environment / "bin" / "forethought", "solve", QUESTION)
    assert r"\boxed{" in answer or re.search(r"^\W*answer\b.*\d", answer, re.IGNORECASE | re.MULTILINE), answer
