"""The verdicts of a run: each verifier's apart, by name and settings, each draw judged once, whoever asks and however often.

Shared by runs, which judge while they draw, and by scoring, which judges old draws. Not here: what the verdicts mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ..backend.generator import Generator
from ..backend.load import parameters, weights_hash
from ..checks import read_json
from ..schema import Completion, Problem, Verdict
from ..verifiers.verifier import Verifier
from .config import build
from .draws import verdict_of
from .folder import RunFolder, differ

FILE = "verifiers.json"


class Judgements:
    """What a run's folder holds of verdicts, and how more are added."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        said = folder.once("verdicts", "verifier", "problem", "index")
        self._there = {(row["verifier"], row["problem"], row["index"]) for row in said}

    def lacking(self, verifier: str, problem: Problem, draws: Sequence[Completion]) -> list[Completion]:
        """Those that ``verifier`` has not judged."""
        return [draw for draw in draws if (verifier, problem.id, draw.index) not in self._there]

    def add(self, problem: Problem, said: Sequence[tuple[Completion, Verdict]]) -> None:
        """Keep what is not there yet."""
        rows = []
        for draw, verdict in said:
            key = verdict.verifier, problem.id, draw.index
            if key not in self._there:
                self._there.add(key)
                rows.append({"problem": problem.id, "index": draw.index} | verdict.to_json())
        self._folder.append("verdicts", rows)


class Clock:
    """Seconds in which at least one of several things that overlap was under way. For one event loop."""

    def __init__(self) -> None:
        self._closed, self._begun, self._under_way = 0.0, 0.0, 0

    @property
    def seconds(self) -> float:
        return self._closed + (time.perf_counter() - self._begun if self._under_way else 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        if not self._under_way:
            self._begun = time.perf_counter()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._closed += time.perf_counter() - self._begun


class Remembered(Verifier):
    """``verifier``, but for texts of which its verdict is known, by (problem, text)."""

    def __init__(self, verifier: Verifier, known: Mapping[tuple[str, str], Verdict]) -> None:
        self.name, self._verifier, self._known = verifier.name, verifier, known
        self.clock = Clock()

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        todo = [text for text in candidates if (problem.id, text) not in self._known]
        with self.clock.running():
            new = iter(await self._verifier.ajudge(problem, todo) if todo else [])
        return [self._known.get((problem.id, text)) or next(new) for text in candidates]

    def close(self) -> None:
        self._verifier.close()


def unfinished(folder: RunFolder, verifier: str) -> dict[tuple[str, str], Verdict]:
    """What ``verifier`` has said of the draws of problems that were cut off, by (problem, text)."""
    done = {row["problem_id"] for row in folder.once("solutions", "problem_id")}
    samples = (row for row in folder.once("samples", "problem", "index") if row["problem"] not in done)
    texts = {(row["problem"], row["index"]): str(row["completion"]["text"]) for row in samples}
    said = (row for row in folder.once("verdicts", "verifier", "problem", "index") if row["verifier"] == verifier)
    return {(row["problem"], texts[key]): verdict_of(row) for row in said if (key := (row["problem"], row["index"])) in texts}


def enrol(folder: RunFolder, verifier: Verifier, node: DictConfig) -> None:
    """Note how a verifier is set up. Raises ``ValueError`` where its name stands for another set-up, or for the truth."""
    if verifier.name == folder.identity["truth"]:
        raise ValueError(f"{verifier.name!r} is this run's truth: an answer is chosen by another verifier than it is judged by")
    file = folder.path / FILE
    known = read_json(file)
    named = list(checkpoints(plain(node)))
    mine = {
        "config": plain(node), "weights": {name: weights_hash(name) for name in named},
        "parameters": max(map(parameters, named), default=None),
    }  # fmt: skip
    if (theirs := known.get(verifier.name, mine)) != mine:
        was, now = differ(theirs, mine)
        raise ValueError(f"{folder.path}: has verdicts by {verifier.name!r} set up otherwise: {was}, now {now}")
    folder.write(FILE, json.dumps(known | {verifier.name: mine}, indent=1) + "\n")


def plain(node: DictConfig) -> dict[str, Any]:
    """A config as plain JSON values."""
    return cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True))


def checkpoints(config: Any) -> Iterator[str]:
    """Every checkpoint that a verifier's config names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("model", "name_or_path") and isinstance(value, str):
                yield value
            yield from checkpoints(value)


@contextmanager
def verifier_of(node: DictConfig, lm: Callable[[], Generator]) -> Iterator[Verifier]:
    """The verifier that a config describes, closed at the end; one that asks a model and brings none gets ``lm``."""
    made = build(node)
    if isinstance(made, partial):
        made = made() if made.keywords.get("model") else made(lm=lm())
    verifier: Verifier = made
    try:
        yield verifier
    finally:
        verifier.close()
