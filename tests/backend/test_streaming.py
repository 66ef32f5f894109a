"""Text as it comes: pieces that join to the whole, stops in every shape, and leaving before the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from lab import EOS, TEXT_VOCABULARY, Audited, Toy, byte_text, reciting, slow_generate, spell

import forethought as ft

PROMPT = [1, 2]


def recite(*parts: str | bytes | int, **options: Any) -> tuple[ft.Completion, list[str]]:
    """What a model that writes ``parts`` gives, and the pieces of the same as a stream."""
    toy = reciting(PROMPT, spell(*parts))
    with Audited(toy, kv_slots=400) as engine:
        run: dict[str, Any] = {"max_tokens": len(spell(*parts)) + 3, **options}
        [whole] = engine.generate(PROMPT, **run)
        pieces = list(engine.stream(PROMPT, **run))
    assert [piece.completion is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    last = pieces[-1].completion
    assert last is not None
    assert (last.text, last.token_ids, last.stop_reason) == (whole.text, whole.token_ids, whole.stop_reason)
    assert "".join(map(str, pieces)) == whole.text
    assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids
    return whole, [piece.text for piece in pieces]


# ---- stops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "stop", "text", "used"),
    [
        (["abcSTOPxyz"], "STOP", "abc", 7),  # a byte at a time
        (["a", b"he", b"ll", "o!"], "hello", "a", 4),  # across tokens of several characters
        (["a", b"hell", b"lo"], "llo", "ahel", 3),  # from the middle of one
        (["a", b"END. Then", "b"], "END.", "a", 2),  # inside one token, with more text behind it
        (["a", b"END. Then", "b"], "D. T", "aEN", 2),
        (["xaab", b"ab", "c"], "aabab", "x", 5),  # a false start first
        (["sto", b"STOP"], "STOP", "sto", 4),
        (["STOP"], "STOP", "", 4),  # nothing before
        ([b"STOP"], "S", "", 1),
        (["über ", "ü", "!"], "rü", "über ü!...", None),  # not there
        (["ab \u00e9t\u00e9"], "\u00e9", "ab ", 5),  # two bytes, two tokens
        (["a\U0001f600b"], "\U0001f600b", "a", 6),
        ([b"STOP\xe2", 0x82, 0xAC], "STOP", "", 3),  # seen once the character it shares a token with is whole
        ([b"STOP\xe2", 0x82, 0xAC], "P\u20ac", "STO", 3),
        (["one", b"\n\n", "two"], "\n\n", "one", 4),
    ],
)
def test_a_stop_string_ends_the_text_before_it(parts: list[str | bytes], stop: str, text: str, used: int | None) -> None:
    out, _ = recite(*parts, stop=stop)
    assert out.text == text
    if used is None:
        assert (out.finish_reason, out.stop_reason) == ("length", None)
        return
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    assert out.token_ids == spell(*parts)[:used], "the tokens that completed the stop are there"
    assert recite(*parts, stop=stop, include_stop=True)[0].text == text + stop


def test_the_stop_that_begins_first_counts() -> None:
    assert recite(b"END. Then", stop=["Then", "D."])[0].stop_reason == "D."
    assert recite("xabcd", stop=["bcd", "abc"])[0].stop_reason == "abc", "complete before the other"
    assert recite("xab", b"bc", stop=["abbc", "bb"])[0].text == "x", "both complete in the same token"
    out, _ = recite("1234", stop=["9", ord("3")])
    assert (out.text, out.stop_reason, out.token_ids) == ("12", ord("3"), list(b"123"))
    assert recite("1234", stop=["9", ord("3")], include_stop=True)[0].text == "123"


def test_a_stop_id_and_a_stop_string_can_be_told_apart() -> None:
    string, _ = recite("ab!", stop="!")
    number, _ = recite("ab!", stop=ord("!"))
    assert (string.text, number.text) == ("ab", "ab")
    assert isinstance(string.stop_reason, str)
    assert isinstance(number.stop_reason, int)


def test_special_tokens_are_in_the_ids_and_not_in_the_text() -> None:
    out, _ = recite("ab", EOS, "c", stop=EOS)
    assert (out.text, out.token_ids) == ("ab", [*b"ab", EOS])
    through, _ = recite("ab", EOS, "c", max_tokens=4)
    assert (through.text, through.token_ids) == ("abc", [*b"ab", EOS, ord("c")])


def test_stop_strings_count_from_min_tokens_on() -> None:
    assert recite("ab!cd!ef", stop="!", min_tokens=2)[0].text == "ab"
    assert recite("ab!cd!ef", stop="!", min_tokens=3)[0].text == "ab"
    assert recite("ab!cd!ef", stop="!", min_tokens=4)[0].text == "ab!cd"
    assert recite("ab!!!ef", stop="!!", min_tokens=5)[0].text == "ab!", "complete with the fifth token"
    assert recite("abxycd", stop=["bxy", "zzzzzzzz"], min_tokens=5)[0].text == "abxycd...", "complete with the fourth"


def test_a_stop_in_text_that_was_held_back_still_counts_at_the_end() -> None:
    """The last token ends in half a character, so its text is only known to be over when generation is."""
    out, _ = recite("ab", b"STOP\xe2", stop="STOP", max_tokens=3)
    assert (out.text, out.finish_reason, out.stop_reason) == ("ab", "stop", "STOP")
    cut, _ = recite("ab", b"STOP\xe2", EOS, stop=["STOP", EOS])
    assert (cut.text, cut.stop_reason) == ("ab", "STOP")


# ---- pieces --------------------------------------------------------------------------------------------------------


def test_pieces_never_show_half_a_character_or_what_a_stop_takes_back() -> None:
    text = "naïve \U0001f600 ST STO € end"
    out, pieces = recite(text, stop="STOP")
    assert out.text == text + "..."
    shown = ""
    for piece in pieces[:-1]:
        shown += piece
        assert "\ufffd" not in piece
        assert out.text.startswith(shown)
        assert not shown.endswith(("S", "ST", "STO")), "it could still begin the stop"
    assert len([piece for piece in pieces if piece]) > 10, "and yet it streams"
    assert "e" in pieces, "nothing is held that begins no stop"


def test_any_bytes_at_all_join_to_the_text() -> None:
    """A random model over bytes writes mostly broken UTF-8."""
    toy = Toy(vocabulary=TEXT_VOCABULARY, text=byte_text())
    with Audited(toy, kv_slots=400) as engine:
        for seed in range(12):
            stop: list[str] = [["a"], ["ab", "\ufffd\ufffd"], []][seed % 3]
            run: dict[str, Any] = {"max_tokens": 60, "temperature": 2.0, "seed": seed, "stop": stop}
            pieces = list(engine.stream([seed], **run))
            [whole] = engine.generate([seed], **run)
            assert "".join(map(str, pieces)) == whole.text
            assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids
            if not whole.stop_reason:
                assert whole.text == byte_text().decode(whole.token_ids)
            assert all(s not in whole.text for s in stop)


def test_a_stream_without_a_tokenizer_is_of_ids() -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=400) as engine:
        pieces = list(engine.stream([1, 2], max_tokens=10))
        assert [i for piece in pieces for i in piece.token_ids] == slow_generate(toy.rule, [1, 2], 10)
        assert {piece.text for piece in pieces} == {""}


def test_tokens_come_one_by_one() -> None:
    toy, gate = Toy(vocabulary=31), threading.Semaphore(0)
    toy.before = lambda batch: None if gate.acquire(timeout=20) else pytest.fail("nobody asked for a token")
    with Audited(toy, kv_slots=400) as engine:
        stream = engine.stream([1, 2], max_tokens=5)
        expected = slow_generate(toy.rule, [1, 2], 5)
        for i in range(5):
            gate.release()
            assert next(stream).token_ids == [expected[i]]
        assert next(stream, None) is None


def test_an_awaited_stream_gives_the_same() -> None:
    toy = reciting(PROMPT, spell("abc", b"END. Then"))

    async def main(engine: ft.Engine) -> Any:
        return [piece async for piece in engine.astream(PROMPT, max_tokens=20, stop="END")]

    with Audited(toy, kv_slots=400) as engine:
        assert "".join(map(str, asyncio.run(main(engine)))) == "abc"


def test_streams_run_side_by_side() -> None:
    toy = Toy(vocabulary=31)

    async def read(engine: ft.Engine, i: int) -> list[int]:
        return [t async for piece in engine.astream([i, i], max_tokens=20, temperature=1.0, seed=i) for t in piece.token_ids]

    async def main(engine: ft.Engine) -> Any:
        return await asyncio.gather(*(read(engine, i) for i in range(20)))

    with Audited(toy, kv_slots=2000) as engine:
        assert asyncio.run(main(engine)) == [slow_generate(toy.rule, [i, i], 20, temperature=1.0, seed=i) for i in range(20)]
        assert engine.cost.forwards < 400, "they share calls"


# ---- leaving early -------------------------------------------------------------------------------------------------


def idle(engine: ft.Engine) -> bool:
    """Whether everything stops soon."""
    for _ in range(2000):
        if engine._call(lambda: not engine._runner.scheduler.running).result():
            return True
        time.sleep(0.002)
    return False


def leave_by_break(engine: ft.Engine) -> None:
    for _ in engine.stream([1, 2], max_tokens=3000):
        break


def leave_by_close(engine: ft.Engine) -> None:
    stream: Any = engine.stream([1, 2], max_tokens=3000)
    next(stream)
    stream.close()


def leave_by_error(engine: ft.Engine) -> None:
    def fail(piece: ft.Piece) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(map(fail, engine.stream([1, 2], max_tokens=3000)))


def leave_before_it_began(engine: ft.Engine) -> None:
    engine.stream([1, 2], max_tokens=3000)
    stream: Any = engine.stream([1, 2], max_tokens=3000)
    stream.close()


def leave_the_loop(engine: ft.Engine) -> None:
    async def main() -> None:
        async for _ in engine.astream([1, 2], max_tokens=3000):
            break

    asyncio.run(main())


def leave_by_cancelling(engine: ft.Engine) -> None:
    async def main() -> None:
        async def read() -> None:
            async for _ in engine.astream([1, 2], max_tokens=3000):
                pass

        tasks = [asyncio.ensure_future(read()), asyncio.ensure_future(engine.agenerate([1, 2], n=4, max_tokens=3000))]
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results)

    asyncio.run(main())


def leave_by_timeout(engine: ft.Engine) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.agenerate([1, 2], n=4, max_tokens=3000), 0.02)

    asyncio.run(main())


def leave_with_the_loop_closed(engine: ft.Engine) -> None:
    """An event loop torn down by force: its callbacks have nowhere to go."""
    loop = asyncio.new_event_loop()
    stream = engine.astream([1, 2], max_tokens=200)
    loop.run_until_complete(anext(stream))
    loop.close()
    del stream


LEAVING = [
    leave_by_break, leave_by_close, leave_by_error, leave_before_it_began, leave_the_loop, leave_by_cancelling, leave_by_timeout,
    leave_with_the_loop_closed,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEAVING, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_leaves_frees_the_engine_and_disturbs_nobody(leave: Callable[[ft.Engine], None]) -> None:
    toy = Toy(vocabulary=31)
    with Audited(toy, kv_slots=20000) as engine:
        others: dict[int, list[int]] = {}

        def neighbour() -> None:
            others[0] = engine.generate([5, 6], max_tokens=50)[0].token_ids

        thread = threading.Thread(target=neighbour)
        thread.start()
        leave(engine)
        thread.join(20)
        assert others[0] == slow_generate(toy.rule, [5, 6], 50)
        assert idle(engine), "what nobody waits for goes on running"
        assert engine.cost.forwards < 2000
        assert engine.generate([1], max_tokens=3)[0].token_ids == slow_generate(toy.rule, [1], 3)


def test_cancelled_samples_say_so_to_whoever_still_listens() -> None:
    toy = Toy(vocabulary=31)
    toy.before = lambda batch: time.sleep(0.002)

    def closing(engine: ft.Engine) -> Iterator[ft.Piece]:
        for i, piece in enumerate(engine.stream([1, 2], max_tokens=3000)):
            if i == 3:
                threading.Thread(target=engine.close).start()
            yield piece

    with Audited(toy, kv_slots=4000) as engine:
        last = list(closing(engine))[-1].completion
    assert last is not None
    assert last.finish_reason == "cancelled"
    assert last.token_ids == slow_generate(toy.rule, [1, 2], len(last.token_ids))


# ---- special tokens and the first space ------------------------------------------------------------------------------


def test_a_stop_that_is_a_special_tokens_text_matches_the_token_and_the_text() -> None:
    for include in (False, True):
        end = "</s>" * include
        out, _ = recite("ab", EOS, "c", stop="</s>", include_stop=include)
        assert (out.text, out.token_ids, out.stop_reason, out.finish_reason) == ("ab" + end, [*b"ab", EOS], "</s>", "stop")
        spelled, _ = recite("ab</s>c", stop=["zz", "</s>"], include_stop=include)
        assert (spelled.text, spelled.stop_reason) == ("ab" + end, "</s>")
        both, _ = recite("ab", EOS, "c", stop=["</s>", EOS], include_stop=include)
        assert (both.text, both.stop_reason) == ("ab", EOS), "a token asked for as such is told as such"
    late, _ = recite("ab", EOS, "c", stop="</s>", min_tokens=4, max_tokens=4)
    assert EOS not in late.token_ids, "it counts from min_tokens on"


def test_many_samples_stop_at_any_of_thousands_of_strings() -> None:
    words = [f"<{i:05d}>" for i in range(20_000)]
    out, _ = recite("say <12x <04711> and", stop=words)
    assert (out.text, out.stop_reason) == ("say <12x ", "<04711>")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stop": "a\udc80"}, ValueError, "stop: half a surrogate pair"),
        ({"stop": b"ab"}, TypeError, "stop=b'ab'"),
        ({"stop": True}, TypeError, "stop=True"),
        ({"stop": [1, False]}, TypeError, "stop=False"),
        ({"logit_bias": {True: 1.0}}, TypeError, "logit_bias: True"),
        ({"chat": "x"}, TypeError, "chat='x'"),
        ({"parse_special": 1}, TypeError, "parse_special=1"),
    ],
)
def test_options_that_are_refused_before_any_work(options: dict[str, Any], error: type[Exception], message: str) -> None:
    toy = reciting(PROMPT, spell("abc"))
    with Audited(toy, kv_slots=400) as engine:
        with pytest.raises(error, match=message):
            engine.generate(PROMPT, **options)
        assert engine.cost.forwards == 0


def test_prompts_of_numpys_numbers_and_of_what_only_looks_like_numbers() -> None:
    toy = reciting(PROMPT, spell("abc"))
    with Audited(toy, kv_slots=400) as engine:
        numbers = [np.int64(i) for i in PROMPT]
        assert engine.generate(numbers, max_tokens=3)[0].text == "abc"
        assert engine.generate([numbers], max_tokens=3)[0][0].text == "abc"
        assert engine.generate(PROMPT, max_tokens=9, stop=np.int64(ord("b")))[0].text == "a"
        for wrong in (b"ab", [b"ab"], [True, 1], [[1, True]], [np.bool_(True)]):
            with pytest.raises(TypeError, match=r"bytes|bool"):
                engine.generate(wrong)
        with pytest.raises(TypeError, match="bytes"):
            engine.score(PROMPT, [b"ab"])
        with pytest.raises(TypeError, match="True is no token id"):
            engine.score(PROMPT, labels=[True, 5])
        assert engine.score(PROMPT, labels=[np.int64(5), 6]).keys() == {5, 6}


def test_a_tokenizers_first_space_is_in_the_text_the_stream_and_the_stops() -> None:
    """SentencePiece's way: a ▁ in front of each word, the first of a text not shown."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from forethought.backend.text import Text

    words = ["<unk>", "</s>", "▁x", ":", "▁", "▁return", "▁▁▁", "▁y", ".", "y"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("▁", "y")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    text = Text(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"))
    toy = reciting([2, 3], [6, 5, 7, 8])
    toy.text = text
    with Audited(toy, kv_slots=400) as engine:
        run: dict[str, Any] = {"max_tokens": 4}
        assert engine.generate([2, 3], **run)[0].text == "    return y."
        assert "".join(map(str, engine.stream([2, 3], **run))) == "    return y."
        assert engine.generate([2, 3], stop=" y", **run)[0].text == "    return"
        assert engine.generate([2, 3], stop="    ", include_stop=True, **run)[0].text == "    "
        assert [score.token_ids for score in engine.score([2, 3], [" y", "y"])] == [[7], [9]]
        assert engine.score([2, 3], labels=[" y", "y"]).keys() == {" y", "y"}
