"""The page about a run: whole, self-contained, and proof against what models write."""

from __future__ import annotations

import base64
import builtins
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import CONFIG, made

from forethought.evals.browser import FILTERS
from forethought.evals.cli import main
from forethought.evals.markup import VOID, Html, cut, grid, h, visible
from forethought.evals.page import SCRIPT
from forethought.evals.report import Report, written
from forethought.evals.results import Results, percent
from forethought.schema import Cost, Verdict

RIGHTS = {f"p{i:02}": [i < 6, i % 2 == 0, True, i % 3 == 0] * 2 for i in range(12)}
HOSTILE = [
    "</pre></details></script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\x00\x1b[31m\u202e\ud800\x85 &amp; ]]>",
    "</style><svg onload=alert(1)>\"'`${}",
]


class Page(HTMLParser):
    """What stands in a page; balanced, or it raises."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/>"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(path: Path, *more: Path, **options: Any) -> tuple[str, Page]:
    text = written([path, *more], Report(**options))
    return text, Page(text)


def verdicts(word: str, **more: Any) -> dict[str, list[Verdict]]:
    return {name: [Verdict("correct" if word == "yes" else "unknown", 0.1 * i, **more) for i in range(8)] for name in RIGHTS}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that a page can show."""
    chain = Verdict("unknown", 0.5, "two", cost=Cost(verifier=20), meta={"verdicts": [True, False]})
    chains = {name: [chain] * 8 for name in RIGHTS}
    others = {"yes": verdicts("yes"), "prm": verdicts("no", meta={"steps": [0.5, 0.25]}), "judge": chains}
    path = tmp_path_factory.mktemp("runs") / "full"
    for level in (1, 2):
        some = {name: right for i, (name, right) in enumerate(RIGHTS.items()) if i % 2 == level - 1}
        made(path, some, others=others, level=level)
    timing = {"wall_seconds": 2.0, "verifying_seconds": 0.5, "choosing_seconds": 0.0, "writing_seconds": 0.1, "draws": 96.0,
              "tokens_per_second": 100.0}  # fmt: skip
    (path / "results.json").write_text(json.dumps(Results.of(path, parameters=1000, split=timing).to_json()))
    (path / "environment.json").write_text('{"hardware": "<a fast one>"}')
    return path


def test_a_page_is_whole_and_asks_for_nothing(full: Path) -> None:
    text, found = page(full)
    assert text.startswith("<!doctype html>\n<html")
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value[0] == "#"
                assert value[1:] in ids, value
    assert not re.search(r"@import|https?:|url\([^#]", text)
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert text.count("<script>") == 1
    assert f"<script>{SCRIPT}</script>" in text


def test_what_a_page_shows(full: Path) -> None:
    text, found = page(full)
    results = Results.again(full)
    said = " ".join(" ".join(found.texts).split())
    for part in (
        "Figures of the built-in model nano", percent(results.accuracy).split(" ")[1], "BestOfN, n 2, select majority",
        "temperature 0.8, top_p 0.95", "zero-inflated", "wrong draws that it accepts: false positives", "To solve or to verify",
        "draws worth making", "one draw right, %", "majority less one draw", "steps 0.50, 0.25", "<a fast one>",
        "FLOPs, all at the model's size", "25.0%", "loss 8",
    ):  # fmt: skip
        assert part in said, part
    assert f"{100 * results.accuracy.value:.1f} %" in said
    for k, figure in results.coverage.items():
        assert f"{100 * figure.value:.1f} <small>[{100 * figure.low:.1f}, {100 * figure.high:.1f}]</small>" in text, k
    titles = [svg["aria-label"] for svg in found.all("svg")]
    assert len(titles) == 5
    assert titles[:2] == ["How often the answer is right", "Coverage and where three laws take it"]
    assert "var(--c0)" in text
    assert not re.search(r"#0a0[bc]", text), "a colour that no page replaced"
    problems = [attributes for attributes in found.all("details") if attributes.get("class") == "problem"]
    assert len(problems) == 12
    assert len([attributes for attributes in found.all("details") if attributes.get("class") == "draw"]) == 96
    counts = {button["data-filter"] for button in found.all("button")}
    tags = {tag for problem in problems for tag in str(problem["data-tags"]).split()}
    assert counts == tags == {"all", "right", "wrong", "missed", "fooled"}
    assert tags <= set(FILTERS)
    assert sum("right" in str(problem["data-tags"]).split() for problem in problems) == 6
    assert sum("missed" in str(problem["data-tags"]).split() for problem in problems) == 6


def test_the_same_run_gives_the_same_page(full: Path) -> None:
    assert written([full], Report()) == written([full], Report())


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    """Wherever it comes from: draws, answers, question, gold, names, reasons, config."""
    bad = "".join(HOSTILE)
    others = {bad: {name: [Verdict("correct", 1.0, bad, answer=bad)] * 8 for name in RIGHTS}}
    config = CONFIG | {"task": {"_target_": bad, bad: bad}, "model": {"name_or_path": "./" + bad}}
    path = made(
        tmp_path / "run<b>", RIGHTS, question=bad, gold=bad, others=others, config=config,
        texts=dict.fromkeys(RIGHTS, HOSTILE * 2), answers={name: [bad, HOSTILE[0], None, HOSTILE[1]] * 2 for name in RIGHTS},
    )  # fmt: skip
    text, found = page(path)
    _, expected = page(made(tmp_path / "plain", RIGHTS, others={"v": {n: [Verdict("correct", 1.0)] * 8 for n in RIGHTS}}))
    kinds = {tag for tag, _ in expected.tags}
    assert {tag for tag, _ in found.tags} <= kinds | {"pre"}
    assert len(found.all("script")) == len(expected.all("script")) == 1
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert text.encode()  # no lone surrogate
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    said = "".join(found.texts)
    for draw in HOSTILE:
        assert visible(draw) in said
    assert "Figures of the built-in" not in said


