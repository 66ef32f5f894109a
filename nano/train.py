"""The one recipe behind the nano models: ``python -m forethought.nano.train --model nano --out DIR [--resume]``.

A small Llama on the mix of ``mix.py``: next-token loss on the answers only, AdamW, a constant rate that decays at the
end, bfloat16 autocast, float32 weights. Every row is one document from position 0, as at inference; rows of like length share
a micro-batch, so little is padding. Data depend on (seed, step) alone and the schedule on the step, so ``--resume`` ends at the
same weights. It runs on one device, does no distributed training, and reads no data but what it generates.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from . import tokenizer as tok
from .fit import Log, Loss, Schedule, fit, newest_checkpoint, say
from .mix import Document, chat, documents
from .problems import LEVELS, generate, read_answer

VOCABULARY = 1024
MAX_NEW_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Schedule):
    """Shape of the model and length of its training."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    documents: int = 64
    """Documents a step, about 10,000 tokens."""
    row_tokens: int = 2048
    """Tokens of a micro-batch, padding included."""

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.mlp,
            max_position_embeddings=tok.MAX_LENGTH,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=tok.SPECIALS.index(tok.BOS),
            eos_token_id=tok.SPECIALS.index(tok.END),
            pad_token_id=tok.SPECIALS.index(tok.PAD),
        )


RECIPES = {
    "nano": Recipe(width=256, layers=4, heads=4, kv_heads=2, mlp=512, steps=2000, rate=3e-3, decay=0.3),
    "nano-draft": Recipe(width=128, layers=2, heads=2, kv_heads=1, mlp=320, steps=2000, rate=4e-3, decay=0.3),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows: ids [rows, length], and for each token to learn the flat index it is predicted from."""

    ids: Tensor
    predict_from: Tensor
    targets: Tensor


def batches(docs: Sequence[Document], tokenizer: Tokenizer, row_tokens: int) -> Iterator[Batch]:
    """Micro-batches of documents of like length."""
    encodings = tokenizer.encode_batch([d.text for d in docs], add_special_tokens=False)
    rows = sorted(zip(encodings, docs, strict=True), key=lambda row: len(row[0].ids))
    while rows:
        taken = 1
        while taken < len(rows) and len(rows[taken][0].ids) * (taken + 1) <= row_tokens:
            taken += 1
        group, rows = rows[:taken], rows[taken:]
        length = len(group[-1][0].ids)
        ids = torch.zeros(taken, length, dtype=torch.long)
        learnt: list[int] = []
        for i, (encoding, doc) in enumerate(group):
            ids[i, : len(encoding.ids)] = torch.tensor(encoding.ids)
            for j, (start, end) in enumerate(encoding.offsets):
                if start >= doc.learn_from and not any(start < b and end > a for a, b in doc.skip):
                    learnt.append(i * length + j)
        places = torch.tensor(learnt)
        yield Batch(ids, places - 1, ids.flatten()[places])


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """Freshly initialised. Plain attention: for rows this short it trains faster on a CPU than the fused one."""
    config = recipe.config()
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def loss_sum(model: LlamaForCausalLM, ids: Tensor, predict_from: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets; the head sees only the places that predict one."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[predict_from])
    return cross_entropy(logits.float(), targets, reduction="sum")


def micro_loss(model: LlamaForCausalLM, batch: Batch, learnt: int) -> Tensor:
    device = model.device
    return loss_sum(model, batch.ids.to(device), batch.predict_from.to(device), batch.targets.to(device)) / learnt


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, count: int) -> dict[int, float]:
    """Greedy share of held-out problems solved, by level; ``count`` problems in all."""
    tokenizer = tok.load()
    tests = [generate(LEVELS[i % len(LEVELS)], 10**6 + i, "test") for i in range(count)]
    tests.sort(key=lambda problem: len(problem.question))
    right: dict[int, list[bool]] = {level: [] for level in LEVELS}
    model.eval()
    for start in range(0, count, 128):
        group = tests[start : start + 128]
        inputs = tokenizer([chat(p.question) for p in group], return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = inputs.to(model.device)
        greedy = GenerationConfig(do_sample=False, max_new_tokens=400, eos_token_id=model.config.eos_token_id, pad_token_id=0)
        outputs = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=greedy)
        texts = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for problem, text in zip(group, texts, strict=True):
            right[problem.level or 0].append(read_answer(text) == problem.answer)
    model.train()
    return {level: sum(flags) / max(1, len(flags)) for level, flags in right.items()}


def train(
    recipe: Recipe, out: Path, *, seed: int = 0, device: str = "cpu", log: Log = say, **options: Any
) -> LlamaForCausalLM:
    """Trains by ``recipe``, leaving checkpoints in ``out``; other options are those of :func:`~forethought.nano.fit.fit`."""
    torch.manual_seed(seed)
    model = build_model(recipe).to(device)
    tokenizer = tok.build()

    def losses(step: int) -> tuple[list[Loss], int]:
        parts = list(batches(documents(seed, step, recipe.documents), tokenizer, recipe.row_tokens))
        learnt = sum(len(part.targets) for part in parts)
        return [partial(micro_loss, model, part, learnt) for part in parts], sum(part.ids.numel() for part in parts)

    fit(model, recipe, out, losses, log=log, look=lambda: log_accuracy(model, 64, log), **options)
    return model


def log_accuracy(model: LlamaForCausalLM, count: int, log: Log) -> None:
    by_level = accuracy(model, count)
    levels = " ".join(f"{share:.2f}" for share in by_level.values())
    log(f"held-out greedy {sum(by_level.values()) / len(by_level):.3f}  levels 1-8: {levels}")


def export(recipe: Recipe, checkpoint: Path, folder: Path) -> None:
    """Writes the checkpoint's weights as an ordinary Hugging Face model folder, in float16."""
    model = build_model(recipe)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.half().save_pretrained(folder)
    tok.save(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m forethought.nano.train", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, help="folder of checkpoints (default: runs/MODEL)")
    parser.add_argument("--steps", type=int, help="train for so many steps rather than the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write the newest checkpoint as a model folder")
    options = parser.parse_args(arguments)

    recipe = RECIPES[options.model]
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    out = options.out or Path("runs") / options.model
    if options.export:
        checkpoint = newest_checkpoint(out)
        if checkpoint is None:
            sys.exit(f"no checkpoint in {out}")
        export(recipe, checkpoint, options.export)
        return
    try:
        model = train(recipe, out, seed=options.seed, device=options.device, resume=options.resume)
    except FileExistsError as error:
        sys.exit(str(error))
    log_accuracy(model, 400, print)


if __name__ == "__main__":
    main()
