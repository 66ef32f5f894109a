"""How much faster does drafting make decoding, and why?

    python benchmarks/speculation.py [--tasks math] [--decoders autoregressive,lookahead,…] [--batch 1,32] [--problems 40]
        [--tokens 160] [--temperature 0] [--warm 0] [--repeats 3] [--threads N] [--model nano] [--draft nano-draft]
        [--device cpu] [--json FILE] [--quick]

One process, one model, the same prompts. Requests are submitted in blocks of ``--batch``; all contenders answer a block, in
turn, before any sees the next one (A, B, C, A, B, C), so that the machine's moods hit all alike. Medians and ranges are over
repeats, ratios are taken within a repeat. A timed block goes from prompt ids to output ids, prompts included; a text ends at its
end token or after ``--tokens``.

Tasks: math is the built-in models' own held-out problems. The others are Spec-Bench's, first turns only, read where
FORETHOUGHT_DATA says; a prompt that does not fit the model is left out. Built-in models write nonsense there: only speed counts.

autoregressive, lookahead (16 tokens a step at most), prompt_lookup (10), speculative (a chain of 8 by ``--draft``),
lookahead+draft (both in one tree of 16): an engine with its defaults, but for a KV pool of twice what a block can use. hf-plain,
hf-prompt-lookup (10), hf-assisted: transformers.generate with its own defaults, one request at a time, so at batch 1 only.
autoregressive always runs: the others' text and speed are compared with its own. x transformers: over hf-plain,
hf-prompt-lookup (both lookups) or hf-assisted (all that have a draft model).

What is learnt: a repeat begins with new engines and new decoders, which then serve all its blocks. So what Lookahead remembers
and what adaptive budgets know of speed and acceptance is earned, and paid for, within the timed repeat. ``--warm N`` gives
Lookahead the answers to N other problems beforehand. Before anything is timed, every contender answers a block of other
problems, with engines that are then thrown away. Cached prefixes are forgotten before every block.

MAT, tokens a forward: output tokens but each request's first, which its prompt gives, over the model calls that a request took
part in after its prompt, all requests together; the token that every call adds is counted, so plain decoding has 1.
drafted: tokens proposed a request and such call; accepted: share of them that became text; draft tok: tokens that the draft
model computed for each output token. draft ms: all that happens before the call, a step (of all rows): proposing, merging,
choosing a budget. step ms: one step, that included, and in brackets what T says of it.

T(rows, q): seconds of a call with q new tokens for each of so many rows, behind contexts of the task's usual length, as the
engine makes it but for all around it: batch, forward, argmax, rollback. It takes its turn among the contenders, since the times
of one mood say nothing of another one's; medians of a repeat serve its predictions, and the table shows the median of these.
predicted: what drafting should give: the speed that T and the measured drafting time allow for the steps as they were, over the
same for plain decoding. Where every step is alike this is MAT / (T(1 + drafted) / T(1) + drafting time / T(1)).
measured: decoding alone, tokens a second in steps that computed no prompts, over plain decoding's. of it: measured / predicted.
Below 1: steps cost more than T says (trees, learning, gathering what is kept); above 1: T lacks what all steps pay, and fewer
steps pay it less often. Both are pooled over a repeat.

Greedy, all must write the same text, in every repeat; a difference is an error in float32 unless it starts at a tie (two logits
closer than 1e-4), which is counted. Sampled, ours use one seed, differences are counted, and nothing says whether one began at
a tie; transformers draws otherwise and is compared in speed alone. Its prompt's call may carry a draft already, so of
transformers all calls count; what it drafted and accepted follows from their sizes, and there is no step time. Not measured:
latency, memory, other rules of acceptance, other settings of any decoder.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from decode import TIE, machine

import forethought as ft
from forethought.backend.batch import Output, Row, TokenBatch
from forethought.backend.decoder import Decision, Draft
from forethought.backend.kv import Context, KVPool
from forethought.backend.load import BUILT_IN
from forethought.backend.request import Request
from forethought.backend.request import Row as Line
from forethought.nano.problems import problems

SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 64)
"""New tokens a row that T is measured at."""
TIMES = 9
"""How often in a repeat, at least."""
OTHERS = 8
"""Problems of the untimed pass, at least."""
NGRAM_TOKENS = 10
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC_BENCH = {"mt_bench": MT_BENCH} | {name: (name,) for name in ("translation", "summarization", "qa", "math_reasoning", "rag")}
TASKS = ("math", *SPEC_BENCH)
PLAIN = "autoregressive"
COUNTERPART = {
    PLAIN: "hf-plain", "lookahead": "hf-prompt-lookup", "prompt_lookup": "hf-prompt-lookup", "speculative": "hf-assisted",
    "lookahead+draft": "hf-assisted",
}  # fmt: skip
DECODERS = (*COUNTERPART, "hf-plain", "hf-prompt-lookup", "hf-assisted")
Ids = list[int]


# ---- T --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """T: median seconds of a call; ``seconds[i][j]`` for ``rows[i]`` rows of ``sizes[j]`` new tokens. Linear in between."""

    rows: Sequence[int]
    sizes: Sequence[int]
    seconds: Sequence[Sequence[float]]

    def __call__(self, rows: float, size: float) -> float:
        at_size = [float(np.interp(size, self.sizes, line)) for line in self.seconds]
        return float(np.interp(rows, self.rows, at_size))


class Clock:
    """Measures T behind ``prompt`` tokens computed at once and ``written`` ones computed one by one, all rows together."""

    def __init__(self, model: ft.Model, prompt: int, written: int, rows: Sequence[int], sizes: Sequence[int]) -> None:
        self.model, self.rows, self.sizes = model, rows, sizes
        self._draw = np.random.default_rng(0)
        self._contexts = [self._fill(count, prompt, written) for count in rows]
        self._seconds: list[list[list[float]]] = [[] for _ in rows]

    def _ids(self, count: int) -> Ids:
        return self._draw.integers(0, self.model.info.vocab_size, count).tolist()  # type: ignore[no-any-return]

    def _fill(self, count: int, prompt: int, written: int) -> list[Context]:
        pool = self.model.new_pool(count * (prompt + written + max(self.sizes)))
        contexts = [pool.new_context() for _ in range(count)]
        for rows in (*([Row(context, self._ids(prompt))] for context in contexts), *([] for _ in range(written))):
            call = TokenBatch(pool, rows or [Row(context, self._ids(1)) for context in contexts])
            self.model.forward(call)
            call.commit()
        return contexts

    def take_turn(self, times: int) -> None:
        """Every size ``times`` times, and once before: what others left in the caches is theirs."""
        for contexts, rounds in zip(self._contexts, self._seconds, strict=True):
            rounds += [[self._call(contexts, size) for size in self.sizes] for _ in range(times + 1)][1:]

    def _call(self, contexts: Sequence[Context], size: int) -> float:
        drafts = [self._ids(size) for _ in contexts]
        start = time.perf_counter()
        call = TokenBatch(contexts[0].pool, [Row(context, ids) for context, ids in zip(contexts, drafts, strict=True)])
        logits = self.model.forward(call).logits
        assert logits is not None
        logits.argmax(-1).tolist()
        call.rollback()
        return time.perf_counter() - start

    def table(self) -> Table:
        """Medians since the last table."""
        seconds, self._seconds = self._seconds, [[] for _ in self.rows]
        return Table(self.rows, self.sizes, np.median(seconds, 1).tolist())


# ---- what is compared -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Step:
    """One call after the prompts, all rows together."""

    rows: int
    drafted: int
    tokens: int = 0
    """That became text."""
    drafting: float = 0.0
    """Seconds before the call."""
    seconds: float = 0.0
    """From the beginning of this step's drafting to that of the next one's."""


@dataclass(slots=True)
class Tally:
    """What a contender did in one repeat."""

    seconds: float = 0.0
    outputs: list[Ids] = field(default_factory=list)
    given: int = 0
    """Tokens that came of calls which are not in ``forwards``."""
    forwards: int = 0
    """Calls that could have verified a draft, request by request."""
    drafted: int = 0
    accepted: int = 0
    drafting: int = 0
    """Tokens that the draft model computed."""
    steps: list[Step] = field(default_factory=list)
    """Those that computed no prompts beside."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))

    @property
    def mat(self) -> float:
        """Mean accepted tokens, and the one that every call adds."""
        return (self.tokens - self.given) / max(1, self.forwards)

    @property
    def overall(self) -> float:
        """Tokens a second, prompts included."""
        return self.tokens / self.seconds

    @property
    def speed(self) -> float:
        """Tokens a second of decoding alone."""
        return rate(self.steps, lambda step: step.seconds)

    def allowed(self, table: Table) -> float:
        """The same by ``table`` and the time that drafting took."""
        return rate(self.steps, lambda step: told(step, table))


