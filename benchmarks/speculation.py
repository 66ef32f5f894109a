"""How much faster does drafting make decoding, and why?

    python benchmarks/speculation.py [--tasks math] [--decoders autoregressive,lookahead,…] [--batch 1,32] [--problems 40]
        [--tokens 160] [--temperature 0] [--warm 0] [--repeats 3] [--threads N] [--model nano] [--draft nano-draft]
        [--device cpu] [--json FILE] [--quick]

One process, one model, the same prompts. Requests are submitted in blocks of ``--batch``; all contenders answer a block, in
turn, before any sees the next one (A, B, C, A, B, C), so that the machine's moods hit all alike. Medians and ranges are over
repeats, ratios are taken within a repeat. A timed block goes from prompt ids to output ids, prompts included; a text ends at its
end token or after ``--tokens``.

Tasks: math is the built-in models' own held-out problems, humaneval the functions of HumanEval; the others are Spec-Bench's,
first turns only. All but math are read where FORETHOUGHT_DATA says; a prompt that does not fit the model is left out. Built-in
models write nonsense there: only speed counts.

autoregressive, lookahead (16 tokens a step at most), prompt_lookup (10), speculative (a chain of up to 16 by ``--draft``),
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
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import TIE, machine, settle
from speculation_contenders import PLAIN, Models, Settings, contenders
from speculation_steps import SIZES, Clock, Ids, Table, Tally, told

import forethought as ft
from forethought.backend.batch import Row, TokenBatch
from forethought.evals.tasks.code import HumanEval
from forethought.nano.problems import problems

TIMES = 9
"""How often in a repeat, at least."""
OTHERS = 8
"""Problems of the untimed pass, at least."""
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC_BENCH = {"mt_bench": MT_BENCH} | {name: (name,) for name in ("translation", "summarization", "qa", "math_reasoning", "rag")}
TASKS = ("math", "humaneval", *SPEC_BENCH)
COUNTERPART = {
    PLAIN: "hf-plain", "lookahead": "hf-prompt-lookup", "prompt_lookup": "hf-prompt-lookup", "speculative": "hf-assisted",
    "lookahead+draft": "hf-assisted",
}  # fmt: skip
DECODERS = (*COUNTERPART, "hf-plain", "hf-prompt-lookup", "hf-assisted")


# ---- prompts --------------------------------------------------------------------------------------------------------------


def texts(task: str) -> Iterator[str]:
    """The questions of a task, in order."""
    if task == "math":
        yield from (problem.question for problem in problems("test"))
        return
    if task == "humaneval":
        yield from (problem.question for problem in HumanEval().problems())
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
    settle(options.threads)
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
