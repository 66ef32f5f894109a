"""Each tier of the sandbox in turn. One that is missing here is a skip that says so loudly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from forethought.verifiers.code import Code
from forethought.verifiers.sandbox import Sandbox, Unavailable


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
def box(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return Sandbox(request.param)
    except Unavailable as error:
        pytest.skip(f"TIER NOT TESTED: {error}")


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    verifier = Code(floor=2.0)
    yield verifier
    verifier.close()

