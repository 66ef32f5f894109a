"""What ``Engine(batch_invariant=True)`` costs, and how often text depends on the batch without it. On a CPU.

    python benchmarks/invariance.py                                  # nano in bfloat16
    python benchmarks/invariance.py --models ./folder --tokens 32    # another checkpoint

Per model, two tables. Tokens per second of both modes at some rows, decoding together in one call, taking turns: the median of
the rounds after the first, and the ratio's range. And of unlike prompts, sampled at one seed once alone and once together: the
share of texts that differ, by mode. Last line: all of it as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import forethought as ft

MODES = (False, True)


def prompts(count: int) -> list[str]:
    """Unlike questions of unlike length."""
    return [
        f"Tom has {i + 3} apples. " + f"He buys {i} more and gives {i + 1} to Ann. " * (1 + i % 5) + "How many has he?"
        for i in range(count)
    ]


def measure(engines: Sequence[ft.Engine], rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second, plain and invariant, and their ratio in each round."""
    speeds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for engine, found in zip(engines, speeds, strict=True):
            engine.clear_cache()
            start = time.perf_counter()
            engine.generate(prompts(rows), max_tokens=tokens, ignore_eos=True, temperature=0.8, seed=turn)
            found.append(rows * tokens / (time.perf_counter() - start))
    plain, invariant = (found[1:] for found in speeds)
    ratios = [b / a for a, b in zip(plain, invariant, strict=True)]
    return {"rows": rows, "plain": statistics.median(plain), "invariant": statistics.median(invariant),
            "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}  # fmt: skip


def differing(engine: ft.Engine, texts: int, tokens: int) -> int:
    """How many of ``texts`` prompts get another text alone than together."""
    options: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "seed": 1}
    asked = prompts(texts)
    engine.clear_cache()
    together = engine.generate(asked, **options)
    changed = 0
    for prompt, others in zip(asked, together, strict=True):
        engine.clear_cache()
        changed += [c.token_ids for c in engine.generate(prompt, **options)] != [c.token_ids for c in others]
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["nano"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=32)
    given = parser.parse_args(arguments)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": given.dtype, "models": {}}
    for name in given.models:
        model = ft.load(name, device="cpu", dtype=given.dtype)
        engines = [ft.Engine(model, ft.Autoregressive(), batch_invariant=mode) for mode in MODES]
        speeds = [measure(engines, rows, given.tokens, given.rounds) for rows in given.rows]
        changed = [differing(engine, given.texts, given.tokens) for engine in engines]
        for engine in engines:
            engine.close()
        print(f"{name}, {given.dtype}: rows, plain, invariant tokens/s, ratio (range)")
        for one in speeds:
            spread = f"({one['least']:.2f}-{one['most']:.2f})"
            print(f"{one['rows']:5} {one['plain']:9.1f} {one['invariant']:9.1f} {one['ratio']:6.2f} {spread}")
        print(f"texts that differ, of {given.texts}: {changed[0]} plain, {changed[1]} invariant", flush=True)
        report["models"][name] = {
            "speeds": speeds,
            "texts": given.texts,
            "differ": dict(zip(("plain", "invariant"), changed, strict=True)),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
