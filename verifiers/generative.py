"""Generative verifiers: a language model says in words whether a solution is right (GenRM, arXiv 2408.15240; 2504.01005).

With ``chains`` it thinks that often and the score is the share of Yes among its verdicts; without, it is the probability of Yes
against No as the very next word. As good a judge as the model is; nothing here trains one. Cost: a prompt of question and
solution, computed once, and the chains.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..backend.engine import Engine
from ..backend.generator import GenerationError, Generator, Score
from ..backend.load import load
from ..backend.request import MOST_SAMPLES, Sampling, seed_of
from ..checks import whole
from ..decoding.autoregressive import Autoregressive
from ..schema import Completion, Cost, Message, Problem, Status, Verdict
from .scored import check_threshold, sigmoid
from .steps import solution_of
from .verifier import Verifier

CHAINS = "{question}\n\nSolution:\n{solution}\n\nIs the solution correct?"
DIRECT = "{question}\n\nSolution:\n{solution}\n\nIs the solution correct? Answer Yes or No."
ASKED = "Is the answer correct?"
_SAID = re.compile(r"Is the answer correct(?: \(Yes/No\))?\? (Yes|No)\b")


class GenerativeVerifier(Verifier):
    """``lm`` judges, unless ``model`` is given, a name or path as :func:`forethought.load` takes it, on an engine of its own.

    ``chains``: verdicts drawn for each solution at ``temperature``, or 0 for the direct form. ``prompt``: with {question} and
    {solution} in it, where the solution is the candidate without think tags; None: as the built-in model was trained.
    ``threshold``: verdicts are correct from this score on, wrong below; without it they are unknown, and only scored; so is a
    solution of which no chain could be read, or that has no room. Unreadable chains count as neither Yes nor No. Draws depend on
    ``seed``, the problem's id and the text judged alone. Other options are the generator's.
    """

    def __init__(
        self, lm: Generator | None = None, *, model: str | Path | None = None, chains: int = 4, temperature: float = 0.7,
        prompt: str | None = None, threshold: float | None = None, seed: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        chains = whole("chains", chains, 0, MOST_SAMPLES)
        if taken := {"n", "first", "labels", "continuations"} & set(options):
            raise ValueError(f"{min(taken)}: verdicts are numbered by the verifier")
        if options and not chains:
            raise ValueError(f"{min(options)}: nothing is generated with chains=0")
        self.template = prompt or (CHAINS if chains else DIRECT)
        for field in ("{question}", "{solution}"):
            if field not in self.template:
                raise ValueError(f"prompt={prompt!r}: without {field}")
        check_threshold(threshold)
        if lm is None and model is None:
            raise ValueError("lm or model: somebody has to judge")
        if isinstance(lm, str | type):
            raise TypeError(f"lm={lm!r}: a Generator, such as an Engine; a name goes into model")
        self.options = options | {"temperature": temperature}
        known = Sampling.__dataclass_fields__
        Sampling(**{name: value for name, value in self.options.items() if name in known})  # refuses bad values
        self._own = None if model is None else Engine(load(model), Autoregressive())
        self.lm = cast(Generator, self._own or lm)
        self.chains, self.threshold, self.seed = chains, threshold, seed
        judge = f"{self.lm.model.info.name}, " if isinstance(self.lm, Engine) else ""
        self.name = f"genrm[{judge}{chains}]" + ("" if threshold is None else f">={threshold:g}")

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        """Scored verdicts; equal solutions are judged, and paid, once. ``meta["verdicts"]``: what each chain said, None where
        that could not be read."""
        solutions = [solution_of(candidate) for candidate in candidates]
        different = list(dict.fromkeys(solutions))
        found = await asyncio.gather(*(self._judge(problem, solution) for solution in different))
        verdicts, paid = dict(zip(different, found, strict=True)), set[str]()
        result = []
        for solution in solutions:
            result.append(replace(verdicts[solution], cost=Cost()) if solution in paid else verdicts[solution])
            paid.add(solution)
        return result

    def close(self) -> None:
        """End the engine, if it is the verifier's own."""
        if self._own is not None:
            self._own.close()

    async def _judge(self, problem: Problem, solution: str) -> Verdict:
        if not solution:
            return Verdict("unknown", None, "nothing to judge", self.name)
        fields = {"question": problem.question, "solution": solution}
        asked = re.sub(r"\{(question|solution)\}", lambda field: fields[field[1]], self.template)
        prompt: list[Message] = [{"role": "user", "content": asked}]
        try:
            return await (self._chains(problem, solution, prompt) if self.chains else self._direct(prompt))
        except ValueError as e:  # it does not fit
            return Verdict("unknown", None, str(e), self.name)
        except (GenerationError, FloatingPointError) as e:
            return Verdict("error", None, str(e), self.name)

    async def _chains(self, problem: Problem, solution: str, prompt: list[Message]) -> Verdict:
        seed = seed_of(self.seed, problem.id, "verify", solution)
        completions: list[Completion] = await self.lm.agenerate(prompt, n=self.chains, seed=seed, **self.options)
        verdicts = [said(completion.text) for completion in completions]
        cost = billed(Cost.parallel(completion.cost for completion in completions))
        readable = [verdict for verdict in verdicts if verdict is not None]
        reason = f"{len(readable)} of {len(verdicts)} verdicts could be read, {sum(readable)} Yes"
        return self._verdict(sum(readable) / len(readable) if readable else None, reason, cost, {"verdicts": verdicts})

    async def _direct(self, prompt: list[Message]) -> Verdict:
        # What both continuations begin with has the same probability, so it cancels.
        scores: list[Score] = await self.lm.ascore(prompt, [f"{ASKED} Yes", f"{ASKED} No"])
        yes, no = (score.total for score in scores)
        cost = billed(Cost.parallel(score.cost for score in scores))
        if yes == no == -math.inf:
            return self._verdict(None, "neither Yes nor No is possible", cost, {})
        return self._verdict(sigmoid(yes - no), "", cost, {})

    def _verdict(self, score: float | None, reason: str, cost: Cost, meta: dict[str, Any]) -> Verdict:
        status: Status = "unknown"
        if self.threshold is not None and score is not None:
            status = "correct" if score >= self.threshold else "wrong"
        return Verdict(status, score, reason, self.name, cost, meta=meta)


def said(text: str) -> bool | None:
    """The verdict a chain ends with: the last "Is the answer correct? Yes" or "… No" in it; None for a chain without."""
    verdicts: list[str] = _SAID.findall(text)
    return verdicts[-1] == "Yes" if verdicts else None


def billed(cost: Cost) -> Cost:
    """A generator's bill as a verifier's: all tokens computed are the verifier's."""
    return Cost(
        verifier=cost.computed, cached=cost.cached, drafting=cost.drafting, forwards=cost.forwards, critical=cost.critical,
        peak_kv_bytes=cost.peak_kv_bytes, seconds=cost.seconds,
    )  # fmt: skip
