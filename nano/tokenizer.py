"""The frozen tokenizer of the nano family: 64 specials, 256 single bytes, and 704 whole pieces; 1024 ids in all.

Text is cut by one regular expression (below). A piece that is in the vocabulary whole is one token, any other is spelled byte
by byte: there are no merges, so it is lossless on any UTF-8 and nothing depends on training. A digit is always a token of its
own; the space before a number stands alone, or belongs to the sign before it (`` + ``, ``: ``). A blank line is one token.
Nothing here may ever change: weights in the world were trained with these ids. New needs use the reserved specials.

Encoding raw text puts ``<bos>`` in front; the chat template writes ``<bos>`` itself, so its rendering is to be encoded with
``add_special_tokens=False`` (``apply_chat_template(tokenize=True)`` does).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, END, SYSTEM, USER, ASSISTANT = "<pad>", "<bos>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
THINK, THINK_END = "<think>", "</think>"
STEP, YES, NO, UNSURE = "<|step|>", "<|yes|>", "<|no|>", "<|unsure|>"
SCORES = [f"<|score_{i}|>" for i in range(10)]
THREADS = ["<|thread|>", "<|/thread|>", "<|join|>", *(f"<|worker_{i}|>" for i in range(8))]
_NAMED = [PAD, BOS, END, SYSTEM, USER, ASSISTANT, THINK, THINK_END, STEP, YES, NO, UNSURE, *SCORES, *THREADS]
SPECIALS = [*_NAMED, *(f"<|reserved_{i}|>" for i in range(64 - len(_NAMED)))]

MAX_LENGTH = 2048

# One alternative a line, first match wins; what none matches is a piece too (a lone space before a digit, say).
_PIECES = "|".join(
    [
        r"\n\n|\n",
        r"(?<=\n) +",  # the indentation of a line, whole
        r" [-+*/=] (?=\d)|: (?=\d)",  # a sign takes the space before a number
        r"\d",
        r" ?\\boxed\{",
        r"'s\b",
        r" ?[A-Za-z]+",
        r" ?[^\sA-Za-z\d\\']+",
    ]
)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_NAMES = (
    "Tom Sam Ben Leo Max Jack Adam Omar Ravi Paul Noah Luke Hugo Ivan Carl "
    "Mia Ana Eva Lily Rosa Nina Zoe Emma Lucy Sara Kate Ruth Jane Maya Olga"
)
_MATHS = """
a again all also among amount an and answer any apples are as at away back bags balls baskets be beads been before books
both boxes but buttons buy buys by cakes can candies cards chairs check coins cookies correct correctly cost costs count
crates cups day days difference divide divided do does dollars double doubles each earn earns eggs eight enough equal
equally every everything fewer find finds first five flowers for four friend friends from game gave get gets gift give gives
go got had half has hats have he her here him his hour hours how if in into is it its jars just kilos lamps last least
leaves left less let likes long loses lunch made make makes many marbles me means miles minus minutes money month more most
much multiply must new next nine no not now number nuts of off on once one only or oranges other out over packs part parts
pay pays pears pencils pens people percent photos plates plus price put rate read remaining remain rest result right room
same saves second see sells seven share shares she shells shirts should shop since six small so sold some spend spends spent
stamps start starts step steps stickers still stones store sum take takes ten than that the their them then there these they
thing think third this three tickets time times to together total toys triple triples twice two until up use used uses was
water way we week weeks went were what when where which who whole will wins with without word work works worth would wrong
year years yes you your zero
"""
_STARTS = (
    "A Adding After All An And Answer At But Check Correct Each Find First Good Half He Hmm How I If In Is It Let Next No Now "
    "Question Second She Shared So Sold Step Taking That The Then There They This Together Total Wait We What With Write Yes You"
)
_CODE = """
False None True abs and append assert bool break chr continue count def dict elif else enumerate except for from
function if import in int is isinstance items join keys lambda len list lower map max min not numbers or ord pass pop
print range raise result return reverse reversed returns round self set sorted sort split str strip string sum total
tuple upper values value while with words yield zip
"""
_IDENTIFIERS = (
    "acc arr char cur even fib gcd item key left lst nums odd out prime right start stop temp text val digits check add swap"
)
_SIGNS = [
    *(f" {sign} " for sign in "+-*/="),
    ": ",
    *(" " + sign for sign in "+ - * / = == != < > <= >= += -= *= // //= ** % -> & |".split()),
    *' (| [| {| $| ->| #|==|!=|<=|>=|//|**|->|+=|-=|"""|...|```'.split("|"),
    *"() ): ()): )): [] {} ]) )) ), ). ([ ], ]: (): [: [::- :: (-".split(),
    *("\n", "\n\n", "\\boxed{", " \\boxed{", "'s"),
    *(" " * n for n in (2, 4, 8, 12, 16)),
]


def pieces() -> list[str]:
    """The whole-piece part of the vocabulary, in the order of its ids; single bytes are not among them."""
    both = " ".join([_NAMES, _STARTS, _CODE, _IDENTIFIERS]).split()
    spaced = [*_MATHS.split(), *both, *"abcdefghijklmnopqrstuvwxyz"]
    every = dict.fromkeys([*_SIGNS, *(" " + word for word in spaced), *both, "think"])
    return [piece for piece in every if len(piece.encode()) > 1]


def build() -> Tokenizer:
    """The tokenizer itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(part for part, _ in to_bytes.pre_tokenize_str(piece)) for piece in pieces()]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet, *spelled])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_PIECES), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    # The think tags are part of the answer's text: they stay when specials are skipped.
    tokenizer.add_tokens([AddedToken(t, special=t not in (THINK, THINK_END), normalized=False) for t in SPECIALS])
    return tokenizer


def load() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers sees it."""
    from transformers import PreTrainedTokenizerFast

    settings: dict[str, Any] = {"clean_up_tokenization_spaces": False, "model_max_length": MAX_LENGTH, "padding_side": "left"}
    return PreTrainedTokenizerFast(
        tokenizer_object=build(), bos_token=BOS, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, **settings
    )


def save(folder: Path) -> None:
    """Writes what ``AutoTokenizer.from_pretrained(folder)`` reads."""
    load().save_pretrained(folder)
