"""The parts of a report: what stands under each heading, for one run or several. Reads results, computes nothing of its own.

Not here: the problems to leaf through (browser.py), the frame (page.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schema import Cost
from .charts import Line, chart
from .curves import Difference, Figure
from .draws import Judged
from .markup import Html, grid, h, join, unfolds
from .results import Results, percent, signed
from .selection import Selector
from .terminal import amount


@dataclass(frozen=True, slots=True)
class Shown:
    """A run on the page."""

    name: str
    path: Path
    config: Mapping[str, Any]
    weights: str
    results: Results
    judged: Sequence[Judged]

    @property
    def model(self) -> str:
        return str(self.config.get("model", {}).get("name_or_path", "?"))


def cell(figure: Figure | None) -> Html:
    """Value and interval, in per cent, for a table."""
    if figure is None:
        return h("small", "none")
    return join(f"{100 * figure.value:.1f} ", h("small", f"[{100 * figure.low:.1f}, {100 * figure.high:.1f}]"))


def described(node: Any) -> str:
    """A component of a config in a few words: its class, and the settings that are set."""
    if not isinstance(node, Mapping):
        return str(node)
    settings = [
        f"{key} {described(value)}" for key, value in node.items() if not key.startswith("_") and value not in (None, [], {})
    ]
    name = str(node["_target_"]).rpartition(".")[2] if "_target_" in node else ""
    return ", ".join(part for part in (name, *settings) if part)


def head(runs: Sequence[Shown]) -> Html:
    """What was run, side by side, and how much of it is right."""
    rows: list[tuple[str, list[str | Html]]] = [
        ("task", [described(run.config.get("task")) for run in runs]),
        ("model", [_model(run) for run in runs]),
        ("decoder", [described(run.config.get("decoder")) for run in runs]),
        ("sampling", [described(run.config.get("sampling")) for run in runs]),
        ("strategy", [described(run.config.get("strategy")) for run in runs]),
        ("chosen by", [described(run.config["verifier"]) if "verifier" in run.config else "no verifier" for run in runs]),
        ("judged by", [run.results.truth for run in runs]),
        ("problems", [f"{run.results.problems:,}" for run in runs]),
        ("draws", [f"{run.results.draws:,}" for run in runs]),
        ("chosen answers right, %", [cell(run.results.accuracy) for run in runs]),
        ("one draw right, %", [cell(run.results.coverage.get("1")) for run in runs]),
        ("cut off at a length limit", [f"{run.results.truncated:.1%}" for run in runs]),
    ]
    table = grid(["", *(run.name for run in runs)], [[name, *cells] for name, cells in rows], left=1 + len(runs))
    if len(runs) > 1:
        return table
    found = runs[0].results
    said = f"of {found.problems:,} problems have a right answer chosen, 95 % interval {percent(found.accuracy).partition(' ')[2]}"
    return join(h("p", f"{100 * found.accuracy.value:.1f} %", class_="big"), h("p", said), table)


def _model(run: Shown) -> str:
    return f"{run.model}, {amount(run.results.parameters)} parameters" if run.results.parameters else run.model


def curves(runs: Sequence[Shown]) -> Html:
    """Every way to answer over the number of draws."""
    ways = {way: None for run in runs for way in run.results.columns()}
    if not ways:
        return h("p", "Too few draws for a curve.")
    note = (
        "Bands and brackets: 95 % intervals over problems. pass@k, best of k and first accepted are exact means over all subsets "
        "of k draws, votes are means over random ones."
    )
    if len(runs) == 1:
        found = runs[0].results.columns()
        lines = [Line.of(way, figures) for way, figures in found.items()]
        drawn = chart("How often the answer is right", lines, x="draws", y="right")
        return join(drawn, _by_k(found), h("p", note, class_="note"))
    charts = []
    for way in ways:
        found = {run.name: run.results.columns()[way] for run in runs if way in run.results.columns()}
        charts += [chart(way, [Line.of(name, figures) for name, figures in found.items()], x="draws", y="right"), _by_k(found)]
    return join(*charts, h("p", note, class_="note"))


def _by_k(found: Mapping[str, Mapping[str, Figure]]) -> Html:
    ks = sorted({int(k) for figures in found.values() for k in figures})
    rows = [[f"{k:,}", *(cell(figures[str(k)]) if str(k) in figures else "" for figures in found.values())] for k in ks]
    return grid(["draws", *(f"{name}, %" for name in found)], rows)


def differences(run: Shown) -> Html | None:
    """Ways to answer against each other, over the same draws."""
    found: list[Difference] = [*run.results.differences]
    for selector in run.results.selectors.values():
        found += selector.differences
    if not found:
        return None
    rows = [[f"{one.first} less {one.second}", f"{one.k:,}", *_points(one.figure)] for one in found]
    return grid(["paired, problem by problem", "draws", "points", "95 % interval"], rows)


def _points(figure: Figure) -> list[str]:
    value, interval = signed(figure).split(" ", 1)
    return [value, interval]


def laws(run: Shown) -> Html | None:
    """How coverage goes on, with each law's own interval, and how well it would have foretold what was drawn."""
    found, measured = run.results.laws, run.results.coverage
    if not found or len(measured) < 3:
        return None
    drawn = max(map(int, measured))
    lines = [Line.of("measured", measured, colour=6)]
    lines += [Line.of(name, law.curve, style="--", colour=i) for i, (name, law) in enumerate(found.items())]
    rows = []
    for name, law in found.items():
        parameters = ", ".join(f"{key} {f.value:.3g} [{f.low:.3g}, {f.high:.3g}]" for key, f in law.parameters.items())
        test = ["too few draws", "", ""]
        if law.predicted is not None and law.observed is not None:
            test = [f"{100 * law.predicted:.1f}", f"{100 * law.observed:.1f}", f"{100 * (law.predicted - law.observed):+.1f}"]
        rows.append([name, parameters, *test, cell(law.curve[max(law.curve, key=int)])])
    first = next(iter(found.values()))
    end, tested = max(map(int, first.curve)), f" from {first.drawn} draws" if first.drawn else ""
    header = ["law", "parameters", f"pass@{first.k or drawn}{tested}, %", "drawn, %", "error", f"pass@{end:,}, %"]
    note = (
        "Laws of coverage are models: they agree where there are draws and part beyond. The dotted line is where the draws end; "
        "no law is followed further than ten times as far, or without an interval."
    )
    drawing = chart("Coverage and where three laws take it", lines, x="draws", y="pass@k", upto=drawn, of=run.name)
    return join(drawing, grid(header, rows, left=2), h("p", note, class_="note"))


