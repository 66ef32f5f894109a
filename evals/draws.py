"""The draws of a run as they were judged, read from its folder: by problem, and as the tables that estimators take. No model.

Every verifier's verdicts stand apart, by its name; one of them is the truth. An answer that could not be read is not right, a
draw whose judgement by the truth broke counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..schema import Completion, Cost, FinishReason, Verdict
from .estimators import Floats, Ints
from .folder import identity, once


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample as it was judged."""

    index: int
    answer: str | None
    """As the strategy read it: votes go by it."""
    right: bool | None
    """None where the truth's judgement broke."""
    status: str
    """What the truth said."""
    finish: FinishReason
    cost: Cost
    text: int
    """A hash: equal for equal texts."""
    verdicts: Mapping[str, Verdict]
    """By verifier, the truth among them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One problem: its draws by number, and what the strategy chose."""

    id: str
    question: str
    gold: str | None
    level: int | None
    draws: Sequence[Draw]
    answer: str | None
    chosen: int | None
    """The index of the chosen draw."""
    right: bool
    """Whether the chosen draw is."""
    cost: Cost
    """The whole bill."""


class Tables(NamedTuple):
    """Draws side by side: as many of each problem as all have, the first ones.

    A stopping rule draws more where the first draws settled nothing, so that later draws say more about hard problems than
    about easy ones: they are in no curve.
    """

    right: Floats
    """[problems, draws]: 1, 0, NaN where the truth broke."""
    answers: Ints
    """[problems, draws]: equal for equal answers of a problem, -1 for none."""


def truth_of(path: str | Path) -> str:
    """The name of the verifier that a run counts as the truth."""
    return str(identity(path)["truth"])


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """What a line of verdicts says of the draw that it names."""
    return Verdict.from_json({key: value for key, value in row.items() if key not in ("problem", "index")})


def problems_of(path: str | Path, truth: str | None = None) -> list[Judged]:
    """The finished problems of a run, by id. ``truth``: another verifier than the run's own.

    Raises ``ValueError`` where a draw of a finished problem has no verdict of the truth.
    """
    name = truth or truth_of(path)
    verdicts: dict[tuple[str, int], dict[str, Verdict]] = {}
    for row in once(path, "verdicts", "verifier", "problem", "index"):
        verdict = verdict_of(row)
        verdicts.setdefault((row["problem"], row["index"]), {})[verdict.verifier] = verdict
    completions: dict[str, dict[int, tuple[FinishReason, Cost, int]]] = {}
    for row in once(path, "samples", "problem", "index"):
        drawn = Completion.from_json(row["completion"])
        completions.setdefault(row["problem"], {})[row["index"]] = drawn.finish_reason, drawn.cost, hash(drawn.text)
    found = []
    for row in once(path, "solutions", "problem_id"):
        problem = row["problem_id"]
        draws = []
        for candidate in sorted(row["candidates"], key=lambda candidate: int(candidate["index"])):
            index = candidate["index"]
            said = verdicts.get((problem, index), {})
            if name not in said:
                raise ValueError(f"{path}: {problem} has no verdict of {name!r} on draw {index}")
            if index not in completions.get(problem, {}):
                raise ValueError(f"{path}: {problem} has no sample of draw {index}")
            status = said[name].status
            right = None if status == "error" else status == "correct"
            draws.append(Draw(index, candidate["answer"], right, status, *completions[problem][index], said))
        found.append(_judged(row, draws))
    return sorted(found, key=lambda problem: problem.id)  # an interval must not depend on who was finished first


def _judged(row: Mapping[str, Any], draws: Sequence[Draw]) -> Judged:
    chosen = None if row["chosen"] is None else row["candidates"][row["chosen"]]["index"]
    right = any(draw.right for draw in draws if draw.index == chosen)
    asked = row["problem_id"], row["question"], row["gold"], row["level"]
    return Judged(*asked, draws, row["answer"], chosen, right, Cost.from_json(row["cost"]))


def tables(judged: Sequence[Judged]) -> Tables:
    """Raises ``ValueError`` where there is no problem."""
    if not judged:
        raise ValueError("no problem")
    width = min(len(problem.draws) for problem in judged)
    right = np.full((len(judged), width), np.nan)
    answers = np.full((len(judged), width), -1)
    for i, problem in enumerate(judged):
        names: dict[str, int] = {}
        for j, draw in enumerate(problem.draws[:width]):
            right[i, j] = np.nan if draw.right is None else float(draw.right)
            if draw.answer is not None:
                answers[i, j] = names.setdefault(draw.answer, len(names))
    return Tables(right, answers)
