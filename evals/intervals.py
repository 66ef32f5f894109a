"""How sure a proportion is: the Wilson score interval, which stays within 0 and 1 and holds for few trials too."""

from __future__ import annotations

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = Z95) -> Interval:
    """The interval of a proportion. Raises ``ValueError`` unless 0 <= successes <= trials and there are trials."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At the ends the formula gives 0 and 1 but for rounding.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)
