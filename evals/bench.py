"""``forethought bench``: tokens per second of each decoder on one model, in one process, on the same prompts.

Greedy, end of text ignored, the prefix cache emptied before each measurement: all make the same tokens from the same start.
Medians over repeats, with the spread; the decoders' repeats alternate, so that a slow moment of the machine hits them all.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..backend.decoder import Decoder
from ..backend.engine import Engine
from ..backend.model import Model
from ..nano.problems import problems
from ..schema import Prompt
from . import machine
from .config import build, compose, compose_each, expand
from .solve import ask, load
from .terminal import amount, clean, table


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: for each decoder and number of samples, ``tokens`` tokens behind each of ``prompts`` prompts."""

    decoders: Sequence[str]
    samples: Sequence[int]
    prompts: int
    tokens: int
    repeats: int

    def __post_init__(self) -> None:
        for name in ("decoders", "samples"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence) or not getattr(self, name):
                raise ValueError(f"bench.{name}={getattr(self, name)!r}: a list, [a,b]")
        for name, values in (("samples", self.samples), *((n, [getattr(self, n)]) for n in ("prompts", "tokens", "repeats"))):
            if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in values):
                raise ValueError(f"bench.{name}={getattr(self, name)!r}: whole numbers of at least 1")


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: all prompts one after the other, ``samples`` samples each at once."""

    seconds: float
    tokens: int
    forwards: int


def bench(overrides: Sequence[str], *, multirun: bool = False) -> int:
    """Print a table and, as the last line, one JSON object, for each combination of a sweep."""
    runs = expand(overrides) if multirun else [list(overrides)]
    plans: list[Bench] = [build(compose("bench", run).bench) for run in runs]
    configs = [compose_each("bench", "decoder", plan.decoders, run) for plan, run in zip(plans, runs, strict=True)]
    for run, plan, composed in zip(runs, plans, configs, strict=True):
        if multirun:
            print("── " + (" ".join(run) or "defaults"), flush=True)
        decoders = {name: build(config.decoder) for name, config in composed.items()}
        model = load(composed[plan.decoders[0]])
        print(_report(model, plan, measure(model, plan, decoders), run), flush=True)
    return 0


def measure(model: Model, plan: Bench, decoders: dict[str, Decoder]) -> dict[tuple[str, int], list[Run]]:
    """The runs of each (decoder, samples)."""
    prompts = [ask(model, problem.question) for problem in itertools.islice(problems("test"), plan.prompts)]
    longest = max(len(model.text.encode(prompt)) for prompt in prompts) if model.text is not None else 0
    slots = max(plan.samples) * (longest + plan.tokens + 64)
    engines = {name: Engine(model, decoder, kv_slots=slots) for name, decoder in decoders.items()}
    runs: dict[tuple[str, int], list[Run]] = {(name, n): [] for n in plan.samples for name in engines}
    for name, n in runs:
        _run(engines[name], prompts[:1], n, min(8, plan.tokens))  # warms up
    for _ in range(plan.repeats):
        for name, n in runs:
            runs[name, n].append(_run(engines[name], prompts, n, plan.tokens))
    for engine in engines.values():
        engine.close()
    return runs


def _run(engine: Engine, prompts: Sequence[Prompt], samples: int, tokens: int) -> Run:
    engine.clear_cache()
    forwards, made, start = engine.cost.forwards, 0, time.perf_counter()
    for prompt in prompts:
        completions = engine.generate(prompt, n=samples, max_tokens=tokens, temperature=0, ignore_eos=True, seed=0)
        made += sum(len(completion.token_ids) for completion in completions)
        if any(completion.finish_reason == "cancelled" for completion in completions):
            raise KeyboardInterrupt
    return Run(time.perf_counter() - start, made, engine.cost.forwards - forwards)


def _report(model: Model, plan: Bench, runs: dict[tuple[str, int], list[Run]], overrides: Sequence[str]) -> str:
    info = model.info
    about = machine.describe(str(info.device))
    results, shown = [], []
    for (decoder, samples), repeats in runs.items():
        speeds = sorted(run.tokens / run.seconds for run in repeats)
        median = statistics.median(speeds)
        speedup = median / statistics.median(run.tokens / run.seconds for run in runs[plan.decoders[0], samples])
        per_forward = repeats[0].tokens / repeats[0].forwards
        weights = info.parameters * info.dtype.itemsize * statistics.median(run.forwards / run.seconds for run in repeats)
        spread = f"{amount(speeds[0])}–{amount(speeds[-1])}"
        row = [decoder, str(samples), amount(median), spread, f"{speedup:.2f}", f"{per_forward:.2f}", amount(weights, "B/s")]
        shown.append(row)
        results.append(
            {
                "decoder": decoder,
                "samples": samples,
                "tokens_per_second": median,
                "runs": speeds,
                "speedup": speedup,
                "tokens": repeats[0].tokens,
                "forwards": repeats[0].forwards,
                "weight_bytes_per_second": weights,
            }
        )
    dtype, versions = str(info.dtype).removeprefix("torch."), about["versions"]
    software = f"torch {versions['torch']}, forethought {versions['forethought']}"
    lines = [
        f"{clean(info.name)}, {amount(info.parameters)} parameters, {dtype}",
        f"{about['hardware']} ({info.device}), {about['threads']} threads of {about['cores']} cores, {software}",
        f"{plan.prompts} prompts, {plan.tokens} tokens each, greedy, end of text ignored; median of {plan.repeats}",
        "",
        table(["decoder", "samples", "tokens/s", "spread", "speed-up", "tokens/forward", "weights read"], shown),
    ]
    model_is = {"model": info.name, "parameters": info.parameters, "dtype": dtype}
    setup = {"overrides": list(overrides), "prompts": plan.prompts, "tokens": plan.tokens, "repeats": plan.repeats}
    return "\n".join([*lines, json.dumps({"bench": "decoders", **model_is, **setup, "machine": about, "results": results})])
