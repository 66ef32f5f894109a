"""How well do the built-in models solve held-out problems, once and in many tries?

    python benchmarks/nano.py [--problems 500] [--samples 64] [--temperature 0.8] [--max-tokens 512] [--seed 0] [--json FILE]

Problems are the generator's own held-out ones, levels 1 to 8 in turn, none picked. ``nano`` draws ``--samples`` completions
of each; pass@k is the unbiased estimate over them, so pass@1 is the mean share that is right. Then ``nano`` and
``nano-draft`` answer each once, greedily. A completion is right when the integer in its last ``\\boxed{}`` is the answer.
Intervals are 95 %, by resampling problems (10,000 times, seeded): the samples of one problem are not independent, the
problems are. The slope is that of a least-squares line through the problems' pass@1 over their levels, in points a level.
Tokens/s count output tokens over the wall time of a whole run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import forethought as ft
from forethought.evals.estimators import pass_at_k
from forethought.nano.problems import problems, read_answer
from forethought.schema import Completion, Problem

Floats = NDArray[np.float64]
RESAMPLES = 10_000
TOGETHER = 50
"""Problems submitted at a time."""


@dataclass(frozen=True)
class Run:
    """Which samples were right [problems, samples], and what it took."""

    right: NDArray[np.bool_]
    tokens: int
    seconds: float
    unfinished: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def run(name: str, tests: list[Problem], label: str, **options: Any) -> Run:
    """One model's completions of every problem, checked."""
    completions: list[list[Completion]] = []
    with ft.Engine(ft.load(name), decoder=ft.Autoregressive()) as engine:
        start = time.perf_counter()
        for begin in range(0, len(tests), TOGETHER):
            chats = [[{"role": "user", "content": test.question}] for test in tests[begin : begin + TOGETHER]]
            completions += engine.generate(chats, progress=False, **options)
            engine.clear_cache()
            elapsed = time.perf_counter() - start
            print(f"{label}: {len(completions)} of {len(tests)} problems, {elapsed:.0f} s", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - start
    right = np.array([[read_answer(c.answer) == t.answer for c in cs] for t, cs in zip(tests, completions, strict=True)])
    every = list(itertools.chain.from_iterable(completions))
    unfinished = sum(c.finish_reason != "stop" for c in every) / len(every)
    return Run(right, sum(len(c.token_ids) for c in every), seconds, unfinished)


def slope(levels: Floats, values: Floats) -> float:
    """Of the least-squares line; 0 where all levels are one."""
    centred = levels - levels.mean()
    spread = float(centred @ centred)
    return float(centred @ values) / spread if spread else 0.0


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:6.1f}  [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def resampled(statistic: Any, count: int) -> Estimate:
    """``statistic(indices of problems)`` with its percentile bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(statistic(np.arange(count))), float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling; the problems are always the same")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    options = parser.parse_args()
    if min(options.problems, options.samples) < 1:
        parser.error("--problems and --samples: at least 1")

    tests = list(itertools.islice(problems("test"), options.problems))
    common = {"max_tokens": options.max_tokens, "seed": options.seed}
    sampled = run("nano", tests, "nano, sampled", n=options.samples, temperature=options.temperature, **common)
    greedy = {name: run(name, tests, f"{name}, greedy", n=1, temperature=0.0, **common) for name in ("nano", "nano-draft")}

    levels = np.array([test.level for test in tests], dtype=np.float64)
    once, many = pass_at_k(options.samples, sampled.right.sum(1), [1, options.samples]).T
    count = len(tests)
    figures = {
        "pass@1": resampled(lambda i: once[i].mean(), count),
        f"pass@{options.samples}": resampled(lambda i: many[i].mean(), count),
        "gain": resampled(lambda i: (many[i] - once[i]).mean(), count),
        "slope": resampled(lambda i: slope(levels[i], once[i]), count),
        **{f"{name} greedy": resampled(lambda i, r=r: r.right[i, 0].mean(), count) for name, r in greedy.items()},
    }

    print(f"{count} held-out problems, {options.samples} samples each at temperature {options.temperature:g}, percent\n")
    print(f"{'level':>6}{'problems':>10}{'pass@1':>9}{f'pass@{options.samples}':>9}{'nano greedy':>13}{'nano-draft greedy':>19}")
    table = []
    for level in sorted(set(levels)):
        here = levels == level
        row = [once[here].mean(), many[here].mean(), *(r.right[here, 0].mean() for r in greedy.values())]
        table.append([int(level), int(here.sum()), *(round(float(v), 4) for v in row)])
        a, b, c, d = (100 * v for v in row)
        print(f"{int(level):>6}{int(here.sum()):>10}{a:>9.1f}{b:>9.1f}{c:>13.1f}{d:>19.1f}")
    print()
    for name, estimate in figures.items():
        print(f"{name:<18}{estimate}")
    print()
    for name, r in {"nano, sampled": sampled, **{f"{name}, greedy": r for name, r in greedy.items()}}.items():
        mean = r.tokens / r.right.size
        print(f"{name:<20}{r.rate:>9,.0f} tokens/s{mean:>8.0f} tokens a completion{100 * r.unfinished:>7.1f} % cut off")

    reached = {
        "pass@1 in 40-80": 0.4 <= figures["pass@1"].value <= 0.8,
        f"pass@{options.samples} 15 points above": figures["gain"].value >= 0.15,
        "slope below 0": figures["slope"].high < 0,
        "nano above nano-draft, intervals apart": figures["nano greedy"].low > figures["nano-draft greedy"].high,
    }
    print("\n" + "\n".join(f"{'yes' if ok else 'NO ':<4}{what}" for what, ok in reached.items()))
    line = json.dumps(
        {
            "benchmark": "nano",
            "problems": count,
            "samples": options.samples,
            "temperature": options.temperature,
            "seed": options.seed,
            "figures": {name: [round(v, 4) for v in (e.value, e.low, e.high)] for name, e in figures.items()},
            "levels": table,
            "tokens_per_second": {"sampled": round(sampled.rate), **{name: round(r.rate) for name, r in greedy.items()}},
            "reached": reached,
        }
    )
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
