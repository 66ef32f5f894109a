"""A checkpoint's own decoding settings, as transformers would take them: applied, or refused by name.

They stand in ``generation_config.json``; a checkpoint from before that file has them in ``config.json``. What changes no
text of one sequence (caches, beams' lengths, assistants, outputs) is passed over, and so is ``max_length``, which counts the
prompt. What transformers itself adds to settings that sample (``top_k`` 50) is not the checkpoint's, and is left out. An end
token that they do not name is the config's or the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .model import Defaults
from .request import Sampling

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
"""Applied where the settings say ``do_sample``, as in transformers."""
ALWAYS = ("do_sample", "repetition_penalty", "max_new_tokens", "min_new_tokens", "suppress_tokens", "eos_token_id")
REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "diversity_penalty": (0,), "penalty_alpha": (0,), "dola_layers": (),
    "guidance_scale": (1,), "watermarking_config": (), "sequence_bias": (), "bad_words_ids": ([],),
    "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,), "min_length": (0,),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "forced_decoder_ids": ([],), "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (), "token_healing": (False,), "constraints": ([],), "force_words_ids": ([],),
    "stop_strings": ([],), "max_time": (),
}  # fmt: skip
"""What changes text and is not done here: the values that leave text alone, beside none."""
REFUSED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
}  # fmt: skip
"""The same, where the settings say ``do_sample``."""
NAMES = frozenset({*SAMPLING, *ALWAYS, *REFUSED, *REFUSED_SAMPLING})


def decoding(
    said: Mapping[str, Any], ends: Any, vocabulary: int, *, ignore: Collection[str] = (), source: str = "this model"
) -> Defaults:
    """``said``: settings by transformers' names. ``ends``: end tokens where they name none. ``ignore``: settings left out.

    Raises ``ValueError`` with its name for a setting that is not applied here, has a bad value, or cannot be ignored.
    """
    if isinstance(ignore, str):
        raise TypeError(f"ignore={ignore!r}: a list of names, [{ignore!r}]")
    ignore = set(ignore)
    if unknown := sorted(ignore - NAMES):
        raise ValueError(f"ignore: {unknown[0]!r} is no setting that changes text; there is {', '.join(sorted(NAMES))}")
    said = {name: value for name, value in said.items() if value is not None and name not in ignore}
    sampled = bool(said.get("do_sample"))
    for name, neutral in (REFUSED | (REFUSED_SAMPLING if sampled else {})).items():
        if name in said and said[name] not in neutral:
            raise ValueError(
                f"{source} is to be decoded with {name}={said[name]!r}, which is not done here: "
                f"take it out of its settings, or leave it out, load(…, ignore=[{name!r}])"
            )
    own = said if sampled else {}
    found = Defaults(
        temperature=own.get("temperature", 1.0 if sampled else None),
        top_k=own.get("top_k"), top_p=own.get("top_p"), min_p=own.get("min_p"),
        repetition_penalty=said.get("repetition_penalty"),
        max_tokens=said.get("max_new_tokens"), min_tokens=said.get("min_new_tokens", 0),
        stop_ids=_ids("eos_token_id", said.get("eos_token_id", ends), vocabulary, source),
        suppressed=_ids("suppress_tokens", said.get("suppress_tokens"), vocabulary, source),
    )  # fmt: skip
    try:
        Sampling.resolve(found, {})
    except (TypeError, ValueError) as e:
        raise type(e)(f"{source} is to be decoded with {e}") from e
    for name, least in (("max_tokens", 1), ("min_tokens", 0)):
        value = getattr(found, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            said_as = name.replace("_", "_new_")
            raise ValueError(f"{source} is to be decoded with {said_as}={value!r}: a whole number from {least}")
    return found


def _ids(name: str, said: Any, vocabulary: int, source: str) -> tuple[int, ...]:
    """Token ids; -1 and others outside the vocabulary stand for none, as in transformers."""
    given = [] if said is None else said if isinstance(said, list | tuple) else [said]
    for i in given:
        if not isinstance(i, int) or isinstance(i, bool):
            raise ValueError(f"{source} says {name}={said!r}: token ids are whole numbers")
    return tuple(i for i in given if 0 <= i < vocabulary)

