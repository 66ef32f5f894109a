"""The recipe behind ``nano-prm``: ``python -m forethought.nano.train_prm --out DIR [--resume] [--export DIR]``.

nano's own layers, left as they are, two more and a head of two classes, read at a separator behind every step: is all well so
far? What nano would have written is in its last layer, one token back; the new layers begin by looking there. They learn from
solutions with planted errors, made on the fly, and from nano's own, drawn once into ``DIR/samples.jsonl``; ``step_labels.py``
says what is right. Training problems only. Deterministic in the seed and resumable, like the recipe of nano itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from ..backend.engine import Engine
from ..backend.load import load
from ..backend.text import Text
from ..decoding.autoregressive import Autoregressive
from ..schema import Message, Problem
from ..verifiers.prompts import FORMATS
from . import tokenizer as tok
from .fit import Log, Loss, Schedule, fit, newest_checkpoint, say
from .judging import spoilt
from .problems import LEVELS, Split, generate
from .step_labels import labels

NANO = Path(__file__).parent / "weights" / "nano"
DRAWN = 1200, 4
"""Problems that nano solves for the training, and how often each."""
TEMPERATURES = 0.8, 1.0
SCHEDULE = Schedule(steps=400, rate=1.5e-3, warmup=30, decay=0.5)
SWAPPED = 0.06
"""Share of the digits that are changed where the model learns to see single ones."""
NEW_LAYERS = 2
QUIETER = 1 / 16
"""What nano's layers add to the stream is scaled by this: beside it as it is, new layers would not be heard for long."""
GLANCE = 8, 48.0
"""The first new layer begins by looking at the token before: by the rotation's so many fastest angles, with such a score."""
DOCUMENTS = 64
ROW_TOKENS = 2048


class StepModel(nn.Module):
    """A Llama without its head, and two linear layers in the head's place; named as Qwen2.5-Math-PRM's weights are."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.model = LlamaModel(config)
        width = config.hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits [places, 2] at flat ``places`` of right-padded ``ids`` [rows, length]."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
            logits: Tensor = self.score(hidden.flatten(0, 1)[places])
        return logits.float()


@dataclass(frozen=True, slots=True)
class Solution:
    """A text to learn from, as a reward model is shown it."""

    ids: Sequence[int]
    places: Sequence[int]
    good: Sequence[bool]
    """One for each place."""


def shown(text: Text, problem: Problem, solution: str) -> Solution:
    """``solution`` in the format that :class:`~forethought.verifiers.process_reward.ProcessRewardModel` reads it in."""
    found = labels(problem, solution)
    ids, places = FORMATS["nano"].show(text, problem.question, [step for step, _ in found])
    return Solution(ids, places, [good for _, good in found])


def draw(nano: str | Path, split: Split, problems: int, each: int, seed: int, log: Log = say) -> Iterator[dict[str, Any]]:
    """Solutions by ``nano`` as rows of level, seed, split and text. Problem ``i`` depends on ``seed + i`` alone."""
    with Engine(load(nano), Autoregressive()) as engine:
        for begin in range(0, problems, 50):
            chosen = [(LEVELS[i % len(LEVELS)], seed + i) for i in range(begin, min(problems, begin + 50))]
            chats = [[{"role": "user", "content": generate(level, of, split).question}] for level, of in chosen]
            heat = TEMPERATURES[begin // 50 % len(TEMPERATURES)]
            drawn = engine.generate(chats, n=each, temperature=heat, max_tokens=512, seed=seed + begin, progress=False)
            for (level, of), completions in zip(chosen, drawn, strict=True):
                for completion in completions:
                    yield {"level": level, "seed": of, "split": split, "text": completion.text}
            engine.clear_cache()
            log(f"drawn: {begin + len(chosen)} of {problems} problems")


def samples(out: Path, nano: str | Path, problems: int, each: int, seed: int) -> list[tuple[Problem, str]]:
    """nano's own solutions of training problems: those in ``out``, else drawn now."""
    file = out / "samples.jsonl"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        partly = file.with_suffix(".tmp")
        rows = draw(nano, "train", problems, each, 10**7 * (seed + 1))
        partly.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        os.replace(partly, file)
    read = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [(generate(row["level"], row["seed"], row["split"]), row["text"]) for row in read]


def document(rng: random.Random, own: Sequence[Sequence[tuple[Problem, str]]]) -> tuple[Problem, str]:
    """A solution to learn from: half are nano's ``own`` ones (two lists, right and wrong), half written; half each are wrong."""
    wrong = rng.random() < 0.5
    drawn = own[wrong]
    if drawn and rng.random() < 0.5:
        return rng.choice(drawn)
    problem = generate(rng.choice(LEVELS), rng.getrandbits(48), "train")
    return problem, spoilt(rng, problem).text if wrong else problem.meta["solution"]


def swapped(rng: random.Random, text: Text) -> Solution:
    """A right solution with some digits changed, and which of its digits are as they were: to learn to see one wrong token."""
    problem = generate(rng.choice(LEVELS), rng.getrandbits(48), "train")
    solution = shown(text, problem, problem.meta["solution"])
    ids, digits = list(solution.ids), text.encode_continuation("0123456789")
    question: Message = {"role": "user", "content": problem.question}
    begin = len(text.encode([question]))
    places = [place for place in range(begin, len(ids)) if ids[place] in digits]
    good = [rng.random() >= SWAPPED for _ in places]
    for place, same in zip(places, good, strict=True):
        if not same:
            ids[place] = rng.choice([digit for digit in digits if digit != ids[place]])
    return Solution(ids, places, good)


