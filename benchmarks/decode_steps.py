"""Whole decode steps of models of real shape: ours with all the host does for them, transformers', and the ceiling.

Run by ``decode.py --cases 0.6B,1.7B,8B``, its default on CUDA. Random weights of Qwen3's shapes, bfloat16, random prompts.

decode  batch 1, 8, 64 behind contexts of 128, 2048, 16384 tokens, prompts that have nothing in common
tree    1, 16, 64 new tokens behind 4096, of which the first one is kept: what a step of verification costs
prefix  64 samples of one prompt of 2048

Ours ("ours"): an engine with its defaults, that reads the prompts itself; a step lasts from one decision to the next. "eager":
``transformers.generate``, whose steps end at its logits processors; "static": the same with a static cache, which it compiles on
CUDA (batch 1 and 8 only). The contenders of a cell follow one another, as the card holds one's keys and values at a time.

Ceiling: the weights, and the keys and values of each distinct token of the prompts, read once a step as fast as a device copy
measured in the same run goes; "share" is the ceiling's time by the step's. Cells that would fill more than 80 % of the card
(weights twice, as transformers holds its own) are left out, and so is what has not begun after ``--seconds``; both are said.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from attention import copy_speed

import forethought as ft
from forethought.backend.batch import Output
from forethought.backend.checkpoint import Checkpoint
from forethought.backend.decoder import Decision, Draft
from forethought.backend.request import Row
from forethought.backend.transformer import Transformer
from forethought.kernels.transfer import put

QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1e6,
         "max_position_embeddings": 40960}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 3072, "tied": True},
    "1.7B": {"num_hidden_layers": 28, "hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 6144, "tied": True},
    "8B": {"num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 12288, "tied": False},
}
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 48, "vocab_size": 128}  # fmt: skip
STEPS, QUICK_STEPS = 40, 4
"""Timed steps of a cell."""
WARM = 4
"""Steps before these."""
NEAR = 0.3
"""Standard deviations of the logits that rounding may put between two of them. Random ones are some four apart."""
COMPILED = 8
"""Rows that a static cache is compiled for, at most."""


class Cell(NamedTuple):
    name: str
    batch: int
    context: int
    new: int = 1
    """Tokens a row and step."""

    @property
    def slots(self) -> int:
        """Distinct tokens that a step reads."""
        return self.context * (1 if self.name == "prefix" else self.batch)


def cells(quick: bool) -> list[Cell]:
    """What is asked for first comes first."""
    if quick:
        return [Cell("decode", 1, 12), Cell("decode", 3, 12), Cell("tree", 1, 16), Cell("tree", 1, 16, 4), Cell("prefix", 3, 12)]
    first = [Cell("decode", 1, 2048), Cell("decode", 8, 2048), *(Cell("tree", 1, 4096, new) for new in (1, 16, 64))]
    more = [(1, 128), (1, 16384), (64, 2048), (8, 16384), (8, 128), (64, 128), (64, 16384)]
    return [*first, *(Cell("decode", *x) for x in more), Cell("prefix", 64, 2048)]


# ---- what is compared ---------------------------------------------------------------------------------------------------


class Clocked(ft.Autoregressive):
    """Plain decoding that notes when each step was decided: everything before it is done by then, on the device too."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[int, int, float]] = []
        """Rows, new tokens in the call, and the moment."""

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        decision = super().decide(rows, draft, output)
        self.times.append((len(rows), output.tokens, time.perf_counter()))
        return decision

    def seconds(self, rows: int, tokens: int) -> list[float]:
        """Of the steps that computed just that, behind others that did."""
        alike = [(found[:2] == (rows, tokens), found[2]) for found in self.times]
        return [end - start for (before, start), (now, end) in pairwise(alike) if before and now]


class Verifying(Clocked):
    """Verifies ``nodes`` random drafted tokens a row, in a tree, and keeps none."""

    def __init__(self, nodes: int, vocabulary: int) -> None:
        super().__init__()
        rng = np.random.default_rng(nodes)
        self.ids = rng.integers(0, vocabulary, nodes).tolist()
        self.parents = [int(rng.integers(max(0, i - 4), i + 1)) for i in range(nodes)]

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        count, n = len(rows), len(self.ids)
        return Draft(self.ids * count, self.parents * count, list(range(0, n * count + 1, n))) if n * count <= budget else None

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        if draft is None or output.logits is None:
            return super().decide(rows, None, output)
        ptr = draft.lists()[2]
        roots = put([begin + i for i, begin in enumerate(ptr[:-1])], output.logits.device)
        plain = super().decide(rows, None, Output(output.logits.index_select(0, roots), tokens=output.tokens))
        each = list(range(len(rows) + 1))
        return Decision(plain.emitted, each, [0] * len(rows), each, failed=plain.failed)


