"""What crosses processes: every exception and value type of the package survives pickle and copy."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forethought as ft
from forethought.checks import flag, instance, number, once, whole

ROOT = Path(ft.__file__).parent
FOLDERS = ("backend", "decoding", "search", "verifiers")


def exceptions() -> Iterator[type[BaseException]]:
    for module in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")):
        if "Error):" in (text := module.read_text()) or "(Exception):" in text:
            found = import_module("forethought." + ".".join(module.relative_to(ROOT).with_suffix("").parts))
            for kind in vars(found).values():
                if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == found.__name__:
                    yield kind


DONE = ft.Completion("hi", [1, 2], "error", error="no", cost=ft.Cost(kept=2))
ARGUMENTS: dict[str, tuple[Any, ...]] = {"GenerationError": ("it failed", [[DONE]])}
VALUES = [
    DONE, ft.Cost(prompt=3), ft.Score([1], [-0.5]), ft.Piece("a", [1], DONE), ft.Sampling(logit_bias={3: 1.0}),
    ft.Problem("p", "?", "1", meta={"tests": {"hidden": ["assert True"]}}), ft.Verdict("correct", 1.0, meta={"by": "me"}),
    ft.Candidate("t", "a", 0.5, [ft.Verdict("wrong")], DONE), ft.Solution("p", "a", [ft.Candidate("t")], 0),
]  # fmt: skip


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_everything_survives_a_copy(again: Any) -> None:
    kinds = list(exceptions())
    assert ft.GenerationError in kinds
    for kind in kinds:
        error = kind(*ARGUMENTS.get(kind.__name__, ("a message",)))
        twin = again(error)
        assert (type(twin), str(twin), twin.args, vars(twin)) == (kind, str(error), error.args, vars(error))
    assert str(again(ft.GenerationError("it failed", [[DONE]]))) == "it failed"
    for value in VALUES:
        assert again(value) == value


def test_whole_numbers() -> None:
    for good in (3, np.int64(3), np.uint8(3)):
        assert whole("n", good, 1) == 3
        assert type(whole("n", good, 1)) is int
    for bad in (True, np.bool_(True), 3.0, np.float32(3), "3", b"3", None, [3], 3j, float("nan"), int):
        with pytest.raises(TypeError, match="n="):
            whole("n", bad, 1)
    for outside in (0, -1, 10**30):
        with pytest.raises(ValueError, match=f"n={outside}"):
            whole("n", outside, 1, 10)


def test_numbers_flags_and_instances() -> None:
    assert number("x", np.float32(0.5), lambda x: x > 0, "positive") == 0.5
    for bad in (True, "1", None, 1j, [1.0]):
        with pytest.raises(TypeError, match="x="):
            number("x", bad, lambda x: True, "any")
    for outside in (float("nan"), -1, 10**400, -(10**400)):
        with pytest.raises(ValueError, match="positive and finite"):
            number("x", outside, lambda x: 0 < x < 1e300, "positive and finite")
    for bad in (1, 0, "no", None):
        with pytest.raises(TypeError, match="on="):
            flag("on", bad)
    for bad in (int, bool, "x", None):
        with pytest.raises(TypeError, match="n="):
            instance("n", bad, int, "a number")


def test_what_is_set_once() -> None:
    @once("size")
    class Box:
        def __init__(self) -> None:
            self.size = self.other = 1

    box = Box()
    box.other = 2
    with pytest.raises(AttributeError, match=r"Box\.size is fixed"):
        box.size = 2
    assert (box.size, box.other) == (1, 2)
