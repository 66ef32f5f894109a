"""Prompts to ids with BOS exactly once, and streams whose pieces join to the text of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from wordings import (
    ALL,
    CHAT,
    KINDS,
    SPACED,
    byte_level,
    gemma,
    llama_2,
    metaspace,
    wordpiece,
)

from forethought.backend.text import Text, TextStream


def test_bos_exactly_once() -> None:
    text = byte_level(CHAT)
    begin = text.tokenizer.bos_token_id
    plain = text.encode("the end")
    assert plain[0] == begin
    assert plain.count(begin) == 1
    assert text.encode("<s>the end") == plain
    chat = text.encode([{"role": "user", "content": "hi"}])
    assert chat[0] == begin
    assert chat.count(begin) == 1
    assert text.decode(chat) == "[user]hi[me]"
    assert text.encode_continuation(" the end") == text.encode(" the end")[1:]
    assert text.encode("") == [begin]


def test_ids_are_taken_as_they_are() -> None:
    assert byte_level().encode([5, 6, 7]) == [5, 6, 7]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (7, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        (["one", "two"], TypeError, "chat prompt"),
        ([1, "two"], TypeError, "chat prompt"),
        ([{"role": "user"}], TypeError, "chat prompt"),
        ([{"role": "user", "content": "hi"}], ValueError, "no chat template"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        byte_level().encode(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode(kind: str) -> None:
    text = KINDS[kind]()
    for words in ("the cats", "a.") if kind == "word piece" else ("a cat", "The the 🦄 déjà vu\n\n", "日本"):
        if kind == "word piece":
            assert text.decode(text.encode(words)).replace(" .", ".") == words
        else:
            assert text.decode(text.encode(words)) == words


def test_specials_are_not_shown_and_end_nothing_early() -> None:
    text = byte_level()
    think = text.tokenizer.convert_tokens_to_ids("<think>")
    ids = [*text.encode("the")[1:], think, *text.encode(" the")[1:]]
    stream = TextStream(text)
    assert [stream.push([i]) for i in ids] == ["t", "he", "", " the"]


def test_half_a_character_is_held_back() -> None:
    text = byte_level()
    stream = TextStream(text)
    pieces = [stream.push([i]) for i in text.encode("a🦄b")[1:]]
    assert "".join(pieces) == "a🦄b"
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[1:3] == ["", ""]
    stream = TextStream(text)
    cut = text.encode("a🦄")[1:-1]
    shown = "".join(stream.push([i]) for i in cut)
    assert shown == "a"
    assert shown + stream.flush() == text.decode(cut)
    assert stream.flush() == ""


def slow(text: Text, before: list[int], ids: list[int]) -> str:
    """The definition, on the whole line: what decoding it shows beyond the prompt, whose last half character it may complete."""
    old, now = text.decode(before), text.decode([*before, *ids])
    return now[len(old) :] if now.startswith(old) else now[len(old) - 1 :]


@pytest.mark.parametrize("kind", ALL)
def test_a_text_behind_a_prompt_is_the_rest_of_the_whole_and_a_stream_joins_to_it(kind: str) -> None:
    """Whatever ids stand before, whatever ids a model emits, in whatever portions."""
    hypothesis = pytest.importorskip("hypothesis")
    some = hypothesis.strategies
    text = ALL[kind]()
    # Random bytes seldom make characters, so whole words are in the mix.
    words = [text.encode_continuation(word) for word in ("the", " the", "🦄", "é", "a cat", ".", "\ufffd", "\n\n", "  a")]
    one = some.integers(0, len(text.tokenizer) - 1)
    portion = some.one_of(some.sampled_from(words), some.lists(one, max_size=4), one.map(lambda i: [i] * 9))

    @hypothesis.given(some.lists(portion, max_size=20), some.lists(portion, max_size=12))
    def check(prompt: list[list[int]], portions: list[list[int]]) -> None:
        before, ids = ([i for part in parts for i in part] for parts in (prompt, portions))
        whole = text.decode_behind(before, ids)
        assert whole == slow(text, before, ids)
        for pushes in (portions, [[i] for i in ids], [ids]):
            stream = TextStream(text, before)
            shown = "".join(stream.push(part) for part in pushes)
            assert whole.startswith(shown)
            assert shown + stream.flush() == whole

    check()


@pytest.mark.parametrize("kind", ALL)
def test_decoding_is_the_tokenizers_own_but_for_what_is_cleaned_up(kind: str) -> None:
    text = ALL[kind]()
    for start in range(len(text.tokenizer) - 3):
        ids = list(range(start, start + 3))
        theirs = text.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if "\ufffd" not in theirs:
            assert text.decode(ids) == theirs


def test_bytes_are_read_as_anybody_reads_them() -> None:
    """An invalid byte spoils no neighbour, though it is one of a run of bytes."""
    for text in (metaspace(), llama_2(), gemma()):
        spelled = [text.tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in b"\xc3\xa9\xff\xf0\x9f\xa6\x84\xf0\x9f"]
        dot = text.tokenizer.convert_tokens_to_ids(".")
        assert text.decode([dot, *spelled]) == ".é\ufffd🦄\ufffd"
        assert text.decode([*spelled[:2], dot, *spelled[2:3], dot, *spelled[3:7]]) == "é.\ufffd.🦄"
        stream = TextStream(text, [dot])
        assert "".join(stream.push([i]) for i in spelled) + stream.flush() == "é\ufffd🦄\ufffd"


def test_the_first_space_is_there_and_the_prompts_end_counts() -> None:
    for kind in SPACED:
        text = ALL[kind]()
        a, colon = (text.tokenizer.convert_tokens_to_ids(token) for token in ("▁A", ":"))
        assert text.decode_behind([colon], [a]) == " A", kind
        assert TextStream(text, [colon]).push([a]) == " A", kind
    text = wordpiece()
    cat, s = (text.tokenizer.convert_tokens_to_ids(token) for token in ("cat", "##s"))
    assert (text.decode_behind([cat], [s]), text.decode_behind([cat], [cat])) == ("s", " cat")
    text = byte_level()
    unicorn = text.encode_continuation("🦄")
    assert text.decode_behind(unicorn[:2], unicorn[2:]) == "🦄"


@pytest.mark.parametrize("kind", ["byte level", "llama 2", "word piece cleaned up"])
@pytest.mark.parametrize("what", ["text", "one invalid byte", "specials"])
def test_a_token_costs_a_stream_the_same_however_long_it_grows(kind: str, what: str) -> None:
    text = ALL[kind]()
    one = {"text": text.encode_continuation("a")[-1], "specials": text.tokenizer.bos_token_id, "one invalid byte": 255}[what]
    if kind == "byte level" and what == "one invalid byte":
        one = text.encode_continuation("🦄")[-1]
    if kind == "word piece cleaned up":
        one = min(one, len(text.tokenizer) - 1)
    lengths: list[int] = []
    decode = text.decode
    text.decode = lambda ids: (lengths.append(len(ids)), decode(ids))[1]  # type: ignore[method-assign]
    stream = TextStream(text, [one] * 100)
    lengths.clear()
    for _ in range(500):
        stream.push([one])
    assert max(lengths, default=0) <= 80
    assert max(lengths[100:], default=0) <= 30
    assert len(lengths) <= 650


# ---- continuations -------------------------------------------------------------------------------------------------


GO_ON = ["A", " A", "16", " 16", "  16", ": a", "\n\n", " cat.", "cat", " ", "  "]


@pytest.mark.parametrize("kind", ["byte level", *SPACED, "letters"])
@pytest.mark.parametrize("prompt", ["Answer:", "a cat.", "a ", " a:", "a\n"])
def test_a_continuation_shows_itself_behind_the_prompt(kind: str, prompt: str) -> None:
    text = ALL[kind]()
    before = text.encode(prompt)
    for words in GO_ON:
        if "\n" in prompt + words and kind in ("space before the first", "space before all", "no space put", "unigram"):
            continue  # no pieces for it
        if "nswer" in prompt and kind in ("space before the first", "space before all", "no space put", "unigram"):
            before = text.encode("cats:")
        ids = text.encode_continuation(words, before)
        assert slow(text, before, ids) == words


def test_labels_with_and_without_a_space_are_one_token() -> None:
    text = llama_2()
    before = text.encode("a:")
    one = {word: text.tokenizer.convert_tokens_to_ids(word.replace(" ", "▁")) for word in ("A", " A", " 16")}
    assert {word: text.encode_continuation(word, before) for word in one} == {word: [i] for word, i in one.items()}


def test_what_cannot_be_put_behind_a_prompt_is_refused() -> None:
    text = wordpiece()
    before = text.encode("the")
    assert text.decode_behind(before, text.encode_continuation(" cat", before)) == " cat"
    for words in ("  cat", "dog", " dog"):
        with pytest.raises(ValueError, match=r"cannot be put behind this prompt.*reads it back"):
            text.encode_continuation(words, before)


def test_text_that_is_no_unicode_is_refused_with_its_place() -> None:
    text = byte_level()
    for call in (text.encode, text.encode_continuation, lambda words: text.encode_continuation(words, [5])):
        with pytest.raises(ValueError, match=r"surrogate.*character 2"):
            call("ab\udc80c")


def test_numbers_of_numpy_are_numbers_and_bools_are_not() -> None:
    text = byte_level()
    ids = text.encode([np.int64(5), np.int32(6), 7])  # type: ignore[list-item]
    assert ids == [5, 6, 7]
    assert {type(i) for i in ids} == {int}
    with pytest.raises(TypeError, match="True is no token id"):
        text.encode([5, True])
    for wrong in (b"ab", bytearray(b"ab")):
        with pytest.raises(TypeError, match="not byte"):
            text.encode(wrong)  # type: ignore[arg-type]
