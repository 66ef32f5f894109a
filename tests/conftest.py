"""What every test shares: an offline, deterministic, modestly threaded process, and the folder of benchmark rows.

Needs nothing but pytest: the tests of kernels, backend and decoding also run where no plugin can be installed.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Test modules are imported by path and cannot import each other; what they share beyond fixtures is in tests/lib.
sys.path.insert(0, str(Path(__file__).parent / "lib"))
pytest.register_assert_rewrite("lab")

# Before anything imports torch or transformers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of its own do not survive the forks of some tests
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores; more threads than cores is several times slower

if find_spec("triton"):
    import torch

    # Read when triton is first imported, which transformers may do. Without a device its kernels run in the interpreter.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"

if find_spec("hypothesis"):
    from hypothesis import settings

    # A failure must come back when the same commit is tested again; seconds are not for tests to judge.
    settings.register_profile("ci", derandomize=True, deadline=None)
    settings.register_profile("explore", deadline=None)  # HYPOTHESIS_PROFILE=explore looks for new failures
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _folder(variable: str, what: str) -> Path:
    """The folder that ``variable`` names.

    Unset, the test is a skip that the summary counts. Set to nothing or to an empty folder, it is an error: whoever set it
    meant these tests to run.
    """
    name = os.environ.get(variable)
    if name is None:
        pytest.skip(f"{variable} is not set: no {what} to read")
    folder = Path(name)
    if not name or not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"{variable}={name!r} is not a folder with {what}")
    return folder


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder that ``FORETHOUGHT_DATA`` names: one folder a benchmark, each with its rows."""
    return _folder("FORETHOUGHT_DATA", "benchmark rows")


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder that ``FORETHOUGHT_MODELS`` names: one folder a model, as Hugging Face writes them."""
    return _folder("FORETHOUGHT_MODELS", "real models")


@pytest.fixture(scope="session")
def smollm(real_models: Path) -> Path:
    """SmolLM2-135M-Instruct, the one real model that must be there wherever there are any."""
    folder = real_models / "smollm2-135m"
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"FORETHOUGHT_MODELS={str(real_models)!r} has no smollm2-135m")
    return folder
