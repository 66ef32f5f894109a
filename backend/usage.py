"""Where an engine's rows and seconds go: decode rows used of those there were, and the time of its steps by what took it.

Not the bill, which counts tokens and forwards (``schema.Cost``). Cost: a few looks at the clock a step.
"""

from __future__ import annotations

import time
from copy import copy
from typing import Literal, get_args

Part = Literal["prefill", "decode", "drafting", "sampling", "other", "waiting"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Model calls by what their tokens are (of prompts and of scored text: prefill); proposing drafts; deciding, from logits to
tokens; the rest of a step; and the time between steps, in which there is nothing to do or another engine has its turn. On a GPU,
where calls return before they are done, their time is found where the host waits for them, mostly in sampling."""


class Usage:
    """A step has ``max_rows`` rows to give a token to. One counts in a step that gives it one, not while it is fed its prompt."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.steps = 0
        self.rows = 0
        self.queued_steps = 0
        """Steps up to the last one in which somebody waited for a row."""
        self.queued_rows = 0
        """Rows that got a token in these."""
        self.seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        """All since this was made, each second in one part."""
        self._last = time.perf_counter()
        self._resting = True

    @property
    def busy(self) -> float | None:
        """Of all rows there were until the queue was empty, the share that got a token; None if nobody ever queued."""
        return self.queued_rows / (self.queued_steps * self.max_rows) if self.queued_steps else None

    def copy(self) -> Usage:
        """As it is now. Any thread; what is under way in a step is not in it yet."""
        same = copy(self)
        since = time.perf_counter() - self._last if self._resting else 0.0
        same.seconds = self.seconds | {"waiting": self.seconds["waiting"] + since}
        return same

    def wake(self) -> None:
        """The engine has its turn."""
        self.lap("waiting")
        self._resting = False

    def rest(self) -> None:
        """Its turn is over."""
        self.lap("other")
        self._resting = True

    def step(self, rows: int, queued: bool) -> None:
        """A step in which ``rows`` rows got a token; ``queued``: whether others wait for one."""
        self.steps += 1
        self.rows += rows
        if queued:
            self.queued_steps, self.queued_rows = self.steps, self.rows

    def lap(self, part: Part) -> float:
        """Put down to ``part`` all time since the last lap: how many seconds."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        self.seconds[part] += spent
        return spent

    def call(self, decoding: float) -> None:
        """Likewise, after a model call: ``decoding`` is the share of its tokens that are no prompt's."""
        spent = self.lap("decode") * (1 - decoding)
        self.seconds["decode"] -= spent
        self.seconds["prefill"] += spent
