"""What else the built-in models can do on held-out problems: write short programs, tell good steps from bad, judge a solution.

    python benchmarks/nano_skills.py [--only code|steps|judge] [--problems 200] [--samples 16] [--chains 4] [--seed 0]
                                     [--nano MODEL] [--prm MODEL] [--json FILE]

Problems are the generators' own held-out ones, levels in turn, none picked; solutions are nano's, at temperature 0.8. ``code``:
pass@1 and pass@k by the hidden tests, and of the wrong programs the share that the visible tests accept. ``steps``: the area
under the ROC curve of nano-prm's step scores against the generator's labels, and of the last step's score against whether the
answer is right. ``judge``: nano judges its own solutions, as many as a problem has samples, by chains of thought and directly.
Intervals are 95 %, by resampling problems (2,000 times, seeded).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import forethought as ft
from forethought.evals.estimators import pass_at_k
from forethought.nano import problems as maths
from forethought.nano import programs
from forethought.nano.step_labels import labels
from forethought.schema import Problem
from forethought.verifiers.code import Code
from forethought.verifiers.generative import GenerativeVerifier
from forethought.verifiers.process_reward import ProcessRewardModel
from forethought.verifiers.verifier import Verifier

Figures = dict[str, tuple[float, float, float]]
RESAMPLES = 2000
TOGETHER = 50
"""Problems submitted at a time."""


def solutions(nano: str, tests: Sequence[Problem], samples: int, seed: int) -> list[list[str]]:
    """nano's solutions, thoughts included."""
    found: list[list[str]] = []
    with ft.Engine(ft.load(nano), decoder=ft.Autoregressive()) as engine:
        for begin in range(0, len(tests), TOGETHER):
            chats = [[{"role": "user", "content": test.question}] for test in tests[begin : begin + TOGETHER]]
            drawn = engine.generate(chats, n=samples, temperature=0.8, max_tokens=512, seed=seed, progress=False)
            found += [[completion.text for completion in group] for group in drawn]
            engine.clear_cache()
            print(f"{len(found)} of {len(tests)} problems solved", file=sys.stderr, flush=True)
    return found


