"""What a verifier is worth for choosing among draws, held against the truth: best-of-k, weighted votes, first accept, utility.

After Large Language Monkeys (arXiv 2407.21787), Inference Scaling fLaws (2411.17501) and When To Solve, When To Verify
(2504.01005). Best-of-k and first accept are exact over all subsets of the draws, votes are Monte Carlo. The chooser never is the
truth. Rates of draws are over problems: a problem's draws do not pass for independent ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..schema import Json, Verdict
from .curves import Curves, Difference, Figure, curve, read_curve
from .draws import Judged, Tables, tables
from .estimators import Floats, best_of_k, first_accept, vote_at_k
from .utility import best_k, ceiling, equal_cost, solve_or_verify, utility

LOSSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""What a wrong answer costs, in right answers."""
EVERY = 256
"""Up to so many draws every k is tried for the best one, beyond that so many."""
CHAINS = "verdicts"
"""In ``Verdict.meta``: what each of several verifications of one solution said, None where that could not be read."""


_Held: TypeAlias = Callable[[str, Floats], None]
"""Takes a way to answer, and its curve of each problem, to be held against the majority."""


def _several(kind: type[Json]) -> Callable[[Any], list[Any]]:
    return lambda given: [kind.from_json(one) for one in given]


@dataclass(frozen=True, slots=True)
class Scored(Json):
    """Choosing by score."""

    best: Mapping[str, Figure]
    """k -> the best-scored of k draws is right."""
    weighted: Mapping[str, Figure]
    """k -> the vote weighted by scores is right; empty where a score is negative."""
    separates: Figure | None
    """Of pairs of a right and a wrong draw of one problem, those where the right one scores higher, ties half."""

    _nested = {"best": read_curve, "weighted": read_curve, "separates": Figure.from_json}


@dataclass(frozen=True, slots=True)
class Utility(Json):
    """Drawing until the verifier accepts, at most k times: 1 for a right answer, -``loss`` for a wrong one, 0 for none."""

    loss: float
    curve: Mapping[str, Figure]
    best_k: int
    """0: better no answer at all."""
    best: float
    climbing: bool
    """Whether the best k is all draws: more might be better."""

    _nested = {"curve": read_curve}

    @classmethod
    def of(cls, loss: float, ks: Sequence[int], accepted: Floats, right: Floats) -> Utility:
        n = right.shape[1]
        every = (np.unique(np.geomspace(1, n, EVERY).round().astype(int)) if n > EVERY else np.arange(1, n + 1)).tolist()
        values = utility(first_accept(accepted, right, every), loss).mean(axis=0)
        best = best_k(values, every)
        top = float(values[every.index(best)]) if best else 0.0
        return cls(loss, curve(ks, utility(first_accept(accepted, right, ks), loss)), best, top, best == n)


@dataclass(frozen=True, slots=True)
class Accepts(Json):
    """Choosing by the verifier's word: drawing until it accepts."""

    right: Mapping[str, Figure]
    """k -> the first accepted of k draws is right: no answer is not right."""
    answered: Mapping[str, Figure]
    """k -> one of k draws is accepted."""
    precision: Mapping[str, Figure]
    """k -> of the answers given, those that are right."""
    right_accepted: Figure | None
    """Of the right draws that it judges, those that it accepts."""
    wrong_accepted: Figure | None
    """Likewise of the wrong ones: the rate of false positives."""
    accepted_right: Figure | None
    """Of the draws that it accepts, those that are right."""
    ceiling: Sequence[float]
    """Accuracy with ever more draws, where a problem without an accepted one is wrong, and where it is right."""
    utility: Sequence[Utility]

    _nested = {
        **dict.fromkeys(("right", "answered", "precision"), read_curve),
        **dict.fromkeys(("right_accepted", "wrong_accepted", "accepted_right"), Figure.from_json),
        "utility": _several(Utility),
    }


@dataclass(frozen=True, slots=True)
class Pair(Json):
    """S solutions with V verifications of each."""

    solutions: int
    verifications: int
    cost: float
    """In solutions: S (1 + price V)."""
    best: Figure
    vote: Figure
    """Weighted by the mean over verifications; the plain vote where there are none."""

    _nested = {"best": Figure.from_json, "vote": Figure.from_json}


@dataclass(frozen=True, slots=True)
class Selector(Json):
    """A verifier as the one that chooses. What it does not do, score, accept or verify several times, is None or empty."""

    problems: int
    """Those of which it judged every draw; all else is over them."""
    draws: int
    statuses: Mapping[str, int]
    tokens: float
    """What it computed for a draw, in the mean."""
    scored: Scored | None
    accepts: Accepts | None
    price: float | None
    """FLOPs of a verification over those of a solution."""
    pairs: Sequence[Pair]
    """To solve or to verify: of equal cost are those with about the same one."""
    differences: Sequence[Difference]

    _nested = {
        "scored": Scored.from_json, "accepts": Accepts.from_json, "pairs": _several(Pair), "differences": _several(Difference),
    }  # fmt: skip

    @classmethod
    def of(cls, name: str, judged: Sequence[Judged], ks: Sequence[int], size: float = 1.0) -> Selector | None:
        """Of the verifier ``name``; None where it has not judged all draws of any problem. ``size``: its model's parameters over
        those of the model that drew."""
        mine = [problem for problem in judged if all(name in draw.verdicts for draw in problem.draws)]
        if not mine:
            return None
        found, differences = tables(mine), list[Difference]()
        said = [[draw.verdicts[name] for draw in problem.draws[: found.right.shape[1]]] for problem in mine]
        curves = Curves.of(found, ks)

        def held(way: str, values: Floats) -> None:
            if curves.ks and curves.ks[-1] > 1:
                pair = values[:, -1], curves.votes[:, -1]
                differences.append(Difference.of(f"{way} {name}", "majority", curves.ks[-1], pair))

        scored, accepts = _scored(found, said, curves.ks, held), _accepts(found, said, curves.ks, held)
        price, pairs = _pairs(found, said, mine, size)
        verdicts = [draw.verdicts[name] for problem in mine for draw in problem.draws]
        statuses = dict(sorted(Counter(str(verdict.status) for verdict in verdicts).items()))
        tokens = sum(verdict.cost.computed for verdict in verdicts) / len(verdicts)
        return cls(len(mine), len(verdicts), statuses, tokens, scored, accepts, price, pairs, differences)


