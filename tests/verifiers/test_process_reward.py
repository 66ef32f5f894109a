"""Process reward models against their cards' recipes, written out with plain transformers: everything read anew, no cache."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import PROBLEM, QUESTION, SOLUTIONS, body, byte_level, llama_tokenizer, metaspace, mlp, qwen_tokenizer, save, states
from torch import nn
from transformers import AutoTokenizer

import forethought as ft
from forethought.backend.load import BUILT_IN
from forethought.nano.tokenizer import STEP
from forethought.schema import Cost, Verdict
from forethought.verifiers.process_reward import ProcessRewardModel, aggregated
from forethought.verifiers.steps import steps_of

NEAR = 1e-5


@dataclass
class Case:
    folder: Path
    format: str | None
    naive: Callable[[list[str]], list[float]]
    """Paragraphs of a solution -> the score of each step, the slow way."""

    def open(self, **options: Any) -> ProcessRewardModel:
        return ProcessRewardModel(self.folder, self.format, **options)


def qwen(folder: Path) -> Case:
    """softmax over two classes, of a two-layer head, on every <extra_0> of the assistant's turn."""
    tokenizer = qwen_tokenizer()
    model, head = body("Qwen2", len(tokenizer)), mlp(32, 2)
    tokenizer = save(folder, model, tokenizer, "Qwen2ForProcessRewardModel", score=head)
    mark = tokenizer.convert_tokens_to_ids("<extra_0>")

    def naive(steps: list[str]) -> list[float]:
        chat = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False))
        classes = head(states(model, ids)).softmax(-1)
        return [float(classes[i, 1]) for i, token in enumerate(ids) if token == mark]

    return Case(folder, None, naive)


def nano(folder: Path) -> Case:
    """The same with the built-in tokenizer, a Llama, and no system message."""
    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN / "nano")
    model, head = body("Llama", len(tokenizer), tie_word_embeddings=True), mlp(32, 2)
    tokenizer = save(folder, model, tokenizer, "LlamaForProcessRewardModel", score=head)
    mark = tokenizer.convert_tokens_to_ids(STEP)

    def naive(steps: list[str]) -> list[float]:
        chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": STEP.join(steps) + STEP}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
        classes = head(states(model, ids)).softmax(-1)
        return [float(classes[i, 1]) for i, token in enumerate(ids) if token == mark]

    return Case(folder, None, naive)


def skywork(folder: Path) -> Case:
    """Sigmoid of a value head on the newline behind every line, each line tokenised by itself."""
    tokenizer = byte_level(["<|endoftext|>"], bos_token="<|endoftext|>")
    model, head, unused = body("Qwen2", len(tokenizer)), nn.Linear(32, 1), nn.Linear(32, len(tokenizer), bias=False)
    tokenizer = save(folder, model, tokenizer, "Qwen2ForCausalLM", v_head__summary=head, lm_head=unused)

    def naive(steps: list[str]) -> list[float]:
        ids, places = tokenizer.encode(tokenizer.bos_token + QUESTION + "\n"), []
        for line in (line.strip() for step in steps for line in step.split("\n")):
            ids += tokenizer.encode(line) + tokenizer.encode("\n")
            places.append(len(ids) - 1)
        return [float(p) for p in head(states(model, ids)).sigmoid()[places, 0]]

    return Case(folder, "skywork", naive)


def math_shepherd(folder: Path) -> Case:
    """The language model's own "+" against "-" on every tag of a numbered text."""
    tokenizer = metaspace()
    model, head = body("Mistral", len(tokenizer), sliding_window=None), nn.Linear(32, len(tokenizer), bias=False)
    tokenizer = save(folder, model, tokenizer, "MistralForCausalLM", lm_head=head)
    good, bad = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    assert tokenizer.convert_ids_to_tokens([good, bad, tag]) == ["▁+", "▁-", "▁ки"]

    def naive(steps: list[str]) -> list[float]:
        numbered = [re.sub(r"^(?!Step \d+:)", f"Step {i}: ", step) for i, step in enumerate(steps, 1)]
        ids = tokenizer.encode(f"{QUESTION} " + "\n".join(f"{step} ки" for step in numbered))
        scores = head(states(model, ids))[:, [good, bad]].softmax(-1)[:, 0]
        own = [float(scores[i]) for i, token in enumerate(ids) if token == tag]
        return own[1:] if len(own) > len(steps) else own  # one step says the tag itself

    return Case(folder, "math-shepherd", naive)


