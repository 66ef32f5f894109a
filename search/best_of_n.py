"""Repeated sampling: N draws of one prompt, and one answer chosen from them (Large Language Monkeys, arXiv 2407.21787).

Chosen by a verifier's word, by a vote (self-consistency, 2203.11171), a vote weighted by scores, the best score, or the model's
own likelihood or certainty (2502.18581). Draws are independent; their number can depend on what came before. Cost: one prompt,
N outputs, the verifier's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from ..backend.generator import Generator
from ..backend.request import MOST_SAMPLES
from ..checks import number, whole
from ..schema import Candidate, Completion, Cost, Problem, Prompt, Solution, Verdict
from ..verifiers.verifier import Verifier
from .budget import Budget, Meter
from .stopping import FirstAccept
from .strategy import Draws, Strategy

Select = Literal["majority", "weighted", "score", "accepted", "likelihood", "self_certainty"]
SELECT: tuple[Select, ...] = get_args(Select)
JUDGED = ("weighted", "score", "accepted")


class Stopping(Protocol):
    """When to draw no more, asked after every round."""

    def done(self, *, accepted: int, rejected: int, votes: Sequence[int]) -> bool:
        """``accepted`` and ``rejected``: draws by the verifier's word; ``votes``: how many draws each answer has, most first."""


