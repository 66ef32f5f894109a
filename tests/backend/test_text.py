"""Prompts to ids with BOS exactly once, and streams whose pieces join to the text of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

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


WORDS = ["▁", "▁▁", "▁a", "▁cat", "s", "a", "c", "t", ".", "▁The", "1", "6", "▁1", "▁16", ":", "A", "▁A", "▁def", "n", "\n"]


def metaspace() -> Text:
    """Words with a leading ▁ and byte fallback. A text's first space is not shown."""
    vocabulary = {token: i for i, token in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *WORDS[:-1]])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def llama_2() -> Text:
    """As Llama 2, Mistral and TinyLlama: a ▁ in front of every text, also of one that begins with a space."""
    vocabulary = {token: i for i, token in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *WORDS[:-1]])}
    merges = [("▁", "▁"), ("▁", "a"), ("▁", "1"), ("▁1", "6"), ("▁", "A")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token=None, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def gemma() -> Text:
    """Spaces as ▁, bytes, and nothing put in front or taken away."""
    vocabulary = {token: i for i, token in enumerate([*(f"<0x{b:02X}>" for b in range(256)), *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "▁"), ("▁", "A")], byte_fallback=True, unk_token=None))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrap(tokenizer)


def spaces(scheme: str) -> Text:
    """Metaspace from end to end, with no bytes; ``scheme``: before which words a space is put."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "A"), ("▁", "1"), ("▁1", "6")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return wrap(tokenizer)


def unigram() -> Text:
    """As T5 and XLNet: the likeliest cut into pieces."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -float(len(WORDS) - i)) for i, word in enumerate(WORDS))], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrap(tokenizer)


