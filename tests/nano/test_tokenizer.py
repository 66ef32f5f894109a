"""The frozen tokenizer: lossless, single digits, and the same for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from forethought.nano import tokenizer as tok
from forethought.nano.mix import chat
from forethought.nano.problems import generate

FROZEN = "cd304614988989532834b15f5ab2f5354b22dbb27367431a7e1bcf67fe54b3b7"
TOKENIZER = tok.build()


def round_trip(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def test_frozen() -> None:
    """Trained weights depend on every id: this hash may never change."""
    content = json.loads(TOKENIZER.to_str())
    content.pop("version")
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == FROZEN


@given(st.text())
@settings(max_examples=400, deadline=None)
def test_lossless(text: str) -> None:
    assert round_trip(text) == text


@given(st.lists(st.sampled_from([*tok.pieces(), *tok.SPECIALS, *"0179 \n\t'\\{}▁é😀"]), max_size=12).map("".join))
@settings(max_examples=400, deadline=None)
def test_lossless_on_its_own_pieces(text: str) -> None:
    assert round_trip(text) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "▁▁", "a\r\n\tb", "don't", "<think></think>", "\x00\ufeff", "👩‍👩‍👧 ٣"]
)
def test_lossless_examples(text: str) -> None:
    assert round_trip(text) == text


def test_sizes_and_specials() -> None:
    assert TOKENIZER.get_vocab_size() == 1024
    assert len(set(tok.SPECIALS)) == len(tok.SPECIALS) == 64
    assert [TOKENIZER.token_to_id(t) for t in tok.SPECIALS] == list(range(64))


def test_digits_stand_alone() -> None:
    """Every number is one token a digit, whatever is before it, and no vocabulary entry holds a digit and more."""
    assert not [t for t in TOKENIZER.get_vocab() if len(t) > 1 and any(c.isdigit() for c in t) and t not in tok.SPECIALS]
    for before in ["", " ", "a ", "x", " = ", "(", ": ", "$", "\n"]:
        assert TOKENIZER.encode(before + "407", add_special_tokens=False).tokens[-3:] == ["4", "0", "7"]
    assert TOKENIZER.encode("12 + 7 = 19", add_special_tokens=False).tokens == ["1", "2", "Ġ+Ġ", "7", "Ġ=Ġ", "1", "9"]


def test_breaks_words_and_code() -> None:
    def tokens(text: str) -> list[str]:
        return TOKENIZER.encode(text, add_special_tokens=False).tokens

    assert tokens("\n\n\n") == ["ĊĊ", "Ċ"]
    assert tokens(".\n\nTom") == [".", "ĊĊ", "Tom"]
    assert tokens("def f(n):\n    return n") == ["def", "Ġf", "(", "n", "):", "Ċ", "ĠĠĠĠ", "return", "Ġn"]
    assert tokens(" \\boxed{7}.") == ["Ġ\\boxed{", "7", "}", "."]
    known = [len(tokens(p.question)) / len(p.question.split()) for p in (generate(5, i) for i in range(50))]
    assert sum(known) / len(known) < 1.7


def test_bos_exactly_once() -> None:
    bos = TOKENIZER.token_to_id(tok.BOS)
    tokenizer = tok.load()
    assert tokenizer("Tom has 3").input_ids.count(bos) == 1
    chatted = tokenizer.apply_chat_template([{"role": "user", "content": "Tom has 3"}], add_generation_prompt=True)["input_ids"]
    assert chatted.count(bos) == 1
    assert tokenizer.decode(chatted) == chat("Tom has 3")


def test_chat_template() -> None:
    messages = [{"role": r, "content": c} for r, c in [("system", "S"), ("user", "U"), ("assistant", "A")]]
    text = tok.load().apply_chat_template(messages, tokenize=False)
    assert text == "<bos><|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|>"
    with pytest.raises(Exception, match="unknown role tool"):
        tok.load().apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_auto_tokenizer_reads_what_is_saved(tmp_path: Path) -> None:
    tok.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>\nTom has  3 apples.\n</think>\nThe answer is \\boxed{3}.<|end|>"
    ids = loaded(text, add_special_tokens=False).input_ids
    assert loaded.decode(ids) == text
    # The think tags are part of the text; the end token is not.
    assert loaded.decode(ids, skip_special_tokens=True) == text.removesuffix("<|end|>")
    assert (loaded.eos_token, loaded.bos_token, loaded.pad_token) == (tok.END, tok.BOS, tok.PAD)
    assert ids == TOKENIZER.encode(text, add_special_tokens=False).ids