def told(step: Step, table: Table) -> float:
    """What ``table`` says a step takes, in seconds."""
    return table(step.rows, 1 + step.drafted / step.rows) + step.drafting


def rate(steps: Sequence[Step], seconds: Callable[[Step], float]) -> float:
    if not steps:
        raise ValueError("no step of decoding alone: longer outputs are needed")
    return sum(step.tokens for step in steps) / sum(map(seconds, steps))


class Watched(ft.Decoder):
    """``inner``, and what its steps were."""

    def __init__(self, inner: ft.Decoder) -> None:
        self.inner, self.exact, self.hidden = inner, inner.exact, inner.hidden
        self.steps: list[Step] = []
        self.forwards = 0
        self._now: Step | None = None
        self._start = 0.0
        self._alone = False

    def bind(self, model: ft.Model) -> None:
        self.inner.bind(model)

    def open(self, request: Request, sample: int, pool: KVPool) -> list[Line]:
        return self.inner.open(request, sample, pool)

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        return self.inner.slots(request, pool)

    def admit(self, row: Line) -> None:
        self.inner.admit(row)

    def draft(self, rows: Sequence[Line], budget: int) -> Draft | None:
        start = time.perf_counter()
        self.close(start)
        draft = self.inner.draft(rows, budget)
        self._now = Step(len(rows), 0 if draft is None else len(draft.ids), drafting=time.perf_counter() - start)
        self._start, self._alone = start, False
        self.forwards += len(rows)
        return draft

    def decide(self, rows: Sequence[Line], draft: Draft | None, output: Output) -> Decision:
        if self._now is not None:
            self._alone = output.tokens == self._now.rows + self._now.drafted
        return self.inner.decide(rows, draft, output)

    def observe(self, row: Line, ids: Sequence[int]) -> None:
        if self._now is not None:
            self._now.tokens += len(ids)
        self.inner.observe(row, ids)

    def preempt(self, row: Line) -> None:
        self.inner.preempt(row)

    def release(self, row: Line, outcome: Any) -> None:
        self.inner.release(row, outcome)

    def close(self, now: float) -> None:
        """The step under way, if there is one, is over."""
        step, self._now = self._now, None
        if step is not None and self._alone:
            step.seconds = now - self._start
            self.steps.append(step)


