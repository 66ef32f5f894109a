"""What a run shows: accuracy, curves, laws of coverage, and what each verifier is worth. ``results.json``; no model is needed.

An answer that could not be read counts as not right and is reported apart; a draw whose judgement broke is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..backend.usage import PARTS
from ..checks import read_json
from ..schema import Json
from .curves import Curves, Difference, Figure, Fitted, curve, fits, read_curve
from .draws import Judged, problems_of, tables, truth_of
from .selection import Selector
from .terminal import amount, clean, table

SCHEMA = 2
KS = tuple(1 << i for i in range(11))
"""Numbers of draws that curves are for, as far as there are draws."""


@dataclass(frozen=True, slots=True)
class Results(Json):
    """``results.json``."""

    path: str
    truth: str
    """The verifier by which all else is right or wrong."""
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
    single: Mapping[str, Figure]
    """Level -> a single draw is right."""
    statuses: Mapping[str, int]
    """Of all draws, what the truth said."""
    truncated: float
    """Share of draws that ended at a length limit: these look like wrong answers."""
    tokens: float
    """Of a draw, in the mean."""
    answers: float
    """Different answers of a problem, in the mean."""
    texts: float
    """Different texts over draws."""
    flops: float
    """Of all tokens that the strategy had computed, a verifier's too, at the size of the run's model."""
    parameters: int
    laws: Mapping[str, Fitted]
    """How coverage goes on, by each law."""
    selectors: Mapping[str, Selector]
    """Every other verifier that has judged the draws, as the one that chooses."""
    differences: Sequence[Difference]
    timing: Mapping[str, float] = field(default_factory=dict)
    """Of the last session of the run."""
    ks: Sequence[int] = KS
    schema: int = SCHEMA

    _nested = {
        "accuracy": Figure.from_json,
        **dict.fromkeys(("coverage", "votes", "levels", "single"), read_curve),
        "laws": lambda given: {name: Fitted.from_json(law) for name, law in given.items()},
        "selectors": lambda given: {name: Selector.from_json(selector) for name, selector in given.items()},
        "differences": lambda given: [Difference.from_json(one) for one in given],
    }

    @classmethod
    def of(
        cls, path: str | Path, ks: Sequence[int] = KS, *, parameters: int = 0, split: Mapping[str, float] | None = None,
        truth: str | None = None,
    ) -> Results:  # fmt: skip
        """Computed from what the folder holds. ``truth``: another verifier than the run's own.

        Raises ``ValueError`` where no problem is finished.
        """
        judged, name = problems_of(path, truth), truth or truth_of(path)
        if not judged:
            raise ValueError(f"{path}: no problem is finished")
        draws = [draw for problem in judged for draw in problem.draws]
        found = tables(judged)
        curves = Curves.of(found, ks)
        levels = sorted({problem.level for problem in judged if problem.level is not None})
        by_level = {level: [p.right for p in judged if p.level == level] for level in levels}
        verifiers = sorted({verifier for draw in draws for verifier in draw.verdicts} - {name})
        sizes = _sizes(path, parameters)
        selectors = {verifier: Selector.of(verifier, judged, curves.ks, sizes.get(verifier, 1.0)) for verifier in verifiers}
        return cls(
            path=str(path), truth=name, problems=len(judged), draws=len(draws),
            accuracy=Figure.share([problem.right for problem in judged]),
            coverage=curve(curves.ks, curves.coverage), votes=curve(curves.ks, curves.votes),
            levels={str(level): Figure.share(right) for level, right in by_level.items()},
            single=_single(judged),
            statuses=dict(sorted(Counter(draw.status for draw in draws).items())),
            truncated=sum(draw.finish == "length" for draw in draws) / len(draws),
            tokens=sum(draw.cost.kept for draw in draws) / len(draws),
            answers=float(np.mean([len({draw.answer for draw in problem.draws} - {None}) for problem in judged])),
            texts=sum(len({draw.text for draw in problem.draws}) for problem in judged) / len(draws),
            flops=sum(problem.cost.flops(parameters) for problem in judged), parameters=parameters, laws=fits(found),
            selectors={verifier: selector for verifier, selector in selectors.items() if selector is not None},
            differences=curves.differences(), timing=split or {}, ks=list(ks),
        )  # fmt: skip

    @classmethod
    def again(cls, path: str | Path, truth: str | None = None) -> Results:
        """:meth:`of` with the settings and the timing that ``results.json`` holds, where it is there."""
        file = Path(path) / "results.json"
        before = read_json(file)
        ks, parameters = before.get("ks", KS), before.get("parameters", 0)
        return cls.of(path, ks, parameters=parameters, split=before.get("timing"), truth=truth)

    def columns(self) -> dict[str, Mapping[str, Figure]]:
        """Every way to answer from k draws, by name: k -> how often it is right."""
        found = {"pass@k": self.coverage, "majority": self.votes}
        for name, selector in self.selectors.items():
            if selector.scored is not None:
                found |= {f"best by {name}": selector.scored.best, f"vote weighted by {name}": selector.scored.weighted}
            if selector.accepts is not None:
                found[f"first accepted by {name}"] = selector.accepts.right
        return {name: figures for name, figures in found.items() if figures}


def _single(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Of levels of which every problem has a judged draw."""
    shares: dict[int, list[float]] = {}
    for problem in judged:
        if problem.level is not None:
            known = [draw.right for draw in problem.draws if draw.right is not None]
            shares.setdefault(problem.level, []).append(sum(known) / len(known) if known else np.nan)
    return {str(level): Figure.of(np.array(share)) for level, share in sorted(shares.items()) if not np.isnan(share).any()}


