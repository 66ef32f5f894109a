"""Runs without a model: folders that hold given draws and verdicts, as `forethought eval` would have left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forethought.evals.folder import RunFolder
from forethought.schema import Completion, Cost, Status, Verdict

CONFIG: dict[str, Any] = {
    "model": {"_target_": "forethought.backend.load.load", "name_or_path": "nano"},
    "decoder": {"_target_": "forethought.decoding.autoregressive.Autoregressive"},
    "sampling": {"temperature": 0.8, "top_p": 0.95},
    "seed": 0,
    "max_tokens": None,
    "task": {"_target_": "forethought.evals.tasks.nano_math.NanoMath", "count": 8},
    "strategy": {"_target_": "forethought.search.best_of_n.BestOfN", "n": 2, "select": "majority"},
}


def status(right: bool | None) -> Status:
    return "error" if right is None else "correct" if right else "wrong"


def made(
    path: Path, rights: Mapping[str, Sequence[bool | None]], *, question: str = "?", gold: str = "True",
    others: Mapping[str, Mapping[str, Sequence[Verdict]]] | None = None, texts: Mapping[str, Sequence[str]] | None = None,
    answers: Mapping[str, Sequence[str | None]] | None = None, chosen: int | None = 0, level: int | None = None,
    config: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A run with these draws by problem, right, wrong or (None) broken; ``others``: more verifiers' verdicts on them.

    The truth is called "truth"; an answer is "True" where it is right and "False" where not, unless ``answers`` says.
    """
    with RunFolder(path, {"config": config or CONFIG, "weights": "", "truth": "truth"}) as folder:
        for name, draws in rights.items():
            said = answers[name] if answers else [str(bool(right)) for right in draws]
            written = texts[name] if texts else [f"draw {i}" for i in range(len(draws))]
            cost = Cost(kept=10, prompt=5)
            completions = [Completion(text, [1] * 10, "stop", cost=cost, seed=3, index=i) for i, text in enumerate(written)]
            folder.append(
                "samples",
                [{"problem": name, "index": c.index, "seed": 3, "level": level, "completion": c.to_json()} for c in completions],
            )
            for verifier, verdicts in {
                "truth": [Verdict(status(right)) for right in draws],
                **{verifier: given[name] for verifier, given in (others or {}).items() if name in given},
            }.items():
                folder.append(
                    "verdicts",
                    [{"problem": name, "index": i} | v.to_json() | {"verifier": verifier} for i, v in enumerate(verdicts)],
                )
            candidates = [{"index": i, "answer": answer, "score": None} for i, answer in enumerate(said)]
            answer = None if chosen is None else said[chosen]
            folder.append("solutions", [{
                "problem_id": name, "answer": answer, "candidates": candidates, "chosen": chosen, "cost": (cost + cost).to_json(),
                "meta": {}, "question": question, "gold": gold, "level": level,
            }])  # fmt: skip
    return path