class Moments(transformers.LogitsProcessor):  # type: ignore[misc]
    """Notes when ``generate`` has logits; its loop waits for the device once a step, so that these are a step apart."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


class Bench:
    """The models of one shape, and what a cell takes with each."""

    def __init__(self, shape: str, device: str, quick: bool) -> None:
        settings = QWEN3 | SHAPES[shape] | (TINY if quick else {})
        tied = settings.pop("tied")
        config = transformers.AutoConfig.for_model(**settings, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None)
        self.shape, self.device, self.steps = shape, device, QUICK_STEPS if quick else STEPS
        torch.manual_seed(0)
        with torch.device(device):
            self.peer = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.model = Transformer(self.peer.config, Checkpoint(self.peer.state_dict()), name=f"random {shape}",
                                 device=torch.device(device), dtype=torch.bfloat16)  # fmt: skip
        unread = 0 if tied else self.peer.model.embed_tokens.weight.nbytes
        self.weights = sum(p.nbytes for p in self.peer.parameters()) - unread
        self.slot = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim

    def check(self) -> None:
        """That ours computes what the peer does: of a few greedy tokens each is among its likeliest. ``AssertionError``."""
        prompt = np.random.default_rng(0).integers(1, self.model.info.vocab_size, 24).tolist()
        with ft.Engine(self.model, ft.Autoregressive(), kv_slots=64, prefill_tokens=64, max_rows=1) as engine:
            [found] = engine.generate(prompt, max_tokens=8, temperature=0, ignore_eos=True, progress=False)
        ids = torch.tensor([[*prompt, *found.token_ids]], device=self.device)
        with torch.inference_mode():
            logits = self.peer(ids[:, :-1]).logits[0, len(prompt) - 1 :].float()
        behind = (logits.amax(-1) - logits.gather(1, ids[0, len(prompt) :, None])[:, 0]) / logits.std(-1)
        if not behind.max() < NEAR:
            raise AssertionError(f"{self.shape}: tokens {behind.tolist()} standard deviations behind those of transformers")

    def fits(self, cell: Cell) -> bool:
        if self.device == "cpu":
            return True
        return 2 * self.weights + cell.slots * self.slot <= 0.8 * torch.cuda.get_device_properties(0).total_memory

    def ceiling(self, cell: Cell, copy: float) -> float:
        """Seconds; ``copy`` in bytes a second."""
        return (self.weights + self.slot * cell.slots) / copy

    def prompts(self, cell: Cell) -> list[list[int]]:
        rng = np.random.default_rng(cell.context)
        count = 1 if cell.name == "prefix" else cell.batch
        return rng.integers(1, self.model.info.vocab_size, (count, cell.context)).tolist()

    def ours(self, cell: Cell) -> list[float]:
        nodes, prefill = cell.new - 1, 512
        decoder = Verifying(nodes, self.model.info.vocab_size) if nodes else Clocked()
        reading = math.ceil(cell.slots / prefill)  # steps that others decode in, until the last one has been read
        tokens = reading + WARM + self.steps + nodes + 2  # no draft may be deeper than what is to come
        slots = cell.slots + cell.batch * (tokens + cell.new) + 64
        with ft.Engine(self.model, decoder, kv_slots=slots, prefill_tokens=prefill) as engine:
            n = cell.batch if cell.name == "prefix" else 1
            engine.generate(self.prompts(cell), n=n, max_tokens=tokens, temperature=0, ignore_eos=True, progress=False)
        return decoder.seconds(cell.batch, cell.batch * cell.new)[WARM:][: self.steps]

    def theirs(self, cell: Cell, static: bool) -> list[float]:
        ids, moments = torch.tensor(self.prompts(cell), device=self.device), Moments()
        new = WARM + self.steps + 1
        # One of its own: generate makes none shorter than the longest that this model has had.
        cache = transformers.StaticCache(self.peer.config, -(-(cell.context + new) // 16) * 16) if static else None
        for _ in range(1 + static):  # the first run compiles
            moments.times.clear()
            if cache is not None:
                cache.reset()
            self.peer.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None,
                logits_processor=transformers.LogitsProcessorList([moments]), past_key_values=cache,
            )  # fmt: skip
        return [end - start for start, end in pairwise(moments.times)][WARM:]

    def contenders(self, cell: Cell) -> dict[str, Callable[[], list[float]]]:
        found: dict[str, Callable[[], list[float]]] = {"ours": lambda: self.ours(cell)}
        if cell.name == "decode":
            found["eager"] = lambda: self.theirs(cell, static=False)
            if cell.batch <= COMPILED:
                found["static"] = lambda: self.theirs(cell, static=True)
        return found


def measure(shape: str, device: str, quick: bool, until: float) -> Iterator[dict[str, Any]]:
    """A row for each cell and contender; ``problem`` in place of figures says why there are none. ``until``: by perf_counter."""
    copy = 1e9 * copy_speed(device, quick)
    bench = Bench(shape, device, quick)
    bench.check()
    for cell in cells(quick):
        found: dict[str, float] = {}
        for name, call in bench.contenders(cell).items():
            row = {"case": shape, "cell": cell.name, "batch": cell.batch, "context": cell.context, "new": cell.new, "impl": name,
                   "device": device}  # fmt: skip
            if not bench.fits(cell):
                yield row | {"problem": "more than 80 % of the card"}
                continue
            if time.perf_counter() > until:
                yield row | {"problem": "out of time"}
                continue
            try:
                low, middle, high = (1e6 * np.percentile(times := call(), (20, 50, 80))).tolist()
            except Exception as problem:  # no room, as an engine says it in its own way, or no compiler: the next may do
                yield row | {"problem": f"{type(problem).__name__}: {problem}".splitlines()[0][:200], "failed": True}
                continue
            finally:
                gc.collect()
                torch._dynamo.reset()
                if device != "cpu":
                    torch.cuda.empty_cache()
            found[name] = middle
            row |= {"us": middle, "us_20": low, "us_80": high, "steps": len(times), "copy_gb_s": copy / 1e9,
                    "tok_s": 1e6 * cell.batch / middle, "share": 1e6 * bench.ceiling(cell, copy) / middle}  # fmt: skip
            if name != "ours" and "ours" in found:
                row[f"ours_x_{name}"] = middle / found["ours"]
            yield row


# ---- what is printed ----------------------------------------------------------------------------------------------------

HEADER = (
    f"{'case':5} {'cell':7} {'batch':>5} {'context':>7} {'new':>4} {'':8} {'us a step (20-80 %)':>28} {'tokens/s':>9} "
    f"{'of ceiling':>10}"
)


def line(row: dict[str, Any]) -> str:
    start = f"{row['case']:5} {row['cell']:7} {row['batch']:5} {row['context']:7} {row['new']:4} {row['impl']:8}"
    if "problem" in row:
        return f"{start} {row['problem']}"
    spread = f"{row['us']:.0f} ({row['us_20']:.0f}-{row['us_80']:.0f})"
    beaten = "".join(f"   ours {row[key]:.2f}x" for key in ("ours_x_eager", "ours_x_static") if key in row)
    return f"{start} {spread:>28} {row['tok_s']:9.0f} {row['share']:10.1%}{beaten}"


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is asked of these figures on a card, and what they are."""

    def of(key: str, impl: str, **where: Any) -> list[float]:
        true = [row for row in rows if row["device"] != "cpu" and not row.get("quick")]
        return [row[key] for row in true if row["impl"] == impl and key in row and where.items() <= row.items()]

    def said(text: str, figures: Sequence[float], least: float = -math.inf, most: float = math.inf) -> str:
        if not figures:
            return f"{text}: not measured"
        worst = min(figures) if least > -math.inf else max(figures)
        return f"{text}: {worst:.2f}, {'holds' if least <= worst <= most else 'FALLS SHORT'} ({len(figures)} cells)"

    one, several = (of("us", "ours", case="8B", cell="tree", new=new) for new in (1, 16))
    return [
        said("8B, batch 1, at least 0.70 of the ceiling", of("share", "ours", case="8B", cell="decode", batch=1), 0.70),
        said("0.6B, batch 1, at least 0.45 of the ceiling", of("share", "ours", case="0.6B", cell="decode", batch=1), 0.45),
        *(
            said(f"{case}, batch 1, at least 3x transformers eager", of("ours_x_eager", "eager", case=case, batch=1), 3)
            for case in ("0.6B", "1.7B")
        ),
        said("never slower than its compiled static cache", of("ours_x_static", "static"), 1),
        said("8B, a tree of 16 by one token, at most 1.3", [statistics.median(several) / statistics.median(one)]
             if one and several else [], most=1.3),
    ]  # fmt: skip
