"""A run's folder: complete lines are kept whatever happens, and nobody else writes into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forethought.evals.folder import FORMAT, RunFolder, identity, read, write

WHAT = {"config": {"strategy": {"n": 8}, "seed": 0}, "weights": "abc", "truth": "maths"}


def test_lines_come_back_in_order_over_several_openings(tmp_path: Path) -> None:
    rows = [{"i": i, "text": text} for i, text in enumerate(["plain", "zwei\nZeilen", "\u2028 \x00 é 𝄞", "\ud800 alone", ""])]
    with RunFolder(tmp_path / "deep" / "run", WHAT) as folder:
        folder.append("samples", rows[:2])
        assert list(folder.read("samples")) == rows[:2]
        assert list(folder.read("verdicts")) == []
    with RunFolder(tmp_path / "deep" / "run", WHAT) as folder:
        folder.append("samples", [])
        folder.append("samples", rows[2:])
    assert list(read(tmp_path / "deep" / "run", "samples")) == rows
    assert identity(tmp_path / "deep" / "run") == {"format": FORMAT, **WHAT}


def test_lines_are_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((tmp_path / "samples.jsonl").read_text())

    with RunFolder(tmp_path, WHAT) as folder:
        monkeypatch.setattr(os, "fsync", fsync)
        folder.append("samples", [{"i": 0}])
        folder.append("samples", [{"i": 1}, {"i": 2}])
    assert synced == ['{"i": 0}\n', '{"i": 0}\n{"i": 1}\n{"i": 2}\n']


def test_a_torn_line_is_overlooked_and_cut_off(tmp_path: Path) -> None:
    """At every byte at which a writer can have died."""
    with RunFolder(tmp_path, WHAT) as folder:
        folder.append("samples", [{"i": 0}, {"text": "é\n"}])
    whole = (tmp_path / "samples.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        (tmp_path / "samples.jsonl").write_bytes(whole[:end])
        kept = [{"i": 0}, {"text": "é\n"}][: (end >= first) + (end == len(whole))]
        assert list(read(tmp_path, "samples")) == kept
        with RunFolder(tmp_path, WHAT) as folder:
            folder.append("samples", [{"i": 9}])
        assert list(read(tmp_path, "samples")) == [*kept, {"i": 9}]


def test_damage_in_the_middle_is_no_torn_line(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b'{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 2"):
        list(read(tmp_path, "samples"))
    (tmp_path / "samples.jsonl").write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match="line 1: not an object"):
        list(read(tmp_path, "samples"))


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    program = f"from forethought.evals.folder import RunFolder\nRunFolder({str(tmp_path)!r}, {WHAT!r}).close()"

    def attempt() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr

    folder = RunFolder(tmp_path, WHAT)
    assert "RuntimeError" in attempt()
    assert "another process is writing" in attempt()
    folder.close()
    assert attempt() == ""


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"config": {"strategy": {"n": 9}, "seed": 0}, "weights": "abc"}, "another config: strategy.n=8, now strategy.n=9"),
        ({"config": {"strategy": {"n": 8}}, "weights": "abc"}, "another config: seed=0, now seed=null"),
        ({**WHAT, "weights": "abd"}, 'another weights: "abc", now "abd"'),
        ({**WHAT, "more": 1}, "another more: null, now 1"),
    ],
)
def test_what_would_mix_two_runs_is_refused(tmp_path: Path, other: dict[str, object], message: str) -> None:
    with RunFolder(tmp_path, WHAT) as folder:
        folder.append("samples", [{"i": 0}])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path, other)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    RunFolder(tmp_path, WHAT).close()


def test_draws_of_nobody_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"i": 0}\n')
    with pytest.raises(ValueError, match=r"no run\.json"):
        RunFolder(tmp_path, WHAT)


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run"):
        identity(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}"):
        identity(tmp_path)


@pytest.mark.parametrize("old", [1, 2])
def test_an_older_run_says_why_it_is_refused(tmp_path: Path, old: int) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": old, **WHAT}))
    (tmp_path / "samples.jsonl").write_text('{"i": 0}\n')
    for open_it in (lambda: identity(tmp_path), lambda: RunFolder(tmp_path, WHAT)):
        with pytest.raises(ValueError, match=f"format {old}, this version reads format {FORMAT}; it does not say which"):
            open_it()


def test_what_drew_nothing_claims_no_folder(tmp_path: Path) -> None:
    """A first command that was wrong, and failed before its first draw, does not stand in the way of the right one."""
    RunFolder(tmp_path, WHAT | {"config": {"max_tokens": 5000}}).close()
    (tmp_path / "verifiers.json").write_text('{"wrong": {}}')
    with RunFolder(tmp_path, WHAT) as folder:
        assert not (tmp_path / "verifiers.json").exists()
        folder.append("samples", [{"i": 0}])
    with pytest.raises(ValueError, match="begun with another config"):
        RunFolder(tmp_path, WHAT | {"config": {"max_tokens": 5000}})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 3}'])
def test_a_broken_identity_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}(/run\.json)?: "):
        identity(tmp_path)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a run is a folder"):
        RunFolder(tmp_path / "file", WHAT)
    with pytest.raises(ValueError, match="a folder, where a file is to be written"):
        write(tmp_path, "text")
    assert sorted(path.name for path in tmp_path.parent.glob(f"{tmp_path.name}*")) == [tmp_path.name]


def test_a_line_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    rows = [{"problem": p, "index": i, "text": f"{p}{i}"} for p in "ab" for i in range(3)]
    with RunFolder(tmp_path, WHAT) as folder:
        folder.append("samples", rows)
        folder.append("samples", [*rows[1:4], dict(reversed(rows[0].items()))])
        assert list(folder.once("samples", "problem", "index")) == rows
        folder.append("samples", [rows[4] | {"text": "another"}])
        with pytest.raises(ValueError, match=r"samples\.jsonl: two lines for problem b, index 1 that contradict"):
            list(folder.once("samples", "problem", "index"))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    with RunFolder(tmp_path, WHAT) as folder:
        folder.write("results.json", "one")
        folder.write("results.json", "two")
        assert (tmp_path / "results.json").read_text() == "two"
        assert not list(tmp_path.glob("*.new"))
