"""Long plain chains by torch's own attention, all else by somebody else: together they are the float64 reference, and each
row goes where it belongs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chains import HERE, together
from torch import Tensor

from forethought.kernels import attention, prefill, reference
from forethought.kernels.rotary import Rotary
from forethought.kernels.tuning import FOLDER
from forethought.kernels.views import Views


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("prefix", [0, 1, 9, 40])
def test_chains_behind_a_prefix_beside_other_rows(
    prefix: int, shared: int, dtype: torch.dtype, write: Any, dense: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Decoding rows, a short chain, a tree and a rotated part, in front of, between and behind two chains."""
    slots = iter(np.random.default_rng(0).permutation(400).tolist())

    def part(count: int, offset: int = 0) -> Any:
        return write.Part([next(slots) for _ in range(count)], offset)

    def chain(before: int, count: int) -> Any:
        return write.Row(list(range(before, before + count)), [part(before + count)])

    rows = [
        chain(12, 1), chain(prefix, 17), chain(5, 3), write.Row([8, 9, 9], [part(11)], [-1, 0, 0]),
        write.Row([6, 7], [part(4, 3), part(5, 3)]), chain(prefix + 3, 16), chain(30, 1),
    ]  # fmt: skip
    tree = rows[3].parts[0].slots
    views = write.views(rows, {tree[10]: 9})
    q, k, v = write.inputs(views, dtype, shared=shared)
    rotary = Rotary(torch.tensor([1.0, 0.2], dtype=torch.float64))
    wanted, _ = dense(q, k, v, views, scale=q.shape[2] ** -0.5, rotary=rotary)
    out = together(q, k, v, views, 16, rotary=rotary)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-5)
    found = prefill.split(views, None, 16, HERE)
    assert found is not None
    assert [(c.begin, c.end, len(c.slots)) for c in found.chains] == [(1, 18, prefix + 17), (26, 42, prefix + 19)]
    assert found.queries is not None
    assert found.queries.tolist() == [0, *range(18, 26), 42]
    assert prefill.split(views, None, 16, HERE) is found


@pytest.mark.parametrize(("window", "taken"), [(None, True), (12, True), (11, False)])
def test_a_window_that_hides_nothing_is_none(window: int | None, taken: bool, write: Any) -> None:
    views = write.views([write.Row([8, 9, 10, 11], [write.Part(range(12))])])
    assert (prefill.split(views, window, 4, HERE) is not None) == taken
    assert prefill.split(views, window, 5, HERE) is None


@pytest.mark.parametrize(
    "about",
    [
        {"positions": [7, 8, 9, 10]}, {"positions": [8, 10, 9, 11]}, {"tree": [0, 1, 2, 4]}, {"offsets": [1]},
        {"last": [8, 9, 10, 10]}, {"slot_positions": [1, 0, *range(2, 12)]}, {"part_ptr": [0, 2], "slot_ptr": [0, 3, 12]},
    ],
)  # fmt: skip
def test_what_is_no_plain_chain_stays_with_the_twin(about: dict[str, list[int]], write: Any) -> None:
    """One thing at a time that a chain of four behind eight does not say."""
    views = write.views([write.Row([8, 9, 10, 11], [write.Part(range(12))])])
    assert prefill.split(views, None, 4, HERE) is not None
    other = replace(views, plans={}, **{name: np.array(value) for name, value in about.items()})
    assert prefill.split(other, None, 4, HERE) is None


@pytest.mark.parametrize(
    ("dtype", "dim", "dim_v", "why"),
    [
        (torch.bfloat16, 128, 128, None), (torch.float16, 256, 256, None), (torch.float32, 128, 128, "float32"),
        (torch.bfloat16, 128, 64, "128 and 64"), (torch.bfloat16, 264, 264, "264"), (torch.bfloat16, 36, 36, "36"),
    ],
)  # fmt: skip
def test_what_flash_attention_takes(dtype: torch.dtype, dim: int, dim_v: int, why: str | None) -> None:
    found = prefill.refuses(dtype, dim, dim_v)
    assert found is None if why is None else found is not None and why in found


