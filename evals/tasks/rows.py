"""Rows of a benchmark: from a file, from the folder that FORETHOUGHT_DATA names, or from the Hugging Face Hub."""

from __future__ import annotations

import gzip
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ...schema import Problem
from .forms import Form, chosen
from .task import Task


class Source(NamedTuple):
    """Where a benchmark is found: a file of JSON lines below the data folder, and on the Hub."""

    file: str
    hub: str
    subset: str | None
    split: str


class RowsTask(Task):
    """``path``: a file of JSON lines or a Hub id, instead of where the rows should be. ``count``: only the first ones.
    ``prompt``: one of the benchmark's ``forms`` by name (None: the first), or text with ``{question}`` in it.
    """

    source: Source
    forms: Mapping[str, Form]
    """How it can be put, by name."""

    def __init__(self, path: str | None = None, count: int | None = None, prompt: str | None = None) -> None:
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"task.count={count!r}: a whole number of at least 1, or null for all")
        self.path, self.count = path, count
        self.form = chosen(next(iter(self.forms)) if prompt is None else prompt, self.forms)

    def problems(self) -> Sequence[Problem]:
        found = [row for row in self.rows() if self.keep(row)][: self.count]
        try:
            return [self.problem(i, row) for i, row in enumerate(found)]
        except KeyError as e:
            raise ValueError(f"{self.name}: a row without {e}") from None

    def rows(self) -> list[dict[str, Any]]:
        """All there are, some of which may not belong to the benchmark."""
        return rows(self.source, self.path)

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row belongs to the benchmark."""
        return True

    @abstractmethod
    def problem(self, number: int, row: dict[str, Any]) -> Problem:
        """The problem of one row, the ``number``-th."""


def rows(source: Source, given: str | None) -> list[dict[str, Any]]:
    """All rows, in order. ``given``: a file of JSON lines (perhaps .gz), a Hub id ("org/name"), or None for where they should be.

    Raises ``FileNotFoundError`` that names what was looked for, ``ValueError`` with the number of a line that is no JSON object.
    """
    if given is not None and (Path(given).is_file() or given.startswith((".", "/", "~"))):
        return list(_lines(Path(given).expanduser()))
    folder = os.environ.get("FORETHOUGHT_DATA")
    if given is None and folder:
        return list(_lines(Path(folder) / source.file))
    return _from_hub(source, given or source.hub)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of benchmark rows")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {number}: {e}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not an object")
            yield row


def _from_hub(source: Source, name: str) -> list[dict[str, Any]]:
    try:
        load_dataset = import_module("datasets").load_dataset
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"{source.file}: FORETHOUGHT_DATA names no folder to read it from, and the Hub needs pip install 'forethought[eval]'"
        ) from None
    try:
        return [dict(row) for row in load_dataset(name, source.subset, split=source.split)]
    except Exception as e:  # of many types, and the cause is what the user needs
        said = (str(e).splitlines() or [type(e).__name__])[0]
        raise FileNotFoundError(f"{name}: not to be had from the Hugging Face Hub ({said})") from e