class BestOfN(Strategy):
    """At most ``n`` draws from ``lm``; ``ask`` makes a problem's prompt, ``read`` finds the answer in a text.

    ``select``: "majority" of equal answers; "weighted": the answer with the largest sum of ``verifier`` scores; "score": the
    best one; "accepted": the first that the verifier calls correct, no answer if it accepts none; "likelihood": the largest mean
    log-probability a token; "self_certainty": the largest mean KL(uniform || p) a token, p the model's own distribution. With
    ``power`` the latter is a Borda vote: of N draws with an answer the r-th most certain has (N - r + 1) ** power votes. At 0
    that is the majority; the larger it is, the fewer draws decide. ``stop`` ends a problem early, asked every ``round`` draws;
    without it all are drawn at once. ``ends``: strings that end a draw, which is what the generator calls ``stop``. Other options
    are the generator's.
    """

    def __init__(
        self, lm: Generator, n: int, *, ask: Callable[[Problem], Prompt], read: Callable[[str], str | None],
        select: Select = "majority", power: float | None = None, verifier: Verifier | None = None,
        stop: Stopping | None = None, ends: Sequence[str] = (), round: int = 4, budget: Budget | None = None, parameters: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        if lm is None or isinstance(lm, str | type):
            raise TypeError(f"lm={lm!r}: a Generator, such as an Engine")
        n, round = whole("n", n, 1, MOST_SAMPLES), whole("round", round, 1)
        parameters = whole("parameters", parameters, 0)
        if select not in SELECT:
            raise ValueError(f"select={select!r}: one of {', '.join(SELECT)}")
        if select in JUDGED and verifier is None:
            raise ValueError(f"select={select!r} goes by a verifier, and there is none")
        if isinstance(stop, FirstAccept) and verifier is None:
            raise ValueError("stop=FirstAccept() ends with a draw that a verifier accepts, and there is none")
        if power is not None:
            power = number(
                "power", power, lambda x: 0 <= x < math.inf, "a number of at least 0, or None for the most certain draw"
            )
            if select != "self_certainty":
                raise ValueError(f"power={power!r} is of the vote of select='self_certainty', not of {select!r}")
        if taken := {"n", "seed", "first"} & set(options):
            raise ValueError(f"{min(taken)}: draws are numbered and seeded by the strategy")
        self.lm, self.n, self.ask, self.read, self.select, self.verifier = lm, n, ask, read, select, verifier
        self.power, self.stop, self.budget, self.parameters = power, stop, budget or Budget(), parameters
        self.width = n if stop is None and budget is None else min(round, n)
        wanted: dict[str, dict[str, Any]] = {"likelihood": {"logprobs": "raw"}, "self_certainty": {"certainty": True}}
        self.options = options | wanted.get(select, {}) | ({"stop": list(ends)} if ends else {})

    async def asolve(self, problem: Problem, draws: Draws) -> Solution:
        meter, candidates = Meter(self.budget, self.parameters), list[Candidate]()
        ended = None
        while len(candidates) < self.n and ended is None:
            some = range(len(candidates), min(self.n, len(candidates) + self.width))
            completions = await self._draw(problem, draws, some)
            verdicts: list[Verdict] | None = None
            if self.verifier is not None:
                verdicts = await self.verifier.ajudge(problem, [completion.text for completion in completions])
            for i, completion in enumerate(completions):
                candidates.append(self._candidate(completion, None if verdicts is None else verdicts[i]))
            judged = Cost.parallel(verdict.cost for verdict in verdicts or ())
            meter.add(Cost.parallel(completion.cost for completion in completions) + judged, len(verdicts or ()))
            ended = meter.reached or ("stopping rule" if self._enough(candidates) else None)
        chosen = self._choose(candidates)
        answer = None if chosen is None else candidates[chosen].answer
        return Solution(problem.id, answer, candidates, chosen, meter.cost, {"draws": len(candidates), "ended": ended or "n"})

    async def _draw(self, problem: Problem, draws: Draws, numbers: range) -> list[Completion]:
        """Draws ``numbers``: those known, and each run of the others in one call, so that they share their prompt."""
        found = {i: draws.known[i] for i in numbers if i in draws.known}
        for first, count in _runs([i for i in numbers if i not in found]):
            for completion in await self.lm.agenerate(self.ask(problem), n=count, seed=draws.seed, first=first, **self.options):
                found[completion.index] = completion
                if draws.keep is not None:
                    draws.keep(completion)
        return [found[i] for i in numbers]

    def _candidate(self, completion: Completion, verdict: Verdict | None) -> Candidate:
        score = None if verdict is None or verdict.score is None or math.isnan(verdict.score) else verdict.score
        if self.select == "weighted" and score is not None and score < 0:
            raise ValueError(f"select='weighted': a score of {score} lets rare answers win; map scores to [0, 1]")
        own = {"likelihood": completion.logprobs, "self_certainty": completion.certainty}.get(self.select)
        if own:
            score = sum(own) / len(own)
        return Candidate(completion.text, self.read(completion.text), score, [] if verdict is None else [verdict], completion)

    def _enough(self, candidates: Sequence[Candidate]) -> bool:
        if self.stop is None:
            return False
        said = [verdict.status for candidate in candidates for verdict in candidate.verdicts]
        votes = sorted(_count(candidates).values(), reverse=True)
        return self.stop.done(accepted=said.count("correct"), rejected=said.count("wrong"), votes=[int(v) for v in votes])

    def _choose(self, candidates: Sequence[Candidate]) -> int | None:
        """The number of the chosen candidate. Among equals the first drawn wins: draws are exchangeable."""
        if self.select == "accepted":
            return next((i for i, c in enumerate(candidates) if c.verdicts and c.verdicts[0].status == "correct"), None)
        readable = [i for i, candidate in enumerate(candidates) if candidate.answer is not None]
        if not readable:
            return None
        if self.select in ("score", "likelihood", "self_certainty") and self.power is None:
            scored = [i for i in readable if candidates[i].score is not None]
            return max(scored or readable, key=lambda i: (candidates[i].score or 0.0, -i))
        weights = {i: candidates[i].score or 0.0 for i in readable} if self.select == "weighted" else None
        if self.power is not None:
            ranked = sorted(readable, key=lambda i: math.inf if (s := candidates[i].score) is None else -s)
            weights = {i: float(n) ** self.power for n, i in zip(range(len(ranked), 0, -1), ranked, strict=True)}
        votes = _count(candidates, weights)
        return max(readable, key=lambda i: (votes[candidates[i].answer or ""], -i))


def _count(candidates: Sequence[Candidate], weights: Mapping[int, float] | None = None) -> Mapping[str, float]:
    """Votes by answer: one each, or by ``weights`` of candidates with one."""
    votes: dict[str, float] = {}
    for i, candidate in enumerate(candidates):
        if candidate.answer is not None:
            votes[candidate.answer] = votes.get(candidate.answer, 0.0) + (1.0 if weights is None else weights[i])
    return votes


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending ``numbers`` as runs (first, count)."""
    runs: list[tuple[int, int]] = []
    for i in numbers:
        if runs and i == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((i, 1))
    return runs