def levels(runs: Sequence[Shown]) -> Html | None:
    """Accuracy of the chosen answers by level."""
    known = sorted({level for run in runs for level in run.results.levels}, key=int)
    if len(known) < 2:
        return None
    rows = []
    for level in known:
        problems = max(run.results.levels[level].problems for run in runs if level in run.results.levels)
        figures = [of.get(level) for run in runs for of in (run.results.levels, run.results.single)]
        rows.append([level, str(problems), *(cell(figure) if figure else "" for figure in figures)])
    of_each = [f"{run.name}: " if len(runs) > 1 else "" for run in runs]
    names = [f"{of}{what}, %" for of in of_each for what in ("chosen right", "one draw right")]
    return grid(["level", "problems", *names], rows)


def selection(run: Shown) -> Html | None:
    """Each verifier as the one that chooses."""
    parts = [part for name, selector in run.results.selectors.items() for part in _selector(run, name, selector)]
    return join(*parts) if parts else None


def _selector(run: Shown, name: str, selector: Selector) -> Iterable[Html]:
    yield h("h3", name)
    said = ", ".join(f"{count:,} {status}" for status, count in selector.statuses.items())
    some = "" if selector.problems == run.results.problems else f" of {selector.problems} problems"
    paid = f" It computed {selector.tokens:,.0f} tokens a draw." if selector.tokens else ""
    yield h("p", f"On {selector.draws:,} draws{some}: {said}.{paid}")
    rows: list[list[str]] = []
    if selector.scored is not None and selector.scored.separates is not None:
        ordered = "pairs of a right and a wrong draw of one problem that its score puts in order"
        rows.append([ordered, cell(selector.scored.separates)])
    if (accepts := selector.accepts) is not None:
        rows += [
            ["right draws that it accepts", cell(accepts.right_accepted)],
            ["wrong draws that it accepts: false positives", cell(accepts.wrong_accepted)],
            ["accepted draws that are right: precision", cell(accepts.accepted_right)],
        ]
    if rows:
        yield grid(["", "%"], rows)
    if accepts is not None and len(accepts.right) > 1:
        low, high = (f"{100 * end:.1f} %" for end in accepts.ceiling)
        most = f"However many draws are made, the first accepted one is right for {low} of problems"
        yield h("p", f"{most}, for {high} if those of which none was accepted come out right.")
        answers = {"answers given": accepts.answered, "right": accepts.right, "right of those given": accepts.precision}
        lines = [Line.of(way, figures) for way, figures in answers.items()]
        yield chart(f"Drawing until {name} accepts", lines, x="draws at most", y="problems", of=run.name)
        lines = [Line.of(f"loss {one.loss:g}", one.curve, band=False) for one in accepts.utility]
        title = f"What it brings, by the loss of a wrong answer ({name})"
        yield chart(title, lines, x="draws at most", y="right answers", percent=False, of=run.name)
        rows = [[f"{one.loss:g}", _draws(one.best_k, one.climbing), f"{one.best:.3f}"] for one in accepts.utility]
        yield grid(["loss of a wrong answer", "draws worth making", "brings a problem"], rows, left=0)
    yield from _solve_or_verify(name, selector, run.name)


