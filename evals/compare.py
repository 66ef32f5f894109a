"""``forethought compare A B``: two runs on the problems that both finished, paired problem by problem. No model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .bootstrap import mcnemar, paired_difference
from .draws import Judged, problems_of
from .terminal import clean, table


def compare(first: str | Path, second: str | Path, *, as_json: bool = False) -> int:
    """Print what differs; the exit code. Raises ``ValueError`` where no problem is in both, or one is another problem there."""
    found = paired(first, second)
    print(json.dumps(found) if as_json else _text(found))
    return 0


def paired(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Accuracy of the chosen answers and of single draws, of the second run less the first one's, with 95 % intervals."""
    ours, theirs = ({problem.id: problem for problem in problems_of(path)} for path in (first, second))
    both = [name for name in ours if name in theirs]
    if not both:
        raise ValueError(f"{first} and {second} have no problem in common")
    for name in both:
        if (ours[name].question, ours[name].gold) != (theirs[name].question, theirs[name].gold):
            raise ValueError(f"{name} is another problem in {second} than in {first}")
    chosen = [np.array([float(run[name].right) for name in both]) for run in (ours, theirs)]
    single = [np.array([_share(run[name]) for name in both]) for run in (ours, theirs)]
    rows = []
    for what, (a, b) in (("chosen answers", chosen), ("single draws", single)):
        difference = paired_difference(b, a)
        rows.append({"what": what, "first": float(a.mean()), "second": float(b.mean()), "difference": float(difference.value),
                     "low": float(difference.low), "high": float(difference.high)})  # fmt: skip
    only = mcnemar(chosen[0] == 1, chosen[1] == 1)
    left_out = len(ours) + len(theirs) - 2 * len(both)
    return {"first": str(first), "second": str(second), "problems": len(both), "left_out": left_out, "rows": rows,
            "only_first": only.first, "only_second": only.second, "p": only.p}  # fmt: skip


def _share(problem: Judged) -> float:
    """Of a problem's draws, how many are right; NaN where none could be judged."""
    known = [draw.right for draw in problem.draws if draw.right is not None]
    return sum(known) / len(known) if known else float("nan")


def _text(found: dict[str, Any]) -> str:
    rows = [
        [row["what"], f"{100 * row['first']:.1f}", f"{100 * row['second']:.1f}",
         f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"]
        for row in found["rows"]
    ]  # fmt: skip
    alone = f"solved by the first alone {found['only_first']}, by the second alone {found['only_second']}"
    return "\n".join([
        f"first:  {clean(found['first'])}\nsecond: {clean(found['second'])}",
        f"{found['problems']} problems in both, {found['left_out']} in one only\n",
        table(["% right", "first", "second", "second - first"], rows),
        f"\n{alone}; exact McNemar p = {found['p']:.3g}",
    ])  # fmt: skip
