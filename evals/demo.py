"""``forethought demo``: the built-in models at work: a few held-out problems solved live, then all of them measured on some more.

The problems come in the order their generator makes them: none is picked. What a nano model shows it shows for itself only.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from ..backend.engine import Engine
from ..nano.problems import LEVELS, generate, problems, read_answer
from ..schema import Completion, Problem
from . import machine
from .config import build, compose, compose_each, options
from .doctor import built_in
from .intervals import wilson
from .solve import ask, bill, open_engine
from .terminal import Paint, amount, table
from .watch import follow

NEXT = (
    'forethought solve "Ana has 4 boxes with 6 pens in each. She sells 5 pens. How many pens does Ana have now?"',
    'forethought solve --multirun "Ana has 7 pens. She buys 5 more pens. How many pens does Ana have now?" model=nano,nano-draft',
    "forethought bench",
    "forethought doctor",
    "forethought --help",
)


@dataclass(frozen=True, slots=True)
class Demo:
    """What is shown: ``models`` by config name, ``levels`` of those solved live, and how many ``problems`` the table is over."""

    models: Sequence[str]
    levels: Sequence[int]
    problems: int

    def __post_init__(self) -> None:
        if not self.models or isinstance(self.models, str):
            raise ValueError(f"demo.models={self.models!r}: a list of at least one, [nano]")
        if not all(level in LEVELS for level in self.levels):
            raise ValueError(f"demo.levels={self.levels!r}: a list of levels from {LEVELS[0]} to {LEVELS[-1]}")
        if type(self.problems) is not int or self.problems < 1:
            raise ValueError(f"demo.problems={self.problems!r}: a whole number of at least 1")


def demo(overrides: Sequence[str]) -> int:
    """The exit code: 0, or 130 after Ctrl-C."""
    plan: Demo = build(compose("demo", overrides).demo)
    configs = list(compose_each("demo", "model", plan.models, overrides).values())
    with open_engine(configs[0]) as engine:
        done = _live(engine, [generate(level, 0, "test") for level in plan.levels], configs[0])
    if not done:
        return 130
    tested = list(itertools.islice(problems("test"), plan.problems))
    print(f"{len(tested)} held-out problems of 1 to 8 steps, one attempt each:\n", flush=True)
    rows = []
    for config in configs:
        row = _row(config, tested)
        if row is None:
            return 130
        rows.append(row)
    print(table(["model", "parameters", "right", "95 % interval", "no answer", "tokens", "tokens/s"], rows))
    print("\nNext:")
    for command in NEXT:
        print(f"  {command}")
    return 0


def _live(engine: Engine, shown: Sequence[Problem], config: DictConfig) -> bool:
    """Solve problems before the reader's eyes; False when interrupted."""
    paint, info, given = Paint(sys.stdout), engine.model.info, options(config)
    print(f"{info.name}: a language model of {amount(info.parameters)} parameters on {machine.name_of(str(info.device))}.")
    print("It has learnt word problems like these, but has never seen these.\n" if info.name in built_in() else "")
    for problem in shown:
        steps = "1 step" if problem.level == 1 else f"{problem.level} steps"
        print(f"{paint.bold(f'── {steps} ──')}\n{problem.question}\n")
        completion = follow(engine.stream(ask(engine.model, problem.question), **given), sys.stdout)
        if completion is None:
            return False
        said = read_answer(completion.text)
        mark = paint.good("✓ right") if said == problem.answer else paint.bad(f"✗ the answer is {problem.answer}")
        print(f"\n{mark}  {paint.dim(bill(engine.model, completion, given))}\n", flush=True)
    return True


def _row(config: DictConfig, tested: Sequence[Problem]) -> list[str] | None:
    """One model on all problems at once, as a row of the table; None when interrupted."""
    given = options(config)
    with open_engine(config) as engine:
        info = engine.model.info
        start = time.perf_counter()
        results: list[list[Completion]] = engine.generate([ask(engine.model, p.question) for p in tested], progress=None, **given)
        seconds = time.perf_counter() - start
    completions = [completion for (completion,) in results]
    if any(completion.finish_reason == "cancelled" for completion in completions):
        return None
    count = Counter(_mark(completion, problem) for completion, problem in zip(completions, tested, strict=True))
    low, high = wilson(count["right"], len(tested))
    made = sum(completion.cost.kept for completion in completions)
    return [
        info.name,
        amount(info.parameters),
        f"{count['right'] / len(tested):.0%}",
        f"{low:.0%}–{high:.0%}",
        str(count["no answer"]),
        f"{made / len(tested):.0f}",
        amount(made / seconds),
    ]


def _mark(completion: Completion, problem: Problem) -> str:
    said = read_answer(completion.text)
    return "no answer" if said is None else "right" if said == problem.answer else "wrong"
