"""Turns tests written as Python into calls and expected values, where they are no more than that: ``assert f(1) == 2``, its
like, and the loops over inputs and results of HumanEval+. Exact or nothing: one statement that is anything else, and the
tests stay a program. Reads the tests of a task, which are trusted, never what a model wrote.
"""

from __future__ import annotations

import ast
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..forks import in_children
from . import plain

_WRAPS = ("set", "tuple", "list", "sorted", "len", "bool")
_MAKERS: Mapping[str, Callable[[Any], Any]] = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "float": float}


_PARSING: threading.Lock
"""CPython 3.11 counts the depth of ``ast.parse`` once for all threads: two at a time may end in a ``SystemError``."""


def _unlocked() -> None:
    global _PARSING
    _PARSING = threading.Lock()


_unlocked()
in_children(_unlocked)


class _NotPlain(Exception):
    """This is a test of another kind."""


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments for a function and what it should return."""

    args: Sequence[Any]
    want: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    absolute: float = 0.0
    relative: float = 0.0
    how: str = "equal"
    """``equal``, ``is`` (of the same type, too), ``json`` (a tuple is a list), ``close`` as :func:`math.isclose` has it, ``<`` or
    ``<=`` for how far from ``want`` it is."""
    wrap: str | None = None
    """The built-in function that the program's process applies to the value before it is reported: what it makes of a
    generator, say, is plain data. ``bool`` where only the truth of the value is asked for."""

    def accepts(self, encoded: Any) -> bool:
        """Whether an encoded value is the expected one."""
        try:
            value = plain.decode(encoded, max(plain.largest_table(self.want), 1000))
            match self.how:
                case "is":
                    return type(value) is type(self.want) and value == self.want
                case "json":
                    return plain.same(plain.listed(value), plain.listed(self.want), self.absolute, self.relative)
                case "close":
                    return math.isclose(value, self.want, rel_tol=self.relative, abs_tol=self.absolute)
                case "<":
                    return bool(abs(value - self.want) < self.absolute)
                case "<=":
                    return bool(abs(value - self.want) <= self.absolute)
            return plain.same(value, self.want, self.absolute, self.relative)
        except (plain.Unplain, RecursionError, TypeError, ValueError, ArithmeticError):
            return False


def _parse(tests: str) -> list[ast.stmt]:
    with _PARSING:
        return ast.parse(tests).body


def calls(tests: str, name: str) -> list[Call] | None:
    """Every assertion of ``tests`` about ``name`` as a call; None when there is something else among them.

    ``tests`` are asserts, or HumanEval's ``def check(candidate)``.
    """
    try:
        body = _parse(tests)
        checks = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        if checks:
            name, body = checks[0].args.args[0].arg, checks[0].body
        elif any(not isinstance(node, ast.Assert) for node in body):
            return None
        return _statements(body, name) or None
    except (_NotPlain, SyntaxError):
        return None


@dataclass(frozen=True, slots=True)
class Oracle:
    """Tests that compare with what a function of their own returns for the same arguments."""

    source: str
    name: str
    inputs: Sequence[Sequence[Any]]
    absolute: float

    def calls(self, returned: Sequence[Any]) -> list[Call]:
        """With what it returned, encoded, for each of :attr:`inputs`."""
        return [_close_to(args, plain.decode(want), self.absolute) for args, want in zip(self.inputs, returned, strict=True)]


_ORACLE_LOOP = r"for i, inp in enumerate\(inputs\):\s+assertion\(candidate\(\*inp\), (\w+)\(\*inp\), ([\d.e+-]+)\)"


def oracle(tests: str) -> Oracle | None:
    """HumanEval+ where it has a function for the expected values."""
    try:
        body = _parse(tests)
        match check := [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "check"]:
            case [ast.FunctionDef(body=[ast.Assign(targets=[ast.Name(id="inputs")], value=inputs), ast.For() as loop])]:
                if found := re.fullmatch(_ORACLE_LOOP, ast.unparse(loop)):
                    kept = [node for node in body if isinstance(node, ast.ImportFrom | ast.FunctionDef) and node not in check]
                    return Oracle("\n".join(map(ast.unparse, kept)), found[1], literal(inputs), float(found[2]))
    except (_NotPlain, SyntaxError):
        pass
    return None


def _statements(body: Sequence[ast.stmt], name: str) -> list[Call]:
    found: list[Call] = []
    known: dict[str, Any] = {}
    for node in body:
        match node:
            case ast.Assert(test=ast.Constant(value=True)) | ast.Expr(value=ast.Constant()) | ast.Pass():
                continue
            case ast.Assert(test=test):
                found.append(_assertion(test, name))
            case ast.Assign(targets=[ast.Name(id=("inputs" | "results") as variable)], value=value):
                known[variable] = literal(value)
            case ast.For():
                found += _loop(node, known)
            case _:
                raise _NotPlain
    return found


_LOOP = r"for i, \(inp, exp\) in enumerate\(zip\(inputs, results\)\):\s+assertion\(candidate\(\*inp\), exp, ([\d.e+-]+)\)"


def _loop(node: ast.For, known: Mapping[str, Any]) -> list[Call]:
    """HumanEval+: equal, or close to 1e-7 relative and the given absolute tolerance, 1e-6 for floats where none is given."""
    match = re.fullmatch(_LOOP, ast.unparse(node))
    if not match or known.keys() != {"inputs", "results"}:
        raise _NotPlain
    result = []
    for args, want in zip(known["inputs"], known["results"], strict=True):
        result.append(_close_to(args, want, float(match[1])))
    return result


def _close_to(args: Sequence[Any], want: Any, absolute: float) -> Call:
    absolute = absolute or (1e-6 if _floats(want) else 0.0)
    return Call(args, want, absolute=absolute, relative=1e-7 if absolute else 0.0)


def _floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list | tuple) and all(isinstance(item, float) for item in value))


def _assertion(test: ast.expr, name: str) -> Call:
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return _made(inner, name, want=False, wrap="bool")
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            return _equation(left, right, name)
        case ast.Compare(left=left, ops=[ast.Is()], comparators=[ast.Constant(value=(None | True | False) as want)]):
            return _made(left, name, want=want, how="is")
        case ast.Compare(
            left=ast.Call(
                func=ast.Name(id="abs") | ast.Attribute(attr="fabs"),
                args=[ast.BinOp(left=left, op=ast.Sub(), right=right)],
            ),
            ops=[ast.Lt() | ast.LtE() as op],
            comparators=[bound],
        ):
            how = "<" if isinstance(op, ast.Lt) else "<="
            return _made(left, name, want=literal(right), absolute=float(literal(bound)), how=how)
        case ast.Call(func=ast.Attribute(attr="isclose") | ast.Name(id="isclose"), args=[left, right], keywords=keywords):
            given = {keyword.arg: float(literal(keyword.value)) for keyword in keywords}
            if given.keys() - {"rel_tol", "abs_tol"}:
                raise _NotPlain
            tolerance = {"absolute": given.get("abs_tol", 0.0), "relative": given.get("rel_tol", 1e-9)}
            return _made(left, name, want=literal(right), how="close", **tolerance)
        case ast.Call():
            return _made(test, name, want=True, wrap="bool")
    raise _NotPlain


def _equation(left: ast.expr, right: ast.expr, name: str) -> Call:
    try:
        want = literal(right)
    except _NotPlain:
        left, want = right, literal(left)
    match left:
        case ast.Call(func=ast.Name(id=wrap), args=[inner], keywords=[]) if wrap in _WRAPS and wrap != name:
            return _made(inner, name, want=want, wrap=wrap)
    return _made(left, name, want=want)


def _made(call: ast.expr, name: str, **rest: Any) -> Call:
    match call:
        case ast.Call(func=ast.Name(id=called), args=args, keywords=keywords) if called == name:
            named = {keyword.arg: literal(keyword.value) for keyword in keywords if keyword.arg}
            if len(named) == len(keywords):
                return Call([literal(arg) for arg in args], kwargs=named, **rest)
    raise _NotPlain


def literal(node: ast.expr) -> Any:
    """The value of a literal, of ``set()`` and the like of literals, of ``float("inf")``, ``math.pi`` and short arithmetic."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        pass
    match node:
        case ast.Call(func=ast.Name(id=maker), args=args, keywords=[]) if maker in _MAKERS:
            return _MAKERS[maker](*map(literal, args))
        case ast.List(elts=items):
            return [literal(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(literal(item) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -literal(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, literal(left), literal(right))
        case ast.Attribute(value=ast.Name(id="math"), attr=("pi" | "e" | "inf" | "nan") as constant):
            return getattr(math, constant)
    raise _NotPlain


def _arithmetic(op: ast.operator, a: Any, b: Any) -> Any:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.Pow() if abs(b) < 10_000:
            return a**b
    raise _NotPlain