def _scored(found: Tables, said: Sequence[Sequence[Verdict]], ks: Sequence[int], held: _Held) -> Scored | None:
    given = np.array([[np.nan if v.score is None else v.score for v in row] for row in said])
    if np.isnan(given).all():
        return None
    # As a strategy chooses: a readable answer without a score after all scores, an unreadable one last.
    ranked = np.where(found.answers < 0, np.nan, np.where(np.isnan(given), -np.inf, given))
    best = best_of_k(found.right, ranked, ks)
    held("best by", best)
    weighted = np.empty((len(best), 0))
    if np.nanmin(given) >= 0:
        weighted = vote_at_k(found.answers, found.right, ks, weights=given)
        held("vote weighted by", weighted)
    return Scored(curve(ks, best), curve(ks[: weighted.shape[1]], weighted), _separates(found.right, given))


def _separates(right: Floats, scores: Floats) -> Figure | None:
    """A problem counts once, however many pairs it has; those without a pair do not."""
    values = []
    for truth, score in zip(right, scores, strict=True):
        good, bad = (score[(truth == wanted) & ~np.isnan(score)] for wanted in (1, 0))
        if good.size and bad.size:
            bad.sort()
            below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
            values.append(float((below + upto).mean() / (2 * bad.size)))
    return Figure.of(np.array(values)) if values else None


def _accepts(found: Tables, said: Sequence[Sequence[Verdict]], ks: Sequence[int], held: _Held) -> Accepts | None:
    word = {"correct": 1.0, "wrong": 0.0}
    accepted = np.array([[word.get(verdict.status, np.nan) for verdict in row] for row in said])
    if np.isnan(accepted).all():
        return None
    right, first = found.right, first_accept(accepted, found.right, ks)
    held("first accepted by", first.right)
    yes, no = (accepted == 1).astype(float), (accepted == 0).astype(float)
    good, bad = (right == 1).astype(float), (right == 0).astype(float)

    def rate(part: Floats, whole: Floats) -> Figure | None:
        return Figure.rate(part.sum(axis=1), whole.sum(axis=1))

    precision = [Figure.rate(first.right[:, i], first.answered[:, i]) for i in range(len(ks))]
    return Accepts(
        curve(ks, first.right), curve(ks, first.answered),
        {str(k): figure for k, figure in zip(ks, precision, strict=True) if figure is not None},
        rate(yes * good, (yes + no) * good), rate(yes * bad, (yes + no) * bad), rate(yes * good, yes * (good + bad)),
        list(ceiling(accepted, right)), [Utility.of(loss, ks, accepted, right) for loss in LOSSES],
    )  # fmt: skip


def _pairs(
    found: Tables, said: Sequence[Sequence[Verdict]], judged: Sequence[Judged], size: float
) -> tuple[float | None, list[Pair]]:
    """At budgets of 1, 2, 4, … solutions up to all, what is left of them after 0, 1, 2, 4, … verifications each."""
    chains = [[list(verdict.meta.get(CHAINS, ())) for verdict in row] for row in said]
    many = max(len(chain) for row in chains for chain in row)
    spent = [verdict.cost.computed for row in said for verdict in row if verdict.cost.computed]  # equal texts are paid once
    if not many or not spent:
        return None, []
    width = found.right.shape[1]
    written = [draw.cost.computed for problem in judged for draw in problem.draws[:width]]
    price = size * float(np.mean(spent) / many / np.mean(written))
    scores = np.full((*found.right.shape, many), np.nan)
    for i, row in enumerate(chains):
        for j, chain in enumerate(row):
            if found.answers[i, j] >= 0:
                scores[i, j, : len(chain)] = [np.nan if score is None else score for score in chain]
    doublings = [0, *(1 << i for i in range(many.bit_length()))]
    budgets = [1 << i for i in range(width.bit_length())]
    grid = {pair for budget in budgets for pair in equal_cost(budget, price, doublings)} | {
        (s, v) for v in doublings for s in budgets
    }
    pairs = sorted((s, v) for s, v in grid if s <= width)
    tried = solve_or_verify(found.right, scores, found.answers, pairs, price, repeats=4, subsets=50)
    return price, [
        Pair(s, v, float(tried.cost[i]), Figure.of(tried.best[:, i]), Figure.of(tried.vote[:, i]))
        for i, (s, v) in enumerate(pairs)
    ]
