"""How fast is plain greedy decoding: ours, the bare loop, and ``transformers.generate``?

    python benchmarks/decode.py [--cases single,samples,mixed,qwen3] [--device cuda] [--repeats 5] [--json FILE] [--quick]
    python benchmarks/decode.py --device cuda [--cases 0.6B,1.7B,8B] [--seconds 400] [--json FILE] [--quick]
    python benchmarks/decode.py --table FILE

The second form measures single steps of models of real shape, see ``decode_steps.py``; the third prints what it wrote and what
was hoped of it. Of the first:

One process, the same random weights (seed 0; written once as a checkpoint, which ours loads), the same tokens. The
contenders take turns, A, B, C, A, B, C, so that the machine's moods hit all alike; the table gives medians and ranges over
the repeats, and ratios are taken within a repeat. A timed run goes from prompt ids to output ids, prompt included. An end
of text ends nothing.

single   prompt 64, 256 new tokens                             a Llama of 6 layers, width 256, 4 heads, 2 KV heads,
samples  32 greedy copies of one prompt 128, 128 new tokens    MLP 672, vocabulary 512, float32
mixed    256 requests, prompts of 16 to 512 and outputs of 16 to 256 tokens, log-uniform; tokens not asked for do not count
qwen3    prompt 16, 12 new tokens; Qwen3-0.6B's shape, bfloat16

Ours: an engine with its defaults, all requests at once, its prefix cache emptied before every run. Bare (``bare.py``): one
prompt only, computed once for all its samples. transformers: default cache and attention; samples as a batch of copies;
mixed in batches of 32, left-padded, sorted by output length, the order that costs it the least.

Before anything is timed all must give the same tokens. In float32 a difference is an error unless it starts at a tie (two
logits closer than 1e-4), which is counted; in bfloat16 the sequences that differ are only counted. GB/s: the weights once
a forward, and the keys and values that each new token attends to, as if samples shared none; a lower bound of the traffic
but where they do. Not measured: sampling, streaming, latency.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import platform
import random
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import decode_steps
import torch
import transformers
from bare import Bare

import forethought as ft

TIE = 1e-4
BATCH = 32
PAD = 0

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 672, "vocab_size": 512, "max_position_embeddings": 1024,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1e6,
    "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 512}


class Request(NamedTuple):
    prompt: list[int]
    n: int
    new: int


@dataclass(frozen=True)
class Case:
    """Some requests to a model of some shape; ``bare``: whether the bare loop can run them."""

    name: str
    config: dict[str, Any]
    dtype: torch.dtype
    requests: Sequence[Request]

    @property
    def bare(self) -> bool:
        return len(self.requests) == 1

    @property
    def tokens(self) -> int:
        """Tokens asked for."""
        return sum(r.n * r.new for r in self.requests)


def cases(quick: bool) -> dict[str, Case]:
    """All cases; ``quick``: the same, smaller."""
    rng = random.Random(0)

    def ids(n: int, vocabulary: int = 512) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(n)]

    def between(low: int, high: int) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    llama, qwen3 = (LLAMA | SMALL, QWEN3 | SMALL) if quick else (LLAMA, QWEN3)
    count, long, most = (6, 48, 24) if quick else (256, 512, 256)
    mixed = [Request(ids(between(16, long)), 1, between(16, most)) for _ in range(count)]
    shapes = [
        Case("single", llama, torch.float32, [Request(ids(64), 1, 16 if quick else 256)]),
        Case("samples", llama, torch.float32, [Request(ids(128), 4 if quick else 32, 16 if quick else 128)]),
        Case("mixed", llama, torch.float32, mixed),
        Case("qwen3", qwen3, torch.bfloat16, [Request(ids(16, qwen3["vocab_size"]), 1, 4 if quick else 12)]),
    ]
    return {case.name: case for case in shapes}


# ---- what is compared ---------------------------------------------------------------------------------------------------


class Contender(ABC):
    """Runs requests. ``forwards``: model calls so far."""

    name: str
    forwards = 0

    def prepare(self) -> None:
        """Before every run, not timed."""
        return None

    @abstractmethod
    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """New tokens of every sample, request by request."""


class Ours(Contender):
    name = "ours"

    def __init__(self, path: str, device: str, dtype: torch.dtype) -> None:
        self.engine = ft.Engine(ft.load(path, device=device, dtype=dtype), decoder=ft.Autoregressive())

    def prepare(self) -> None:
        self.engine.clear_cache()

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        before = self.engine.cost.forwards
        answers = asyncio.run(self._all(requests))
        self.forwards += self.engine.cost.forwards - before
        return [completion.token_ids for samples in answers for completion in samples]

    async def _all(self, requests: Sequence[Request]) -> list[list[ft.Completion]]:
        waiting = [self.engine.agenerate(r.prompt, n=r.n, max_tokens=r.new, temperature=0, ignore_eos=True) for r in requests]
        return await asyncio.gather(*waiting)


class BareLoop(Contender):
    name = "bare"

    def __init__(self, model: Any, request: Request) -> None:
        self.loop = Bare(model, request.n, len(request.prompt) + request.new)

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        (request,) = requests
        self.forwards += request.new
        return self.loop.generate(*request)


class Peer(Contender):
    name = "transformers"

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        samples = [(r.prompt, r.new) for r in requests for _ in range(r.n)]
        order = sorted(range(len(samples)), key=lambda i: (samples[i][1], len(samples[i][0])))
        results: list[list[int]] = [[] for _ in samples]
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            for i, tokens in zip(batch, self._generate([samples[i] for i in batch]), strict=True):
                results[i] = tokens[: samples[i][1]]
        return results

    def _generate(self, batch: list[tuple[list[int], int]]) -> list[list[int]]:
        width, new = max(len(prompt) for prompt, _ in batch), max(new for _, new in batch)
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt, _ in batch], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in batch], device=self.model.device)
        self.forwards += new
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=PAD
        )
        tokens: list[list[int]] = out[:, width:].tolist()
        return tokens


# ---- one case -----------------------------------------------------------------------------------------------------------


def measure(case: Case, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each contender, once all are measured."""
    with tempfile.TemporaryDirectory() as path:
        model = checkpoint(case, device, path)
        ours, peer = Ours(path, device, case.dtype), Peer(model)
    contenders = [ours, *([BareLoop(model, case.requests[0])] if case.bare else []), peer]
    # The first run is a warm-up too.
    answers = {}
    for contender in contenders:
        contender.prepare()
        answers[contender.name] = contender.run(case.requests)
    agreement = {name: compare(case, model, mine, answers["transformers"]) for name, mine in answers.items()}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    forwards = {}
    for _ in range(repeats):
        for contender in contenders:
            contender.prepare()
            gc.collect()
            before = contender.forwards
            synchronize(device)
            start = time.perf_counter()
            contender.run(case.requests)
            synchronize(device)
            seconds[contender.name].append(time.perf_counter() - start)
            forwards[contender.name] = contender.forwards - before
    ours.engine.close()
    weights, slot = sizes(case.dtype, model)
    attended = sum(r.n * sum(range(len(r.prompt) + 1, len(r.prompt) + r.new)) for r in case.requests)
    for name, times in seconds.items():
        speeds = [case.tokens / t for t in times]
        row: dict[str, Any] = {
            "case": case.name, "impl": name, "device": device, "dtype": str(case.dtype).removeprefix("torch."),
            "tokens": case.tokens, "forwards": forwards[name], "repeats": repeats,
            "tok_s": statistics.median(speeds), "tok_s_min": min(speeds), "tok_s_max": max(speeds),
            "us_per_forward": 1e6 * statistics.median(times) / forwards[name],
            "gb_s": (weights * forwards[name] + slot * attended) / statistics.median(times) / 1e9,
            **agreement[name],
        }  # fmt: skip
        for other in ("transformers", "bare"):
            if other in seconds:
                ratios = [theirs / mine for theirs, mine in zip(seconds[other], times, strict=True)]
                row |= {f"x_{other}": statistics.median(ratios), f"x_{other}_min": min(ratios), f"x_{other}_max": max(ratios)}
        yield row


