"""``forethought eval``: a strategy on a task, in a folder that survives kill -9 and goes on exactly where it was.

Every draw is one line of ``samples.jsonl``, made from a seed of the run, the problem and its number alone; every judgement of one
is a line of ``verdicts.jsonl``. What is there is never drawn or judged again. Selection never sees the truth.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ..backend.engine import Engine
from ..backend.load import weights_hash
from ..backend.memory import GPU_MEMORY_UTILIZATION
from ..backend.model import Model
from ..backend.text import Text
from ..schema import Completion, Problem, Prompt, Solution
from ..search.strategy import Draws, Strategy, seed_of
from ..verifiers.verifier import Verifier
from . import machine
from .config import build, compose, expand, options
from .folder import RunFolder
from .judging import Clock, Judgements, Remembered, enrol, plain, unfinished, verifier_of
from .results import KS, Results, show
from .solve import ask, load
from .tasks.task import Task

AHEAD = 1.5
"""Problems are begun as long as fewer draws are to be finished than so many times what the engine decodes at once."""
MOST = 8
"""No more problems are under way than so many times those that fill its rows."""
PAUSE = 0.02
"""Seconds between two looks at how many draws are to be finished."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run is kept, how much of the task it covers, the k of its curves, the engine's share of a GPU, and whether its
    texts may depend on what shares the batch."""

    path: str | None = None
    problems: int | None = None
    ks: Sequence[int] = KS
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | None):
            raise ValueError(f"run.path={self.path!r}: a folder's name, or null")
        if not isinstance(self.batch_invariant, bool):
            raise ValueError(f"run.batch_invariant={self.batch_invariant!r}: true or false")
        if self.problems is not None and not _whole(self.problems):
            raise ValueError(f"run.problems={self.problems!r}: a whole number of at least 1, or null for all")
        if not isinstance(self.ks, Sequence) or not self.ks or not all(map(_whole, self.ks)):
            raise ValueError(f"run.ks={self.ks!r}: a list of whole numbers of at least 1")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(slots=True)
class Split:
    """Where the time of a run went; seconds."""

    verifying: float = 0.0
    """In which the truth judged a problem."""
    choosing: float = 0.0
    """In which the verifier that answers are chosen by did."""
    writing: float = 0.0
    wall: float = 0.0
    draws: int = 0
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Of what the truth said."""


def evaluate(overrides: Sequence[str], *, multirun: bool = False) -> int:
    """The exit code: 0, or 130 after Ctrl-C. Every combination of a sweep is composed before the first one runs."""
    runs = expand(overrides) if multirun else [list(overrides)]
    for run, config in zip(runs, [compose("eval", run) for run in runs], strict=True):
        if multirun:
            print("── " + (" ".join(run) or "defaults"), flush=True)
        results = evaluate_one(config)
        if results is None:
            return 130
        print(show(results), flush=True)
    return 0


def evaluate_one(config: DictConfig) -> Results | None:
    """One run, new or gone on with; None when interrupted."""
    plan: Run = build(config.run)
    given, task = options(config), build(config.task)
    seed = given.pop("seed", None)
    if seed is None:
        raise ValueError("seed=null: a run is made from its seed, give a whole number")
    problems = list(task.problems())[: plan.problems]
    make: partial[Strategy] = build(config.strategy)
    decoder, model = build(config.decoder), load(config)
    with ExitStack() as stack:
        truth = task.truth()
        stack.callback(truth.close)
        what = _identity(config, task, truth, model)
        path = Path(plan.path or f"runs/{task.name}-{model.info.name}-{_short(what)}")
        folder = stack.enter_context(RunFolder(path, what))
        engine = stack.enter_context(
            Engine(
                model, decoder, gpu_memory_utilization=plan.gpu_memory_utilization, batch_invariant=plan.batch_invariant
            )
        )
        folder.write("config.yaml", OmegaConf.to_yaml(config))
        folder.write("environment.json", json.dumps(machine.describe(str(model.info.device)), indent=1) + "\n")

        def put(problem: Problem) -> Prompt:
            asked = task.form.fill(problem, task.fields(problem))
            return asked if task.form.raw else ask(model, asked, task.form.start)

        chooser = None
        if (node := config.get("verifier")) is not None:
            verifier = stack.enter_context(verifier_of(node, lambda: engine))
            enrol(folder, verifier, node)
            given["verifier"] = chooser = Remembered(verifier, unfinished(folder, verifier.name))
        strategy = make(engine, ask=put, read=task.read, ends=task.form.stop, **given)
        work = _Work(folder, strategy, truth, seed)
        start = time.perf_counter()
        try:
            asyncio.run(work.all(problems, engine))
        except KeyboardInterrupt:
            return None
        except ExceptionGroup as several:  # of problems that ran side by side; the first one is what went wrong
            raise several.exceptions[0] from None
        work.split.verifying = work.clock.seconds
        work.split.choosing = chooser.clock.seconds if chooser else 0.0
        work.split.wall = time.perf_counter() - start
        results = Results.of(path, plan.ks, parameters=model.info.parameters, split=_timing(work.split, engine))
        folder.write("results.json", json.dumps(results.to_json(), indent=1) + "\n")
    return results


