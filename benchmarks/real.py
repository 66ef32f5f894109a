"""What do the decoders give on a real model, beside transformers' own, and how near is one stream to the memory's speed?

    python benchmarks/real.py MODEL [--draft MODEL] [--decoders autoregressive,lookahead,…] [--tasks humaneval,mt_bench,…]
        [--problems 2] [--longest 1024] [--tokens 64] [--warm 4] [--dtype bfloat16] [--threads N] [--json FILE] [--quick]

One process; one request at a time, greedy, through the model's chat template, until its end token or ``--tokens``. All contenders
answer a prompt, in turn, before any sees the next one. Timed: from prompt ids to output ids, prompt included. Medians and ranges
are over the prompts of a group, ratios are taken within a prompt: HumanEval's are one group, Spec-Bench's (first turns) another.
Of each task ``--problems`` prompts of at most ``--longest`` tokens, evenly spread over it.

autoregressive, lookahead (its memory empty when a task begins), lookahead-warm (it remembers plain decoding's answers to
``--warm`` other problems of the task; writing them is not timed), prompt_lookup, and with ``--draft`` speculative and
lookahead+draft: as in ``speculation.py``, and so are hf-plain, hf-prompt-lookup and hf-assisted, which are
transformers.generate. x plain: over autoregressive, or of transformers over hf-plain. x transformers: over hf-plain,
hf-prompt-lookup or hf-assisted. MAT: tokens a forward. differ: answers that are not autoregressive's; in float32 that is an
error unless the first difference starts at a tie; in bfloat16 they are counted: two right computations round differently.

of memory: bytes of the weights that a token reads (the embedding's rows left out where the head is another matrix) times tokens a
second of decoding alone, over the bytes a second at which a matrix-vector product reads memory, as ``forethought doctor``
measures it, before every task; the median. It is given for autoregressive. Not measured: batches, sampling, latency, the
bytes of keys and values.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from decode import machine, settle, sizes
from speculation import COUNTERPART, DECODERS, SPEC_BENCH, compare, spread, texts
from speculation_contenders import PLAIN, Contender, Models, Settings, contenders
from speculation_steps import SIZES, Ids, Tally

import forethought as ft
from forethought.evals.doctor import bandwidth

WARM = "lookahead-warm"
TASKS = ("humaneval", *SPEC_BENCH)
DRAFTING = ("speculative", "lookahead+draft", "hf-assisted")
PEERS = {**COUNTERPART, WARM: "hf-prompt-lookup"}


class Answer(NamedTuple):
    """One contender's to one prompt."""

    ids: Ids
    seconds: float

    @property
    def speed(self) -> float:
        return len(self.ids) / self.seconds


def pick(task: str, model: ft.Model, options: argparse.Namespace) -> tuple[list[Ids], list[Ids]]:
    """Prompts to be timed and others of their task."""
    assert model.text is not None
    fit = []
    for text in texts(task):
        ids = model.text.encode([{"role": "user", "content": text}])
        if len(ids) <= options.longest and len(ids) + options.tokens + max(SIZES) <= model.info.max_positions:
            fit.append(ids)
    needed = options.problems + options.warm
    if len(fit) < needed:
        raise ValueError(f"{task}: {len(fit)} prompts of at most {options.longest} tokens, {needed} are needed")
    step = len(fit) // options.problems
    chosen = [step * i for i in range(options.problems)]
    return [fit[i] for i in chosen], [ids for i, ids in enumerate(fit) if i not in chosen][: options.warm]


def measure(
    task: str, models: Models, options: argparse.Namespace, prompts: Sequence[Ids], others: Sequence[Ids]
) -> tuple[dict[str, list[Answer]], dict[str, Tally]]:
    """Every contender's answers to ``prompts``, and its tally."""
    settings = Settings.of(options, [*prompts, *others], 1)
    (plain,) = contenders([PLAIN], models, Settings.of(options, others, len(others)), [])
    plain.begin()
    plain.run(others)
    plain.end()
    running: dict[str, Contender] = {}
    for name in options.decoders:
        remembered = plain.tally.outputs[: options.warm] if name == WARM else []
        (running[name],) = contenders(["lookahead" if name == WARM else name], models, settings, remembered)
    for contender in running.values():
        contender.begin()
        contender.run([others[0][-16:]])
        contender.end()
    answers: dict[str, list[Answer]] = {name: [] for name in running}
    gc.collect()
    for contender in running.values():
        contender.begin()
    for prompt in prompts:
        for name, contender in running.items():
            before = contender.tally.seconds
            contender.run([prompt])
            answers[name].append(Answer(contender.tally.outputs[-1], contender.tally.seconds - before))
    for contender in running.values():
        contender.end()
    return answers, {name: contender.tally for name, contender in running.items()}


def summary(name: str, found: Sequence[tuple[dict[str, list[Answer]], dict[str, Tally]]], read: float) -> dict[str, Any]:
    """What the tasks ``found`` say of one contender. ``read``: seconds that one token's weights take to be read."""
    mine = [answer for answers, _ in found for answer in answers[name]]
    tallies = [tally[name] for _, tally in found]
    row: dict[str, Any] = {
        "impl": name, "prompts": len(mine), "tokens": sum(len(answer.ids) for answer in mine),
        **spread("tok_s", [answer.speed for answer in mine]),
        "mat": sum(t.tokens - t.given for t in tallies) / max(1, sum(t.forwards for t in tallies)),
    }  # fmt: skip
    for key, other in (("x_plain", "hf-plain" if name.startswith("hf-") else PLAIN), ("x_transformers", PEERS.get(name))):
        if other in found[0][0] and other != name:
            theirs = [answer for answers, _ in found for answer in answers[other]]
            row |= spread(key, [a.speed / b.speed for a, b in zip(mine, theirs, strict=True)]) | {f"{key}_of": other}
    if name == PLAIN:
        steps = [step for tally in tallies for step in tally.steps]
        row["of_memory"] = read * len(steps) / sum(step.seconds for step in steps)
    return row