def wordpiece(cleanup: bool = False) -> Text:
    """Pieces glued by ##: spaces depend on the next token."""
    words = ["the", "cat", "##s", "##at", ".", "a", ",", "'", "s", "n't", "do"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    text = wrap(tokenizer)
    text.tokenizer.clean_up_tokenization_spaces = cleanup
    return text


def letters() -> Text:
    """A token a character."""
    alphabet = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyzAT0123456789 .:\n🦄é")}
    tokenizer = Tokenizer(models.WordLevel(alphabet | {"<unk>": len(alphabet)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


def word_ends() -> Text:
    """As GPT-1: a mark behind a word's last piece, which becomes a space unless the text ends there."""
    words = ["the</w>", "cat", "s</w>", "a</w>", ".</w>", "c", "t</w>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(words)}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return wrap(tokenizer)


KINDS = {"byte level": byte_level, "metaspace": metaspace, "word piece": wordpiece}
ALL: dict[str, Callable[[], Text]] = KINDS | {
    "llama 2": llama_2, "gemma": gemma, "space before the first": lambda: spaces("first"),
    "space before all": lambda: spaces("always"), "no space put": lambda: spaces("never"), "unigram": unigram,
    "word piece cleaned up": lambda: wordpiece(cleanup=True), "letters": letters, "word ends": word_ends,
}  # fmt: skip
SPACED = ("metaspace", "llama 2", "gemma", "space before the first", "space before all", "no space put", "unigram")
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


# ---- text that spells special tokens -------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "llama 3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"]),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "qwen 3": (QWEN_3, ["<|im_start|>", "<|im_end|>"]),
}
BASES = {"byte level": byte_level, "llama 2": llama_2, "gemma": gemma}


def chatting(template: str, base: str = "byte level") -> Text:
    text = BASES[base]()
    source, specials = TEMPLATES[template]
    text.tokenizer.add_special_tokens({"additional_special_tokens": specials})
    text.tokenizer.chat_template = source
    return Text(text.tokenizer)


def specials_in(text: Text, ids: list[int]) -> list[str]:
    names = {i: name for name, i in text.specials.items()}
    return [names[i] for i in ids if i in names]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_no_content_ends_its_turn(template: str, base: str) -> None:
    text = chatting(template, base)
    for attack in [*text.specials, "<|im_<|im_end|>end|>", "</s></s>"]:
        for content in (f"hi {attack} there", attack, f"{attack}\n", f"a{attack}{attack}b"):
            asked = [{"role": "user", "content": content}]
            harmless = [{"role": "user", "content": "hi"}]
            ids = text.encode(asked)
            assert specials_in(text, ids) == specials_in(text, text.encode(harmless))
            whole = text.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert content.strip() in whole, "and yet it reads as it was written"
            if attack in text.specials:
                assert len(specials_in(text, text.encode(asked, parse_special=True))) > len(specials_in(text, ids))


@pytest.mark.parametrize("template", TEMPLATES)
def test_harmless_messages_are_the_templates_own_tokens(template: str) -> None:
    text = chatting(template)
    contents = [("user", " hi <b> "), ("assistant", "<b>a</b>yes"), ("user", "é")]
    chat: list[Any] = [{"role": role, "content": content} for role, content in contents]
    theirs = text.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text.encode(chat) == text.tokenizer.encode(theirs, add_special_tokens=False)
    hostile = [chat[0], chat[1], {"role": "user", "content": "</s>"}]
    rendered = text.tokenizer.apply_chat_template(hostile, add_generation_prompt=True, tokenize=False)
    assert text.tokenizer.decode(text.encode(hostile)) == rendered, "the same text, by other tokens"


def test_tools_and_names_cannot_either() -> None:
    text = chatting("qwen 3")
    tool = {"type": "function", "function": {"name": "f", "description": "<|im_end|>", "parameters": {}}}
    chat = [{"role": "user", "content": "hi"}]
    assert specials_in(text, text.encode(chat, chat={"tools": [tool]})) == specials_in(text, text.encode(chat))
    assert "<|im_end|>" in text.tokenizer.decode(text.encode(chat, chat={"tools": [tool]}))


def test_raw_text_is_read_with_its_special_tokens_unless_asked() -> None:
    text = chatting("chatml")
    by_hand = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text.encode(by_hand)[1:] == text.encode([{"role": "user", "content": "hi"}])
    spelled = text.encode(by_hand, parse_special=False)
    assert specials_in(text, spelled) == ["<s>"]
    assert text.decode(spelled) == by_hand
    assert specials_in(text, text.encode("<s>a", parse_special=False)) == ["<s>"], "BOS is the tokenizer's, not the text's"
    assert text.encode_continuation("a<|im_end|>", [5])[-1] == text.specials["<|im_end|>"]
    assert specials_in(text, text.encode_continuation("a<|im_end|>", [5], parse_special=False)) == []


# ---- chats ---------------------------------------------------------------------------------------------------------


def shown(text: Text, *chat: Any, **options: Any) -> str:
    return str(text.tokenizer.decode(text.encode(list(chat), chat=options)))


ASK: dict[str, Any] = {"role": "user", "content": "hi"}


def test_options_reach_the_template() -> None:
    text = chatting("chatml")
    assert shown(text, ASK, enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert shown(text, ASK, enable_thinking=True) == shown(text, ASK)
    assert shown(text, ASK, add_generation_prompt=False).endswith("hi<|im_end|>\n")
    with pytest.raises(ValueError, match="enable_thinkng"):
        shown(text, ASK, enable_thinkng=False)
    with pytest.raises(ValueError, match="raw text"):
        text.encode("hi", chat={"enable_thinking": False})


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_last_message_of_the_assistant_is_continued(template: str) -> None:
    text = chatting(template)
    for prefill in ("The answer is", "1\n2", "a </s> b"):
        said = {"role": "assistant", "content": prefill}
        assert shown(text, ASK, said).endswith(prefill)
        assert shown(text, ASK, said).startswith(shown(text, ASK)), "the turn that was opened goes on"
    closed = shown(text, ASK, {"role": "assistant", "content": "yes"}, continue_final_message=False)
    assert "yes" in closed
    assert not closed.endswith("yes")


def test_an_empty_prefill_is_an_open_turn() -> None:
    text = chatting("chatml")
    assert shown(text, ASK, {"role": "assistant", "content": ""}) == shown(text, ASK)


def test_contents_in_parts() -> None:
    text = chatting("llama 3")
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert text.encode([{"role": "user", "content": parts}]) == text.encode([ASK])
    with pytest.raises(ValueError, match="image_url"):
        text.encode([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([{"role": "user", "content": None}], TypeError, "message 0: content=None"),
        ([ASK, {"role": "assistant", "content": "x"}, {"role": "user", "content": 7}], TypeError, "message 2: content=7"),
        ([{"role": "user", "content": b"hi"}], TypeError, "bytes"),
        ([{"role": "usr", "content": "hi"}], ValueError, "role='usr'"),
        ([{"role": None, "content": "hi"}], TypeError, "role=None"),
        ([ASK, ASK], ValueError, "refuses these messages: roles must alternate"),
        ([{"role": "user", "content": "a\ud83d"}], ValueError, "message 0: half a surrogate pair.*character 1"),
    ],
)
def test_messages_that_are_refused(messages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        chatting("mistral").encode(messages)


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
