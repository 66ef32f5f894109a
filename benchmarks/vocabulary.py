"""What does sampling cost at the vocabularies of real models? Ours beside transformers', and a sampled step beside a greedy one.

    python benchmarks/vocabulary.py [--model DIR [--dtype bfloat16]] [--rows 1,16,64] [--repeats 7] [--json FILE] [--quick]

draw   milliseconds from logits [rows, vocabulary] to tokens: ours (``decoding/sampling.py``) and transformers' own (its warpers
       for these settings, softmax, multinomial). Zipf's law of exponent 1.5 over shuffled tokens: half the mass on 2, 95 % on 240
step   only with ``--model``: 16 samples of one prompt, 48 tokens each, by an engine; sampled as a ratio of greedy, in turns

Contenders take turns; medians over the repeats, ranges of the ratios. Settings: "nucleus" is temperature 0.8 and top-p 0.95,
"temperature" is temperature 1 and no filter, "top-k" is temperature 0.8 and top-k 50. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from decode import machine

import forethought as ft
from forethought.backend.kv import KVPool, LayerSpec
from forethought.backend.request import Request, Row
from forethought.decoding.sampling import Sampler

VOCABULARIES = (512, 49_152, 151_936, 262_144)
SETTINGS: dict[str, dict[str, Any]] = {
    "nucleus": {"temperature": 0.8, "top_p": 0.95},
    "temperature": {"temperature": 1.0},
    "top-k": {"temperature": 0.8, "top_k": 50},
}
PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."


def logits_of(rows: int, vocabulary: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    law = -1.5 * np.log(np.arange(1, vocabulary + 1))
    return torch.from_numpy(np.stack([rng.permutation(law) for _ in range(rows)]).astype(np.float32))


def ours(logits: torch.Tensor, settings: dict[str, Any]) -> Callable[[], object]:
    pool = KVPool([LayerSpec(1, 1, 1, torch.device("cpu"))], 1, torch.float32)
    sampling, sampler = ft.Sampling(**settings), Sampler()
    rows = [
        Row(Request([1], 1, sampling, 99, 0, frozenset(), (), False, None, seed), 0, 0, [1], pool.new_context(), [1])
        for seed in range(len(logits))
    ]
    return lambda: sampler.draw(rows, logits)


def theirs(logits: torch.Tensor, settings: dict[str, Any]) -> Callable[[], object]:
    warpers = transformers.LogitsProcessorList()
    if settings["temperature"] != 1:
        warpers.append(transformers.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        warpers.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(transformers.TopPLogitsWarper(settings["top_p"]))
    ids = torch.ones(len(logits), 1, dtype=torch.long)
    return lambda: torch.multinomial(warpers(ids, logits).softmax(-1), 1)


def in_turn(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, by turns, once more than ``repeats`` times: the first is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: found[1:] for name, found in times.items()}


def ratio(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def steps(path: str, dtype: str, rows: int, tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Sampled steps beside greedy ones."""
    model = ft.load(path, dtype=dtype)
    with ft.Engine(model, decoder=ft.Autoregressive()) as engine:

        def run(settings: dict[str, Any]) -> Callable[[], object]:
            options = {"n": rows, "max_tokens": tokens, "ignore_eos": True, "seed": 0, **settings}
            return lambda: engine.generate(engine.encode(PROMPT), **options)

        neutral = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        contenders = {"greedy": run(neutral | {"temperature": 0.0})}
        contenders |= {name: run(neutral | settings) for name, settings in SETTINGS.items()}
        times = in_turn(contenders, repeats)
    return [
        {"case": "step", "settings": name, "rows": rows, "vocabulary": model.info.vocab_size, "dtype": dtype,
         "ours_ms": statistics.median(times[name]) / tokens, "other_ms": statistics.median(times["greedy"]) / tokens,
         **ratio(times[name], times["greedy"])}
        for name in SETTINGS
    ]  # fmt: skip


def line(row: dict[str, Any]) -> str:
    ratios = f"{row['ratio']:.2f} [{row['ratio_min']:.2f}, {row['ratio_max']:.2f}]"
    return (f"{row['case']:5} {row['settings']:12} {row['vocabulary']:10,} {row['rows']:5} {row['ours_ms']:10.2f} "
            f"{row['other_ms']:10.2f} {ratios:>20}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint whose whole steps are timed too")
    parser.add_argument("--dtype", default="bfloat16", help="of that model (default: bfloat16)")
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="append the last line to this file")
    parser.add_argument("--quick", action="store_true", help="small vocabularies, one repeat: does it run?")
    options = parser.parse_args(arguments)
    rows, vocabularies, repeats = [int(x) for x in options.rows.split(",")], VOCABULARIES, options.repeats
    if options.quick:
        rows, vocabularies, repeats = [1, 3], (100, 5000), 1
    print(f"{'':5} {'settings':12} {'vocabulary':>10} {'rows':>5} {'ours ms':>10} {'other ms':>10} {'ours / other':>20}")
    found = []
    for vocabulary in vocabularies:
        for count in rows:
            logits = logits_of(count, vocabulary)
            for name, settings in SETTINGS.items():
                times = in_turn({"ours": ours(logits, settings), "transformers": theirs(logits, settings)}, repeats)
                found.append({
                    "case": "draw", "settings": name, "rows": count, "vocabulary": vocabulary,
                    "ours_ms": statistics.median(times["ours"]), "other_ms": statistics.median(times["transformers"]),
                    **ratio(times["ours"], times["transformers"]),
                })  # fmt: skip
                print(line(found[-1]), flush=True)
    if options.model:
        for row in steps(options.model, options.dtype, 3 if options.quick else 16, 4 if options.quick else 48, repeats):
            found.append(row)
            print(line(row), flush=True)
    result = json.dumps(machine("cpu") | {"repeats": repeats, "quick": options.quick, "rows": found})
    print(result)
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(result + "\n")


if __name__ == "__main__":
    main()