def rows(models: Models, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One for each group and contender, then one of the memory."""
    weights, _ = sizes(models.target.info.dtype, models.peer)
    groups: dict[str, list[tuple[dict[str, list[Answer]], dict[str, Tally]]]] = {}
    differ: dict[str, dict[str, dict[str, int | None]]] = {}
    measured = []
    for task in options.tasks:
        prompts, others = pick(task, models.target, options)
        measured.append(bandwidth("cpu")["matrix_vector"] / 1e9)
        found = measure(task, models, options, prompts, others)
        group = task if task == "humaneval" else "spec_bench"
        groups.setdefault(group, []).append(found)
        settings = Settings.of(options, prompts, 1)
        for name in options.decoders:
            agreement = compare(models.target, settings, prompts, name, [found[1]])
            total = differ.setdefault(group, {}).setdefault(name, {"differ": 0, "ties": 0})
            for key, value in agreement.items():
                total[key] = (total[key] or 0) + (value or 0)
        print(f"{task}: {len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens", flush=True)
    speed = statistics.median(measured)
    for group, found_there in groups.items():
        for name in options.decoders:
            yield {"group": group} | summary(name, found_there, weights / speed / 1e9) | differ[group][name]
    yield {"group": "memory", "weights_gb": weights / 1e9, **spread("read_gb_s", measured)}


HEADER = (
    f"{'group':11} {'':17} {'tokens/s (range)':>20} {'x plain':>18} {'x transformers':>18} {'MAT':>5} "
    f"{'of memory':>9} differ/ties"
)


def line(row: dict[str, Any]) -> str:
    def ranged(key: str, form: str = ".2f") -> str:
        return f"{row[key]:{form}} ({row[key + '_min']:{form}}-{row[key + '_max']:{form}})" if key in row else "-"

    share = f"{row['of_memory']:.2f}" if "of_memory" in row else "-"
    return (
        f"{row['group']:11} {row['impl']:17} {ranged('tok_s', '.1f'):>20} {ranged('x_plain'):>18} {ranged('x_transformers'):>18} "
        f"{row['mat']:5.2f} {share:>9} {row['differ']:>6}/{row['ties']} of {row['prompts']}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked, lists as lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--draft", help="name or folder of the draft model")
    parser.add_argument("--decoders", help="which, separated by commas (default: all, without --draft those that need none)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="which, separated by commas (default: all)")
    for name, default, what in (
        ("problems", 2, "of each task"), ("longest", 1024, "tokens of a prompt at most"), ("tokens", 64, "of an answer at most"),
        ("warm", 4, "answers that lookahead-warm remembers"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument("--dtype", default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--json", type=Path, help="append a JSON row per group and contender to this file")
    parser.add_argument("--quick", action="store_true", help="one short answer a task: does it run?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.problems, options.tokens, options.warm = 1, 16, 1
    every = [PLAIN, "lookahead", WARM, *(name for name in DECODERS if name not in (PLAIN, "lookahead"))]
    if options.decoders is None:
        options.decoders = ",".join(name for name in every if options.draft or name not in DRAFTING)
    for what, known in (("tasks", TASKS), ("decoders", every)):
        names = list(dict.fromkeys(getattr(options, what).split(",")))
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{what}: no {unknown[0]!r}, only {', '.join(known)}")
        setattr(options, what, names)
    options.decoders = [*dict.fromkeys([PLAIN, *options.decoders, "hf-plain"])]
    if not options.draft and (needing := [name for name in options.decoders if name in DRAFTING]):
        parser.error(f"--decoders: {needing[0]} needs --draft")
    for name in ("problems", "longest", "tokens", "warm", "threads"):
        value, least = getattr(options, name), 8 if name == "tokens" else 1
        if value is not None and value < least:
            parser.error(f"--{name} {value}: at least {least}")
    if not os.environ.get("FORETHOUGHT_DATA"):
        parser.error("FORETHOUGHT_DATA names no folder: the prompts are read there")
    options.temperature = 0.0
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    settle(options.threads)
    models = Models(options.decoders, options.model, options.draft, "cpu", options.dtype)
    where = machine("cpu") | {
        "model": models.target.info.name, "draft": models.draft.info.name if models.draft else None, "dtype": options.dtype,
        "max_tokens": options.tokens, "longest": options.longest, "warm": options.warm,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    done = []
    try:
        for row in rows(models, options):
            if not done:
                print(HEADER)
            done.append(row | {"quick": options.quick})
            if row["group"] == "memory":
                print(f"weights {row['weights_gb']:.2f} GB a token; memory is read at {row['read_gb_s']:.1f} GB/s")
            else:
                print(line(row), flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[-1] | where) + "\n")
    except ValueError as error:
        sys.exit(str(error))
    print(json.dumps({"benchmark": "real", **where, "rows": done}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
