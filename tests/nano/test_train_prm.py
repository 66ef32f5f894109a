"""The recipe of the process reward model, tiny: what it learns from, that it learns, resumes, and is read as it was trained."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from forethought.backend.text import Text
from forethought.nano import tokenizer as tok
from forethought.nano.fit import Schedule
from forethought.nano.problems import generate
from forethought.nano.step_labels import labels
from forethought.nano.train import Recipe, build_model
from forethought.nano.train_prm import NANO, StepModel, begin, document, grouped, main, micro_loss, samples, shown, swapped, train
from forethought.verifiers.process_reward import ProcessRewardModel

QUICK = Schedule(steps=2, rate=1e-3, warmup=1)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like nano's, with a tiny model."""
    folder = tmp_path_factory.mktemp("nano")
    torch.manual_seed(0)
    model = build_model(Recipe(width=32, layers=1, heads=1, kv_heads=1, mlp=32, steps=1, rate=1e-3))
    model.save_pretrained(folder)
    tok.save(folder)
    return folder


def silent(line: str) -> None:
    pass


def test_every_step_is_closed_by_a_separator_with_its_label() -> None:
    text = Text(tok.load())
    for seed in range(20):
        problem = generate(1 + seed % 8, seed)
        solution = shown(text, problem, problem.meta["solution"])
        found = labels(problem, problem.meta["solution"])
        assert [solution.ids[place] for place in solution.places] == [tok.SPECIALS.index(tok.STEP)] * len(found)
        assert list(solution.good) == [good for _, good in found]
        begins = [solution.ids.index(tok.SPECIALS.index(tok.ASSISTANT)) + 1, *(place + 1 for place in solution.places)]
        read = [text.decode(solution.ids[a:b]) for a, b in zip(begins, solution.places, strict=False)]
        assert read == [step for step, _ in found]


def test_single_changed_digits_are_told() -> None:
    text = Text(tok.load())
    changed = total = 0
    for seed in range(60):
        solution, again = (swapped(random.Random(seed), text) for _ in range(2))
        assert solution == again
        written = text.decode(list(solution.ids))
        assert len(solution.places) == len(solution.good)
        assert all(text.decode([solution.ids[place]]).isdigit() for place in solution.places)
        answer = solution.ids.index(tok.SPECIALS.index(tok.ASSISTANT))
        assert min(solution.places) > answer
        assert len(solution.places) == sum(c.isdigit() for c in text.decode(list(solution.ids[answer:]))), written
        changed += solution.good.count(False)
        total += len(solution.good)
    assert 0.03 < changed / total < 0.1


def test_nanos_layers_compute_what_they_did_and_the_first_new_one_looks_at_the_token_before() -> None:
    torch.manual_seed(0)
    whole = LlamaForCausalLM.from_pretrained(NANO, dtype=torch.float32, attn_implementation="eager")
    model, ids = begin(NANO), torch.randint(64, 1024, (2, 40))
    with torch.no_grad():
        expected = whole.model(ids, output_hidden_states=True).last_hidden_state
        found = model.model(ids, output_hidden_states=True, output_attentions=True)
        body = whole.model.norm(found.hidden_states[whole.config.num_hidden_layers])
    assert (body - expected).abs().mean() < 0.03 * expected.abs().mean()
    assert found.attentions[whole.config.num_hidden_layers].diagonal(-1, -2, -1).mean() > 0.8
    learnt = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert not [name for name in learnt if name.startswith("model.embed_tokens")]
    assert {name.split(".")[2] for name in learnt if ".layers." in name} == {"4", "5"}


def test_the_loss_of_solutions_together_is_the_sum_of_their_losses(nano: Path) -> None:
    torch.manual_seed(0)
    model, text = begin(nano), Text(tok.load())
    solutions = [shown(text, p, p.meta["solution"]) for p in (generate(1 + i, i) for i in range(5))]
    alone = sum(float(micro_loss(model, [solution], 10).detach()) for solution in solutions)
    assert float(micro_loss(model, solutions, 10).detach()) == pytest.approx(alone, rel=1e-2)
    groups = grouped(solutions, 400)
    assert sorted(len(s.ids) for group in groups for s in group) == sorted(len(s.ids) for s in solutions)
    assert all(len(group) == 1 or len(group) * max(len(s.ids) for s in group) <= 400 for group in groups)


def test_documents_are_half_wrong_and_half_drawn() -> None:
    problem = generate(1, 0)
    own = [[(problem, "right one")], [(problem, "wrong one")]]
    texts = [document(random.Random(i), own)[1] for i in range(1000)]
    assert 200 < texts.count("right one") < 300
    assert 200 < texts.count("wrong one") < 300
    written = [document(random.Random(i), [[], []]) for i in range(200)]
    assert 70 < sum(labels(p, t)[-1][1] for p, t in written) < 130


def test_draws_once_learns_resumes_and_is_read_as_trained(nano: Path, tmp_path: Path) -> None:
    def run(out: str, **options: object) -> StepModel:
        return train(tmp_path / out, nano=nano, schedule=QUICK, drawn=(2, 2), documents=4, log=silent, **options)  # type: ignore[arg-type]

    whole = run("whole")
    rows = (tmp_path / "whole" / "samples.jsonl").read_text("utf-8")
    assert rows.count("\n") == 4
    read = samples(tmp_path / "whole", nano, 2, 2, 0)
    assert [problem.id for problem, _ in read] == [f"nano_math-train-{1 + i // 2}-{10**7 + i // 2}" for i in range(4)]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "samples.jsonl").write_text(rows, "utf-8")
    run("parts", stop_at=1)
    parts = run("parts", resume=True)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(FileExistsError, match="resume"):
        run("parts")

    main(["--out", str(tmp_path / "whole"), "--nano", str(nano), "--export", str(tmp_path / "model")])
    problem = generate(3, 5)
    solution = shown(Text(tok.load()), problem, problem.meta["solution"])
    with torch.no_grad():
        probabilities = whole.half().float()(torch.tensor([solution.ids]), torch.tensor(solution.places)).softmax(-1)[:, 1]
    judge = ProcessRewardModel(tmp_path / "model")
    (verdict,) = asyncio.run(judge.ajudge(problem, [problem.meta["solution"]]))
    judge.close()
    assert verdict.meta["steps"] == pytest.approx(probabilities.tolist(), abs=2e-2)


def test_it_learns_to_tell_right_answers_from_wrong_ones_on_a_few_texts(nano: Path) -> None:
    torch.manual_seed(0)
    model, text = begin(nano), Text(tok.load())
    problem = generate(1, 3)
    wrong = problem.meta["solution"].replace(f"= {problem.answer}", f"= {int(problem.answer or 0) + 1}")
    group = [shown(text, problem, t) for t in (problem.meta["solution"], wrong)]
    assert [s.good[-1] for s in group] == [True, False]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = micro_loss(model, group, sum(len(s.places) for s in group))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.1
    ends = [model(torch.tensor([s.ids]), torch.tensor(s.places)).softmax(-1)[-1, 1].item() for s in group]
    assert ends[0] > 0.8
    assert ends[1] < 0.2


def test_export_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkpoint in"):
        main(["--out", str(tmp_path), "--export", str(tmp_path / "model")])