class TestSeam:
    """Who is asked, with a twin that is plain torch and a device that is said to want the library from 4 queries on."""

    asked: list[int]

    @pytest.fixture(autouse=True)
    def card(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = []

        def twin(q: Tensor, k: Tensor, v: Tensor, views: Views, *, sinks: Tensor | None, **options: Any) -> Any:
            self.asked.append(len(q))
            return reference.attend(q, k, v, views, **options)

        module = SimpleNamespace(attend=lambda *a, sinks=None, **o: twin(*a, sinks=sinks, **o), refuses=lambda *a: None)
        monkeypatch.setattr(attention, "_module", lambda name: module)
        monkeypatch.setattr(attention, "_best", lambda *about: ("triton", "a test"))
        monkeypatch.setattr(attention, "flash_from", lambda *about: 4)
        monkeypatch.setattr(Tensor, "is_cpu", False)

    def run(self, write: Any, impl: str = "auto", **options: Any) -> tuple[Tensor, Tensor]:
        views = write.views([write.Row([6], [write.Part(range(7))]), write.Row(range(2, 8), [write.Part(range(10, 18))])])
        q, k, v = write.inputs(views, torch.float64)
        options |= {"scale": 0.3}
        wanted = reference.attend(q, k, v, views, scale=0.3, softcap=options.get("softcap"))[0]
        return attention.attend(q, k, v, views, impl=impl, **options)[0], wanted

    def test_auto_shares_the_rows_out(self, write: Any) -> None:
        torch.testing.assert_close(*self.run(write), rtol=0, atol=1e-9)
        assert self.asked == [1]

    @pytest.mark.parametrize("options", [{"impl": "triton"}, {"need_lse": True}, {"softcap": 5.0}])
    def test_the_twin_keeps_what_the_library_cannot_and_what_it_is_named_for(self, write: Any, options: Any) -> None:
        torch.testing.assert_close(*self.run(write, **options), rtol=0, atol=1e-9)
        assert self.asked == [7]


def test_from_how_many_queries_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def about(device: torch.device) -> Any:
        return SimpleNamespace(name="some card", major=9, minor=0)

    monkeypatch.setattr(torch.cuda, "get_device_properties", about)
    committed = json.loads((FOLDER / "sm_90.json").read_text())
    expected = committed["prefill_queries"] if committed["prefill"] == "sdpa" else None
    ask = attention.flash_from.__wrapped__
    assert ask(torch.device("cuda"), torch.bfloat16, 128, 128) == expected
    assert ask(torch.device("cuda"), torch.float32, 128, 128) is None
    assert ask(HERE, torch.bfloat16, 128, 128) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefix", [0, 1, 700])
def test_on_a_card(prefix: int, dtype: torch.dtype, write: Any) -> None:
    """Beside decoding rows; against float64, without a wait for the device."""
    count, rng = 300, np.random.default_rng(0)
    slots = rng.permutation(prefix + count + 200).tolist()
    rows = [
        write.Row([99], [write.Part(slots[:100])]), write.Row([49], [write.Part(slots[100:150])]),
        write.Row(range(prefix, prefix + count), [write.Part(slots[150 : 150 + prefix + count])]),
    ]  # fmt: skip
    views = write.views(rows)
    q, k, v = (x.cuda() for x in write.inputs(views, dtype, kv_heads=2, shared=4, dim=128))
    wanted = reference.attend(q.double(), k.double(), v.double(), views, scale=128**-0.5)[0]
    attention.attend(q, k, v, write.views(rows), scale=128**-0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attention.attend(q, k, v, write.views(rows), scale=128**-0.5)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float((out.double() - wanted).norm() / wanted.norm()) < 1e-2
