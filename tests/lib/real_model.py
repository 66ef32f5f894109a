"""Ten prompts as people write them, for real models, and what transformers writes behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

Chat = list[dict[str, str]]
Ids = list[int]
TIE = 1e-4
"""Two logits closer than this are as good as equal: rounding may order them either way."""

NOTES = "\n".join(
    f"{6 + i:02}:{15 * j:02} {who} checked the {what} and wrote down {i + j} of them; nothing else of note happened on deck {j}."
    for i, who in enumerate(["Ana", "Boris", "Chen", "Dana", "Emeka", "Fatima", "Goran", "Hana", "Igor", "Jun"])
    for j, what in enumerate(["lifeboats", "pumps", "lamps", "ropes"])
)
STEPS = {
    "sum": "result + value", "product": "result * value", "difference": "result - value", "mean": "(result + value) / 2",
    "last": "value", "square": "result + value * value", "least": "value if value < result else result",
}  # fmt: skip
MODULE = "\n\n".join(
    f'def {name}_{kind}(values: list[{kind}], start: {kind}) -> {kind}:\n    """The {name} of values, begun with start."""\n'
    f"    result = start\n    for value in values:\n        result = {step}\n    return result\n"
    for kind in ("int", "float", "complex")
    for name, step in STEPS.items()
)


def ask(text: str, system: str | None = None) -> Chat:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


PROMPTS: list[str | Chat] = [
    ask("What is the capital of Portugal, and what is it known for?"),
    ask("Sam has 12 marbles. He loses 5 and buys twice as many as he has left. How many has he now?"),
    ask("Schreibe einen Satz über den Regen in Köln. 😀", "You answer in the language of the question."),
    [*ask("Name three colours."), {"role": "assistant", "content": "Red, yellow and blue."}, *ask("Mix the first two.")],
    ask("Write a Python function that returns the n-th Fibonacci number."),
    ask("What does this print?\n```python\nx = [i ** 2 for i in range(5)]\nprint(x[1:-1], sum(x))\n```"),
    "def is_prime(n: int) -> bool:\n    \"\"\"Whether n is a prime number.\n\n    >>> is_prime(7)\n    True\n    \"\"\"\n",
    "import numpy as np\n\n\nclass Matrix:\n\tdef __init__(self, rows):\n\t\tself.rows = rows\n\n\tdef transpose(self):\n",
    ask(f"This is a ship's log.\n\n{NOTES}\n\nWho checked the lamps at half past nine, and how many were there?"),
    f"{MODULE}\n\n\ndef product_int_of_squares(values: list[int]) -> int:\n",
]  # fmt: skip
LONG = (8, 9)
"""Which are of over 1,000 tokens."""


class Expected:
    """What transformers writes in float32, greedy, ``new`` tokens at most, and what it thinks of another token."""

    def __init__(self, folder: Path, prompts: Sequence[str | Chat], new: int) -> None:
        transformers.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.prompts = [self._ids(prompt) for prompt in prompts]
        self.answers = [self._answer(ids, new) for ids in self.prompts]

    def _ids(self, prompt: str | Chat) -> Ids:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        return list(self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])

    def _answer(self, prompt: Ids, new: int) -> Ids:
        ids = torch.tensor([prompt])
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        return list(out[0, len(prompt) :].tolist())

    def gap(self, prompt: Ids, mine: Ids, theirs: Ids) -> float:
        """How far apart the first tokens that differ are in its logits; the answers must not differ in length alone."""
        at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + mine[:at]])).logits[0, -1]
        return float(logits.max() - logits[[mine[at], theirs[at]]].min())

    def agrees(self, answers: Sequence[Ids]) -> None:
        """Fails unless ``answers`` are its own but from ties on, of which there may be one."""
        ties = 0
        for prompt, mine, theirs in zip(self.prompts, answers, self.answers, strict=True):
            if mine != theirs:
                assert self.gap(prompt, mine, theirs) < TIE
                ties += 1
        assert ties <= 1