class Contender(ABC):
    """Answers blocks of prompts, and keeps count in ``tally``, which :meth:`begin` makes anew."""

    def __init__(self, name: str) -> None:
        self.name, self.tally = name, Tally()

    def begin(self) -> None:
        """A repeat begins; not timed."""
        self.tally = Tally()

    @abstractmethod
    def run(self, prompts: Sequence[Ids]) -> None:
        """One block."""

    def end(self) -> None:
        """The repeat is over."""
        return None


@dataclass(frozen=True)
class Settings:
    """How long an answer may be, how its tokens are drawn, and how many fit an engine's KV pool."""

    tokens: int
    temperature: float
    kv_slots: int

    @classmethod
    def of(cls, options: argparse.Namespace, prompts: Sequence[Ids], batch: int) -> Settings:
        """With twice the slots that a block of ``batch`` can use, drafts included."""
        longest = max(map(len, prompts)) + options.tokens + max(SIZES)
        return cls(options.tokens, options.temperature, 2 * batch * longest)


class Ours(Contender):
    def __init__(self, name: str, model: ft.Model, make: Callable[[], ft.Decoder], settings: Settings) -> None:
        super().__init__(name)
        self.model, self.make, self.settings = model, make, settings

    def begin(self) -> None:
        super().begin()
        self.watched = Watched(self.make())
        self.engine = ft.Engine(self.model, self.watched, kv_slots=self.settings.kv_slots)

    def run(self, prompts: Sequence[Ids]) -> None:
        self.engine.clear_cache()
        options = {"max_tokens": self.settings.tokens, "temperature": self.settings.temperature, "seed": 0}
        start = time.perf_counter()
        answers = self.engine.generate(list(prompts), progress=False, **options)
        now = time.perf_counter()
        self.watched.close(now)
        tally = self.tally
        tally.seconds += now - start
        for completion in itertools.chain.from_iterable(answers):
            tally.outputs.append(completion.token_ids)
            tally.given += 1
            tally.drafted += completion.cost.drafted
            tally.accepted += completion.cost.accepted
            tally.drafting += completion.cost.drafting
        tally.forwards, tally.steps = self.watched.forwards, self.watched.steps

    def end(self) -> None:
        self.engine.close()