def judged(judge: Verifier, tests: Sequence[Problem], texts: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Verdicts of all solutions."""

    async def every() -> list[list[Any]]:
        return [list(await judge.ajudge(test, group)) for test, group in zip(tests, texts, strict=True)]

    return asyncio.run(every())


def auroc(scores: NDArray[np.float64], good: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """The chance that a good one scores above a bad one, ties counted half; NaN where there are not both."""
    _, place = np.unique(scores, return_inverse=True)
    plus, minus = (np.bincount(place, weights * of) for of in (good, ~good))
    pairs = plus.sum() * minus.sum()
    return float((plus * (np.cumsum(minus) - minus / 2)).sum() / pairs) if pairs else float("nan")


def resampled(statistic: Callable[[NDArray[np.float64]], float], count: int) -> tuple[float, float, float]:
    """``statistic(how often each problem is there)`` with its percentile interval."""
    rng = np.random.default_rng(0)
    draws = [statistic(rng.multinomial(count, np.full(count, 1 / count)).astype(float)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return statistic(np.ones(count)), float(low), float(high)


def area(scores: Sequence[Sequence[float]], good: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """AUROC over all of the problems' items, resampled by problem."""
    owner = np.repeat(np.arange(len(good)), [len(flags) for flags in good])
    flat, flags = np.array([*itertools.chain(*scores)], float), np.array([*itertools.chain(*good)], bool)
    return resampled(lambda w: auroc(flat, flags, w[owner]), len(good))


def code(nano: str, count: int, samples: int, seed: int) -> tuple[Figures, list[list[float]]]:
    tests = list(itertools.islice(programs.problems("test"), count))
    texts = solutions(nano, tests, samples, seed)
    passed = {}
    for name in ("hidden", "visible"):
        judge = Code(name)
        verdicts = judged(judge, tests, texts)
        judge.close()
        passed[name] = np.array([[verdict.status == "correct" for verdict in group] for group in verdicts])
    right, shown = passed["hidden"], passed["visible"]
    once, many = pass_at_k(samples, right.sum(1), [1, samples]).T
    wrong, fooled = (~right).sum(1), (shown & ~right).sum(1)
    levels = np.array([test.level for test in tests])
    table = [[int(k), *(round(float(of[levels == k].mean()), 4) for of in (once, many))] for k in sorted(set(levels))]
    return {
        "code pass@1": resampled(lambda w: float(w @ once / w.sum()), count),
        f"code pass@{samples}": resampled(lambda w: float(w @ many / w.sum()), count),
        "wrong programs that pass the visible tests": resampled(lambda w: float(w @ fooled / max(1.0, w @ wrong)), count),
    }, table


def steps(nano: str, count: int, samples: int, seed: int, prm: str) -> Figures:
    tests = list(itertools.islice(maths.problems("test"), count))
    texts = solutions(nano, tests, samples, seed)
    judge = ProcessRewardModel(prm, aggregate="last")
    verdicts = judged(judge, tests, texts)
    judge.close()
    scores: list[list[float]] = [[] for _ in tests]
    good: list[list[bool]] = [[] for _ in tests]
    last: list[list[float]] = [[] for _ in tests]
    right: list[list[bool]] = [[] for _ in tests]
    for i, (test, group) in enumerate(zip(tests, texts, strict=True)):
        for text, verdict in zip(group, verdicts[i], strict=True):
            if verdict.score is not None:
                scores[i] += verdict.meta["steps"]
                good[i] += [flag for _, flag in labels(test, text)]
                last[i].append(verdict.score)
                right[i].append(maths.read_answer(text) == test.answer)
    return {"AUROC of step scores": area(scores, good), "AUROC of the last step's score for the answer": area(last, right)}


def judge(nano: str, count: int, samples: int, seed: int, chains: int) -> Figures:
    tests = list(itertools.islice(maths.problems("test"), count))
    texts = solutions(nano, tests, samples, seed)
    right = [[maths.read_answer(text) == test.answer for text in group] for test, group in zip(tests, texts, strict=True)]
    figures: Figures = {}
    for name, drawn in (("chains", chains), ("directly", 0)):
        verifier = GenerativeVerifier(model=nano, chains=drawn)
        scores = [[0.5 if v.score is None else v.score for v in group] for group in judged(verifier, tests, texts)]
        verifier.close()
        figures[f"AUROC of judging, {name}"] = area(scores, right)
        agree = ((np.array(scores) > 0.5) == np.array(right)).mean(1)
        figures[f"judged as it is, {name}"] = resampled(lambda w, a=agree: float(w @ a / w.sum()), count)  # type: ignore[misc]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["code", "steps", "judge"])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling; the problems are always the same")
    parser.add_argument("--nano", default="nano", help="model to load in nano's place")
    parser.add_argument("--prm", default="nano-prm", help="process reward model to load in nano-prm's place")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    options = parser.parse_args()
    if min(options.problems, options.samples, options.chains) < 1:
        parser.error("--problems, --samples and --chains: at least 1")
    asked = options.nano, options.problems, options.samples, options.seed
    figures: Figures = {}
    table: list[list[float]] = []
    if options.only in (None, "code"):
        found, table = code(*asked)
        figures |= found
    if options.only in (None, "steps"):
        figures |= steps(*asked, options.prm)
    if options.only in (None, "judge"):
        figures |= judge(*asked, options.chains)
    print(f"{options.problems} held-out problems, {options.samples} samples each at temperature 0.8, percent\n")
    for level, once, many in table:
        print(f"code of level {level:.0f}: pass@1 {100 * once:.1f}, pass@{options.samples} {100 * many:.1f}")
    for name, (value, low, high) in figures.items():
        print(f"{name:<48}{100 * value:6.1f}  [{100 * low:.1f}, {100 * high:.1f}]")
    line = json.dumps(
        {
            "benchmark": "nano_skills",
            "problems": options.problems,
            "samples": options.samples,
            "seed": options.seed,
            "levels": table,
            "figures": {name: [round(v, 4) for v in figure] for name, figure in figures.items()},
        }
    )
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
