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


@pytest.fixture(scope="session")
def benchmark_data() -> Path:
    """The folder that ``FORETHOUGHT_DATA`` names: one folder a benchmark, each with its rows.

    Unset, the test is a skip that the summary counts. Set to something without rows, it is an error: whoever set it
    meant these tests to run.
    """
    name = os.environ.get("FORETHOUGHT_DATA")
    if name is None:
        pytest.skip("FORETHOUGHT_DATA is not set: no benchmark rows to read")
    folder = Path(name)
    if not name or not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(f"FORETHOUGHT_DATA={name!r} is not a folder with benchmark rows")
    return folder
