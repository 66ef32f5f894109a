"""Speculative decoding: rules that keep the law, what drafts bring and cost, and what cannot be combined.

That target matching changes no token is shown for all decoders at once, in ``test_speculation.py``; what a draft model reads,
and what it does without room or sense, in ``test_draft_model.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from drafting import SAMPLING_RULES, agree, babble, crowd, idle, logits_behind, plain, talker, texts, together
from lab import EOS, Audited, Toy, byte_text, hashed, slow_certainty, slow_process, tiny_llama

import forethought as ft
from forethought.backend.model import Model
from forethought.backend.text import Text
from forethought.decoding.source import Source

every_rule = pytest.mark.parametrize("make", SAMPLING_RULES.values(), ids=SAMPLING_RULES.keys())
PROMPT = [*b"abcab"]


# ---- the law ---------------------------------------------------------------------------------------------------------

Law = dict[tuple[int, ...], float]
SETTINGS: dict[str, Any] = {"temperature": 5.0, "top_k": 3}
"""Hot, as the built-in model is sure of most tokens, and so few that all lines can be walked."""


def law(model: Model, prompt: Sequence[int], tokens: int, **options: Any) -> Law:
    """Of the next ``tokens`` tokens together: by plain forwards over every line that can be."""
    settings = ft.Sampling(**SETTINGS | options)
    found: Law = {(): 1.0}
    for _ in range(tokens):
        lines, longer = list(found), Law()
        for start in range(0, len(lines), 64):
            some = lines[start : start + 64]
            for line, logits in zip(some, logits_behind(model, [[*prompt, *line] for line in some]).tolist(), strict=True):
                for token, score in enumerate(slow_process(logits, prompt, line, settings)):
                    if score > -math.inf:
                        longer[*line, token] = found[line] * math.exp(score)
        found = longer
    assert sum(found.values()) == pytest.approx(1)
    return found


def chance(expected: Law, counts: Counter[tuple[int, ...]], least: float = 8.0) -> float:
    """How likely counts at least as far from the law are, by chi-square; what is expected too rarely is one bin."""
    total = counts.total()
    assert counts.keys() <= expected.keys(), "something came out that cannot"
    rare = [line for line in expected if expected[line] * total < least]
    bins = [(expected[line] * total, counts[line]) for line in expected if line not in set(rare)]
    if (mass := sum(expected[line] for line in rare) * total) >= least:
        bins.append((mass, sum(counts[line] for line in rare)))
    statistic = sum((seen - mean) ** 2 / mean for mean, seen in bins)
    assert len(bins) > 8, "too few outcomes to tell"
    return float(torch.special.gammaincc(torch.tensor((len(bins) - 1) / 2), torch.tensor(statistic / 2, dtype=torch.float64)))


def draws(model: Model, decoder: ft.Decoder, prompt: list[int], tokens: int, n: int, seed: int) -> Counter[tuple[int, ...]]:
    with Audited(model, decoder, kv_slots=4000) as engine:
        outs = engine.generate(prompt, n=n, max_tokens=tokens, seed=seed, ignore_eos=True, progress=False, **SETTINGS)
        if not isinstance(decoder, ft.Autoregressive):
            assert engine.cost.accepted > (0.02 if isinstance(decoder, ft.PromptLookup) else 0.2) * n
            assert engine.cost.drafted > 1.1 * engine.cost.accepted
    return Counter(tuple(c.token_ids) for c in outs)


EXACT: dict[str, Callable[[Model], ft.Decoder]] = {
    "plain": lambda draft: ft.Autoregressive(),
    "match, chain": lambda draft: ft.Speculative(draft, 4, adaptive=False),
    "match, tree": lambda draft: ft.Speculative(draft, tree=[2, 2, 1], adaptive=False),
    "lookahead": lambda draft: ft.Lookahead(6, adaptive=False),
    "lookahead, trie": lambda draft: ft.Lookahead(6, index="trie", adaptive=False),
    "prompt lookup": lambda draft: ft.PromptLookup(4, adaptive=False),
    "merged": lambda draft: ft.Speculative([ft.Lookahead(), draft, ft.PromptLookup()], 8, adaptive=False),
    **SAMPLING_RULES,
}


@pytest.fixture(scope="module")
def nano() -> tuple[Model, Model, list[int]]:
    """The built-in model, its smaller sibling, and the beginning of an answer."""
    target, draft = ft.load("nano"), ft.load("nano-draft")
    assert target.text is not None
    text = "Tom has 12 apples. He gives 5 to Ann. How many apples does he have?\n<think>\nTom starts with 12 apples.\n\n"
    return target, draft, target.text.encode(text)


@pytest.mark.parametrize(
    ("name", "n"),
    [(name, 1000) for name in SAMPLING_RULES] + [pytest.param(name, 20_000, marks=pytest.mark.slow) for name in EXACT],
)
def test_draws_follow_the_models_law(name: str, n: int, nano: tuple[Model, Model, list[int]]) -> None:
    """Five tokens together: the first is the prompt's, drafts stand for the next ones, and often for two rounds."""
    target, draft, prompt = nano
    expected = law(target, prompt, 5)
    assert max(expected.values()) < 0.6, "not settled from the start"
    assert chance(expected, draws(target, EXACT[name](draft), prompt, 5, n, seed=12)) > 1e-4