def micro_loss(model: StepModel, group: Sequence[Solution], total: int) -> Tensor:
    """Cross-entropy over the steps of some solutions, as a share of ``total`` steps."""
    length = max(len(solution.ids) for solution in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    places: list[int] = []
    for i, solution in enumerate(group):
        ids[i, : len(solution.ids)] = torch.tensor(solution.ids)
        places += [i * length + place for place in solution.places]
    classes = torch.tensor([int(good) for solution in group for good in solution.good])
    device = next(model.parameters()).device
    return cross_entropy(model(ids.to(device), torch.tensor(places).to(device)), classes.to(device), reduction="sum") / total


def grouped(solutions: Sequence[Solution], row_tokens: int) -> list[list[Solution]]:
    """Solutions of like length together, at most ``row_tokens`` with their padding."""
    groups: list[list[Solution]] = []
    for solution in sorted(solutions, key=lambda s: len(s.ids)):
        if not groups or len(solution.ids) * (len(groups[-1]) + 1) > row_tokens:
            groups.append([])
        groups[-1].append(solution)
    return groups


def begin(nano: str | Path) -> StepModel:
    """The model to train: nano's layers, frozen, new ones, and a fresh head."""
    whole = LlamaForCausalLM.from_pretrained(nano, dtype=torch.float32)
    old = whole.config.num_hidden_layers
    config = LlamaConfig(**whole.config.to_dict() | {"num_hidden_layers": old + NEW_LAYERS, "attention_bias": True})
    model = StepModel(config)
    body: Any = model.model
    body.load_state_dict(whole.model.state_dict(), strict=False)
    frozen = (body.embed_tokens, *body.layers[:old])
    with torch.no_grad():
        for name, weight in body.named_parameters():
            if name.endswith("_proj.bias"):
                weight.zero_()
        vocabulary, table = tok.build(), body.embed_tokens.weight
        between = vocabulary.encode("\n\n", add_special_tokens=False).ids[0]
        table[vocabulary.token_to_id(tok.STEP)] = table[between]  # so that nano reads on as it learnt to
        # A layer norms what it reads: all that writes the stream may be scaled, and every layer computes what it did.
        table *= QUIETER
        for layer in body.layers[:old]:
            layer.self_attn.o_proj.weight *= QUIETER
            layer.mlp.down_proj.weight *= QUIETER
        glance(body.layers[old].self_attn, body.rotary_emb.inv_freq)
    for part in frozen:
        part.requires_grad_(False)
    return model


def glance(attention: Any, angles: Tensor) -> None:
    """Biases of queries and keys such that every head looks at the token before, whatever the tokens are."""
    count, score = GLANCE
    size = torch.zeros_like(angles)
    size[:count] = (score / min(count, len(angles)) / attention.scaling) ** 0.5
    query, key = torch.cat([size * angles.cos(), -size * angles.sin()]), torch.cat([size, torch.zeros_like(size)])
    for bias, start in ((attention.q_proj.bias, query), (attention.k_proj.bias, key)):
        bias.copy_(start.repeat(len(bias) // len(start)))


def train(
    out: Path, *, nano: str | Path = NANO, schedule: Schedule = SCHEDULE, drawn: tuple[int, int] = DRAWN,
    documents: int = DOCUMENTS, seed: int = 0, device: str = "cpu", **options: Any,
) -> StepModel:  # fmt: skip
    """Trains from the weights in folder ``nano``; other options are those of :func:`~forethought.nano.fit.fit`."""
    torch.manual_seed(seed)
    model, text = begin(nano).to(device), Text(tok.load())
    own: list[list[tuple[Problem, str]]] = [[], []]
    for problem, solution in samples(out, nano, *drawn, seed) if drawn[0] else []:
        own[not labels(problem, solution)[-1][1]].append((problem, solution))

    def losses(step: int) -> tuple[list[Loss], int]:
        rngs = [random.Random(f"{seed} {step} {i}") for i in range(documents)]
        solutions = [swapped(rng, text) if rng.random() < 0.5 else shown(text, *document(rng, own)) for rng in rngs]
        total = sum(len(solution.places) for solution in solutions)
        groups = grouped(solutions, ROW_TOKENS)
        return [partial(micro_loss, model, group, total) for group in groups], sum(len(s.ids) for s in solutions)

    fit(model, schedule, out, losses, **options)
    return model


def export(model: StepModel, folder: Path) -> None:
    """Writes the weights in float16 with config and tokenizer, as :class:`ProcessRewardModel` loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half().contiguous() for name, weight in model.state_dict().items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    config = model.model.config
    config.architectures, config.num_labels, config.dtype = ["LlamaForProcessRewardModel"], 2, torch.float16
    config.save_pretrained(folder)
    tok.save(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m forethought.nano.train_prm", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--out", type=Path, default=Path("runs/nano-prm"), help="folder of samples and checkpoints")
    parser.add_argument("--nano", type=Path, default=NANO, help="folder of the model to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write the newest checkpoint as a model folder")
    options = parser.parse_args(arguments)
    if options.export:
        checkpoint = newest_checkpoint(options.out)
        if checkpoint is None:
            sys.exit(f"no checkpoint in {options.out}")
        model = begin(options.nano)
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
        export(model, options.export)
        return
    try:
        train(options.out, nano=options.nano, seed=options.seed, device=options.device, resume=options.resume)
    except FileExistsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
