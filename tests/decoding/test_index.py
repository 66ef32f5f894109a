"""Both indexes keep their promises: what a line sees and leaves, what is forgotten, and files that are whole or refused."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import pytest

from forethought.decoding.index import BORDER, VERSION, Index
from forethought.decoding.posting import Posting
from forethought.decoding.tree import Tree
from forethought.decoding.trie import Trie

Kind: TypeAlias = type[Posting] | type[Trie]


@pytest.fixture(params=[Posting, Trie])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


def paths(tree: Tree) -> list[list[int]]:
    """Of each node, the tokens from the root to it."""
    found: list[list[int]] = [[]]
    for token, parent in zip(tree.ids, tree.parents, strict=True):
        found.append([*found[parent], token])
    return found[1:]


def check(tree: Tree, budget: int, depth: int) -> None:
    """A tree, best first, within its limits, without twins."""
    assert len(tree) <= budget
    assert all(0 <= parent < j for j, parent in enumerate(tree.parents, 1))
    assert all(0 < score <= 1 for score in tree.scores)
    assert tree.scores == sorted(tree.scores, reverse=True)
    assert max(tree.depths, default=0) <= depth
    every = [tuple(path) for path in paths(tree)]
    assert len(set(every)) == len(every)
    shares: dict[int, float] = {}
    for parent, score in zip(tree.parents, tree.scores, strict=True):
        shares[parent] = shares.get(parent, 0.0) + score
    assert all(share <= (tree.scores[node - 1] if node else 1.0) + 1e-9 for node, share in shares.items())


def texts(seed: int, count: int, length: int, vocabulary: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(rng.randint(1, length))] for _ in range(count)]


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 300])
def test_drafts_are_trees_within_their_limits(kind: Kind, vocabulary: int) -> None:
    index = kind(capacity=400)
    rng = random.Random(vocabulary)
    for prompt, output in zip(texts(1, 30, 40, vocabulary), texts(2, 30, 40, vocabulary), strict=True):
        line = index.open(prompt)
        for token in output:
            budget, depth = rng.choice([1, 2, 8, 16, 64, 100]), rng.choice([None, 1, 3, 20])
            tree = line.draft(budget, depth)
            check(tree, budget, budget if depth is None else depth)
            assert len(tree) <= 64 or tree.parents == list(range(len(tree)))
            line.extend([token])
        line.close()


def test_a_prompt_is_drafted_from_at_once_and_over_its_border(kind: Kind) -> None:
    line = kind().open([1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    assert paths(line.draft(3))[-1] == [3, 4, 5]
    line.extend([9, 1, 2])
    assert {3, 9} == {path[0] for path in paths(line.draft(8))}
    line.extend([9])  # what followed "1 2" over the border is known the next time
    assert paths(line.draft(2))[-1] == [1, 2]


def test_token_0_and_end_tokens_are_tokens_like_others(kind: Kind) -> None:
    line = kind().open([0, 0, 5, 0, 2, 7, 0, 2, 8, 9, 2, 7, 0])
    assert paths(line.draft(4))[-1] == [2, 8, 9, 2]
    index = kind()
    index.observe([0, 5, 0, 6])
    assert paths(index.draft([0, 5], 2)) == [[0], [0, 6]]
    assert {path[0] for path in paths(index.draft([0], 8))} == {5, 6}


def test_nothing_to_draft_from(kind: Kind) -> None:
    index = kind()
    assert not index.draft([], 8)
    assert not index.draft([1, 2, 3], 8)
    assert not index.draft([1, 1], 0)
    assert not index.draft([1, 1, 1], 8, depth=0)
    index.observe([1, 2])
    assert not index.draft([2], 8), "nothing follows the end of a text"
    index.observe([7, 8])
    assert not index.draft([2], 8), "least of all another text"


@pytest.mark.parametrize("bad", [-1, 2**31, -(2**40)])
def test_what_is_no_token_id_is_refused(kind: Kind, bad: int) -> None:
    index = kind()
    line = index.open([1, 2])
    for call in (lambda: index.open([1, bad]), lambda: index.observe([bad]), lambda: line.extend([3, bad])):
        with pytest.raises(ValueError, match="token id"):
            call()
    assert line.ids == [1, 2]
    with pytest.raises(ValueError, match="-3"):
        kind(capacity=-3)


def test_a_closed_line_leaves_its_output_and_nothing_else(kind: Kind) -> None:
    index = kind()
    line, other = index.open(list(range(100, 120))), index.open([4, 5])
    line.extend([4, 5, 6])
    assert not other.draft(8), "a running text is nobody else's"
    line.close()
    line.close()
    assert list(index.texts()) == [[*range(120 - BORDER, 120), 4, 5, 6]]
    assert index.tokens == BORDER + 3
    assert line.ids == []
    assert paths(other.draft(8)) == [[6]]
    assert not index.draft([100, 101], 8), "the prompt is gone"
    for call in (lambda: line.draft(8), lambda: line.extend([1])):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_what_is_not_to_be_remembered_is_not(kind: Kind) -> None:
    index = kind()
    for prompt, output, remember in (([1, 2, 1], [2, 1], False), ([3, 4, 3, 4], [], True), ([], [], True)):
        line = index.open(prompt)
        line.extend(output)
        line.draft(8)
        line.close(remember)
    index.draft([5, 6, 5], 8)
    index.observe([])
    assert index.tokens == 0
    assert list(index.texts()) == []
    assert state(index) == state(kind())


def state(index: Index) -> object:
    """Everything that an index holds, without what depends on where texts lie in it."""
    if isinstance(index, Trie):
        stack, nodes = [((), node) for node in index.forest.roots.items()], {}
        while stack:
            path, (token, node) = stack.pop()
            nodes[(*path, token)] = node.count
            stack += [((*path, token), child) for child in node.children.items()]
        return nodes, index.forest.sizes, list(index.texts())
    assert isinstance(index, Posting)
    chains = index.chains
    base = chains.start + chains.origin
    heads = [{key: at - base for key, at in head.items()} for head in (chains.head1, chains.head2, chains.head4)]
    backs = [
        [step if step <= at else 0 for at, step in enumerate(back[chains.start :])]
        for back in (chains.back1, chains.back2, chains.back4)
    ]
    return heads, backs, chains.ids[chains.start :].tolist(), list(index.texts())


@pytest.mark.parametrize("vocabulary", [2, 6, 50])
def test_what_was_forgotten_leaves_no_trace(kind: Kind, vocabulary: int) -> None:
    index = kind(capacity=100)
    kept: list[list[int]] = []
    for text in texts(vocabulary, 60, 30, vocabulary):
        index.observe(text)
        kept.append(text)
        while sum(map(len, kept)) > 100:
            kept.pop(0)
        again = kind(capacity=100)
        for old in kept:
            again.observe(old)
        assert list(index.texts()) == kept
        assert index.tokens == sum(map(len, kept))
        assert state(index) == state(again)
        assert index.draft(text[:4], 16) == again.draft(text[:4], 16)
    index.clear()
    assert index.tokens == 0
    assert state(index) == state(kind())


def test_a_text_beyond_the_capacity_keeps_its_end(kind: Kind) -> None:
    index = kind(capacity=5)
    index.observe([9, 9])
    index.observe(range(20))
    assert list(index.texts()) == [[15, 16, 17, 18, 19]]
    nothing = kind(capacity=0)
    nothing.observe([1, 2, 3])
    assert nothing.tokens == 0


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [Posting, Trie])
def test_any_kind_reads_any_others_file(kind: Kind, other: Kind, tmp_path: Path) -> None:
    index, file = kind(fingerprint="ab"), tmp_path / "memory"
    for text in texts(3, 20, 30, 2**31):
        index.observe(text)
    index.save(file)
    loaded = other()
    loaded.observe([1])
    loaded.load(file)
    assert list(loaded.texts()) == list(index.texts())
    assert loaded.fingerprint == "ab"
    small = other(capacity=50)
    small.load(file)
    assert small.tokens <= 50
    assert list(small.texts()) == list(index.texts())[-len(list(small.texts())) :]
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_an_empty_memory_is_a_file_too(kind: Kind, tmp_path: Path) -> None:
    kind().save(tmp_path / "none")
    index = kind()
    index.observe([1])
    index.load(tmp_path / "none")
    assert index.tokens == 0


def test_another_tokenizers_file_is_refused(kind: Kind, tmp_path: Path) -> None:
    kind(fingerprint="ab").save(tmp_path / "ab")
    kind().save(tmp_path / "unknown")
    index = kind(fingerprint="cd")
    index.observe([1, 2])
    with pytest.raises(ValueError, match=r"'ab'.*'cd'"):
        index.load(tmp_path / "ab")
    assert list(index.texts()) == [[1, 2]]
    index.load(tmp_path / "unknown")
    assert index.fingerprint == "cd"


def test_every_broken_file_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    index, file = Posting(fingerprint="ab"), tmp_path / "memory"
    for text in texts(4, 3, 5, 9):
        index.observe(text)
    index.save(file)
    whole = file.read_bytes()
    before = state(index)
    broken = [whole[:size] for size in range(len(whole))] + [whole + b"\0"]
    broken += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for data in broken:
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"memory: (not an index|truncated|corrupt|format version)"):
            index.load(file)
    assert state(index) == before
    file.write_bytes(whole[:8] + (VERSION + 1).to_bytes(4, "little") + whole[12:])
    with pytest.raises(ValueError, match=f"version {VERSION + 1}, this reads version {VERSION}"):
        index.load(file)


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, file = Posting(), tmp_path / "memory"
    index.observe([1, 2])
    index.save(file)
    index.observe([3])

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        index.save(file)
    loaded = Posting()
    loaded.load(file)
    assert list(loaded.texts()) == [[1, 2]]
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def save_for_ever(file: Path, said: Connection) -> None:
    index = Posting()
    for number in range(1_000_000):
        index.clear()
        index.observe([number] * 5_000)
        index.save(file)
        said.send_bytes(number.to_bytes(4, "little"))


def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path) -> None:
    rng, fork = random.Random(0), multiprocessing.get_context("fork")  # a new interpreter would take seconds to import us
    file = tmp_path / "memory"
    for _ in range(20):
        ours, theirs = fork.Pipe(duplex=False)
        saver = fork.Process(target=save_for_ever, args=(file, theirs))
        saver.start()
        theirs.close()
        last = ours.recv_bytes()
        time.sleep(rng.random() / 50)
        saver.kill()
        saver.join()
        with contextlib.suppress(EOFError, OSError):
            while True:
                last = ours.recv_bytes()
        index = Posting()
        index.load(file)
        (text,) = index.texts()
        number = int.from_bytes(last, "little")
        assert len(text) == 5_000
        assert set(text) in ({number}, {number + 1}), "the last save that ended, or the one that it was killed in"


def test_the_header_can_be_read_by_others(tmp_path: Path) -> None:
    index = Posting(fingerprint="ab")
    index.observe([7, 8, 9])
    index.save(tmp_path / "memory")
    data = (tmp_path / "memory").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    header = json.loads(data[20 : 20 + size])
    assert (data[:8], header["fingerprint"], header["texts"], header["tokens"]) == (b"FTINDEX\n", "ab", 1, 3)
    assert [int.from_bytes(data[at : at + 4], "little") for at in range(20 + size, len(data), 4)] == [3, 7, 8, 9]
