"""What the host adds to a decode step on a GPU: how long the device waits between two steps. Measured without a device.

    TRITON_INTERPRET=1 python benchmarks/host.py [--rows 1,8,64] [--contexts 256] [--steps 150] [--repeats 5] [--json FILE]
        [--quick]

Plain decoding by an engine with its defaults, on a random Llama of two layers whose recorded steps compute nothing: what stands
in for a CUDA graph notes the time and gives back logits that were there before. So only the host's own work is left, and of the
device's part what a CPU does in its place: two copies to the tables, one of the logits, and an argmax over 512 of them.

between  from the decision about a step, all its tokens read, to the launch of the next one: in this time a GPU has nothing to do
ahead    what is made ready for the next step while the device computes the present one
whole    from launch to launch

"ahead" is what the engine does; "at once" is the same engine when nothing is made ready beforehand. They take turns. Of
each repeat the median over its steps; of these the median and the range. Not measured: launches, transfers, sampling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from decode import machine
from decode_steps import Clocked

import forethought as ft
from forethought.backend.batch import Output, Stages, TokenBatch
from forethought.backend.graphs import Graphs, Run
from forethought.backend.transformer import Transformer

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 512, "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
WARM = 20
"""Steps of an engine before the timed ones."""


class Nothing:
    """Records nothing and replays nothing, but notes when."""

    def __init__(self, vocabulary: int) -> None:
        self.logits = torch.randn(256, vocabulary, generator=torch.Generator().manual_seed(0))
        self.launched: list[float] = []

    def __call__(self, run: Run) -> Run:
        def replay() -> Stages:
            self.launched.append(time.perf_counter())
            return Output(self.logits)
            yield  # a replay that never stops

        return replay


class Bench:
    """One model; ``ahead``: seconds that each preparation took."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as path:
            transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA)).save_pretrained(path)
            model = ft.load(path, device="cpu", impl="triton")
        assert isinstance(model, Transformer)
        self.card, self.model = Nothing(model.info.vocab_size), model
        graphs = Graphs.of(model, self.card)
        assert graphs is not None
        model._graphs = self.graphs = graphs
        model.impl = model._write_impl = "torch"  # prompts are read for real, and not by an interpreter
        self.ahead: list[float] = []
        self._prepare = model.prepare

    def run(self, rows: int, context: int, steps: int, prepared: bool) -> tuple[list[float], list[float], list[float]]:
        """Seconds between, ahead and whole, of each step."""
        prompts = np.random.default_rng(0).integers(0, LLAMA["vocab_size"], (rows, context)).tolist()
        decoder, tokens = Clocked(), WARM + steps + 2
        self.model.prepare = self._timed if prepared else lambda batch: None  # type: ignore[method-assign]
        with ft.Engine(self.model, decoder, kv_slots=rows * (context + tokens), prefill_tokens=1 << 14) as engine:
            self.card.launched.clear()
            self.ahead.clear()
            self.graphs.replayed, self.graphs.prepared = 0, 0
            engine.generate(prompts, max_tokens=tokens, temperature=0, ignore_eos=True, progress=False)
        launched = self.card.launched[-steps:]
        decided = [moment for _, _, moment in decoder.times[-steps - 1 : -1]]
        between = [start - end for start, end in zip(launched, decided, strict=True)]
        if (self.graphs.prepared > 0) != prepared or self.graphs.replayed < len(launched):
            raise AssertionError(f"{self.graphs.replayed} steps replayed, {self.graphs.prepared} of them made ready beforehand")
        return between, self.ahead[-steps:], np.diff(launched).tolist()

    def _timed(self, batch: TokenBatch) -> Any:
        start = time.perf_counter()
        found = self._prepare(batch)
        self.ahead.append(time.perf_counter() - start)
        return found


def measure(bench: Bench, rows: int, context: int, steps: int, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each of the two."""
    found: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for _ in range(repeats):
        for prepared in found:
            between, ahead, whole = bench.run(rows, context, steps, prepared)
            found[prepared].append(tuple(1e6 * statistics.median(x) if x else 0.0 for x in (between, ahead, whole)))  # type: ignore[arg-type]
    for prepared, times in found.items():
        between, ahead, whole = zip(*times, strict=True)
        yield {
            "rows": rows, "context": context, "impl": "ahead" if prepared else "at once", "steps": steps * repeats,
            "between_us": statistics.median(between), "between_us_min": min(between), "between_us_max": max(between),
            "ahead_us": statistics.median(ahead), "whole_us": statistics.median(whole),
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    between = f"{row['between_us']:.0f} ({row['between_us_min']:.0f}-{row['between_us_max']:.0f})"
    return f"{row['rows']:4} {row['context']:7} {row['impl']:8} {between:>18} {row['ahead_us']:8.0f} {row['whole_us']:8.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,64")
    parser.add_argument("--contexts", default="256", help="prompt tokens")
    parser.add_argument("--steps", type=int, default=150, help="timed steps of a run (default: 150)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="append a JSON row each to this file")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, contexts = ([int(x) for x in text.split(",")] for text in (options.rows, options.contexts))
    steps, repeats = options.steps, options.repeats
    if options.quick:
        rows, contexts, steps, repeats = [1, 3], [20], 4, 1
    about, bench = machine("cpu"), Bench()
    print(f"{'rows':>4} {'context':>7} {'':8} {'us between (range)':>18} {'ahead':>8} {'whole':>8}")
    for context in contexts:
        for count in rows:
            for row in measure(bench, count, context, steps, repeats):
                print(line(row), flush=True)
                if options.json:
                    with options.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(about | row | {"quick": options.quick}) + "\n")


if __name__ == "__main__":
    main()
