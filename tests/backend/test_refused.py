"""What is asked for and cannot be had is refused at every door, in so many words, before any work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import TEXT_VOCABULARY, Audited, Toy, byte_text, slow_generate

import forethought as ft

VOCABULARY = 31


def toy_model(**options: Any) -> Toy:
    return Toy(vocabulary=VOCABULARY, **options)


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([[]], {}, ValueError, "empty prompt"),
    ([1] * 70, {}, ValueError, "prompt of 70 tokens leaves no room: 80 positions, a pool of 64"),
    ([1] * 40, {"max_tokens": 25}, ValueError, r"40 prompt tokens \+ max_tokens=25 can need 65 slots of a pool of 64"),
    ([1] * 40, {"max_tokens": 41}, ValueError, "exceed the model's 80 positions"),
    ([1, 31], {}, ValueError, "token id 31 outside a vocabulary of 31"),
    ([1, -1], {}, ValueError, "token id -1"),
    ([1, 2.0], {}, TypeError, "2.0"),
    ([1, None], {}, TypeError, "None"),
    ([True], {}, TypeError, "True"),
    (5, {}, TypeError, "int"),
    (None, {}, TypeError, "NoneType"),
    ([5.0], {}, TypeError, "float"),
    ("text", {}, ValueError, "no tokenizer"),
    ([{"role": "user", "content": "hi"}], {}, ValueError, "no tokenizer"),
    ([1], {"n": 0}, ValueError, "n=0"),
    ([1], {"n": 2.0}, TypeError, "n=2.0"),
    ([1], {"max_tokens": 0}, ValueError, "max_tokens=0"),
    ([1], {"max_tokens": 2.5}, TypeError, "max_tokens=2.5"),
    ([1], {"max_tokens": 4, "min_tokens": 5}, ValueError, "min_tokens=5"),
    ([1], {"min_tokens": -1}, ValueError, "min_tokens=-1"),
    ([1], {"seed": "7"}, TypeError, "seed='7'"),
    ([1], {"temperature": -0.1}, ValueError, "temperature=-0.1"),
    ([1], {"temperature": float("nan")}, ValueError, "temperature=nan"),
    ([1], {"temperature": "hot"}, TypeError, "temperature='hot'"),
    ([1], {"temperature": 1e-30}, ValueError, "temperature=1e-30"),
    ([1], {"top_k": -1}, ValueError, "top_k=-1"),
    ([1], {"top_k": 2.5}, TypeError, "top_k=2.5"),
    ([1], {"top_p": 0.0}, ValueError, "top_p=0.0"),
    ([1], {"top_p": 1.1}, ValueError, "top_p=1.1"),
    ([1], {"min_p": -0.1}, ValueError, "min_p=-0.1"),
    ([1], {"repetition_penalty": 0}, ValueError, "repetition_penalty=0"),
    ([1], {"presence_penalty": float("inf")}, ValueError, "presence_penalty=inf"),
    ([1], {"logit_bias": {31: 1.0}}, ValueError, "logit_bias: token id 31"),
    ([1], {"logit_bias": {-1: 1.0}}, ValueError, "logit_bias: token id -1"),
    ([1], {"logit_bias": {"1": 1.0}}, TypeError, "'1'"),
    ([1], {"logit_bias": {1: float("nan")}}, ValueError, "logit_bias of token 1: bias=nan"),
    ([1], {"logit_bias": {5: "1"}}, TypeError, "logit_bias of token 5: bias='1'"),
    ([1], {"logit_bias": {5: True}}, TypeError, "bias=True"),
    ([1], {"logit_bias": {5: 1e39}}, ValueError, r"bias=1e\+39"),
    ([1], {"logit_bias": {True: 1.0}}, TypeError, "logit_bias: True"),
    ([1], {"logit_bias": {b"a": 1.0}}, TypeError, "logit_bias: b'a'"),
    ([1], {"logit_bias": {2.0: 1.0}}, TypeError, "logit_bias: 2.0"),
    ([1], {"logit_bias": {None: 1.0}}, TypeError, "logit_bias: None"),
    ([1], {"n": 10**9}, ValueError, "n=1000000000: at most 65536"),
    ([1], {"n": True}, TypeError, "n=True"),
    ([1], {"n": "2"}, TypeError, "n='2'"),
    ([1], {"first": 1 << 63}, ValueError, "first=9223372036854775808"),
    ([1], {"seed": 1 << 64}, ValueError, "seed=18446744073709551616"),
    ([1], {"seed": 1.5}, TypeError, "seed=1.5"),
    ([1], {"max_tokens": "5"}, TypeError, "max_tokens='5'"),
    ([1], {"max_tokens": 10**12}, ValueError, "max_tokens=1000000000000 exceed"),
    ([1], {"min_tokens": 1.5}, TypeError, "min_tokens=1.5"),
    ([1], {"include_stop": "no"}, TypeError, "include_stop='no'"),
    ([1], {"ignore_eos": 1}, TypeError, "ignore_eos=1"),
    ([1], {"temperature": True}, TypeError, "temperature=True"),
    ([1], {"temperature": 10**400}, ValueError, "temperature=inf"),
    ([1], {"presence_penalty": 1e39}, ValueError, r"presence_penalty=1e\+39"),
    ([1], {"repetition_penalty": 1e-300}, ValueError, "repetition_penalty=1e-300"),
    ([1], {"top_k": True}, TypeError, "top_k=True"),
    ([1], {"logit_bias": [1, 2]}, TypeError, "logit_bias"),
    ([1], {"stop": 1.5}, TypeError, "stop=1.5"),
    ([1], {"stop": [b"x"]}, TypeError, "b'x'"),
    ([1], {"stop": [True]}, TypeError, "True"),
    ([1], {"stop": 31}, ValueError, "stop: token id 31"),
    ([1], {"stop": "x"}, ValueError, "no tokenizer"),
    ([1], {"stop": ""}, ValueError, "empty"),
    ([1], {"logprobs": "row"}, ValueError, "logprobs='row'"),
    ([1], {"certainty": "raw"}, TypeError, "certainty='raw'"),
    ([1], {"temprature": 1.0}, TypeError, "'temprature'"),
]


@pytest.mark.parametrize(("prompt", "options", "error", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_bad_input_is_refused_at_every_door_before_any_work(
    prompt: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Audited(toy_model(positions=80), kv_slots=64) as engine:
        with pytest.raises(error, match=message):
            engine.generate(prompt, **options)
        with pytest.raises(error, match=message):
            asyncio.run(engine.agenerate(prompt, **options))
        one = prompt[0] if prompt in ([[]], [5.0]) else prompt  # written as lists, or they would be no prompts but none at all
        for door in (engine.stream, engine.astream):
            with pytest.raises(error, match=message):
                door(one, **options)
        with pytest.raises(error, match=message):
            engine.generate([[1], one], **options)
        assert engine.cost.forwards == 0, "one bad prompt in a list, and none is begun"
        assert len(engine.generate([1], max_tokens=3)[0].token_ids) == 3


def test_a_backbone_writes_and_scores_nothing(checkpoint: Callable[..., Path]) -> None:
    model = ft.load(checkpoint("llama", headless=True))
    with Audited(model, kv_slots=64) as engine:
        with pytest.raises(ft.GenerationError, match="without an LM head"):
            engine.generate([1, 2], max_tokens=3)
        with pytest.raises(ValueError, match="without an LM head"):
            engine.score([1, 2], [[3]])


def test_a_stream_is_of_one_sample() -> None:
    with Audited(toy_model(), kv_slots=64) as engine:
        for door in (engine.stream, engine.astream):
            with pytest.raises(ValueError, match="n=2"):
                door([1], n=2)


def test_messages_need_a_template_and_a_known_shape() -> None:
    text = byte_text()
    with Audited(Toy(vocabulary=TEXT_VOCABULARY, text=text), kv_slots=64) as engine:
        for wrong in ([{"role": "user"}], [[1, "a"]], [{"role": "user", "content": "a"}, 3], [object()]):
            with pytest.raises(TypeError):
                engine.generate(wrong)
        text.tokenizer.chat_template = None
        with pytest.raises(ValueError, match="no chat template"):
            engine.generate([{"role": "user", "content": "hi"}])


def test_the_whole_of_a_small_pool_can_be_asked_for() -> None:
    toy = toy_model(positions=64)
    with Audited(toy, kv_slots=64) as engine:
        assert engine.generate([1] * 40, max_tokens=24)[0].token_ids == slow_generate(toy.rule, [1] * 40, 24)
        assert engine.generate([1] * 63, max_tokens=1)[0].token_ids == slow_generate(toy.rule, [1] * 63, 1)
