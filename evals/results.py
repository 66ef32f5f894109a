"""What the draws of a run show: accuracy, coverage and vote curves, with intervals over problems. Reads a run's folder, no model.

An answer that could not be read counts as not right and is reported apart; a draw whose judgement broke is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schema import Cost, Json
from .bootstrap import interval
from .estimators import pass_at_k, vote_at_k
from .folder import identity, read
from .intervals import wilson
from .terminal import amount, clean, table

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Figure(Json):
    """A mean over problems and its 95 % interval: Wilson's where they are solved or not, else the bootstrap over problems."""

    value: float
    low: float
    high: float
    problems: int

    @classmethod
    def share(cls, right: Sequence[bool]) -> Figure:
        """Of problems that are solved or not: the bootstrap would be sure of itself where all are, or where there are few."""
        return cls(sum(right) / len(right), *wilson(sum(right), len(right)), len(right))

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Figure:
        """Of what each problem is worth, [problems]."""
        estimate = interval(values)
        return cls(float(estimate.value), float(estimate.low), float(estimate.high), len(values))


def _figures(curve: Mapping[str, Any]) -> dict[str, Figure]:
    return {key: Figure.from_json(figure) for key, figure in curve.items()}


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample as it was judged. ``right``: None where the judgement broke."""

    index: int
    answer: str | None
    right: bool | None
    status: str
    finish: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One problem: its draws by number, and what the strategy chose."""

    id: str
    question: str
    gold: str | None
    level: int | None
    draws: Sequence[Draw]
    answer: str | None
    right: bool
    """Whether the chosen draw is."""


@dataclass(frozen=True, slots=True)
class Results(Json):
    """``results.json``."""

    path: str
    problems: int
    draws: int
    accuracy: Figure
    """Of the chosen answers."""
    coverage: Mapping[str, Figure]
    """k -> pass@k, unbiased."""
    votes: Mapping[str, Figure]
    """k -> majority of k."""
    levels: Mapping[str, Figure]
    """Level -> accuracy of the chosen answers."""
    statuses: Mapping[str, int]
    """Of all draws, what the truth said."""
    truncated: float
    """Share of draws that ended at a length limit: these look like wrong answers."""
    tokens: float
    """Of a draw, in the mean."""
    flops: float
    timing: Mapping[str, float] = field(default_factory=dict)
    """Of the last session of the run."""
    schema: int = SCHEMA

    _nested = {"accuracy": Figure.from_json, **dict.fromkeys(("coverage", "votes", "levels"), _figures)}

    @classmethod
    def of(cls, path: str | Path, ks: Sequence[int], *, parameters: int = 0, split: Mapping[str, float] | None = None) -> Results:
        """Computed from what the folder holds. Raises ``ValueError`` where no problem is finished."""
        judged = problems_of(path)
        if not judged:
            raise ValueError(f"{path}: no problem is finished")
        draws = [draw for problem in judged for draw in problem.draws]
        curves = _curves(judged, ks)
        levels = sorted({problem.level for problem in judged if problem.level is not None})
        by_level = {level: [p.right for p in judged if p.level == level] for level in levels}
        flops = sum(Cost.from_json(row["cost"]).flops(parameters) for row in read(path, "solutions"))
        return cls(
            path=str(path), problems=len(judged), draws=len(draws), accuracy=Figure.share([p.right for p in judged]),
            coverage=curves["coverage"], votes=curves["votes"],
            levels={str(level): Figure.share(right) for level, right in by_level.items()},
            statuses=dict(sorted(Counter(draw.status for draw in draws).items())),
            truncated=sum(draw.finish == "length" for draw in draws) / len(draws),
            tokens=sum(draw.tokens for draw in draws) / len(draws), flops=flops, timing=split or {},
        )  # fmt: skip


def problems_of(path: str | Path) -> list[Judged]:
    """The finished problems of a run, by id."""
    identity(path)
    verdicts: dict[tuple[str, int], Any] = {(row["problem"], row["index"]): row for row in read(path, "verdicts")}
    draws: dict[str, list[Draw]] = {}
    for row in read(path, "samples"):
        verdict = verdicts.get((row["problem"], row["index"]))
        if verdict is not None:
            status, completion = verdict["status"], row["completion"]
            right = None if status == "error" else status == "correct"
            draws.setdefault(row["problem"], []).append(
                Draw(row["index"], verdict["answer"], right, status, completion["finish_reason"], completion["cost"]["kept"])
            )
    found = []
    for row in read(path, "solutions"):
        own = sorted(draws.get(row["problem_id"], []), key=lambda draw: draw.index)
        chosen = None if row["chosen"] is None else row["candidates"][row["chosen"]]["index"]
        right = any(draw.right for draw in own if draw.index == chosen)
        found.append(Judged(row["problem_id"], row["question"], row["gold"], row["level"], own, row["answer"], right))
    return sorted(found, key=lambda problem: problem.id)  # an interval must not depend on who was finished first


def _curves(judged: Sequence[Judged], ks: Sequence[int]) -> dict[str, dict[str, Figure]]:
    """The curves at every k that all problems have draws for."""
    width = max(len(problem.draws) for problem in judged)
    right = np.full((len(judged), width), np.nan)
    answers = np.full((len(judged), width), -1)
    for i, problem in enumerate(judged):
        names: dict[str, int] = {}
        for j, draw in enumerate(problem.draws):
            right[i, j] = np.nan if draw.right is None else float(draw.right)
            if draw.answer is not None:
                answers[i, j] = names.setdefault(draw.answer, len(names))
    n = (~np.isnan(right)).sum(1)
    known = [k for k in ks if k <= n.min()]
    if not known:
        return {"coverage": {}, "votes": {}}
    coverage, votes = pass_at_k(n, np.nansum(right, 1).astype(int), known), vote_at_k(answers, right, known)
    return {
        name: {str(k): Figure.of(column) for k, column in zip(known, values.T, strict=True)}
        for name, values in (("coverage", coverage), ("votes", votes))
    }


def show(results: Results) -> str:
    """The results as a person reads them."""
    lengths = f"{results.tokens:.0f} tokens a draw, {results.truncated:.1%} cut off at a length limit"
    lines = [f"{results.problems} problems, {results.draws} draws, {lengths}"]
    lines.append(f"chosen answers right: {percent(results.accuracy)}")
    lines.append(", ".join(f"{count} {status}" for status, count in results.statuses.items()))
    if results.coverage:
        rows = [[k, percent(figure), percent(results.votes[k])] for k, figure in results.coverage.items()]
        lines += ["", table(["k", "pass@k", "majority of k"], rows)]
    if len(results.levels) > 1:
        rows = [[level, str(figure.problems), percent(figure)] for level, figure in results.levels.items()]
        lines += ["", table(["level", "problems", "chosen right"], rows)]
    if results.timing.get("draws"):
        timing = results.timing
        speed = f"{amount(timing['tokens_per_second'])} tokens/s"
        drawing = f"{timing['wall_seconds']:.1f} s for {timing['draws']:,} new draws, {speed}"
        lines += ["", f"{drawing}; judging {timing['verifying_seconds']:.1f} s, writing {timing['writing_seconds']:.1f} s"]
    lines.append(f"in {clean(results.path)}")
    return "\n".join(lines)


def percent(figure: Figure) -> str:
    """Value and interval, in per cent."""
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
