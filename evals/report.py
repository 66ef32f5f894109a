"""``forethought report``: one HTML page about a run, or about several side by side. No model, no network, no other file.

What runs show is computed anew from their folders (results.py); here it is laid out. Everything on the page that is text is
escaped by construction (markup.py), and no script but the page's own may run. The same runs give the same page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backend.load import BUILT_IN
from . import sections
from .browser import Room, browser
from .compare import paired
from .config import build, compose
from .curves import Figure
from .draws import problems_of
from .folder import identity, write
from .markup import Html, grid, h, join
from .page import page
from .results import Results, signed
from .sections import Shown
from .terminal import amount, clean


@dataclass(frozen=True, slots=True)
class Report:
    """How much of the draws a page shows. ``problems``: of all its runs together; ``characters``: of each text."""

    problems: int = 100
    draws: int = 8
    characters: int = 4000

    def __post_init__(self) -> None:
        for name in ("problems", "draws", "characters"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"report.{name}={value!r}: a whole number of at least 1")


def report(runs: Sequence[str], overrides: Sequence[str]) -> int:
    """Write the page; the exit code. Raises ``ValueError`` for a run that has no finished problem, or is named twice."""
    config = compose("report", overrides)
    if not runs:
        raise ValueError("report needs a run: a folder that forethought eval has made")
    path = Path(config.out or (Path(runs[0]) / "report.html" if len(runs) == 1 else "report.html"))
    text = written([Path(run) for run in runs], build(config.report))
    write(path, text)
    print(f"{clean(str(path))}, {amount(len(text.encode(errors='replace')), 'B')}")
    return 0


def written(paths: Sequence[Path], room: Report) -> str:
    """The page about the runs at ``paths``."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{', '.join(map(str, paths))}: a run is named twice")
    runs = [_shown(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    several = len(runs) > 1
    each = Room(max(1, room.problems // len(runs)), room.draws, room.characters)
    parts: list[tuple[str, Html | None]] = [("Right over the number of draws", sections.curves(runs))]
    if several:
        parts.append((f"Against {runs[0].name}", _against(runs)))
    for run in runs:
        of = f": {run.name}" if several else ""
        parts.append((f"Ways to answer, paired{of}", sections.differences(run)))
        parts.append((f"More draws than were made{of}", sections.laws(run)))
        parts.append((f"Verifiers that choose{of}", sections.selection(run)))
    parts += [("By level", sections.levels(runs)), ("The bill", sections.cost(runs))]
    for run in runs:
        problems = browser(run.path, run.judged, run.results.truth, run.results.parameters, each)
        parts.append((f"Problems{f': {run.name}' if several else ''}", problems))
    parts.append(("How it was made", join(*(join(h("h3", run.name) if several else None, sections.about(run)) for run in runs))))
    shown = [(title, part) for title, part in parts if part is not None]
    links = h("nav", *(h("a", title, href=f"#part-{i}") for i, (title, _) in enumerate(shown)))
    title = " and ".join(run.name for run in runs)
    return page(
        f"{title}: Forethought", h("h1", title), _label(runs), sections.head(runs), links,
        *(join(h("h2", title, id=f"part-{i}"), part) for i, (title, part) in enumerate(shown)),
    )  # fmt: skip


def _shown(path: Path, name: str) -> Shown:
    what = identity(path)
    results = Results.again(path)
    return Shown(name, path, what["config"], what["weights"], results, problems_of(path))


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of the path before them as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _label(runs: Sequence[Shown]) -> Html | None:
    built_in = sorted({run.model for run in runs if (BUILT_IN / run.model).is_dir() and "/" not in run.model})
    if not built_in:
        return None
    named = f"model{'s' if len(built_in) > 1 else ''} {' and '.join(built_in)}"
    said = f"Figures of the built-in {named}: they show what the methods do, and claim nothing about any other model."
    return h("p", said, class_="label")


def _against(runs: Sequence[Shown]) -> Html:
    """The other runs less the first one, problem by problem."""
    rows, notes = [], []
    for other in runs[1:]:
        try:
            found = paired(runs[0].path, other.path)
        except ValueError as e:
            notes.append(h("p", f"{other.name}: not to be compared, {e}"))
            continue
        for row in found["rows"]:
            figure = Figure(row["difference"], row["low"], row["high"], found["problems"])
            value, interval = signed(figure).split(" ", 1)
            ends = [f"{100 * row[end]:.1f}" for end in ("first", "second")]
            rows.append([other.name, row["what"], str(found["problems"]), *ends, value, interval])
        alone = f"solved by {runs[0].name} alone {found['only_first']}, by {other.name} alone {found['only_second']}"
        notes.append(h("p", f"{other.name}: {alone}; exact McNemar p = {found['p']:.3g}.", class_="note"))
    header = ["run", "% right", "problems in both", runs[0].name, "this run", "points", "95 % interval"]
    return join(grid(header, rows, left=2) if rows else None, *notes)