class _Work:
    """What is there of a run, and how the rest comes about."""

    def __init__(self, folder: RunFolder, strategy: Strategy, truth: Verifier, seed: int) -> None:
        self.folder, self.strategy, self.truth, self.seed = folder, strategy, truth, seed
        self.split = Split()
        self.clock = Clock()
        """Of the truth's verdicts."""
        self._known: dict[str, dict[int, Completion]] = {}
        for row in folder.once("samples", "problem", "index"):
            self._known.setdefault(row["problem"], {})[row["index"]] = Completion.from_json(row["completion"])
        self._judged = Judgements(folder)
        self._solved = {row["problem_id"] for row in folder.once("solutions", "problem_id")}

    async def all(self, problems: Sequence[Problem], engine: Engine) -> None:
        """Everything that is not there yet."""
        rest = [problem for problem in problems if problem.id not in self._solved]
        with tqdm(total=len(problems), initial=len(problems) - len(rest), unit="problem", leave=False, disable=None) as bar:

            async def one(problem: Problem) -> None:
                await self._solve(problem)
                bar.update()
                counts = self.split.counts
                bar.set_postfix_str(
                    f"{self.split.tokens / max(1e-9, bar.format_dict['elapsed']):.0f} tokens/s, "
                    f"{counts['correct'] / max(1, counts.total()):.1%} of draws right"
                )

            await in_turn(rest, one, engine, self.strategy.width)

    async def _solve(self, problem: Problem) -> None:
        new: list[Completion] = []
        seed = seed_of(self.seed, problem.id)
        solution = await self.strategy.asolve(problem, Draws(seed, self._known.get(problem.id, {}), new.append))
        self.split.draws += len(new)
        self.split.tokens += sum(completion.cost.kept for completion in new)
        with self._writing():
            self.folder.append("samples", [_sample(problem, completion) for completion in new])
        drawn = [(c.completion, c.verdicts) for c in solution.candidates if c.completion is not None]
        with self._writing():
            self._judged.add(problem, [(completion, verdict) for completion, said in drawn for verdict in said])
        todo = self._judged.lacking(self.truth.name, problem, [completion for completion, _ in drawn])
        with self.clock.running():
            verdicts = await self.truth.ajudge(problem, [completion.text for completion in todo])
        self.split.counts.update(verdict.status for verdict in verdicts)
        with self._writing():
            self._judged.add(problem, list(zip(todo, verdicts, strict=True)))
            self.folder.append("solutions", [_solution(problem, solution)])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.split.writing += time.perf_counter() - begin


def _sample(problem: Problem, completion: Completion) -> dict[str, Any]:
    return {"problem": problem.id, "index": completion.index, "seed": completion.seed, "level": problem.level,
            "completion": completion.to_json()}  # fmt: skip


def _solution(problem: Problem, solution: Solution) -> dict[str, Any]:
    """The choice alone: what was chosen from is in the samples."""
    candidates = [
        {"index": None if c.completion is None else c.completion.index, "answer": c.answer, "score": c.score}
        for c in solution.candidates
    ]
    short = Solution(solution.problem_id, solution.answer, [], solution.chosen, solution.cost, solution.meta)
    asked = {"question": problem.question, "gold": problem.answer, "level": problem.level}
    return short.to_json() | {"candidates": candidates} | asked


def _identity(config: DictConfig, task: Task, truth: Verifier, model: Model) -> dict[str, Any]:
    """What makes a run this run: all of its config but where it is kept and how it is shown, the weights, what turns words into
    token ids and back, the checkpoint's own decoding settings, whether its texts are the same in any batch, and the truth."""
    kept = {key: value for key, value in plain(config).items() if key != "run"}
    words = {"tokenizer": None, "chat template": None} if model.text is None else wording(model.text)
    settings = json.loads(json.dumps(asdict(model.info.defaults)))
    return {
        "config": kept, "batch_invariant": config.run.batch_invariant, "weights": weights_hash(config.model.name_or_path),
        "form": json.loads(json.dumps(asdict(task.form))), "truth": truth.name, **words, "generation settings": settings,
    }  # fmt: skip


def wording(text: Text) -> dict[str, str | None]:
    """Hashes of a tokenizer, whole, and of its chat template."""
    tokenizer = text.tokenizer
    specials = json.dumps([tokenizer.special_tokens_map, tokenizer.backend_tokenizer.to_str()], sort_keys=True, default=str)
    template = tokenizer.chat_template
    return {
        "tokenizer": hashlib.sha256(specials.encode()).hexdigest(),
        "chat template": hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest() if template else None,
    }


def _short(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


async def in_turn(
    problems: Sequence[Problem], solve: Callable[[Problem], Awaitable[None]], engine: Engine, width: int
) -> None:
    """``solve`` all, side by side, each begun when ``engine`` could soon have rows without a draw. ``width``: its first draws.

    A problem lasts as long as its longest draw: how many are under way says little of how many rows they fill.
    """
    gate = asyncio.Semaphore(MOST * max(1, engine.max_rows // width))

    async def one(problem: Problem) -> None:
        try:
            await solve(problem)
        finally:
            gate.release()

    left = 0
    async with asyncio.TaskGroup() as group:
        for problem in problems:
            await gate.acquire()
            group.create_task(one(problem))
            await asyncio.sleep(0)  # it asks for its first draws
            left += width
            while left >= AHEAD * engine.max_rows and (left := await engine.aunfinished()) >= AHEAD * engine.max_rows:
                await asyncio.sleep(PAUSE)


def _timing(split: Split, engine: Engine) -> dict[str, float]:
    cost, usage = engine.cost, engine.usage
    busy = {} if usage.busy is None else {"rows_busy": usage.busy}
    return busy | {f"{part}_seconds": spent for part, spent in usage.seconds.items()} | {
        "wall_seconds": split.wall, "verifying_seconds": split.verifying, "choosing_seconds": split.choosing,
        "writing_seconds": split.writing,
        "draws": split.draws, "tokens": split.tokens, "forwards": cost.forwards,
        "tokens_per_second": split.tokens / split.wall if split.wall else 0.0,
    }  # fmt: skip