def _draws(best: int, climbing: bool) -> str:
    return "none: better no answer" if not best else f"{best:,} or more" if climbing else f"{best:,}"


def _solve_or_verify(name: str, selector: Selector, of: str) -> Iterable[Html]:
    if not selector.pairs:
        return
    lines = []
    for v in sorted({pair.verifications for pair in selector.pairs}):
        some = sorted((pair for pair in selector.pairs if pair.verifications == v), key=lambda pair: pair.cost)
        label = "plain vote" if v == 0 else f"weighted vote, {v} verification{'s' if v > 1 else ''} each"
        figures = [pair.vote for pair in some]
        x = [pair.cost for pair in some]
        lines.append(Line(label, x, [f.value for f in figures], [f.low for f in figures], [f.high for f in figures]))
    yield chart(f"To solve or to verify, at equal FLOPs ({name})", lines, x="FLOPs of so many solutions", y="right", of=of)
    rows = [
        [str(p.solutions), str(p.verifications), f"{p.cost:.1f}", cell(p.vote), cell(p.best) if p.verifications else ""]
        for p in sorted(selector.pairs, key=lambda pair: (pair.cost, pair.verifications))
    ]
    table = grid(["solutions", "verifications each", "cost, in solutions", "vote right, %", "best right, %"], rows, left=0)
    yield h("p", f"A verification costs {selector.price:.2f} solutions.")
    yield unfolds("every pair", table)


def cost(runs: Sequence[Shown]) -> Html:
    """What it took: tokens, calls, FLOPs, and where the time went."""
    bills = [sum((problem.cost for problem in run.judged), Cost()) for run in runs]
    rows: list[list[str]] = []

    def row(name: str, cells: list[str]) -> None:
        if any(one not in ("0", "") for one in cells):
            rows.append([name, *cells])

    kinds = {
        "tokens of the outputs": "kept", "prompt tokens computed": "prompt", "prompt tokens from the cache": "cached",
        "drafted": "drafted", "drafted and taken": "accepted", "computed and thrown away": "discarded",
        "put in": "injected", "computed by draft models": "drafting", "probes": "probe", "verifier tokens": "verifier",
    }  # fmt: skip
    row("FLOPs, all at the model's size", [amount(run.results.flops) if run.results.flops else "" for run in runs])
    row("the same, a draw", [amount(run.results.flops / run.results.draws) if run.results.flops else "" for run in runs])
    row("tokens computed", [f"{bill.computed:,}" for bill in bills])
    for name, field in kinds.items():
        row(name, [f"{getattr(bill, field):,}" for bill in bills])
    row("tokens of a draw, in the mean", [f"{run.results.tokens:.1f}" for run in runs])
    row("different answers of a problem", [f"{run.results.answers:.1f}" for run in runs])
    row("draws with a text of their own", [f"{run.results.texts:.1%}" for run in runs])
    table = grid(["", *(["all draws"] if len(runs) == 1 else [run.name for run in runs])], rows)
    times = [part for run in runs if (part := _times(run, several=len(runs) > 1)) is not None]
    return join(table, *times)


def _times(run: Shown, several: bool) -> Html | None:
    timing = run.results.timing
    seconds = {key.removesuffix("_seconds"): value for key, value in timing.items() if key.endswith("_seconds")}
    if not timing.get("draws") or not seconds.get("wall"):
        return None
    rows = [[key.replace("_", " "), f"{value:.1f}", f"{value / seconds['wall']:.1%}"] for key, value in seconds.items()]
    about = f"{timing['draws']:,.0f} draws, {amount(timing['tokens_per_second'])} tokens/s"
    if "rows_busy" in timing:
        about += f", {timing['rows_busy']:.1%} of rows busy until the queue was empty"
    caption = f"{run.name}: last session, {about}" if several else f"Last session: {about}"
    return grid(["", "seconds", "of the wall"], rows, caption=caption)


def about(run: Shown) -> Html:
    """How it was made, to make it again."""
    parts = [h("p", "Folder ", h("code", str(run.path)), ", weights ", h("code", run.weights[:16] or "unknown"), ".")]
    parts.append(unfolds("config", h("pre", json.dumps(run.config, indent=1, ensure_ascii=False))))
    for name, file in (("machine and versions", "environment.json"), ("verifiers", "verifiers.json")):
        if (run.path / file).exists():
            parts.append(unfolds(name, h("pre", (run.path / file).read_text(encoding="utf-8"))))
    return join(*parts)
