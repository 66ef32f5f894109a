"""``forethought score``: what another verifier says of the draws that a run has. Nothing is drawn, each draw is judged once.

The verdicts stand beside the truth's, and the run's results are made anew: the verifier as the one that chooses, or, asked for,
as another truth. Cut off, it goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ..backend.engine import Engine
from ..schema import Completion, Problem
from ..verifiers.verifier import Verifier
from .config import build, compose, expand
from .folder import RunFolder
from .groups import groups
from .judging import Judgements, enrol, plain, verifier_of
from .results import Results, show
from .solve import load
from .tasks.task import Task

AT_ONCE = 4
"""Problems under way at a time."""


def score(run: str, overrides: Sequence[str], *, multirun: bool = False, truth: bool = False) -> int:
    """The exit code: 0, or 130 after Ctrl-C. ``truth``: show the results as they were if the verifier were the truth."""
    runs = expand(overrides) if multirun else [list(overrides)]
    for given, config in zip(runs, [compose("score", given) for given in runs], strict=True):
        if "verifier" not in config:
            raise ValueError(f"score needs a verifier: verifier=…, one of {', '.join(groups()['verifier'])}")
        if multirun:
            print("── " + " ".join(given), flush=True)
        results = score_one(run, config.verifier, truth=truth)
        if results is None:
            return 130
        print(show(results), flush=True)
    return 0


def score_one(run: str | Path, node: DictConfig, *, truth: bool = False) -> Results | None:
    """Judge with the verifier that ``node`` describes all draws that it has not judged; None when interrupted.

    Raises ``ValueError`` for a verifier that is the run's truth, or whose name stands for another set-up in this run, and where
    the task's problems are not those of the run any more.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.again(run))
        config = OmegaConf.create(folder.identity["config"])
        assert isinstance(config, DictConfig)
        _ours(plain(config))
        verifier = stack.enter_context(verifier_of(node, lambda: stack.enter_context(_engine(config))))
        enrol(folder, verifier, node)
        try:
            asyncio.run(_judge(folder, build(config.task), verifier))
        except KeyboardInterrupt:
            return None
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        results = Results.again(folder.path)
        folder.write("results.json", json.dumps(results.to_json(), indent=1) + "\n")
        if not truth:
            return results
        results = Results.again(folder.path, verifier.name)
        folder.write(f"results-{verifier.name.replace('/', '_')}.json", json.dumps(results.to_json(), indent=1) + "\n")
    return results


async def _judge(folder: RunFolder, task: Task, verifier: Verifier) -> None:
    known = {problem.id: problem for problem in task.problems()}
    drawn: dict[str, list[Completion]] = {}
    for row in folder.once("samples", "problem", "index"):
        drawn.setdefault(row["problem"], []).append(Completion.from_json(row["completion"]))
    problems = [_same(known.get(row["problem_id"]), row, folder.path) for row in folder.once("solutions", "problem_id")]
    judgements, gate = Judgements(folder), asyncio.Semaphore(AT_ONCE)
    with tqdm(total=len(problems), unit="problem", leave=False, disable=None) as bar:

        async def one(problem: Problem) -> None:
            async with gate:
                if todo := judgements.lacking(verifier.name, problem, drawn[problem.id]):
                    said = await verifier.ajudge(problem, [draw.text for draw in todo])
                    judgements.add(problem, list(zip(todo, said, strict=True)))
            bar.update()

        async with asyncio.TaskGroup() as group:
            for problem in problems:
                group.create_task(one(problem))


def _same(problem: Problem | None, row: dict[str, Any], path: Path) -> Problem:
    if problem is None or (problem.question, problem.answer) != (row["question"], row["gold"]):
        raise ValueError(f"{path}: {row['problem_id']} is no longer the problem that was drawn for")
    return problem


def _engine(config: DictConfig) -> Engine:
    """The run's own model and decoder, for a verifier that asks a model and brings none."""
    decoder = build(config.decoder)
    return Engine(load(config), decoder)


def _ours(config: dict[str, Any]) -> None:
    """A run's folder may come from elsewhere: what it names is built only if it is part of this package."""

    def targets(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (str(value[key]) for key in ("_target_",) if key in value)
            for inner in value.values():
                yield from targets(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from targets(inner)

    for target in targets(config):
        if not target.startswith("forethought."):
            raise ValueError(f"run.json names {target}, which is no part of forethought")
