"""What the checks do about real models: nothing without the folder that fetches them, an error where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "models"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(folder: Path, get: str | None) -> subprocess.CompletedProcess[str]:
    """The script in a repository at ``folder``/repository, beside a ``get.py`` of these lines."""
    (folder / "repository" / ".ci").mkdir(parents=True)
    (folder / "repository" / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "repository" / ".ci" / "models")
    (folder / "repository" / ".venv" / "bin" / "python").symlink_to(sys.executable)
    if get is not None:
        (folder / "shared" / "models").mkdir(parents=True)
        (folder / "shared" / "models" / "get.py").write_text(get, encoding="utf-8")
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(["bash", ".ci/models"], cwd=folder / "repository", capture_output=True, text=True, env=environment)


def test_nothing_where_models_cannot_be_had(tmp_path: Path) -> None:
    done = run(tmp_path, None)
    assert (done.returncode, done.stdout) == (0, "")
    assert not (tmp_path / "cache").exists()


def test_the_folder_outside_the_repository_and_nothing_else_is_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "import sys\nprint('noise')\nopen(sys.argv[2] + '/asked', 'w').write(' '.join(sys.argv))")
    folder = tmp_path / "cache" / "forethought" / "models"
    assert (done.returncode, done.stdout) == (0, f"{folder}\n")
    assert (folder / "asked").read_text().endswith(f"--to {folder} smollm2-135m")


def test_a_model_that_is_not_given_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "raise SystemExit('the registry is away')")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the registry is away" in done.stderr
    assert "could not fetch smollm2-135m" in done.stderr
