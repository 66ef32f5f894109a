"""Right is what passes the tests: programs read from the text run in a sandbox. Calls and expected values are compared here,
outside, on plain data, so no program can talk its way through; tests that must share the program's process can be deceived,
and their verdicts say so (``spoofable``). Costs a process a candidate, and shows no more than its tests do.
"""

from __future__ import annotations

import asyncio
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..checks import number
from ..forks import in_children
from ..schema import Cost, Problem, Verdict
from . import asserts, plain
from .outputs import same_output
from .programs import readings
from .sandbox import Limits, Program, Ran, Sandbox, one_line
from .verifier import Verifier


@dataclass(frozen=True)
class _Plan:
    """How to try a program: by calls, by pairs of stdin and stdout, or by a program of tests."""

    calls: Sequence[asserts.Call] = ()
    pairs: Sequence[tuple[str, str]] = ()
    tests: str | None = None
    seconds: float = 0.0
    absolute: float = 0.0
    relative: float = 0.0

    @cached_property
    def value_bytes(self) -> int:
        """What right values take, with room for another spelling: a wrong one need not fill this process's memory."""
        return (1 << 20) + 4 * sum(len(json.dumps(plain.encode(call.want))) for call in self.calls)


class Code(Verifier):
    """Judges programs by the tests that ``problem.meta["tests"][tests]`` holds, such as ``"visible"`` or ``"hidden"``.

    ``problem.meta`` holds, all but ``tests`` optional:

    - ``tests``: by name, Python text (asserts, or HumanEval's ``def check(candidate)``), a list of assert lines, a list of
      ``[arguments, expected]``, or a list of ``{"stdin": text, "stdout": text}``;
    - ``entry_point``: the function they are about; only stdin and stdout do without;
    - ``prompt``: code that a candidate may continue, and whose imports and helpers it may use;
    - ``setup``: Python text between the program and its tests;
    - ``tolerance``, ``relative_tolerance``: how far from an expected number of ``[arguments, expected]`` or of an expected
      output is right, in itself and as a share of it, 0 if left out. For ``[arguments, expected]`` lists stand for tuples as
      well, as JSON has only the one;
    - ``reference``: a text that is right. It runs first, once: a program gets ``factor`` times its seconds, between ``floor`` and
      ``ceiling``. A reference that fails makes ``ajudge`` raise ``ValueError``: nothing is judged by broken tests.

    ``verdict.meta`` holds ``sandbox`` (the status of the run), ``tier``, ``tests`` and ``spoofable``. A run that broke on our
    side is an ``error``; a text without code is ``unknown``, and so is a program that ended because the sandbox ``refused`` it
    something; a run out of time is repeated once, alone.
    """

    def __init__(
        self,
        tests: str = "hidden",
        *,
        sandbox: Sandbox | None = None,
        limits: Limits | None = None,
        floor: float = 4.0,
        factor: float = 4.0,
        ceiling: float = 120.0,
    ) -> None:
        floor = number("floor", floor, lambda x: 0 < x < math.inf, "a positive number of seconds")
        factor = number("factor", factor, lambda x: 1 <= x < math.inf, "a number of at least 1")
        ceiling = number("ceiling", ceiling, lambda x: floor <= x < math.inf, f"a number of seconds of at least floor={floor}")
        self.name = f"code[{tests}]"
        self.tests = tests
        self.sandbox = sandbox or Sandbox()
        self.limits = limits or Limits()
        self.floor, self.factor, self.ceiling = floor, factor, ceiling
        self._plans: dict[str, tuple[Problem, _Plan]] = {}
        self._start()
        in_children(self._start)

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self.sandbox.workers, thread_name_prefix="sandbox")

    async def ajudge(self, problem: Problem, candidates: Sequence[str]) -> list[Verdict]:
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(self._pool, self._plan, problem)
        judging = (loop.run_in_executor(self._pool, self._judge, problem, plan, text) for text in candidates)
        return list(await asyncio.gather(*judging))

    async def validate(self, problems: Iterable[Problem]) -> list[str]:
        """What is wrong with ``problems``: references that fail, wrong programs that pass. Empty when all is well."""
        complaints = []
        for problem in problems:
            entry = problem.meta.get("entry_point")
            wrong = f"def {entry}(*_, **__):\n    return 'wrong'" if entry else "print('wrong')"
            if "reference" not in problem.meta:
                complaints.append(f"{problem.id} has no reference")
                continue
            try:
                gold, bad = await self.ajudge(problem, [str(problem.meta["reference"]), wrong])
            except ValueError as error:
                complaints.append(str(error))
                continue
            if (gold.status, bad.status) != ("correct", "wrong"):
                complaints.append(f"{problem.id}: the reference is {gold.status}, a wrong program {bad.status}")
        return complaints

    def close(self) -> None:
        self._pool.shutdown()

    def _plan(self, problem: Problem) -> _Plan:
        """How to try programs for ``problem``, for how long; made once. Raises ``ValueError`` for one that cannot be judged."""
        known = self._plans.get(problem.id)
        if known and known[0] == problem:
            return known[1]
        plan = self._tests(problem)
        seconds = self._time_limit(problem, plan)
        plan = replace(plan, seconds=seconds or self.floor)
        if seconds:
            self._plans[problem.id] = problem, plan
        return plan

    def _tests(self, problem: Problem) -> _Plan:
        by_name = problem.meta.get("tests")
        tests = by_name.get(self.tests) if isinstance(by_name, Mapping) else None
        if not tests:
            raise ValueError(f"{problem.id} has no tests called {self.tests!r}")
        absolute, relative = (_tolerance(problem, name) for name in ("tolerance", "relative_tolerance"))
        if not isinstance(tests, str) and all(isinstance(test, Mapping) for test in tests):
            pairs = [(str(test["stdin"]), str(test["stdout"])) for test in tests]
            return _Plan(pairs=pairs, absolute=absolute, relative=relative)
        entry = problem.meta.get("entry_point")
        if not entry:
            raise ValueError(f"{problem.id} has no entry_point")
        if not isinstance(tests, str) and not all(isinstance(test, str) for test in tests):
            return _Plan([asserts.Call(args, want, {}, absolute, relative, "json") for args, want in tests])
        text = (tests if isinstance(tests, str) else "\n".join(tests)).replace("\r\n", "\n")
        setup = str(problem.meta.get("setup", "")).replace("\r\n", "\n")
        if not setup and (calls := asserts.calls(text, entry)):
            return _Plan(calls)
        if not setup and (oracle := asserts.oracle(text)):
            given: list[tuple[Sequence[Any], Mapping[str, Any]]] = [(args, {}) for args in oracle.inputs]
            ran = self.sandbox.run(Program([oracle.source], oracle.name, given), replace(self.limits, seconds=self.ceiling))
            if ran.status == "passed" and len(ran.values) == len(given):
                return _Plan(oracle.calls(ran.values))
            if ran.status != "output_limit":  # more than may come out: the tests stay a program
                raise ValueError(f"{problem.id}: its tests have no expected values: {ran.status}, {ran.reason}")
        check = f"\ncheck({entry})\n" if "def check(" in text else "\n"
        return _Plan(tests=f"{setup}\n{text}{check}")

    def _time_limit(self, problem: Problem, plan: _Plan) -> float | None:
        """Seconds for a program; None where our side broke, which says nothing about the problem."""
        reference = problem.meta.get("reference")
        if reference is None:
            return self.floor
        ran = self._try(problem, plan, _sources(problem, str(reference)), self.ceiling)
        if ran.status == "infra_error":
            return None
        if ran.status != "passed":
            raise ValueError(f"{problem.id}: its own reference does not pass: {ran.status}, {ran.reason}")
        return min(max(self.floor, self.factor * ran.seconds), self.ceiling)

    def _judge(self, problem: Problem, plan: _Plan, text: str) -> Verdict:
        sources = _sources(problem, text)
        spoofable = plan.tests is not None
        about = {"tests": self.tests, "tier": self.sandbox.tier, "spoofable": spoofable}
        if not sources:
            return Verdict("unknown", None, "no code was found", self.name, meta={"sandbox": "no_entry_point", **about})
        ran = self._try(problem, plan, sources, plan.seconds)
        spent = ran.seconds
        if ran.status == "timeout":
            ran = self._try(problem, plan, sources, plan.seconds, alone=True)
            spent += ran.seconds
        meta = {"sandbox": ran.status, **about}
        if ran.status == "infra_error":
            return Verdict("error", None, ran.reason, self.name, Cost(seconds=spent), meta=meta)
        right = None if ran.status == "refused" else ran.status == "passed"
        return Verdict(
            "unknown" if right is None else "correct" if right else "wrong",
            None if right is None else float(right),
            ran.reason,
            self.name,
            Cost(seconds=spent),
            sources[0].strip(),
            meta,
        )

    def _try(self, problem: Problem, plan: _Plan, sources: Sequence[str], seconds: float, *, alone: bool = False) -> Ran:
        limits = replace(self.limits, seconds=seconds, value_bytes=min(self.limits.value_bytes, plan.value_bytes))
        if plan.pairs:
            return self._by_pairs(plan, sources, limits, alone=alone)
        entry = str(problem.meta["entry_point"])
        given = [(call.args, call.kwargs) for call in plan.calls]
        wraps = [call.wrap for call in plan.calls]
        ran = self.sandbox.run(Program(sources, entry, given, plan.tests, wraps=wraps), limits, alone=alone)
        if ran.status != "passed" or plan.tests is not None:
            return ran
        if len(ran.values) != len(plan.calls):
            return replace(ran, status="runtime_error", reason=f"{len(ran.values)} values for {len(plan.calls)} calls")
        for place, (call, value) in enumerate(zip(plan.calls, ran.values, strict=True)):
            if not call.accepts(value):
                reason = f"call {place}: {_briefly(value)} is not {_briefly(plain.encode(call.want))}"
                return replace(ran, status="failed_assert", reason=one_line(reason))
        return ran

    def _by_pairs(self, plan: _Plan, sources: Sequence[str], limits: Limits, *, alone: bool) -> Ran:
        slowest = 0.0
        for place, (stdin, stdout) in enumerate(plan.pairs):
            ran = self.sandbox.run(Program(sources, stdin=stdin, as_main=True), limits, alone=alone)
            slowest = max(slowest, ran.seconds)
            if ran.status == "passed" and not same_output(ran.stdout, stdout, plan.absolute, plan.relative):
                ran = replace(ran, status="failed_assert", reason=f"stdin {place}: the output is another")
            if ran.status != "passed":
                break
        return replace(ran, seconds=slowest)


def _sources(problem: Problem, text: str) -> list[str]:
    return readings(text, problem.meta.get("entry_point"), str(problem.meta.get("prompt", "")))


def _tolerance(problem: Problem, name: str) -> float:
    value = float(problem.meta.get(name, 0.0))
    if not 0 <= value < math.inf:
        raise ValueError(f"{problem.id}: {name}={value} is no tolerance")
    return value


def _briefly(value: Any) -> str:
    """The start of what ``repr`` gives, of a value that may be huge or deep."""
    short = reprlib.Repr()
    short.maxlist = short.maxdict = short.maxlevel = 20
    short.maxstring = short.maxother = short.maxlong = 200
    return short.repr(value)[:200]
