"""What is evaluated on: problems, how they are put to a model, how an answer is read, and who knows the truth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ...schema import Problem
from ...verifiers.verifier import Verifier
from .forms import Form


class Task(ABC):
    """A benchmark. ``name`` stands in run folders and reports."""

    name: str
    form: Form
    """How it is put to a model."""

    @abstractmethod
    def problems(self) -> Sequence[Problem]:
        """All of them, in a fixed order, ids all different."""

    def fields(self, problem: Problem) -> Mapping[str, str]:
        """What stands for the holes of ``form.ask``, beside ``{question}``."""
        return {}

    @abstractmethod
    def read(self, text: str) -> str | None:
        """The answer in a model's text, in a form that equal answers share as far as can be told; None where there is none."""

    @abstractmethod
    def truth(self) -> Verifier:
        """Says what is right, from what the problems hold."""

    @abstractmethod
    def validate(self) -> int:
        """Check that gold answers pass and corrupted ones fail; how many were. Raises ``ValueError`` naming the problem."""
