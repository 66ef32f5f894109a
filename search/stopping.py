"""When repeated sampling of a problem may end: a draw is accepted, the vote is settled, or more draws cost more than they bring.

After Adaptive-Consistency (arXiv 2305.11860) for votes and the imperfect verifiers of Inference Scaling fLaws (2411.17501) for
utility. Probabilities are exact under each rule's model. What the models leave out: the budget, and what a draw says in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import number, whole


@dataclass(frozen=True, slots=True)
class FirstAccept:
    """Ends with the first draw that the verifier accepts."""

    def done(self, *, accepted: int, rejected: int, votes: Sequence[int]) -> bool:
        """True once a draw is accepted; whatever was rejected, and however the draws vote."""
        return accepted > 0


@dataclass(frozen=True, slots=True)
class LeaderStays:
    """Ends when the leading answer is ahead of the runner-up for good, with a probability of at least ``confidence``.

    Of the draws that give one of the two, let p give the leader: the rule looks at P(p > 1/2), from a uniform prior.
    """

    confidence: float = 0.95

    def __post_init__(self) -> None:
        number("confidence", self.confidence, lambda x: 0.5 < x < 1, "between 0.5 and 1")

    def done(self, *, accepted: int, rejected: int, votes: Sequence[int]) -> bool:
        """``votes``: how many draws gave each answer, in any order; the verifier's word does not count."""
        leader, runner_up, *_ = sorted(votes, reverse=True) + [0, 0]
        return ahead(leader, runner_up) >= self.confidence


def ahead(leader: int, runner_up: int) -> float:
    """P(p > 1/2) for p ~ Beta(leader + 1, runner_up + 1): that at most leader of leader + runner_up + 1 coins show heads."""
    coins = leader + runner_up + 1
    ways, total = 1, 0
    for heads in range(leader + 1):
        total += ways
        ways = ways * (coins - heads) // (heads + 1)
    return total / (1 << coins)


@dataclass(frozen=True, slots=True)
class Kind:
    """Problems that behave alike under sampling and a verifier. Each value is a probability."""

    weight: float
    """That a problem is of this kind."""
    right: float
    """That a draw is right."""
    completeness: float
    """That a right draw is accepted."""
    false_accept: float
    """That a wrong draw is accepted."""

    def __post_init__(self) -> None:
        for name in ("weight", "right", "completeness", "false_accept"):
            number(name, getattr(self, name), lambda x: 0 <= x <= 1, "between 0 and 1")

    @property
    def accept(self) -> float:
        """That a draw is accepted."""
        return self.right * self.completeness + (1 - self.right) * self.false_accept

    def margin(self, loss: float, cost: float) -> float:
        """What one more draw is worth: 1 if it is right and accepted, -``loss`` if wrong and accepted, always less ``cost``."""
        return self.right * self.completeness - (1 - self.right) * self.false_accept * loss - cost


@dataclass(frozen=True, slots=True)
class MarginalUtility:
    """Ends with the first accepted draw, or when no number of further draws, up to ``horizon`` in all, is worth its price.

    A right answer is worth 1, a wrong one -``loss``, none 0; each draw costs ``cost``. What kind of problem this is follows from
    the draws that were rejected: after j of them a kind's weight is proportional to weight * (1 - accept)^j. The rule looks
    ahead, so it goes on through draws that do not pay for themselves where later ones make up for them. A draw on which the
    verifier has no opinion tells it nothing.
    """

    kinds: Sequence[Kind]
    loss: float
    cost: float
    horizon: int

    def __post_init__(self) -> None:
        if not self.kinds or not math.isclose(sum(kind.weight for kind in self.kinds), 1, abs_tol=1e-6):
            raise ValueError(f"weights {[kind.weight for kind in self.kinds]}: add up to 1")
        for name, value in (("loss", self.loss), ("cost", self.cost)):
            number(name, value, lambda x: 0 <= x < math.inf, "at least 0")
        whole("horizon", self.horizon, 1)

    def done(self, *, accepted: int, rejected: int, votes: Sequence[int]) -> bool:
        """True before the first draw where not even that one pays: then abstaining is best."""
        return accepted > 0 or not self._pays(rejected)

    def _pays(self, rejected: int) -> bool:
        """Whether some number of further draws has a positive sum of marginals; its scale does not matter."""
        logs = [_log(kind.weight) + (rejected * _log(1 - kind.accept) if rejected else 0.0) for kind in self.kinds]
        if (top := max(logs)) == -math.inf:
            return False  # no kind can be rejected this often: nothing is known that speaks for going on
        share, total = [math.exp(log - top) for log in logs], 0.0
        for _ in range(rejected, self.horizon):
            total += sum(s * kind.margin(self.loss, self.cost) for s, kind in zip(share, self.kinds, strict=True))
            if total > 0:
                return True
            share = [s * (1 - kind.accept) for s, kind in zip(share, self.kinds, strict=True)]
        return False


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
