"""The training recipe on a tiny model: it learns only what it should, resumes exactly, and exports what transformers loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forethought.nano import programs
from forethought.nano import tokenizer as tok
from forethought.nano.fit import backward
from forethought.nano.mix import SOURCES, chat, documents
from forethought.nano.problems import generate
from forethought.nano.train import RECIPES, Recipe, batches, build_model, export, loss_sum, main, newest_checkpoint, train

TINY = Recipe(width=32, layers=1, heads=1, kv_heads=1, mlp=32, steps=2, rate=1e-3, warmup=1, documents=4)


def test_documents_depend_on_seed_and_step_alone() -> None:
    assert documents(0, 3, 4) == documents(0, 3, 8)[:4] != documents(0, 4, 4)
    held_out = {generate(1 + i % 8, i, "test").question for i in range(400)}
    held_out |= {programs.generate(1 + i % 5, i, "test").question for i in range(200)}
    made = documents(1, 1, 300)
    assert not any(question in doc.text for doc in made for question in held_out)
    kinds = [("```python" in doc.text) + 2 * ("Is the solution correct?" in doc.text) for doc in made]
    assert kinds.count(0) > kinds.count(1) > 40
    assert kinds.count(2) > 20
    assert len(SOURCES) == len({make for _, make in SOURCES})


def test_the_loss_is_on_answers_without_planted_slips() -> None:
    docs = documents(0, 0, 64)
    tokenizer = tok.build()
    end, seen = tokenizer.token_to_id(tok.END), 0
    for batch in batches(docs, tokenizer, 2048):
        flat = batch.ids.flatten()
        assert torch.equal(flat[batch.predict_from + 1], batch.targets)
        seen += int((batch.targets == end).sum())
        assert tokenizer.token_to_id(tok.USER) not in batch.targets
        assert batch.ids.numel() <= 2048 or len(batch.ids) == 1
    assert seen == len(docs)
    slipped = next(d for d in docs if d.skip)
    (batch,) = batches([slipped], tokenizer, 2048)
    start, stop = slipped.skip[0]
    whole = tokenizer.encode(slipped.text[slipped.learn_from :], add_special_tokens=False).ids
    assert len(batch.targets) == len(whole) - sum(b - a for a, b in slipped.skip)
    assert slipped.text[start:stop].isdigit()


def test_padding_changes_nothing() -> None:
    """The loss of documents together is the sum of their losses alone."""
    torch.manual_seed(0)
    model, tokenizer, docs = build_model(TINY), tok.build(), documents(0, 1, 3)

    def loss(*chosen: int) -> float:
        parts = batches([docs[i] for i in chosen], tokenizer, 10**6)
        return sum(float(loss_sum(model, p.ids, p.predict_from, p.targets).detach()) for p in parts)

    assert loss(0, 1, 2) == pytest.approx(loss(0) + loss(1) + loss(2), rel=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gradient_is_that_of_the_sum_of_losses(threads: int) -> None:
    def losses(weight: torch.Tensor) -> list[torch.Tensor]:
        return [(weight * x).sin().sum() for x in (1.0, 2.0, 3.0)]

    model = torch.nn.Linear(4, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        total = backward(model, [lambda i=i: losses(model.weight)[i] + 0 * model.bias.sum() for i in range(3)])  # type: ignore[misc]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    weight = model.weight.detach().clone().requires_grad_()
    expected = torch.stack(losses(weight)).sum()
    expected.backward()
    assert total == pytest.approx(expected.item())
    assert torch.allclose(model.weight.grad, weight.grad)  # type: ignore[arg-type]


def test_resume_ends_at_the_same_weights(tmp_path: Path) -> None:
    whole = train(TINY, tmp_path / "whole", log=lambda line: None)
    train(TINY, tmp_path / "parts", stop_at=1, log=lambda line: None)
    resumed = train(TINY, tmp_path / "parts", resume=True, log=lambda line: None)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [p.name for p in sorted((tmp_path / "parts").iterdir())] == ["step-000001.pt", "step-000002.pt"]
    with pytest.raises(FileExistsError, match="resume, or name another folder"):
        train(TINY, tmp_path / "parts")


def test_rate_warms_up_holds_and_decays() -> None:
    recipe = dataclasses.replace(RECIPES["nano"], steps=1000, warmup=100, decay=0.2)
    rates = [recipe.rate_at(step) / recipe.rate for step in (0, 99, 500, 799, 900, 999)]
    assert rates == pytest.approx([0.01, 1, 1, 1, 0.5, 0.005])


def test_export_is_a_model_folder(tmp_path: Path) -> None:
    train(TINY, tmp_path, stop_at=1, log=lambda line: None)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    export(TINY, checkpoint, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer(chat("Tom has 3 apples."), return_tensors="pt", add_special_tokens=False)
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] <= inputs.input_ids.shape[1] + 4
    assert model.generation_config.eos_token_id == tok.build().token_to_id(tok.END)


def test_export_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkpoint in"):
        main(["--model", "nano", "--out", str(tmp_path), "--export", str(tmp_path / "model")])