def _sizes(path: str | Path, parameters: int) -> dict[str, float]:
    """Of each verifier with a model of its own, its parameters over the run's model's."""
    file = Path(path) / "verifiers.json"
    known = read_json(file)
    return {name: known[name]["parameters"] / parameters for name in known if parameters and known[name]["parameters"]}


def show(results: Results) -> str:
    """The results as a person reads them."""
    lengths = f"{results.tokens:.0f} tokens a draw, {results.truncated:.1%} cut off at a length limit"
    lines = [f"{results.problems} problems, {results.draws} draws, {lengths}"]
    lines.append(f"chosen answers right: {percent(results.accuracy)}")
    lines.append(", ".join(f"{count} {status}" for status, count in results.statuses.items()))
    if results.coverage:
        rows = [[k, percent(figure), percent(results.votes[k])] for k, figure in results.coverage.items()]
        lines += ["", table(["k", "pass@k", "majority of k"], rows)]
    for name, selector in results.selectors.items():
        lines += ["", f"{clean(name)} as the one that chooses:", *_chosen(selector)]
    differences = [*results.differences, *(d for selector in results.selectors.values() for d in selector.differences)]
    if differences:
        rows = [[clean(f"{d.first} less {d.second}"), str(d.k), signed(d.figure)] for d in differences]
        lines += ["", table(["paired", "k", "difference"], rows)]
    if len(results.levels) > 1:
        single = {level: percent(figure) for level, figure in results.single.items()}
        rows = [[level, str(f.problems), percent(f), single.get(level, "")] for level, f in results.levels.items()]
        lines += ["", table(["level", "problems", "chosen right", "a draw right"], rows)]
    if results.timing.get("draws"):
        timing = results.timing
        speed = f"{amount(timing['tokens_per_second'])} tokens/s"
        drawing = f"{timing['wall_seconds']:.1f} s for {timing['draws']:,} new draws, {speed}"
        judging = f"choosing {timing['choosing_seconds']:.1f} s, judging {timing['verifying_seconds']:.1f} s"
        lines += ["", f"{drawing}; beside it {judging}, writing {timing['writing_seconds']:.1f} s"]
        parts = ", ".join(f"{part} {timing[f'{part}_seconds']:.1f} s" for part in PARTS if f"{part}_seconds" in timing)
        busy = f"{timing['rows_busy']:.1%} of rows busy until the queue was empty" if "rows_busy" in timing else ""
        lines += [f"the engine: {'; '.join(filter(None, (parts, busy)))}"] if parts else []
    lines.append(f"in {clean(results.path)}")
    return "\n".join(lines)


def _chosen(selector: Selector) -> list[str]:
    scored, accepts = selector.scored, selector.accepts
    ways = {
        "best of k": scored.best if scored else {}, "weighted vote": scored.weighted if scored else {},
        "first accepted": accepts.right if accepts else {}, "precision": accepts.precision if accepts else {},
    }  # fmt: skip
    ways = {name: figures for name, figures in ways.items() if figures}
    lines = []
    if ways:
        ks = list(next(iter(ways.values())))
        lines.append(table(["k", *ways], [[k, *(percent(way[k]) if k in way else "" for way in ways.values())] for k in ks]))
    if accepts and accepts.wrong_accepted and accepts.right_accepted:
        lines.append(f"accepts {percent(accepts.right_accepted)} of right draws, {percent(accepts.wrong_accepted)} of wrong ones")
        best = ", ".join(f"{one.best_k}{' or more' if one.climbing else ''} at loss {one.loss:g}" for one in accepts.utility)
        lines.append(f"draws worth making: {best}")
    return lines


def percent(figure: Figure) -> str:
    """Value and interval, in per cent."""
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def signed(figure: Figure) -> str:
    """A difference and its interval, in points of per cent."""
    return f"{100 * figure.value:+.1f} [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]"