@every_rule
def test_draws_follow_a_toys_law(make: Any) -> None:
    """A draft model that is often wrong. And the test tests: a sharper law would be seen."""
    target, draft = talker(), talker(7)
    found = draws(target, make(draft), PROMPT, 4, 1500, seed=1)
    assert chance(law(target, PROMPT, 4), found) > 1e-4
    assert chance(law(target, PROMPT, 4, temperature=1.0), found) < 1e-4


@every_rule
def test_a_run_can_be_repeated_in_any_company(make: Any) -> None:
    """The same seeds, the same texts: again, one by one, and with prompts that end while others are drafted for."""
    target, asked = talker(), [(p, o) for p, o in crowd() if o.get("temperature")]
    with Audited(target, make(talker(7)), kv_slots=2500) as engine:
        first = together(engine, asked)
        agree(together(engine, asked), first)
        engine.clear_cache()
        agree([engine.generate(prompt, **options) for prompt, options in asked], first)
        assert engine.cost.accepted > 100
    with Audited(target, make(talker(7)), kv_slots=2500, prefill_tokens=7) as engine:
        agree(together(engine, asked[::-1]), first[::-1])
    assert texts(first) != texts(plain(target, asked)), "the law is plain decoding's, the text its own"


@every_rule
def test_greedy_text_is_plain_decodings_under_every_rule(make: Any) -> None:
    target, asked = talker(), [(p, o) for p, o in crowd() if not o.get("temperature")]
    decoder = make(talker(7))
    with Audited(target, decoder, kv_slots=2500) as engine:
        agree(together(engine, asked), plain(target, asked))
        assert engine.cost.accepted > 20
    idle(decoder)


@every_rule
def test_stops_and_least_lengths_hold_under_every_rule(make: Any) -> None:
    decoder = make(talker(7))
    with Audited(talker(), decoder, kv_slots=400) as engine:
        for out in engine.generate([PROMPT, PROMPT[:2]], n=12, max_tokens=40, min_tokens=15, temperature=1.2, seed=2, stop=[98]):
            for one in out:
                assert len(one.token_ids) >= 15
                assert not {98, EOS} & set(one.token_ids[:14])
                assert (one.stop_reason in (98, EOS)) == (one.token_ids[-1] in (98, EOS)) == (one.finish_reason == "stop")
    idle(decoder)


@every_rule
def test_logprobs_under_every_rule_are_those_of_the_text(make: Any) -> None:
    target, rule = talker(), babble()
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}
    for kind in ("raw", "processed"):
        with Audited(target, make(talker(7)), kv_slots=2500) as engine:
            [out] = engine.generate(PROMPT, max_tokens=30, seed=1, logprobs=kind, ignore_eos=True, **options)
        settings = ft.Sampling(**options) if kind == "processed" else ft.Sampling(temperature=1.0)
        for at, (token, found) in enumerate(zip(out.token_ids, out.logprobs or [], strict=True)):
            before = out.token_ids[:at]
            expected = slow_process(rule([*PROMPT, *before]).tolist(), PROMPT, before, settings)
            assert found == pytest.approx(expected[token], abs=1e-4)


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT.keys())
def test_certainty_is_the_models_at_drafted_tokens_too(make: Any) -> None:
    """Of all that was written and of nothing else: not of drafts that were rejected, nor behind a stop."""
    target, rule = talker(), babble()
    with Audited(target, make(talker(7)), kv_slots=2500) as engine:
        outs = engine.generate(PROMPT, n=4, max_tokens=30, seed=1, certainty=True, temperature=0.8, top_p=0.9, stop=["l", 98])
        whole = engine.generate(PROMPT, n=2, max_tokens=30, seed=2, certainty=True, ignore_eos=True)
        drafted = engine.cost.accepted
    assert drafted > 0 or make is EXACT["plain"]
    assert any(out.stop_reason == "l" for out in outs)
    for out in [*outs, *whole]:
        expected = [slow_certainty(rule([*PROMPT, *out.token_ids[:at]])) for at in range(len(out.token_ids))]
        assert out.certainty == pytest.approx(expected, rel=1e-4)


