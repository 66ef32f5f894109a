"""Which launch configuration is taken, and that the committed ones can be read and cover what the kernels support."""

from __future__ import annotations

import json

import pytest

from forethought.kernels.tuning import FOLDER, Config, Tuning, nearest_device, parse, tuning_for, tunings

FILE = {"device": "x", "capability": [9, 0], "measured": False, "prefill": "twin", "prefill_queries": 100, "triton": []}


def config(dim: int, rows: int, itemsize: int = 2) -> Config:
    return Config(dim, itemsize, rows, 32, 4, 2, 1)


def test_the_nearest_is_the_smallest_that_is_enough():
    found = Tuning("x", (9, 0), False, tuple(config(dim, rows) for dim in (64, 128) for rows in (16, 64)))
    for dim, rows, wanted in [
        (64, 1, (64, 16)),
        (80, 16, (128, 16)),
        (128, 17, (128, 64)),
        (32, 500, (64, 64)),
        (256, 20, (128, 64)),
    ]:
        got = found.nearest(dim, 2, rows)
        assert (got.dim, got.rows) == wanted
    with pytest.raises(ValueError, match="4 bytes in the tuning of x"):
        found.nearest(64, 4, 1)


def test_a_device_by_name_then_by_capability_then_one_that_is_older():
    known = [("H200", (9, 0)), ("any 9.0", (9, 0)), ("any 8.0", (8, 0))]
    known = tuple(Tuning(name, capability, False, ()) for name, capability in known)
    cases = {("H200", (9, 0)): "H200", ("A100", (8, 0)): "any 8.0", ("RTX", (8, 9)): "any 8.0", ("B200", (10, 0)): "H200"}
    for (name, capability), wanted in cases.items():
        assert nearest_device(known, name, capability).device == wanted
    assert nearest_device(known[1:], "H100", (9, 0)).device == "any 9.0"
    assert nearest_device(known[:1], "V100", (7, 0)).device == "H200"


def test_what_is_committed():
    assert {t.capability for t in tunings()} >= {(8, 0), (9, 0)}
    for path, tuning in zip(sorted(FOLDER.glob("*.json")), tunings(), strict=True):
        assert tuning.measured or "not measured" in json.loads(path.read_text())["note"]
        for dim in (32, 64, 80, 96, 128, 192, 256):
            for itemsize in (2, 4):
                for rows in (1, 16, 1000):
                    assert tuning.nearest(dim, itemsize, rows).dim >= dim
    assert tuning_for("a card of the future", (12, 0)).capability == (9, 0)


@pytest.mark.parametrize(("name", "value"), [("rows", 8), ("rows", 24), ("block", 0)])
def test_a_file_that_cannot_be_meant(name, value):
    entry = {"dim": 64, "itemsize": 2, "rows": 16, "block": 32, "warps": 4, "stages": 2, "blocks_per_sm": 1} | {name: value}
    with pytest.raises(ValueError, match=f"tuning of x: {name}={value}"):
        parse(FILE | {"triton": [entry]})


@pytest.mark.parametrize("about", [{"prefill": "flash"}, {"prefill_queries": 0}])
def test_prefill_by_one_of_two(about):
    assert parse(FILE).prefill_queries == 100
    with pytest.raises(ValueError, match="tuning of x: prefill="):
        parse(FILE | about)
