"""Outcome reward models: one score for a whole answer, from a checkpoint with a sequence classification head.

One label (a Bradley-Terry logit, as Skywork-Reward) or two, read on the last token of the chat of question and answer, in the
checkpoint's own template. Scores compare answers to one question, and only whole ones. Not here: scores of steps
(``process_reward.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..backend.load import load_backbone
from ..schema import THINK_END
from .heads import Classifier
from .prompts import Shown, show_answer
from .scored import Scored, check_threshold, sigmoid, tokenizer

HEAD = "score"


class RewardModel(Scored):
    """The reward model in ``name_or_path``, as :func:`forethought.load` takes it. It sees what stands behind ``</think>``.

    ``probability``: scores are the sigmoid of the model's logit, from 0 to 1, as weighted votes need them; else the logit itself
    (of two labels: the second's less the first's). ``threshold``: verdicts are correct from this score on, wrong below; without
    it they are unknown, and only scored; so is an answer that never came, or that is too long for the model. ``kv_slots``:
    tokens of KV kept between calls.
    """

    def __init__(
        self, name_or_path: str | Path, *, probability: bool = True, threshold: float | None = None, kv_slots: int | None = None,
        device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", impl: str = "auto",
    ) -> None:  # fmt: skip
        check_threshold(threshold, probability=probability)
        model, tensors, config = load_backbone(name_or_path, HEAD, device=device, dtype=dtype, impl=impl)
        self.text, self.probability = tokenizer(model), probability
        self._pad: int | None = config.get_text_config().pad_token_id
        self.show("1 + 1?", "2")  # refuses a tokenizer without a chat template
        head, setting = Classifier.read(tensors, HEAD, model.info.width), "" if probability else "[logit]"
        super().__init__(model, head, setting=setting, threshold=threshold, kv_slots=kv_slots)

    def show(self, question: str, candidate: str) -> Shown | None:
        _, ended, answer = candidate.rpartition(THINK_END)
        if not answer.strip() or (not ended and answer.lstrip().startswith("<think>")):
            return None
        return show_answer(self.text, question, answer.strip(), self._pad)

    def score(self, logits: Sequence[float]) -> tuple[float, Mapping[str, Any]]:
        return sigmoid(logits[0]) if self.probability else logits[0], {}