def checkpoint(case: Case, device: str, path: str) -> Any:
    """The transformers model of ``case`` with random weights, on ``device``; also saved in ``path``."""
    torch.manual_seed(0)
    settings = {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None} | case.config
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=case.dtype).eval()
    model.save_pretrained(path)
    return model.to(device)


def sizes(dtype: torch.dtype, model: Any) -> tuple[int, int]:
    """Bytes of the weights that a forward reads, and of one token's keys and values."""
    unread = 0 if model.config.tie_word_embeddings else model.model.embed_tokens.weight.numel()
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return (sum(p.numel() for p in model.parameters()) - unread) * dtype.itemsize, slot * dtype.itemsize


def compare(case: Case, model: Any, mine: list[list[int]], theirs: list[list[int]]) -> dict[str, int]:
    """How many sequences differ, and how many of these from a tie on. In float32 others are an error."""
    prompts = [r.prompt for r in case.requests for _ in range(r.n)]
    differ = ties = 0
    for prompt, a, b in zip(prompts, mine, theirs, strict=True):
        if len(a) != len(b):
            raise AssertionError(f"{case.name}: {len(a)} tokens, transformers has {len(b)}")
        if a == b:
            continue
        differ += 1
        at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + a[:at]], device=model.device)).logits[0, -1].float()
        gap = (logits.max() - logits[[a[at], b[at]]].min()).item()
        ties += gap < TIE
        if gap >= TIE and case.dtype == torch.float32:
            raise AssertionError(f"{case.name}: token {at} is {a[at]}, not {b[at]}, and their logits are {gap:.1e} apart")
    return {"differ": differ, "ties": ties}


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


