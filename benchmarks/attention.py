"""How much of the memory's bandwidth does attention use, in each implementation and in other libraries?

    python benchmarks/attention.py [--device cuda] [--cells decode,prefill,…] [--repeats 30] [--json FILE] [--quick]

Heads as in Qwen3-8B: 32 query heads, 8 KV heads of 128, bfloat16; random numbers, one layer, no model around it.

decode   batch 1, 8, 64 x context 128, 2048, 16384, one query a row
tree     1, 16, 64 drafted tokens behind a context of 4096
prefix   64 rows that share 2048 slots and have 64 of their own
parts    2 and 4 workers, each seeing all of 2 and 4 parts of 1024 slots, rotated to its own order
prefill  a chunk of 512, 2048 new tokens behind a context of 2048, 16384: bound by arithmetic, so TFLOP/s are given too

Bytes a cell must move: K and V of each distinct slot once, queries and outputs once; nothing else, whoever runs it. GB/s are
these bytes by the median time, "share" their ratio to a device copy measured in the same run (its reads and writes). On CUDA
a call is captured in a graph where it can be, the L2 cache is overwritten before each, and events take the time; the table
gives medians and the 20th and 80th percentiles. Every contender's first row is compared with float64; a relative error of
ours above 0.01 fails the run.

Ours: torch, triton, cuda, each where it runs. Others, over dense copies of the same K and V that are not timed: SDPA by its
math, flash and efficient backends with a group's heads packed as queries; compiled FlexAttention (batch 8 alone: each shape
compiles for half a minute); FlashInfer and flash-attn where they can be imported. What cannot run says why in its row. Cells
that would fill more than 80 % of the card are left out. Prefill: our twins against "library", torch's own attention over
gathered K and V as in ``kernels/prefill.py``; which of them runs the files in ``kernels/tuned`` say. Not measured: making the
work list, the first call.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_cells import QWEN3, SMALL, Cell, Heads, cells
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from forethought.kernels import prefill
from forethought.kernels.attention import FAST, attend, choose
from forethought.kernels.views import Views

CELLS = ("decode", "tree", "prefix", "parts", "prefill")


# ---- what is compared -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    cell: Cell
    heads: Heads
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def scale(self) -> float:
        return float(self.heads.dim**-0.5)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, kv_heads, group x queries, dim], K and V [B, kv_heads, L, dim]: heads that share a KV head are queries."""
        cell, (heads, kv_heads, dim, _) = self.cell, self.heads
        index = torch.from_numpy(cell.views.slots).to(self.q.device)
        k, v = (x[index].view(cell.batch, cell.context, kv_heads, dim).transpose(1, 2).contiguous() for x in (self.k, self.v))
        q = self.q.view(cell.batch, cell.queries, kv_heads, heads // kv_heads, dim)
        return q.permute(0, 2, 3, 1, 4).reshape(cell.batch, kv_heads, -1, dim), k, v

    def flat(self, packed: Tensor) -> Tensor:
        """[T, heads, dim] from the packing of :meth:`dense`."""
        cell, (heads, kv_heads, dim, _) = self.cell, self.heads
        out = packed.view(cell.batch, kv_heads, heads // kv_heads, cell.queries, dim).permute(0, 3, 1, 2, 4)
        return out.reshape(-1, heads, dim)

    def mask(self) -> Tensor | None:
        """[group x queries, L] what a tree's tokens see; None: everything."""
        if self.cell.views.tree is None or self.cell.queries == 1:
            return None
        known = self.cell.context - self.cell.queries
        bits = (self.cell.views.tree[:, None] >> np.arange(self.cell.queries - 1) & 1).astype(bool)
        seen = np.concatenate((np.ones((self.cell.queries, known + 1), bool), bits), 1)
        return torch.from_numpy(seen).to(self.q.device).repeat(self.heads.heads // self.heads.kv_heads, 1)


Call = Callable[[], Tensor]
"""Runs once and returns the output [T, heads, dim]."""


def ours(impl: str) -> Callable[[Inputs], Call]:
    def prepare(x: Inputs) -> Call:
        choose(impl, x.q.device)
        options = {"scale": x.scale, "rotary": x.cell.rotary, "impl": impl}
        return lambda: attend(x.q, x.k, x.v, x.cell.views, **options)[0]

    return prepare


def library(x: Inputs) -> Call:
    if x.q.is_cuda and (why := prefill.refuses(x.heads.dtype, x.heads.dim, x.heads.dim)) is not None:
        raise ValueError(why)
    found = prefill.split(x.cell.views, None, 1, x.q.device)
    if found is None or found.rest is not None:
        raise ValueError("not all of it is plain chains")
    return lambda: prefill.attend(x.q, x.k, x.v, found, x.scale, lambda q, views: q)


def sdpa(backend: SDPBackend) -> Callable[[Inputs], Call]:
    def prepare(x: Inputs) -> Call:
        (q, k, v), mask = x.dense(), x.mask()

        def call() -> Tensor:
            with sdpa_kernel(backend):
                return x.flat(scaled_dot_product_attention(q, k, v, mask, scale=x.scale))

        return call

    return prepare


def flex(x: Inputs) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    compiled, (q, k, v) = torch.compile(flex_attention, dynamic=False), x.dense()
    return lambda: x.flat(compiled(q, k, v, scale=x.scale))


def flash_infer(x: Inputs) -> Call:
    import flashinfer

    (heads, kv_heads, dim, dtype), views = x.heads, x.cell.views
    room = x.q.new_empty(128 << 20, dtype=torch.uint8)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=True)
    ptr, slots = (torch.from_numpy(table).int().to(x.q.device) for table in (views.slot_ptr, views.slots))
    types = {"q_data_type": dtype, "kv_data_type": dtype}
    wrapper.plan(ptr, slots, torch.ones_like(ptr[1:]), heads, kv_heads, dim, 1, sm_scale=x.scale, **types)  # pages of one slot
    return lambda: wrapper.run(x.q, (x.k[:, None], x.v[:, None]))


def flash_attn(x: Inputs) -> Call:
    from flash_attn import flash_attn_with_kvcache

    _, k, v = x.dense()
    k, v, q = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), x.q[:, None]
    return lambda: flash_attn_with_kvcache(q, k, v, softmax_scale=x.scale)[:, 0]


def contenders(cell: Cell, device: str) -> dict[str, Callable[[Inputs], Call]]:
    if cell.name == "prefill":  # plain torch would hold all scores at once
        return {impl: ours(impl) for impl in (FAST if device != "cpu" else ("torch",))} | {"library": library}
    found = {impl: ours(impl) for impl in ("torch", *(FAST if device != "cpu" else ()))}
    if cell.rotary is None:
        found["sdpa math"] = sdpa(SDPBackend.MATH)
        if device != "cpu":
            found["sdpa efficient"] = sdpa(SDPBackend.EFFICIENT_ATTENTION)
            if cell.name != "tree":
                found |= {"sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION), "flashinfer": flash_infer, "flash-attn": flash_attn}
            if cell.name == "decode" and cell.batch == 8:
                found["flex"] = flex
    return found


# ---- one cell -------------------------------------------------------------------------------------------------------------


def measure(cell: Cell, heads: Heads, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator(device).manual_seed(0)
    if cell.rotary is not None:
        cell = replace(cell, rotary=replace(cell.rotary, frequencies=cell.rotary.frequencies.to(device)))

    def random(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, heads.dim, device=device, dtype=heads.dtype, generator=generator)

    queries = len(cell.views.positions)
    x = Inputs(cell, heads, random(queries, heads.heads), random(cell.slots, heads.kv_heads), random(cell.slots, heads.kv_heads))
    places, exact = first_row(x)
    for name, prepare in contenders(cell, device).items():
        row: dict[str, Any] = {
            "cell": cell.name, "batch": cell.batch, "queries": cell.queries, "context": cell.context, "impl": name,
            "device": device, "dtype": str(heads.dtype)[6:], "bytes": cell.bytes(heads),
        }  # fmt: skip
        try:
            call = prepare(x)
            error = (call()[places].double() - exact).norm() / exact.norm()
            times, graph = timed(call, device, repeats)
        except Exception as problem:  # other libraries refuse shapes in their own ways
            yield row | {"problem": f"{type(problem).__name__}: {problem}".splitlines()[0][:200]}
            continue
        low, middle, high = (1e6 * np.percentile(times, (20, 50, 80))).tolist()
        yield row | {
            "error": float(error), "graph": graph, "repeats": repeats, "us": middle, "us_20": low, "us_80": high,
            "gb_s": cell.bytes(heads) / middle / 1e3,
        }  | ({} if (flops := cell.flops(heads)) is None else {"tflops": flops / middle / 1e6})  # fmt: skip


CHECKED = 64
"""Queries of a chunk that are looked at: its last ones."""


def first_row(x: Inputs) -> tuple[slice, Tensor]:
    """Which are the first row's queries, and their output in float64, from plain torch."""
    views = x.cell.views
    queries, shown = int(views.query_ptr[1]), int(views.part_ptr[1])
    start = max(0, queries - CHECKED) if x.cell.name == "prefill" else 0
    listed = int(views.slot_ptr[shown])
    alone = Views(
        positions=views.positions[start:queries], query_ptr=np.array([0, queries - start]), part_ptr=views.part_ptr[:2],
        slot_ptr=views.slot_ptr[: shown + 1], slots=np.arange(listed),
        slot_positions=None if views.slot_positions is None else views.slot_positions[:listed],
        offsets=None if views.offsets is None else views.offsets[:shown],
        last=None if views.last is None else views.last[: queries * shown],
        tree=None if views.tree is None else views.tree[:queries],
    )  # fmt: skip
    index = torch.from_numpy(views.slots[:listed]).to(x.q.device)
    rotary = None if x.cell.rotary is None else replace(x.cell.rotary, frequencies=x.cell.rotary.frequencies.double())
    q, k, v = x.q[start:queries].double(), x.k[index].double(), x.v[index].double()
    return slice(start, queries), attend(q, k, v, alone, scale=x.scale, rotary=rotary, impl="torch")[0]


def timed(call: Call, device: str, repeats: int) -> tuple[list[float], bool]:
    """Seconds of ``repeats`` calls, and whether a graph was replayed for them."""
    for _ in range(3):
        call()
    if device == "cpu":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times, False
    torch.cuda.synchronize()
    graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):  # the first: for when the second breaks off
            kept = call()
        again = graph.replay
    except Exception:  # what reads the device from the host cannot be captured
        torch.cuda.synchronize()
        graph, kept, again = None, None, call
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    cache = torch.empty(max(2 * card.L2_cache_size, 256 << 20), dtype=torch.uint8, device="cuda")
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        cache.fill_(1)
        begin.record()
        again()
        end.record()
    torch.cuda.synchronize()
    del kept
    return [begin.elapsed_time(end) / 1e3 for begin, end in events], graph is not None


def copy_speed(device: str, quick: bool) -> float:
    """GB/s of a copy, what it reads and what it writes."""
    source = torch.ones((1 << 20) if quick else (1 << 28) if device == "cpu" else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times, _ = timed(lambda: target.copy_(source), device, 3 if quick else 20)
    return 2 * len(source) / statistics.median(times) / 1e9


# ---- what is printed ------------------------------------------------------------------------------------------------------


HEADER = (
    f"{'cell':7} {'batch':>5} {'queries':>7} {'context':>7} {'':15} {'us (20-80 %)':>26} {'GB/s':>8} {'share':>6} {'error':>9}"
)


def line(row: dict[str, Any]) -> str:
    start = f"{row['cell']:7} {row['batch']:5} {row['queries']:7} {row['context']:7} {row['impl']:15}"
    if "problem" in row:
        return f"{start} {row['problem'][:80]}"
    spread = f"{row['us']:.1f} ({row['us_20']:.1f}-{row['us_80']:.1f})"
    graph = ("" if row["graph"] else "  no graph") + (f"  {row['tflops']:.1f} TFLOP/s" if "tflops" in row else "")
    return f"{start} {spread:>26} {row['gb_s']:8.1f} {row['share']:6.1%} {row['error']:9.1e}{graph}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(CELLS), help="which, separated by commas (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each (default: 30)")
    parser.add_argument("--json", type=Path, help="append a JSON row per cell and contender to this file, as soon as it is known")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, three times: does it run?")
    options = parser.parse_args(arguments)
    names = options.cells.split(",")
    if unknown := [name for name in names if name not in CELLS]:
        parser.error(f"no cell {unknown[0]!r}: {', '.join(CELLS)}")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1")
    heads, repeats = (SMALL, 3) if options.quick else (QWEN3, options.repeats)
    cuda = options.device == "cuda"
    copied = copy_speed(options.device, options.quick)
    machine = {
        "machine": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__, "cuda": torch.version.cuda if cuda else None,
        "threads": None if cuda else torch.get_num_threads(), "copy_gb_s": copied,
    }  # fmt: skip
    print(json.dumps(machine))
    print(HEADER)
    rows = []
    for cell in cells(names, heads, options.quick):
        if cuda and cell.bytes(heads) > 0.8 * torch.cuda.mem_get_info()[1]:
            continue
        for row in measure(cell, heads, options.device, repeats):
            if "gb_s" in row:
                row["share"] = row["gb_s"] / copied
            rows.append(row)
            print(line(row), flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | machine) + "\n")
    print(json.dumps(machine | {"rows": rows}))
    if wrong := [line(row) for row in rows if row["impl"] in ("torch", "library", *FAST) and not row.get("error", 0) <= 1e-2]:
        raise SystemExit("wrong:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
