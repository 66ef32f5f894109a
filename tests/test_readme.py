"""What README.md says to type does what it says: Python blocks run, commands succeed, the excerpt is what is printed."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from forethought.backend.load import BUILT_IN
from forethought.evals.cli import main

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [block.splitlines() for kind, block in BLOCKS if kind == "bash"]
LONG = ("forethought bench", "forethought demo")

NANO = BUILT_IN / "nano" / "model.safetensors"
needs_nano = pytest.mark.skipif(not NANO.exists(), reason="the weights of nano are not there")


def blocks(kind: str) -> list[str]:
    return [block for found, block in BLOCKS if found == kind]


def printed(command: str) -> str:
    """What a command of the toolkit prints; it must succeed."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "forethought"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(arguments) == 0
    return out.getvalue()


@pytest.fixture
def my_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's own checkpoint, in the reader's folder."""
    shutil.copytree(BUILT_IN / "nano", tmp_path / "my-checkpoint")
    monkeypatch.chdir(tmp_path)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "bash", "bibtex"}
    assert all(line.split()[0] in ("forethought", "make", "pip") for lines in COMMANDS for line in lines)


@needs_nano
@pytest.mark.usefixtures("my_checkpoint")
@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@needs_nano
@pytest.mark.usefixtures("my_checkpoint")
@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(lines, marks=pytest.mark.slow if any(line.startswith(LONG) for line in lines) else ())
        for block in COMMANDS
        if (lines := [line for line in block if line.startswith("forethought")])
    ],
)
def test_commands_of_a_block_one_after_the_other(commands: list[str]) -> None:
    for command in commands:
        assert printed(command)


@needs_nano
@pytest.mark.parametrize("block", blocks("console"))
def test_excerpt_is_what_is_printed(block: str) -> None:
    def without_seconds(text: str) -> str:
        return re.sub(r"\d+\.\d\d s, [\d,]+ tokens/s", "", text).strip()

    command, _, shown = block.replace("\\\n", "").partition("\n")
    assert without_seconds(printed(command.removeprefix("$ "))) == without_seconds(shown)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