def test_long_texts_are_cut_and_said_to_be(tmp_path: Path) -> None:
    million = "<&\x00" * 350_000
    path = made(tmp_path, {"a": [True, False]}, texts={"a": [million, "short"]}, answers={"a": [million, "1"]}, question=million)
    text, found = page(path, characters=1000)
    assert len(text) < 150_000
    assert "".join(found.texts).count("(1,049,000 more characters)") == 2  # the draw, the question
    assert "short" in found.texts


def test_no_more_problems_and_draws_than_asked_for(full: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(full), f"out={out}", "report.problems=5", "report.draws=2"]) == 0
    assert str(out) in capsys.readouterr().out
    found = Page(out.read_text())
    problems = [attributes for attributes in found.all("details") if attributes.get("class") == "problem"]
    assert len(problems) == 5
    assert len([attributes for attributes in found.all("details") if attributes.get("class") == "draw"]) == 10
    said = "".join(found.texts)
    assert "5 of 12 problems, evenly from all" in said
    ids = [text for text in found.texts if re.fullmatch(r"p\d\d", text)]
    assert ids == ["p00", "p02", "p04", "p07", "p09"]


def test_of_few_draws_every_answer_and_the_chosen_one_are_shown(tmp_path: Path) -> None:
    answers: dict[str, list[str | None]] = {"a": ["1"] * 6 + ["2", None, "3"]}
    texts = {"a": [f"text {i}" for i in range(9)]}
    path = made(tmp_path, {"a": [True] * 6 + [False] * 3}, answers=answers, texts=texts, chosen=4)
    _, found = page(path, draws=4)
    assert sorted(text for text in found.texts if text.startswith("text ")) == ["text 0", "text 4", "text 6", "text 8"]
    heads = re.findall(r"([✓✗]) (\S+|no answer) × (\d)( chosen)?", " ".join(" ".join(found.texts).split()))
    assert heads == [("✓", "1", "6", " chosen"), ("✗", "2", "1", ""), ("✗", "3", "1", ""), ("✗", "no answer", "1", "")]
    assert "4 more" in found.texts
    assert "1 not shown" in found.texts


def test_several_runs_side_by_side(full: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "b" / "full", {name: right[::-1] for name, right in RIGHTS.items()})
    stranger = made(tmp_path / "stranger", {"q": [True, False, True]})
    _, found = page(full, other, stranger, problems=6)
    said = " ".join(" ".join(found.texts).split())
    assert "b/full" in said
    assert "exact McNemar p" in said
    assert "stranger: not to be compared" in said
    problems = [attributes for attributes in found.all("details") if attributes.get("class") == "problem"]
    assert len(problems) == 2 + 2 + 1
    titles = [svg["aria-label"] for svg in found.all("svg")]
    assert {"pass@k", "majority", "best by prm"} <= set(titles)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_run_too_small_for_curves(tmp_path: Path) -> None:
    _, found = page(made(tmp_path, {"a": [None]}, chosen=None))
    assert "Too few draws for a curve." in found.texts
    assert not found.all("svg")


def test_a_verifier_that_accepts_nothing(tmp_path: Path) -> None:
    no = {name: [Verdict("wrong", 0.0)] * 8 for name in RIGHTS}
    _, found = page(made(tmp_path, RIGHTS, others={"no": no}))
    assert "none: better no answer" in found.texts
    assert "Drawing until no accepts" in [svg["aria-label"] for svg in found.all("svg")]


def test_where_the_page_goes(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made(tmp_path / "a", {"p": [True]}), made(tmp_path / "b", {"p": [True]})
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a"]) == 0
    assert (first / "report.html").exists()
    assert main(["report", "a", "b"]) == 0
    assert Path("report.html").exists()
    assert not (second / "report.html").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["out=x.html"], "report needs a run"),
        (["none"], "none: no run"),
        (["a", "./a"], "a run is named twice"),
        (["a", "report.draws=0"], "report.draws=0"),
        (["a", "report.size=1"], "no such setting; report has problems, draws, characters"),
        (["empty"], "no problem is finished"),
    ],
)
def test_bad_input(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "a", {"p": [True]})
    made(tmp_path / "empty", {})
    monkeypatch.chdir(tmp_path)
    assert main(["report", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_without_matplotlib(full: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["report", str(full)]) == 1
    assert "a report needs matplotlib: pip install 'forethought[report]'" in capsys.readouterr().err


def test_elements_escape_what_goes_into_them() -> None:
    assert h("p", "<b>", h("i", "&"), None, class_='a"b', data_x="1", hidden=True, title=None, open=False) == (
        '<p class="a&quot;b" data-x="1" hidden>&lt;b&gt;<i>&amp;</i></p>'
    )
    assert h("br") == "<br>"
    assert Html("<b>") == "<b>"
    assert grid(["a", "b"], [["<", h("i", "1")]]) == (
        '<div class="wide"><table><thead><tr><th>a</th><th class="n">b</th></tr></thead>'
        '<tbody><tr><td>&lt;</td><td class="n"><i>1</i></td></tr></tbody></table></div>'
    )


def test_every_character_can_be_seen() -> None:
    assert visible("a\x00\x1b\x7f\x85\u202e\ufeff\ud800\tb\nc é ∑") == "a␀␛␡\\u0085\\u202e\\ufeff\\ud800\tb\nc é ∑"
    assert cut("abcdef", 4) == "abcd… (2 more characters)"
    assert cut("abcd", 4) == "abcd"
