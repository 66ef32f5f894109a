"""The problems of a run to leaf through: question, draws grouped by answer, their texts, what every verifier said, the bill.

A page must stay readable and small, so there is room for some problems and some draws of each; what is left out is counted. All
text is a model's or a benchmark's, and hostile: it is escaped, cut to a length, and its control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..schema import Cost, Verdict
from .draws import Draw, Judged
from .folder import once
from .markup import Html, cut, escaped, h, join, unfolds
from .terminal import amount

SHORT = 90
"""Characters of an answer, or of a question in a line of its own."""
MARKS = {"correct": "✓", "wrong": "✗", "unknown": "?", "error": "!"}

FILTERS = {
    "all": "all", "right": "chosen right", "wrong": "chosen wrong", "missed": "right drawn, not chosen", "never": "never right",
    "cut": "cut off", "fooled": "a verifier accepts a wrong draw",
}  # fmt: skip
"""What can be picked, by tag."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much is shown."""

    problems: int
    draws: int
    characters: int


def browser(path: str | Path, judged: Sequence[Judged], truth: str, parameters: int, room: Room) -> Html:
    """Problems evenly from all of them, in order."""
    shown = _evenly(judged, room.problems)
    texts = _texts(path, {problem.id for problem in shown})
    problems = [_problem(problem, texts[problem.id], truth, parameters, room) for problem in shown]
    tags = [_tags(problem, truth) for problem in shown]
    counts = {tag: sum(tag in of for of in tags) for tag in FILTERS if tag != "all"} | {"all": len(shown)}
    buttons = [
        h("button", f"{label} ", h("small", str(counts[tag])), type="button", data_filter=tag,
          aria_pressed="true" if tag == "all" else "false")
        for tag, label in FILTERS.items() if counts[tag]
    ]  # fmt: skip
    left = len(judged) - len(shown)
    note = h("p", f"{len(shown)} of {len(judged)} problems, evenly from all; the others are in the run's folder.", class_="note")
    bar = h("div", *buttons, class_="filters", hidden=True)
    return h("div", note if left else None, bar, *problems, class_="browser")


