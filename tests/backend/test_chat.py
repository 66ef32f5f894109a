"""Chats by their templates: no content can end its turn, options and parts of contents, answers that are begun."""

from __future__ import annotations

from typing import Any

import pytest
from wordings import (
    byte_level,
    gemma,
    llama_2,
)

from forethought.backend.text import Text

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
    tool["function"] |= {"description": "", "parameters": {"type": "object", "properties": {"<|im_end|>": {"type": "string"}}}}
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
    with pytest.raises(ValueError, match="token ids"):
        text.encode([5, 6], chat={"enable_thinking": False})
    for unknown in ("tools", "documents"):
        with pytest.raises(ValueError, match=f"knows no '{unknown}'"):
            shown(text, ASK, **{unknown: [{"a": 1}]})
    with pytest.raises(ValueError, match="refuses these messages"):
        chatting("qwen 3").encode([ASK], chat={"tools": [lambda a: a]})


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