class Fed:
    """How many calls a transformers model has had, and of how many tokens."""

    def __init__(self, model: Any) -> None:
        self.calls = self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, positional: Any, named: dict[str, Any]) -> None:
        self.calls += 1
        self.tokens += named["input_ids"].shape[1]


class Peer(Contender):
    """transformers.generate, one request at a time. ``options``: what makes it draft."""

    def __init__(self, name: str, models: Models, settings: Settings, **options: Any) -> None:
        super().__init__(name)
        self.model, self.fed, self.drafts = models.peer, models.fed, models.peer_draft_fed
        stops = list(models.target.info.defaults.stop_ids)
        self.options = options | {"max_new_tokens": settings.tokens, "eos_token_id": stops or None, "pad_token_id": 0}
        if settings.temperature:
            self.options |= {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
        else:
            self.options |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}

    def run(self, prompts: Sequence[Ids]) -> None:
        tally = self.tally
        for prompt in prompts:
            calls, fed, drafting = self.fed.calls, self.fed.tokens, self.drafts.tokens if self.drafts else 0
            start = time.perf_counter()
            ids = torch.tensor([prompt], device=self.model.device)
            output: Ids = self.model.generate(ids, attention_mask=torch.ones_like(ids), **self.options)[0, len(prompt) :].tolist()
            tally.seconds += time.perf_counter() - start
            tally.outputs.append(output)
            calls, fed = self.fed.calls - calls, self.fed.tokens - fed
            tally.forwards += calls
            tally.drafted += fed - len(prompt) - (calls - 1)
            tally.accepted += len(output) - calls
            tally.drafting += self.drafts.tokens - drafting if self.drafts else 0


class Models:
    """The model and its draft model: ours, and transformers' where they are wanted."""

    def __init__(self, names: Sequence[str], target: str, draft: str, device: str) -> None:
        self.target = ft.load(target, device=device)
        self.draft = ft.load(draft, device=device) if {"speculative", "lookahead+draft"} & set(names) else None
        self.peer = self._peer(target) if any(name.startswith("hf-") for name in names) else None
        self.peer_draft = self._peer(draft) if "hf-assisted" in names else None
        self.fed = None if self.peer is None else Fed(self.peer)
        self.peer_draft_fed = None if self.peer_draft is None else Fed(self.peer_draft)

    def _peer(self, name: str) -> Any:
        path = BUILT_IN / name if (BUILT_IN / name).is_dir() else name
        peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.target.info.dtype)
        return peer.eval().to(self.target.info.device)


def contenders(names: Sequence[str], models: Models, settings: Settings, warm: Sequence[Ids]) -> list[Contender]:
    """Who is to run. ``warm``: what Lookahead remembers beforehand."""

    def lookahead() -> ft.Lookahead:
        decoder = ft.Lookahead()
        decoder.warm_up(warm)
        return decoder

    def drafting(*others: ft.Decoder, draft_tokens: int) -> ft.Decoder:
        return ft.Speculative([models.draft, *others], draft_tokens, tree=[1] * 8)  # type: ignore[list-item]

    ours: dict[str, Callable[[], ft.Decoder]] = {
        PLAIN: ft.Autoregressive,
        "lookahead": lookahead,
        "prompt_lookup": lambda: ft.PromptLookup(NGRAM_TOKENS),
        "speculative": lambda: drafting(draft_tokens=8),
        "lookahead+draft": lambda: drafting(lookahead(), draft_tokens=16),
    }
    theirs: dict[str, dict[str, Any]] = {
        "hf-plain": {},
        "hf-prompt-lookup": {"prompt_lookup_num_tokens": NGRAM_TOKENS},
        "hf-assisted": {"assistant_model": models.peer_draft},
    }
    return [
        Ours(name, models.target, ours[name], settings) if name in ours else Peer(name, models, settings, **theirs[name])
        for name in names
    ]


# ---- prompts --------------------------------------------------------------------------------------------------------------