# ---- acceptance and the bill -----------------------------------------------------------------------------------------

PERFECT: dict[str, tuple[Callable[[Model], ft.Speculative], int]] = {
    "chain": (lambda draft: ft.Speculative(draft, 5, adaptive=False), 5),
    "tree": (lambda draft: ft.Speculative(draft, tree=[3, 1, 1, 1], adaptive=False), 4),
    "ratio": (lambda draft: ft.Speculative(draft, 5, rule="ratio"), 5),
    "block": (lambda draft: ft.Speculative(draft, 5, rule="block"), 5),
    "without replacement": (lambda draft: ft.Speculative(draft, tree=[2, 1, 1], rule="tree"), 3),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("make", "depth"), PERFECT.values(), ids=PERFECT.keys())
def test_a_perfect_draft_model_is_always_right(make: Any, depth: int, temperature: float) -> None:
    """Sampled too: it guesses with the noise that the target draws with, or is judged by the law it has drawn from."""
    tokens = 1 + 10 * (depth + 1)
    with Audited(talker(), make(talker()), kv_slots=2000) as engine:
        [out] = engine.generate(PROMPT, max_tokens=tokens, ignore_eos=True, temperature=temperature, seed=5)
    assert out.cost.forwards == 11, "one for the prompt, and each other gives depth + 1 tokens"
    assert out.cost.accepted == 10 * depth
    if depth == 5:
        # Of the first round the prompt too; then, of each, the last token, the one it has not drafted itself, and four more.
        assert (out.cost.drafted, out.cost.discarded) == (50, 0)
        assert out.cost.drafting == len(PROMPT) + 1 + 4 + 9 * 6


@every_rule
def test_everything_computed_is_billed_under_every_rule(make: Any) -> None:
    target, draft = talker(), talker(7)
    with Audited(target, make(draft), kv_slots=2500) as engine:
        outs = together(engine, crowd())
        bill, samples = engine.cost, sum(map(len, outs))
    assert bill.forwards == target.calls
    assert bill.drafting == draft.tokens == sum(c.cost.drafting for out in outs for c in out)
    assert bill.discarded == bill.drafted - bill.accepted
    assert bill.computed - samples <= target.tokens <= bill.computed


@every_rule
def test_what_breaks_behind_a_draft_breaks_where_plain_decoding_does_under_every_rule(make: Any) -> None:
    for at in range(1, 9):
        target, rule = talker(), babble()
        target.rule = lambda ids, at=at, rule=rule: rule(ids) + np.float32(np.nan if len(ids) == len(PROMPT) + at else 0)
        expected = plain(talker(), [(PROMPT, {"max_tokens": 20, "seed": 1})])[0][0].token_ids[:at]
        decoder = make(talker())
        with Audited(target, decoder, kv_slots=600) as engine:
            with pytest.raises(ft.GenerationError, match=f"FloatingPointError: .*output token {at}") as error:
                engine.generate(PROMPT, max_tokens=20, seed=1)
            assert error.value.results[0][0].token_ids == expected
        idle(decoder)


# ---- what cannot be combined -----------------------------------------------------------------------------------------


def numbered_otherwise() -> Text:
    """A tokenizer of the same name and size with two pieces in each other's place."""
    from transformers import PreTrainedTokenizerFast

    text = byte_text()
    model = text.tokenizer.backend_tokenizer.to_str().replace('"a":97', '"a":0x').replace('"b":98', '"b":97').replace("0x", "98")
    from tokenizers import Tokenizer

    return Text(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(model), bos_token="<s>", eos_token="</s>"))


def test_tokenizers_are_compared_by_what_they_say() -> None:
    other = talker(7)
    other.text = numbered_otherwise()
    assert other.text.decode([97]) == "b"
    with pytest.raises(ValueError, match="toy cannot draft for toy: their tokenizers number other pieces"):
        ft.Engine(talker(), ft.Speculative(other))
    with Audited(talker(), ft.Speculative(talker(7)), kv_slots=64) as engine:
        engine.generate(PROMPT, max_tokens=4)


