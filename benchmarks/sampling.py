"""Repeated sampling: how full are the engine's rows, where does the time go, and what would ``transformers.generate`` take?

    python benchmarks/sampling.py [--problems 300] [--samples 64] [--subset 8] [--repeats 3] [--json FILE] [--quick] [KEY=VALUE …]

The whole: ``forethought eval task=nano_math strategy.n=SAMPLES run.problems=PROBLEMS KEY=VALUE …`` in a new folder that is
thrown away, with all that belongs to a run: reading answers, judging, voting, writing. busy: the share of rows that got a
token. A step of the engine has 256 rows to give one to; counted are all steps up to the last one in which a draw still waited
for a row, prompts and gaps included. After it rows run empty, one draw after the other, with nothing left to fill them.
prefill, decode, drafting, sampling, other and waiting are the engine's thread and add up to the wall time, but for the moment
in which the engine is made. prefill: the share of prompt tokens in each call's time; waiting: nothing to do. Judging, choosing
and writing go on beside it, in the caller's thread.

The subset: its first problems once more, by such a run and by transformers.generate(num_return_sequences=SAMPLES), problem by
problem, with the same weights, dtype, device, prompts, temperature, top-p and limit; a generate call ends when its last sample
does. Prompt ids are ready before, texts are decoded within, both timed alike; ours in addition reads, judges and writes. They
take turns, after one problem each that does not count; ratios are taken within a repeat, medians and ranges are over repeats.
Draws are as many and follow the same distribution, but are not the same texts, hence the ratio of tokens/s too. Not measured:
loading, statistics, ``generate`` over several problems at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from decode import machine, settle, synchronize
from speculation_contenders import Models

from forethought.backend.request import Sampling
from forethought.backend.usage import PARTS
from forethought.evals.config import build, compose, encoding, options
from forethought.evals.evaluate import evaluate_one
from forethought.evals.solve import ask

BESIDE = ("verifying", "choosing", "writing")
"""What the caller's thread does meanwhile."""


def ours(overrides: Sequence[str], problems: int, samples: int) -> dict[str, float]:
    """The timing of a run."""
    with tempfile.TemporaryDirectory() as path:
        run = [f"strategy.n={samples}", f"run.problems={problems}", f"run.path={path}/run"]
        results = evaluate_one(compose("eval", ["task=nano_math", *overrides, *run]))
    if results is None:
        raise KeyboardInterrupt
    return dict(results.timing)


class Peer:
    """transformers.generate with the settings of the same run."""

    def __init__(self, overrides: Sequence[str], samples: int) -> None:
        config = compose("eval", ["task=nano_math", *overrides])
        self.models = Models(["hf-plain"], config.model.name_or_path, "", build(config.model).info.device.type)
        info, given, self.task = self.models.target.info, options(config), build(config.task)
        settings = Sampling.resolve(info.defaults, {name: given[name] for name in config.sampling if name in given})
        self.encoding = encoding(config)
        if settings != Sampling(settings.temperature, settings.top_k, settings.top_p) or not settings.temperature:
            raise ValueError(f"{settings}: temperature (above 0), top_k and top_p alone are compared")
        self.most = given.get("max_tokens", info.defaults.max_tokens)
        self.options = {
            "do_sample": True, "temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p,
            "num_return_sequences": samples, "max_new_tokens": self.most, "pad_token_id": 0,
            "eos_token_id": list(info.defaults.stop_ids),
        }  # fmt: skip
        torch.manual_seed(given["seed"])

    def prompts(self, count: int) -> list[list[int]]:
        """Of the first problems."""
        model = self.models.target
        assert model.text is not None
        asked = [self.task.form.fill(problem, self.task.fields(problem)) for problem in list(self.task.problems())[:count]]
        return [model.text.encode(ask(model, question), **self.encoding) for question in asked]

    def run(self, prompts: Sequence[list[int]]) -> dict[str, float]:
        """Seconds, draws and tokens, end tokens included."""
        model, text, draws, tokens = self.models.peer, self.models.target.text, 0, 0
        assert text is not None
        synchronize(model.device.type)
        start = time.perf_counter()
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **self.options)[:, len(prompt) :].tolist()
            for line in out:
                ends = [line.index(stop) + 1 for stop in self.options["eos_token_id"] if stop in line]
                line = line[: min(ends, default=len(line))]
                text.decode(line)
                tokens += len(line)
            draws += len(out)
        return {"wall_seconds": time.perf_counter() - start, "draws": draws, "tokens": tokens}