def texts(task: str) -> Iterator[str]:
    """The questions of a task, in order."""
    if task == "math":
        yield from (problem.question for problem in problems("test"))
        return
    file = Path(os.environ["FORETHOUGHT_DATA"]) / "spec_bench" / "question.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        if question["category"] in SPEC_BENCH[task]:
            yield question["turns"][0]


def read(task: str, model: ft.Model, count: int, others: int, tokens: int) -> tuple[list[Ids], list[Ids], int]:
    """Prompts of ``count`` problems, of as many ``others`` as there are, and how many did not fit on the way."""
    if model.text is None:
        raise ValueError(f"{model.info.name} has no tokenizer")
    found: list[Ids] = []
    left_out = 0
    for text in texts(task):
        if len(found) == count + others:
            break
        ids = model.text.encode([{"role": "user", "content": text}])
        if len(ids) + tokens + max(SIZES) <= model.info.max_positions:
            found.append(ids)
        else:
            left_out += 1
    if len(found) < 2:
        raise ValueError(f"{task}: {len(found)} prompts fit the model's {model.info.max_positions} positions, 2 are needed")
    count = min(count, len(found) - min(others, len(found) // 2))
    return found[:count], found[count:], left_out


# ---- one task -------------------------------------------------------------------------------------------------------------


def measure(task: str, models: Models, options: argparse.Namespace, prompts: Sequence[Ids], others: Sequence[Ids],
            left_out: int) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows: for each batch what T is, then one for each contender."""
    model, sizes = models.target, (1, 2, 4) if options.quick else SIZES
    (plain,) = contenders([PLAIN], models, Settings.of(options, [*prompts, *others], len(others)), [])
    plain.begin()
    plain.run(others)
    plain.end()
    prompt, written = (round(statistics.mean(map(len, lists))) for lists in (prompts, plain.tally.outputs))
    warm = plain.tally.outputs[: options.warm]
    for batch in options.batch:
        settings = Settings.of(options, [*prompts, *others], batch)
        running = contenders(
            [name for name in options.decoders if batch == 1 or not name.startswith("hf-")], models, settings, warm
        )
        for contender in running:
            contender.begin()
            contender.run(others[:batch])
            contender.end()
        grid = sorted({batch, *(2**i for i in range(batch.bit_length()))})
        clock = Clock(model, prompt, written // 2, grid, sizes)
        times = math.ceil((2 if options.quick else TIMES) / math.ceil(len(prompts) / batch))
        repeats: list[dict[str, Tally]] = []
        tables: list[Table] = []
        for _ in range(options.repeats):
            gc.collect()
            for contender in running:
                contender.begin()
            for first in range(0, len(prompts), batch):
                clock.take_turn(times)
                for contender in running:
                    contender.run(prompts[first : first + batch])
            for contender in running:
                contender.end()
            repeats.append({contender.name: contender.tally for contender in running})
            tables.append(clock.table())
        yield {
            "task": task, "batch": batch, "prompts": len(prompts), "left_out": left_out, "prompt_tokens": prompt,
            "output_tokens": written, "rows": grid, "sizes": sizes,
            "seconds": np.median([table.seconds for table in tables], 0).tolist(),
        }  # fmt: skip
        for contender in running:
            agreement = compare(model, settings, prompts, contender.name, repeats)
            yield {"task": task, "batch": batch} | summary(contender.name, repeats, tables) | agreement


def summary(name: str, repeats: Sequence[dict[str, Tally]], tables: Sequence[Table]) -> dict[str, Any]:
    """What ``repeats`` say of one contender, beside the others. ``tables``: T as it was in each."""
    mine = [tallies[name] for tallies in repeats]

    def over(of: Callable[[Tally], float]) -> float:
        return statistics.median(of(tally) for tally in mine)

    row: dict[str, Any] = {
        "impl": name, "requests": len(mine[0].outputs), "tokens": mine[0].tokens, "repeats": len(repeats),
        "calls": over(lambda tally: tally.forwards),
        **spread("tok_s", [tally.overall for tally in mine]),
        "mat": over(lambda tally: tally.mat),
        "drafted": over(lambda tally: tally.drafted / max(1, tally.forwards)),
        "accepted": over(lambda tally: tally.accepted / tally.drafted) if all(tally.drafted for tally in mine) else None,
        "draft_tokens": over(lambda tally: tally.drafting / tally.tokens),
    }  # fmt: skip
    plain = "hf-plain" if name.startswith("hf-") else PLAIN
    for key, other in (("x_plain", plain), ("x_transformers", COUNTERPART.get(name))):
        if other in repeats[0] and other != name:
            row |= spread(key, [tallies[name].overall / tallies[other].overall for tallies in repeats]) | {f"{key}_of": other}
    if all(tally.steps for tally in mine):
        row |= {
            "rows": over(lambda tally: statistics.mean(step.rows for step in tally.steps)),
            "step_ms": over(lambda tally: 1e3 * statistics.mean(step.seconds for step in tally.steps)),
            "step_ms_by_t": statistics.median(
                1e3 * statistics.mean(told(step, table) for step in tally.steps)
                for tally, table in zip(mine, tables, strict=True)
            ),
            "draft_ms": over(lambda tally: 1e3 * statistics.mean(step.drafting for step in tally.steps)),
        }
        if name != PLAIN:
            predicted = [
                tallies[name].allowed(table) / tallies[PLAIN].allowed(table)
                for tallies, table in zip(repeats, tables, strict=True)
            ]
            measured = [tallies[name].speed / tallies[PLAIN].speed for tallies in repeats]
            share = [m / p for m, p in zip(measured, predicted, strict=True)]
            row |= spread("predicted", predicted) | spread("measured", measured) | spread("share", share)
    return row


def spread(key: str, values: Sequence[float]) -> dict[str, float]:
    return {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}


def compare(
    model: ft.Model, settings: Settings, prompts: Sequence[Ids], name: str, repeats: Sequence[dict[str, Tally]]
) -> dict[str, int | None]:
    """How many answers differ from plain decoding's, in all repeats, and how many of these from a tie on."""
    if settings.temperature and name.startswith("hf-"):
        return {"differ": None, "ties": None}
    differ = ties = 0
    for tallies in repeats:
        for prompt, mine, plain in zip(prompts, tallies[name].outputs, repeats[0][PLAIN].outputs, strict=True):
            if mine == plain:
                continue
            differ += 1
            if settings.temperature:
                continue
            at = next((i for i, (x, y) in enumerate(zip(mine, plain, strict=False)) if x != y), None)
            if at is None:
                raise AssertionError(f"{name}: {len(mine)} tokens, and plain decoding goes on or ended before ({len(plain)})")
            gap = apart(model, prompt + plain[:at], mine[at], plain[at])
            ties += gap < TIE
            if gap >= TIE and model.info.dtype == torch.float32:
                raise AssertionError(f"{name}: token {at} is {mine[at]}, not {plain[at]}, and their logits are {gap:.1e} apart")
    return {"differ": differ, "ties": None if settings.temperature else ties}


def apart(model: ft.Model, text: Ids, *tokens: int) -> float:
    """How far below the highest logit behind ``text`` the lowest one of ``tokens`` is."""
    pool = model.new_pool(len(text))
    logits = model.forward(TokenBatch(pool, [Row(pool.new_context(), text, logits=np.array([len(text) - 1]))])).logits
    assert logits is not None
    return float(logits[0].float().max() - logits[0, list(tokens)].float().min())


# ---- what is printed ------------------------------------------------------------------------------------------------------

HEADER = (
    f"{'task':14} {'batch':>5} {'':17} {'tokens/s (range)':>18} {'x own plain':>17} {'x transformers':>17} {'MAT':>5} "
    f"{'drafted':>7} {'accepted':>8} {'draft tok':>9} {'draft ms':>8} {'step ms (by T)':>14} "
    f"{'predicted':>9} {'measured':>17} {'of it':>5} differ/ties"
)


def line(row: dict[str, Any]) -> str:
    def number(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    def ranged(key: str, form: str = ".2f") -> str:
        return f"{row[key]:{form}} ({row[key + '_min']:{form}}-{row[key + '_max']:{form}})" if key in row else "-"

    step = f"{row['step_ms']:.2f} ({row['step_ms_by_t']:.2f})" if "step_ms" in row else "-"
    return (
        f"{row['task']:14} {row['batch']:5} {row['impl']:17} {ranged('tok_s', '.0f'):>18} {ranged('x_plain'):>17} "
        f"{ranged('x_transformers'):>17} {row['mat']:5.2f} {row['drafted']:7.2f} {number('accepted', '.0%'):>8} "
        f"{row['draft_tokens']:9.2f} {number('draft_ms', '.2f'):>8} {step:>14} {number('predicted', '.2f'):>9} "
        f"{ranged('measured'):>17} {number('share', '.2f'):>5} {number('differ', 'd'):>6}/{number('ties', 'd')}"
    )


def show(table: dict[str, Any]) -> str:
    """T, in ms."""
    head = (
        f"{table['task']}, batch {table['batch']}: {table['prompts']} prompts ({table['left_out']} were too long), in the mean "
        f"{table['prompt_tokens']} tokens and {table['output_tokens']} of answer\n"
        f"T(rows, q): ms of a call with q new tokens a row, behind {table['prompt_tokens'] + table['output_tokens'] // 2}"
    )
    lines = [f"{'rows':>6}" + "".join(f"{f'q={size}':>9}" for size in table["sizes"])]
    for rows, seconds in zip(table["rows"], table["seconds"], strict=True):
        lines.append(f"{rows:6}" + "".join(f"{1e3 * value:9.2f}" for value in seconds))
    return "\n".join([head, *lines])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked, lists as lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="math", help=f"which, separated by commas, of {', '.join(TASKS)} (default: math)")
    parser.add_argument("--decoders", default=",".join(DECODERS), help="which, separated by commas (default: all)")
    parser.add_argument("--batch", default="1,32", help="requests submitted together, separated by commas (default: 1,32)")
    parser.add_argument("--problems", type=int, default=40, help="of each task, at most (default: 40)")
    parser.add_argument("--tokens", type=int, default=160, help="of an answer at most (default: 160)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(default: 0, greedy)")
    parser.add_argument("--warm", type=int, default=0, help="answers that Lookahead remembers beforehand (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of everything (default: 3)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--model", default="nano", help="name or path (default: nano)")
    parser.add_argument("--draft", default="nano-draft", help="name or path of the draft model (default: nano-draft)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="append a JSON row per task, batch and contender to this file")
    parser.add_argument("--quick", action="store_true", help="three short problems, batches of 1 and 2, twice: does it run?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.problems, options.tokens, options.repeats = "1,2", 3, 24, 2
    for what, known in (("tasks", TASKS), ("decoders", DECODERS)):
        names = list(dict.fromkeys(getattr(options, what).split(",")))
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{what}: no {unknown[0]!r}, only {', '.join(known)}")
        setattr(options, what, names)
    options.decoders = [PLAIN, *(name for name in options.decoders if name != PLAIN)]
    try:
        options.batch = [int(size) for size in options.batch.split(",")]
    except ValueError:
        parser.error(f"--batch {options.batch}: whole numbers, separated by commas")
    for name, least in (("problems", 1), ("tokens", 8), ("repeats", 1), ("threads", 1), ("warm", 0), ("temperature", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            parser.error(f"--{name} {value:g}: at least {least}")
    if min(options.batch) < 1:
        parser.error(f"--batch {min(options.batch)}: at least 1")
    if options.tasks != ["math"]:
        folder = os.environ.get("FORETHOUGHT_DATA")
        if not folder or not (Path(folder) / "spec_bench" / "question.jsonl").is_file():
            parser.error(f"--tasks: FORETHOUGHT_DATA={folder!r} names no folder with spec_bench/question.jsonl")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = Models(options.decoders, options.model, options.draft, options.device)
    where = machine(options.device) | {
        "model": options.model, "draft": options.draft, "dtype": str(models.target.info.dtype).removeprefix("torch."),
        "max_tokens": options.tokens, "temperature": options.temperature, "warm": options.warm,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    if options.model in ("nano", "nano-draft") and options.tasks != ["math"]:
        print(f"{options.model} writes nonsense outside math: nothing is shown there but speed, and that of nonsense")
    others = max(OTHERS, options.warm, *options.batch)
    try:
        problems_of = {task: read(task, models.target, options.problems, others, options.tokens) for task in options.tasks}
    except ValueError as error:
        sys.exit(str(error))
    tables, rows = [], []
    for task in options.tasks:
        for row in measure(task, models, options, *problems_of[task]):
            if "impl" not in row:
                tables.append(row)
                print("", show(row), HEADER, sep="\n", flush=True)
                continue
            rows.append(row | {"quick": options.quick})
            print(line(row), flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1] | where) + "\n")
    print(json.dumps({"benchmark": "speculation", **where, "tables": tables, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
