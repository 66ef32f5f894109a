"""Small tokenizers of every kind, with and without chat templates."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from forethought.backend.text import Text

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