def subset(overrides: Sequence[str], count: int, samples: int, repeats: int) -> dict[str, Any]:
    """Both on the first ``count`` problems."""
    peer = Peer(overrides, samples)
    prompts = peer.prompts(count)
    ours(overrides, 1, samples)
    peer.run(prompts[:1])
    pairs = [(ours(overrides, count, samples), peer.run(prompts)) for _ in range(repeats)]

    def spread(key: str, values: Sequence[float]) -> dict[str, float]:
        return {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}

    def speed(timing: dict[str, float]) -> float:
        return timing["tokens"] / timing["wall_seconds"]

    return {
        "problems": count, "repeats": repeats, "draws": pairs[0][0]["draws"],
        **spread("seconds", [mine["wall_seconds"] for mine, _ in pairs]),
        **spread("transformers_seconds", [theirs["wall_seconds"] for _, theirs in pairs]),
        **spread("x_transformers", [theirs["wall_seconds"] / mine["wall_seconds"] for mine, theirs in pairs]),
        **spread("x_tokens", [speed(mine) / speed(theirs) for mine, theirs in pairs]),
        "tokens": pairs[0][0]["tokens"], "transformers_tokens": statistics.median(theirs["tokens"] for _, theirs in pairs),
    }  # fmt: skip


# ---- what is printed ------------------------------------------------------------------------------------------------------


def show(whole: dict[str, float]) -> str:
    wall = whole["wall_seconds"]
    busy = f"{whole['rows_busy']:.1%} until the queue was empty" if "rows_busy" in whole else "nobody ever queued"
    lines = [
        f"{whole['draws']:,} draws, {whole['tokens']:,} tokens in {wall:.1f} s: {whole['tokens_per_second']:,.0f} tokens/s",
        f"rows busy: {busy}; {whole['forwards']:,} forwards",
    ]
    for title, parts in (("the engine's thread", PARTS), ("beside it", BESIDE)):
        lines.append(f"{title:20} {'seconds':>9} {'of the wall':>12}")
        lines += [f"  {part:18} {whole[f'{part}_seconds']:9.2f} {whole[f'{part}_seconds'] / wall:12.1%}" for part in parts]
    return "\n".join(lines)


def compared(row: dict[str, Any]) -> str:
    def ranged(key: str, form: str) -> str:
        return f"{row[key]:{form}} ({row[key + '_min']:{form}}-{row[key + '_max']:{form}})"

    theirs = f"transformers.generate {ranged('transformers_seconds', '.1f')} s for {row['transformers_tokens']:,.0f}"
    return (
        f"first {row['problems']} problems, {row['draws']:,} draws, {row['repeats']} repeats: "
        f"{ranged('seconds', '.1f')} s for {row['tokens']:,} tokens, {theirs}\n"
        f"wall time, theirs over ours: {ranged('x_transformers', '.2f')}; tokens/s, ours over theirs: {ranged('x_tokens', '.2f')}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300, help="of the whole run (default: 300)")
    parser.add_argument("--samples", type=int, default=64, help="of each (default: 64)")
    parser.add_argument("--subset", type=int, default=8, help="problems that are compared; 0: none (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the last line to this file")
    parser.add_argument("--quick", action="store_true", help="four problems, three short samples: does it run?")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for forethought eval: max_tokens=…, decoder=…")
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.samples, given.subset, given.repeats = 4, 3, 2, 2
        given.overrides = ["max_tokens=24", *given.overrides]
    for name, least in (("problems", 1), ("samples", 1), ("subset", 0), ("repeats", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name} {getattr(given, name)}: at least {least}")
    settle()
    config = compose("eval", ["task=nano_math", *given.overrides])
    info = build(config.model).info
    where = machine(info.device.type) | {
        "model": info.name, "dtype": str(info.dtype).removeprefix("torch."),
        "decoder": config.decoder._target_.rpartition(".")[2],
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in where.items() if value is not None))
    print(f"{given.problems} problems x {given.samples} samples {' '.join(given.overrides)}")
    whole = ours(given.overrides, given.problems, given.samples)
    print(show(whole), flush=True)
    row = subset(given.overrides, given.subset, given.samples, given.repeats) if given.subset else None
    if row is not None:
        print(compared(row), flush=True)
    line = json.dumps({"benchmark": "sampling", **where, "problems": given.problems, "samples": given.samples,
                       "whole": whole, "subset": row, "quick": given.quick})  # fmt: skip
    if given.json:
        given.json.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