# ---- what is printed ----------------------------------------------------------------------------------------------------


def settle(threads: int | None = None) -> None:
    """How many threads compute, None: as many as there are; and transformers says nothing beside the table."""
    if threads:
        torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if device != "cpu" else None, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "forethought": ft.__version__,
    }  # fmt: skip


HEADER = (
    f"{'case':8} {'':13} {'tokens/s (range)':>24} {'x transformers':>18} {'x bare':>18} "
    f"{'forwards':>8} {'us/forward':>10} {'GB/s':>6} differ/ties"
)


def line(row: dict[str, Any]) -> str:
    def ratio(other: str) -> str:
        key = f"x_{other}"
        if key not in row or row["impl"] == other:
            return "-"
        return f"{row[key]:.2f} ({row[key + '_min']:.2f}-{row[key + '_max']:.2f})"

    speed = f"{row['tok_s']:.0f} ({row['tok_s_min']:.0f}-{row['tok_s_max']:.0f})"
    return (
        f"{row['case']:8} {row['impl']:13} {speed:>24} {ratio('transformers'):>18} {ratio('bare'):>18} "
        f"{row['forwards']:8} {row['us_per_forward']:10.0f} {row['gb_s']:6.1f} {row['differ']:>4}/{row['ties']}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="which, separated by commas (default: all of the first form, on CUDA of the second)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--json", type=Path, help="append a JSON row per case and contender to this file, as soon as it is known")
    parser.add_argument("--seconds", type=float, default=400, help="cells of the second form not begun by then are left out")
    parser.add_argument("--table", type=Path, help="print what a run of the second form wrote to this file")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, twice: does it run?")
    options = parser.parse_args(arguments)
    if options.table:
        lines = options.table.read_text(encoding="utf-8").splitlines()
        steps = [row for row in map(json.loads, lines) if row["case"] in decode_steps.SHAPES]
        print("\n".join([decode_steps.HEADER, *map(decode_steps.line, steps), *decode_steps.verdicts(steps)]))
        return
    known = cases(options.quick)
    every = [*known, *decode_steps.SHAPES]
    names = options.cases.split(",") if options.cases else list(known) if options.device == "cpu" else list(decode_steps.SHAPES)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"no case {unknown[0]!r}: {', '.join(every)}")
    repeats = 2 if options.quick else options.repeats
    if repeats < 1:
        parser.error(f"--repeats {repeats}: at least 1")
    settle()
    where = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any], text: str) -> None:
        rows.append(row | {"quick": options.quick})
        print(text, flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1] | where) + "\n")

    shapes = [name for name in names if name in decode_steps.SHAPES]
    names = [name for name in names if name in known]
    for name in names:
        case = known[name]
        shape = ", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {value}" for key, value in case.config.items())
        computed, new = sum(len(r.prompt) for r in case.requests), case.tokens
        print(f"{name}: {len(case.requests)} prompts, {computed} tokens; {new} new tokens; {case.dtype}; {shape}")
    if names:
        print(HEADER)
    for name in names:
        for row in measure(known[name], options.device, repeats):
            note(row, line(row))
    if shapes:
        print(decode_steps.HEADER)
        until = time.perf_counter() + options.seconds
        for name in shapes:
            for row in decode_steps.measure(name, options.device, options.quick, until):
                note(row, decode_steps.line(row))
        print("\n".join(decode_steps.verdicts(rows)))
        if any(row["impl"] == "ours" and row.get("failed") for row in rows):
            raise SystemExit("a cell of ours failed")
    print(json.dumps({"benchmark": "decode", **where, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