def _evenly(judged: Sequence[Judged], count: int) -> list[Judged]:
    if len(judged) <= count:
        return list(judged)
    return [judged[i * len(judged) // count] for i in range(count)]


def _texts(path: str | Path, problems: set[str]) -> dict[str, dict[int, str]]:
    """By problem and draw."""
    found: dict[str, dict[int, str]] = {problem: {} for problem in problems}
    for row in once(path, "samples", "problem", "index"):
        if row["problem"] in problems:
            found[row["problem"]][row["index"]] = row["completion"]["text"]
    return found


def _tags(problem: Judged, truth: str) -> set[str]:
    drawn = any(draw.right for draw in problem.draws)
    accepted = (
        verdict.status == "correct"
        for draw in problem.draws if draw.status == "wrong"
        for name, verdict in draw.verdicts.items() if name != truth
    )  # fmt: skip
    tags = {
        "right": problem.right, "wrong": not problem.right, "missed": drawn and not problem.right, "never": not drawn,
        "cut": any(draw.finish == "length" for draw in problem.draws), "fooled": any(accepted),
    }  # fmt: skip
    return {tag for tag, held in tags.items() if held}


def _problem(problem: Judged, texts: Mapping[int, str], truth: str, parameters: int, room: Room) -> Html:
    good = sum(draw.right is True for draw in problem.draws)
    head = join(
        h("span", "✓" if problem.right else "✗", class_="right" if problem.right else "wrong"), " ",
        h("code", problem.id), " ", f"level {problem.level} · " if problem.level is not None else "",
        h("span", f"{good} of {len(problem.draws)} draws right", class_="note"), " ",
        h("span", _line(problem.question), class_="line"),
    )  # fmt: skip
    facts = [
        ["answer", "not known as text" if problem.gold is None else cut(problem.gold, room.characters)],
        ["chosen", _chosen(problem)],
        ["bill", _bill(problem.cost, parameters)],
    ]
    groups = _groups(problem)
    shown = _some(problem, groups, room.draws)
    return unfolds(
        head,
        h("pre", cut(problem.question, room.characters), class_="question"),
        h("dl", *(join(h("dt", name), h("dd", value)) for name, value in facts)),
        *(_group(answer, draws, shown, problem, texts, truth, parameters, room) for answer, draws in groups),
        class_="problem", data_tags=" ".join(sorted(_tags(problem, truth) | {"all"})),
    )  # fmt: skip


def _chosen(problem: Judged) -> Html:
    if problem.answer is None:
        return escaped("none")
    return join(h("code", _line(problem.answer)), f", draw {problem.chosen}" if problem.chosen is not None else "")


def _groups(problem: Judged) -> list[tuple[str | None, list[Draw]]]:
    """Draws by answer, most votes first, those without an answer last."""
    found: dict[str | None, list[Draw]] = {}
    for draw in problem.draws:
        found.setdefault(draw.answer, []).append(draw)
    return sorted(found.items(), key=lambda group: (group[0] is None, -len(group[1]), group[1][0].index))


def _some(problem: Judged, groups: Sequence[tuple[str | None, Sequence[Draw]]], count: int) -> set[int]:
    """The numbers of ``count`` draws: the chosen one, and then from each answer in turn."""
    rounds = max(len(draws) for _, draws in groups)
    in_turn = [draws[i].index for i in range(rounds) for _, draws in groups if i < len(draws)]
    first = [] if problem.chosen is None else [problem.chosen]
    return set(list(dict.fromkeys(first + in_turn))[:count])


def _group(
    answer: str | None, draws: Sequence[Draw], shown: set[int], problem: Judged, texts: Mapping[int, str], truth: str,
    parameters: int, room: Room,
) -> Html:  # fmt: skip
    said = sorted({draw.status for draw in draws})
    label = "no answer" if answer is None else h("code", _line(answer))
    some = [draw for draw in draws if draw.index in shown]
    more = len(draws) - len(some)
    return h(
        "section",
        h("h4", " ".join(MARKS[status] for status in said), " ", label, f" × {len(draws)}",
          h("span", " chosen", class_="note") if problem.chosen in {draw.index for draw in draws} else None),
        *(_draw(draw, texts[draw.index], truth, parameters, room) for draw in some),
        h("p", f"{more} more" if some else f"{more} not shown", class_="note") if more else None,
    )  # fmt: skip


def _draw(draw: Draw, text: str, truth: str, parameters: int, room: Room) -> Html:
    others = [(name, verdict) for name, verdict in draw.verdicts.items() if name != truth]
    ended = "" if draw.finish == "stop" else f" · {draw.finish}"
    brief = " · ".join(f"{name} {_word(verdict)}" for name, verdict in others)
    head = f"{MARKS[draw.status]} draw {draw.index} · {draw.cost.kept} tokens{ended}{' · ' + brief if brief else ''}"
    verdicts = [_verdict(name, verdict) for name, verdict in [(truth, draw.verdicts[truth]), *others]]
    below = h("ul", *verdicts, h("li", _bill(draw.cost, parameters)))
    return unfolds(head, h("pre", cut(text, room.characters)), below, class_="draw")


def _word(verdict: Verdict) -> str:
    if verdict.score is None or (verdict.status, verdict.score) in (("correct", 1), ("wrong", 0)):
        return verdict.status
    return f"{verdict.score:.3g}" if verdict.status == "unknown" else f"{verdict.status} {verdict.score:.3g}"


def _verdict(name: str, verdict: Verdict) -> Html:
    steps = verdict.meta.get("steps")
    scores = ", ".join(f"{step:.2f}" for step in steps[:50] if isinstance(step, int | float)) if isinstance(steps, list) else ""
    parts = [_word(verdict), cut(verdict.reason, 2 * SHORT), f"steps {scores}" if scores else ""]
    return h("li", h("b", name), " ", " · ".join(part for part in parts if part))


def _bill(cost: Cost, parameters: int) -> str:
    parts = [f"{cost.computed:,} tokens computed", f"{cost.kept:,} kept", f"{cost.forwards:,} forwards", f"{cost.seconds:.2f} s"]
    return ", ".join([*parts, amount(cost.flops(parameters), "FLOP")] if parameters else parts)


def _line(text: str) -> str:
    """The beginning of a text, in one line."""
    one = " ".join(text[: 4 * SHORT].split())
    return one if len(one) <= SHORT and len(text) <= 4 * SHORT else one[:SHORT] + " …"
