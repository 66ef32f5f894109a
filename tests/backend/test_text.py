"""Prompts to ids with BOS exactly once, and streams whose pieces join to the text of the whole."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from forethought.backend.text import Text, TextStream

SPECIALS = ["<s>", "</s>", "<think>"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def wrap(tokenizer: Tokenizer, template: str | None = None) -> Text:
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(SPECIALS)
    begin = tokenizer.token_to_id("<s>")
    post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.post_processor = post if tokenizer.post_processor is None else processors.Sequence([tokenizer.post_processor, post])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return Text(fast)


def byte_level(template: str | None = None) -> Text:
    """One token a byte, and a few of more: as GPT-2, Llama 3 and Qwen."""
    vocabulary = {char: i for i, char in enumerate([*BYTES, "Ġt", "he", "Ġthe", "ð", "ðŁ"]) if i < 256 or char not in BYTES}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("ð", "Ł")]
    vocabulary = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, template)


def metaspace() -> Text:
    """Words with a leading ▁ and byte fallback: as Llama 2 and Gemma. A text's first space is not shown."""
    words = ["▁", "▁a", "▁cat", "s", "a", "c", "t", ".", "▁The"]
    vocabulary = {token: i for i, token in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def wordpiece() -> Text:
    """Pieces glued by ##: spaces depend on the next token."""
    words = ["the", "cat", "##s", "##at", ".", "a"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return wrap(tokenizer)


KINDS = {"byte level": byte_level, "metaspace": metaspace, "word piece": wordpiece}
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[me]{% endif %}"
)


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


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_the_whole(kind: str) -> None:
    """Whatever ids a model emits, in whatever portions."""
    hypothesis = pytest.importorskip("hypothesis")
    some = hypothesis.strategies
    text = KINDS[kind]()
    # Random bytes seldom make characters, so whole words are in the mix.
    words = [text.encode_continuation(word) for word in ("the", " the", "🦄", "é", "a cat", ".", "\ufffd", "\n\n")]
    # Byte fallback takes back whole characters when an invalid byte follows them: there, characters are not cut.
    first = 256 if kind == "metaspace" else 0
    portion = some.one_of(some.sampled_from(words), some.lists(some.integers(first, len(text.tokenizer) - 1), max_size=4))

    @hypothesis.given(some.lists(portion, max_size=12))
    def check(portions: list[list[int]]) -> None:
        stream = TextStream(text)
        shown = "".join(stream.push(ids) for ids in portions)
        whole = text.decode([i for ids in portions for i in ids])
        assert whole.startswith(shown)
        assert shown + stream.flush() == whole

    check()