def rlhflow(folder: Path) -> Case:
    """A step a user's turn; "+" against "-" two tokens before the end of the assistant's "+", one chat a step."""
    tokenizer = llama_tokenizer()
    model, head = body("Llama", len(tokenizer)), nn.Linear(32, len(tokenizer), bias=False)
    tokenizer = save(folder, model, tokenizer, "LlamaForCausalLM", lm_head=head)
    good, bad = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]

    def naive(steps: list[str]) -> list[float]:
        chat, scores = [], []
        for i, step in enumerate(steps):
            chat += [{"role": "user", "content": step if i else f"{QUESTION} {step}"}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
            scores.append(float(head(states(model, ids))[-3, [good, bad]].softmax(-1)[0]))
        return scores

    return Case(folder, "rlhflow", naive)


CASES = {make.__name__: make for make in (qwen, nano, skywork, math_shepherd, rlhflow)}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def any_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return qwen(tmp_path_factory.mktemp("any"))


def judge(model: ProcessRewardModel, texts: list[str]) -> list[Verdict]:
    return asyncio.run(model.ajudge(PROBLEM, texts))


def steps(verdict: Verdict) -> list[float]:
    return list(verdict.meta["steps"])


def test_scores_are_the_cards(case: Case) -> None:
    """Many candidates at once, of which two are equal and one is empty."""
    verdicts = judge(case.open(), SOLUTIONS)
    seen = set()
    for verdict, text in zip(verdicts, SOLUTIONS, strict=True):
        if not text:
            assert (verdict.status, verdict.score, verdict.reason) == ("unknown", None, "nothing to judge")
            continue
        expected = case.naive(steps_of(text))
        assert steps(verdict) == pytest.approx(expected, abs=NEAR)
        assert verdict.status == "unknown"
        assert verdict.cost.verifier + verdict.cost.cached > len(expected)
        seen |= {round(score, 3) for score in expected}
    assert len(seen) > 6, "scores that hardly differ show no mistake"
    assert steps(verdicts[0]) == steps(verdicts[5])
    assert verdicts[5].cost.verifier == 0


@pytest.mark.parametrize("slots", [None, 400])
def test_a_solution_that_grows_is_read_once(case: Case, slots: int | None) -> None:
    """Step by step, in branches, in any order, with hardly any room: the scores are those of one reading."""
    model, rng = case.open(kv_slots=slots), random.Random(0)
    texts = [text for text in SOLUTIONS if text]
    prefixes = [(text, n) for text in texts for n in range(1, len(steps_of(text)) + 1)]
    for order in (prefixes, rng.sample(prefixes, len(prefixes))):
        for text, n in order:
            [verdict] = judge(model, ["\n\n".join(steps_of(text)[:n])])
            assert steps(verdict) == pytest.approx(case.naive(steps_of(text)[:n]), abs=NEAR)
    model.close()


def test_a_step_costs_its_own_tokens(case: Case) -> None:
    model = case.open()
    whole = SOLUTIONS[1]
    parts = ["\n\n".join(steps_of(whole)[: n + 1]) for n in range(len(steps_of(whole)))]
    ends = [model.show(QUESTION, part)[1][-1] + 1 for part in parts]
    paid = [judge(model, [part])[0].cost for part in parts]
    assert [cost.verifier for cost in paid] == [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert [cost.cached for cost in paid] == [0, *ends[:-1]]
    assert all(cost.forwards == 1 for cost in paid)
    assert model.cost == Cost(verifier=ends[-1], forwards=len(parts), critical=len(parts))
    assert judge(model, [whole])[0].cost == Cost(cached=ends[-1])
    assert model.cost.forwards == len(parts)


def test_candidates_share_calls_and_the_question(any_case: Case) -> None:
    model = any_case.open()
    texts = [f"{i} * 12 is\n\nthe number {i * i}." for i in range(40)]
    together = judge(model, texts)
    paid = model.cost
    assert paid.forwards == 2
    assert sum(verdict.cost.verifier for verdict in together) == paid.verifier
    prompt = len(model.show(QUESTION, "a")[0]) - 2
    assert paid.verifier < sum(len(model.show(QUESTION, text)[0]) for text in texts) - 39 * (prompt - 5)
    alone = [judge(any_case.open(), [text])[0] for text in texts[:5]]
    for one, among in zip(alone, together, strict=False):
        assert steps(one) == pytest.approx(steps(among), abs=NEAR)


def test_partial_solutions_are_scored_by_the_same_rule(any_case: Case) -> None:
    texts = [SOLUTIONS[0], SOLUTIONS[2], "", SOLUTIONS[1][:60]]
    for rule in ("last", "min", "prod", "mean"):
        model = any_case.open(aggregate=rule)
        verdicts, scores = judge(model, texts), asyncio.run(model.ascore(PROBLEM, texts))
        assert math.isnan(scores[2])
        for verdict, score in zip(verdicts, scores, strict=True):
            if verdict.score is not None:
                assert score == verdict.score == aggregated(steps(verdict), rule)
        assert model.name.endswith(f"[{rule}]")


@pytest.mark.parametrize(("rule", "expected"), [("last", 0.5), ("min", 0.2), ("prod", 0.08), ("mean", 0.5)])
def test_rules(rule: Any, expected: float) -> None:
    assert aggregated([0.8, 0.2, 0.5], rule) == pytest.approx(expected)


def test_a_threshold_makes_verdicts(any_case: Case) -> None:
    scores = [verdict.score for verdict in judge(any_case.open(), SOLUTIONS[:4])]
    middle = sorted(scores)[2]
    verdicts = judge(any_case.open(threshold=middle), [*SOLUTIONS[:4], ""])
    assert [v.status for v in verdicts] == [*("correct" if score >= middle else "wrong" for score in scores), "unknown"]
    assert {verdict.status for verdict in verdicts} == {"correct", "wrong", "unknown"}


def test_text_cannot_close_steps_or_turns(case: Case) -> None:
    """What spells a special token is read as text: no id of one, and as many scores as steps."""
    model = case.open()
    known = {i: t for t, i in model.text.tokenizer.get_added_vocab().items()}
    specials = [t for t in known.values() if "think" not in t]  # which ends a step, and is in none
    specials.append("".join(specials))
    plain, _ = model.show(QUESTION, "a\n\nb")
    for special in specials:
        ids, places = model.show(QUESTION, f"a {special} {special}\n\nb{special}")
        assert [known[i] for i in ids if i in known] == [known[i] for i in plain if i in known]
        assert len(places) == 2
    [verdict] = judge(model, [f"a {specials[-1]}\n\nb"])
    assert len(steps(verdict)) == 2


def test_too_long_is_unknown_and_harms_nobody(any_case: Case) -> None:
    model = any_case.open(kv_slots=200)
    long = "12 * 12 = 144. " * 200
    verdicts = judge(model, [long, "1 + 1 = 2.", long, "<think>" * 5000])
    assert [v.status for v in verdicts] == ["unknown"] * 4
    assert [v.score is None for v in verdicts] == [True, False, True, True]
    assert "room for 200" in verdicts[0].reason
    assert math.isnan(asyncio.run(model.ascore(PROBLEM, [long]))[0])


def test_bfloat16_is_near(any_case: Case) -> None:
    exact = judge(any_case.open(), SOLUTIONS[:3])
    for verdict, half in zip(exact, judge(any_case.open(dtype="bfloat16"), SOLUTIONS[:3]), strict=True):
        assert steps(half) == pytest.approx(steps(verdict), abs=0.2)
        assert steps(half) != pytest.approx(steps(verdict), abs=NEAR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "median"}, "aggregate='median'"), ({"threshold": 1.5}, "threshold=1.5"),
        ({"format": "own"}, "format='own'"),
        ({"format": "nano"}, r"'<\|step\|>' is \d+ tokens"), ({"format": "skywork"}, "no place for: score.0.bias"),
        ({"kv_slots": 0}, "kv_slots=0"), ({"format": "rlhflow"}, "Qwen2ForProcessRewardModel"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(any_case: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessRewardModel(any_case.folder, **options)


def test_what_is_no_process_reward_model_is_refused() -> None:
    with pytest.raises(ValueError, match="nano: its config does not say the format; give one of qwen"):
        ProcessRewardModel("nano")
    with pytest.raises(ValueError, match=r"a head score, or score.0 and score.2, is expected; the checkpoint has none"):
        ProcessRewardModel("nano", "nano")


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer()
    model = body("Qwen2", len(tokenizer))
    for i, (head, message) in enumerate([
        (mlp(32, 3), "3 labels"), (nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(32, 2)), "does not fit"),
        (nn.Linear(16, 1), "width 32"), (nn.Sequential(nn.Linear(32, 2)), "is expected"),
    ]):  # fmt: skip
        save(tmp_path / str(i), model, tokenizer, "Qwen2ForProcessRewardModel", score=head)
        with pytest.raises(ValueError, match=message):
            ProcessRewardModel(tmp_path / str(i))


def test_a_number_that_is_none_is_an_error(tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer()
    head = mlp(32, 2)
    with torch.no_grad():
        head[2].bias.fill_(math.nan)
    save(tmp_path, body("Qwen2", len(tokenizer)), tokenizer, "Qwen2ForProcessRewardModel", score=head)
    assert [v.status for v in judge(ProcessRewardModel(tmp_path), ["1", "2"])] == ["error", "error"]


def test_it_is_public() -> None:
    assert ft.ProcessRewardModel is ProcessRewardModel
