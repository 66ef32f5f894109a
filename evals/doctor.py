"""``forethought doctor``: what is installed, what it can run on and how fast memory is; says what is missing.

Bandwidth is the ceiling of decoding: a token costs at least one reading of all weights. Compute peaks are not measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from ..backend.graphs import SIZES, refuses
from ..backend.load import BUILT_IN
from ..kernels.attention import choose, device_tuning, flash_from
from ..kernels.invariant import depends
from ..verifiers.doctor import attack_matrix
from . import machine
from .terminal import amount, clean, table

CPU_BYTES, GPU_BYTES = 1 << 28, 1 << 31
"""Size of what is read, far beyond any cache."""


def doctor(report: dict[str, Any], *, as_json: bool = False) -> int:
    """Print what :func:`examine` found. The exit code is 1 when something is missing that the first commands need."""
    print(json.dumps(report) if as_json else _page(report))
    return 1 if report["problems"] else 0


def attacked(*, as_json: bool = False) -> int:
    """Print which attacks each tier of the code sandbox stops. The exit code is 1 when one gets through, or no tier is there."""
    rows = attack_matrix()
    if as_json:
        print(json.dumps([row.to_json() for row in rows]))
    else:
        said = {True: "stopped", False: "GOT THROUGH", None: "not here"}
        print(table(["attack", "tier", ""], [[row.attack, row.tier, said[row.stopped]] for row in rows]))
        for row in rows:
            if not row.stopped:
                print(f"{row.tier}, {row.attack}: {clean(row.note)}")
    return 1 if any(row.stopped is False for row in rows) or not any(row.stopped for row in rows) else 0


def examine() -> dict[str, Any]:
    """Everything the command shows, as plain values: bytes, bytes per second."""
    models = built_in()
    about = machine.describe("cpu")
    problems = [f"{name} is not installed" for name, version in about["versions"].items() if version == "not installed"]
    problems += [] if models else [f"no built-in models under {BUILT_IN}"]
    return {
        **about,
        **kernels(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")),
        "batch": {str(dtype).removeprefix("torch."): depends(dtype) for dtype in (torch.float32, torch.bfloat16)},
        "devices": {name: {"hardware": machine.name_of(name), **bandwidth(name)} for name in machine.devices()},
        "models": models,
        "problems": problems,
    }


def kernels(device: torch.device) -> dict[str, dict[str, str]]:
    """What computes attention there, what the attention of long prompts (heads of 128 in bfloat16), how steps are launched."""
    kernel, why = choose("auto", device)
    prefill, because = kernel, "as all attention"
    if kernel != "torch" and (least := flash_from(device, torch.bfloat16, 128, 128)) is not None:
        tuning = device_tuning(device)
        known = "measured" if tuning.measured else "an estimate"
        prefill, because = "torch's flash attention", f"from {least} queries on, for {tuning.device}: {known}"
    refusal = refuses(device)
    steps = "recorded as graphs" if refusal is None else "launched one by one"
    return {
        "attention": {"runs": kernel, "why": why},
        "prefill": {"runs": prefill, "why": because},
        "steps": {"runs": steps, "why": refusal or f"up to {SIZES[-1]} new tokens of our own transformer"},
    }


def built_in() -> dict[str, int]:
    """Models that came with the package, and the bytes of their weights."""
    folders = sorted(BUILT_IN.iterdir()) if BUILT_IN.is_dir() else []
    return {f.name: sum(w.stat().st_size for w in f.glob("*.safetensors")) for f in folders if any(f.glob("*.safetensors"))}


def bandwidth(device: str, size: int | None = None, repeats: int = 5) -> dict[str, float]:
    """Bytes per second of a copy (read and written) and of a matrix-vector product (read): the best of ``repeats``.

    float32 on a CPU, else bfloat16: what models are usually held in there.
    """
    size = size or (CPU_BYTES if device == "cpu" else GPU_BYTES)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    side = int((size / dtype.itemsize) ** 0.5)
    matrix, vector = torch.ones(side, side, dtype=dtype, device=device), torch.ones(side, dtype=dtype, device=device)
    twin, moved = torch.empty_like(matrix), matrix.nbytes
    copy = _fastest(lambda: twin.copy_(matrix), device, repeats)
    product = _fastest(lambda: torch.mv(matrix, vector), device, repeats)
    return {"copy": 2 * moved / copy, "matrix_vector": moved / product}


def _fastest(work: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest of ``repeats``, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def _company(depends: dict[str, bool]) -> str:
    """What is said of ``depends``: float type -> whether this CPU's products depend on what is computed beside them."""
    if not (found := " and ".join(name for name, does in depends.items() if does)):
        return "no difference by what shares it was seen in this CPU's products"
    return f"last bits in {found} depend on what shares it, so a text can (CPU); Engine(batch_invariant=True): they do not"


def _page(report: dict[str, Any]) -> str:
    versions, models = report["versions"], report["models"]
    listed = ", ".join(f"{name} ({amount(size, 'B')})" for name, size in models.items()) or "none"
    facts = {
        "forethought": versions["forethought"],
        "python": f"{versions['python']} on {report['system']}",
        "packages": ", ".join(f"{name} {versions[name]}" for name in machine.PACKAGES),
        "processor": f"{report['hardware']}: {report['cores']} cores usable, torch uses {report['threads']} threads",
        **{name: f"{report[name]['runs']} ({report[name]['why']})" for name in ("attention", "prefill", "steps")},
        "models": listed,
    }
    facts["batch"] = _company(report["batch"])
    lines = [f"{name:<12} {fact}" for name, fact in facts.items()]
    speeds = [
        [name, found["hardware"], amount(found["copy"], "B/s"), amount(found["matrix_vector"], "B/s")]
        for name, found in report["devices"].items()
    ]
    lines += ["", table(["device", "hardware", "copy", "matrix-vector"], speeds)]
    lines += ["", *(f"problem: {problem}" for problem in report["problems"])] if report["problems"] else ["", "All well."]
    return "\n".join(lines)
