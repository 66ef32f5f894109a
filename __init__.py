"""Forethought: better reasoning and faster decoding at inference time, without retraining the model.

Public names are loaded on first use: importing this package imports neither torch nor hydra. ``__init__.pyi`` says the same
to tools.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Autoregressive": "decoding.autoregressive",
    "BestOfN": "search.best_of_n",
    "Candidate": "schema",
    "Code": "verifiers.code",
    "Completion": "schema",
    "Cost": "schema",
    "Decoder": "backend.decoder",
    "Engine": "backend.engine",
    "GenerationError": "backend.generator",
    "GenerativeVerifier": "verifiers.generative",
    "Generator": "backend.generator",
    "Lookahead": "decoding.lookahead",
    "Maths": "verifiers.maths",
    "Model": "backend.model",
    "Piece": "backend.request",
    "Problem": "schema",
    "ProcessRewardModel": "verifiers.process_reward",
    "PromptLookup": "decoding.prompt_lookup",
    "RewardModel": "verifiers.reward",
    "Sampling": "backend.request",
    "Score": "backend.generator",
    "Solution": "schema",
    "Speculative": "decoding.speculative",
    "StepScorer": "verifiers.verifier",
    "Verdict": "schema",
    "Verifier": "verifiers.verifier",
    "load": "backend.load",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