def test_without_tokenizers_vocabularies_are_of_one_size() -> None:
    with pytest.raises(ValueError, match="toy has 30 tokens, toy 31, and there are no tokenizers"):
        ft.Engine(Toy(vocabulary=31), ft.Speculative(Toy(vocabulary=30)))
    with Audited(Toy(vocabulary=31), ft.Speculative(Toy(vocabulary=31)), kv_slots=64) as engine:
        engine.generate([1], max_tokens=4)


def test_a_draft_model_without_a_head_is_refused(tmp_path: Any) -> None:
    from transformers import LlamaConfig, LlamaModel

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 101}
    LlamaModel(LlamaConfig(**shape)).save_pretrained(tmp_path / "backbone")
    target, decoder = tiny_llama(tmp_path / "llama"), ft.Speculative(ft.load(tmp_path / "backbone"), adaptive=False)
    with Audited(target, decoder, kv_slots=64) as engine, pytest.raises(ft.GenerationError, match="LM head: it drafts nothing"):
        engine.generate([1, 2], max_tokens=5)
    idle(decoder)


REFUSED: list[tuple[Callable[[Model], Any], type[Exception], str]] = [
    (lambda d: ft.Speculative(None), TypeError, "a model or a drafting decoder, not NoneType"),  # type: ignore[arg-type]
    (lambda d: ft.Speculative(ft.Autoregressive()), TypeError, "not Autoregressive"),  # type: ignore[arg-type]
    (lambda d: ft.Speculative("nano-draft"), TypeError, "not str"),  # type: ignore[arg-type]
    (lambda d: ft.Speculative([]), ValueError, "nothing to draft from"),
    (lambda d: ft.Speculative([d, 5]), TypeError, "not int"),  # type: ignore[list-item]
    (lambda d: ft.Speculative(d, rule="best"), ValueError, "rule='best': one of match, ratio, block, tree"),  # type: ignore[arg-type]
    (lambda d: ft.Speculative(d, tree=[]), ValueError, r"tree=\[\]"),
    (lambda d: ft.Speculative(d, tree=[2, 0]), ValueError, r"tree\[1\]=0"),
    (lambda d: ft.Speculative(d, tree=[2, 1.5]), TypeError, r"tree\[1\]=1.5"),  # type: ignore[list-item]
    (lambda d: ft.Speculative(d, tree=[8, 8]), ValueError, r"tree=\[8, 8\]: 72 nodes, at most 64"),
    (lambda d: ft.Speculative([d, ft.Lookahead()], rule="ratio"), ValueError, "one draft model and nothing else"),
    (lambda d: ft.Speculative([d, d], rule="block"), ValueError, "one draft model and nothing else"),
    (lambda d: ft.Speculative(ft.Lookahead(), rule="tree"), ValueError, "one draft model and nothing else"),
    (lambda d: ft.Speculative(ft.Speculative(d), rule="ratio"), ValueError, "one draft model and nothing else"),
    (lambda d: ft.Speculative(ft.Speculative(d, tree=[2, 2], rule="tree"), rule="ratio"), ValueError, "one draft model"),
    (lambda d: ft.Speculative(d, rule="ratio", adaptive=True), ValueError, "adaptive=False"),
    (lambda d: ft.Speculative(d, rule="tree", adaptive=True), ValueError, "adaptive=False"),
    (lambda d: ft.Speculative(d, rule="ratio", tree=[2, 1]), ValueError, r"judges chains; tree=\[2, 1\]"),
    (lambda d: ft.Speculative(d, rule="block", tree=[2]), ValueError, "judges chains"),
    (lambda d: ft.Speculative(d, 3, rule="tree", tree=[2, 2]), ValueError, "draft_tokens=3 cuts a tree of 6"),
]


@pytest.mark.parametrize(("build", "error", "message"), REFUSED)
def test_what_cannot_be_is_refused_when_it_is_built(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(talker(7))


def test_what_may_be_combined_is() -> None:
    draft = talker(7)
    assert ft.Speculative(draft).draft_tokens == 5
    assert ft.Speculative(draft, tree=[3, 2, 1]).draft_tokens == 15
    assert ft.Speculative(draft, tree=[1] * 100).draft_tokens == 100, "a chain may be long"
    assert ft.Speculative(draft).adaptive
    assert not ft.Speculative(draft, rule="ratio").adaptive
    assert [type(s).__name__ for s in ft.Speculative([draft, ft.Lookahead(), ft.PromptLookup()]).sources] == [
        "DraftModel", "History", "NGrams",
    ]  # fmt: skip
    assert all(ft.Speculative(draft, rule=rule).exact for rule in ("match", "ratio", "block", "tree"))
    assert isinstance(ft.Speculative(draft).sources[0], Source)
    hashed(3)
