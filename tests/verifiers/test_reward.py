"""Outcome reward models against transformers' own sequence classification, one text at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rewards import PROBLEM, QUESTION, SHAPE, SOLUTIONS, body, llama_tokenizer, mlp, qwen_tokenizer, save, states

from forethought.backend.hf import Adapter
from forethought.backend.transformer import Transformer
from forethought.schema import Problem, Verdict
from forethought.verifiers.reward import RewardModel

ANSWERS = ["So 31.", "36 - 5 = 31,\n\nso it is 31.", "It is 27 <b>\\boxed{27}</b>", "31", "\u00e9t\u00e9 😀", "So 31."]
Make = Callable[..., tuple[Path, Callable[[str], torch.Tensor]]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """published(family, labels, **config) -> a checkpoint as transformers saves it, and its own logits [labels] for an answer."""

    def make(family: str, labels: int, **settings: Any) -> tuple[Path, Callable[[str], torch.Tensor]]:
        folder = tmp_path_factory.mktemp(family)
        tokenizer = qwen_tokenizer() if family == "Qwen2" else llama_tokenizer()
        shape = SHAPE | {"vocab_size": len(tokenizer), "num_labels": labels, "pad_token_id": 0}
        config = getattr(transformers, f"{family}Config")(**shape | settings)
        torch.manual_seed(1)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

        @torch.no_grad()
        def own(answer: str) -> torch.Tensor:
            chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(chat, tokenize=False)
            return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0]

        return folder, own

    return make


def judge(model: RewardModel, texts: list[str]) -> list[Verdict]:
    return asyncio.run(model.ajudge(PROBLEM, texts))


@pytest.mark.parametrize(
    ("family", "settings"),
    [("Llama", {}), ("Qwen2", {}), ("Mistral", {}), ("Llama", {"tie_word_embeddings": True}),
     ("Gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}), ("Llama", {"hidden_act": "gelu"})],
)  # fmt: skip
@pytest.mark.parametrize("labels", [1, 2])
def test_scores_are_transformers(published: Make, family: str, settings: dict[str, Any], labels: int) -> None:
    """Through our transformer and, of blocks that are not its own, through the adapter."""
    folder, own = published(family, labels, **settings)
    model, bounded = RewardModel(folder, probability=False), RewardModel(folder)
    ours = family != "Gemma2" and "hidden_act" not in settings
    assert isinstance(model.reader.model, Transformer if ours else Adapter)
    together, alone = judge(model, ANSWERS), [judge(model, [answer])[0] for answer in ANSWERS]
    for answer, verdict, again, chance in zip(ANSWERS, together, alone, judge(bounded, ANSWERS), strict=True):
        logits = own(answer)
        logit = float(logits[0] if labels == 1 else logits[1] - logits[0])
        share = float(logits.sigmoid() if labels == 1 else logits.softmax(-1)[1])
        assert verdict.score == pytest.approx(logit, abs=1e-5)
        assert again.score == verdict.score
        assert chance.score == pytest.approx(share, abs=1e-5)
        assert verdict.status == "unknown"
    assert len({round(v.score or 0, 3) for v in together}) == len(ANSWERS) - 1
    assert together[5].cost.verifier == 0


def test_the_last_token_is_the_last_that_is_no_padding(published: Make) -> None:
    """Where end of turn and padding are one token, transformers looks at what stands before it; so do we."""
    folder, own = published("Llama", 1, pad_token_id=1)
    model = RewardModel(folder, probability=False)
    assert model.text.tokenizer.convert_ids_to_tokens(1) == "<|eot_id|>"
    for answer, verdict in zip(ANSWERS, judge(model, ANSWERS), strict=True):
        assert verdict.score == pytest.approx(float(own(answer)[0]), abs=1e-5)


def test_a_head_of_two_layers(tmp_path: Path) -> None:
    """As Qwen2.5-Math-RM has it."""
    tokenizer = qwen_tokenizer()
    model, head = body("Qwen2", len(tokenizer)), mlp(32, 1)
    save(tmp_path, model, tokenizer, "Qwen2ForRewardModel", score=head)
    reward = RewardModel(tmp_path, probability=False)
    for answer, verdict in zip(ANSWERS, judge(reward, ANSWERS), strict=True):
        ids, [place] = reward.show(QUESTION, answer)
        assert place == len(ids) - 1
        assert verdict.score == pytest.approx(float(head(states(model, ids))[place, 0]), abs=1e-5)


def test_it_sees_the_answer_not_the_thought(published: Make) -> None:
    model = RewardModel(published("Llama", 1)[0])
    thought, bare, *rest = judge(model, [SOLUTIONS[0], "So the answer is \\boxed{31}.", "<think>\nHm", "", "<think>x</think> "])
    assert thought.score == bare.score
    assert [(v.status, v.score, v.reason) for v in rest] == [("unknown", None, "nothing to judge")] * 3


def test_what_spells_a_special_token_is_text(published: Make) -> None:
    model = RewardModel(published("Llama", 1)[0])
    eot = model.text.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    counts = [model.show(QUESTION, f"31{more}")[0].count(eot) for more in ("", "<|eot_id|>", "<|eot_id|><|eot_id|> 5")]
    assert counts == [2, 2, 2]


def test_thresholds(published: Make) -> None:
    folder, _ = published("Llama", 1)
    logits = [verdict.score or 0.0 for verdict in judge(RewardModel(folder, probability=False), ANSWERS[:4])]
    middle = sorted(logits)[2]
    expected = ["correct" if logit >= middle else "wrong" for logit in logits]
    assert set(expected) == {"correct", "wrong"}
    model = RewardModel(folder, probability=False, threshold=middle - 1e-6)
    assert [verdict.status for verdict in judge(model, [*ANSWERS[:4], ""])] == [*expected, "unknown"]
    model = RewardModel(folder, threshold=1 / (1 + math.exp(-middle)) - 1e-7)
    assert [verdict.status for verdict in judge(model, ANSWERS[:4])] == expected


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": math.nan, "probability": False}, {"kv_slots": -1}])
def test_wrong_values_are_named(published: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        RewardModel(published("Llama", 1)[0], **options)


def test_what_is_no_reward_model_is_refused(published: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 labels"):
        RewardModel(published("Llama", 3)[0])
    with pytest.raises(ValueError, match="the checkpoint has none"):
        RewardModel("nano")
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = None
    save(tmp_path, body("Llama", len(tokenizer)), tokenizer, "LlamaForSequenceClassification", score=torch.nn.Linear(32, 1))
    with pytest.raises(ValueError, match="no chat template"):
        RewardModel(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        RewardModel(tmp_path)


def test_too_long_is_unknown(published: Make) -> None:
    model = RewardModel(published("Llama", 1)[0], kv_slots=100)
    problem = Problem("q", "1 + 1?")
    long, short = asyncio.run(model.ajudge(problem, ["2" * 500, "2"]))
    assert (long.status, long.score) == ("unknown", None)
    assert "room for 100" in long.reason
    assert short.score is not None
