"""What a measurement ran on: processor, threads, versions. Never environment variables or anything else that may be secret.

Nothing is measured here.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "hydra-core", "omegaconf")


def versions() -> dict[str, str]:
    """Of Python, this package, and what it stands on; "not installed" for what is missing."""
    found = {"python": platform.python_version(), "forethought": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """CPU cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def devices() -> list[str]:
    """Devices that torch can compute on."""
    import torch

    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def name_of(device: str) -> str:
    """The hardware behind a device name."""
    import torch

    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else processor()


def describe(device: str) -> dict[str, Any]:
    """What a result measured on ``device`` must state about the machine."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "hardware": name_of(device),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
