"""Each tier of the sandbox in turn. One that is missing here is a skip that says so loudly."""

from __future__ import annotations

import pytest

from forethought.verifiers.sandbox import Sandbox, Unavailable


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
def box(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return Sandbox(request.param)
    except Unavailable as error:
        pytest.skip(f"TIER NOT TESTED: {error}")
