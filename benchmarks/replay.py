"""How much of recorded outputs would a draft index have guessed, and how long does it think? No model runs.

    python benchmarks/replay.py FILE [--budgets 8,16,64] [--indexes posting,trie,prompt-lookup] [--fresh] [--tokenizer PATH]
                                     [--capacity 1000000] [--limit N] [--json OUT]
    python benchmarks/replay.py --record FILE [--count 300] [--model nano] [--max-tokens 256]

FILE has a JSON object a line: ``prompt_ids`` and ``output_ids``, or ``prompt`` and ``output``, text that ``--tokenizer``
turns to ids. Requests are replayed one after the other. A step drafts, walks the draft along the recorded output, and emits
what agreed and one token more, as greedy decoding with these drafts would have. The memory starts empty and keeps each
output; with ``--fresh`` every request has a memory of its own.

MAT        mean tokens a step; each request's first token, which its prefill gives, counts as one step
decode     the same without those first tokens and their steps
drafted    mean nodes of a draft
hit        mean share of a draft's nodes that were accepted, and what their scores add up to (``said``): equal if honest
us         wall time of one draft, median and 95th percentile; ``learn`` is the mean time to take in one token
bytes      what the memory holds at the end by ``tracemalloc``, in a second run that is not timed

``prompt-lookup``, for reference: the 10 tokens after the leftmost match of the text's last two tokens, else of its last one.
``--record`` asks a built-in model, greedily, for held-out problems of ``nano/problems.py``, and writes such a file.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import forethought as ft
from forethought.decoding.posting import Posting
from forethought.decoding.tree import Tree
from forethought.decoding.trie import Trie
from forethought.nano.problems import problems


class Pair(NamedTuple):
    prompt: list[int]
    output: list[int]


class Line(Protocol):
    def extend(self, ids: Sequence[int]) -> None: ...
    def draft(self, budget: int, depth: int | None = None) -> Tree: ...
    def close(self, remember: bool = True) -> None: ...


class Memory(Protocol):
    @property
    def tokens(self) -> int: ...
    def open(self, prompt_ids: Sequence[int]) -> Line: ...


class PromptLookup:
    """Remembers nothing beyond the running text."""

    tokens = 0
    LENGTH = 10

    def open(self, prompt_ids: Sequence[int]) -> PromptLookup:
        self._ids: list[int] = []
        self._first: dict[tuple[int, ...], int] = {}
        self.extend(prompt_ids)
        return self

    def extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            end = len(self._ids)  # a key is stored once something follows it
            for n in (1, 2):
                if n <= end:
                    self._first.setdefault(tuple(self._ids[end - n :]), end)
            self._ids.append(token)

    def draft(self, budget: int, depth: int | None = None) -> Tree:
        for n in (2, 1):
            begin = self._first.get(tuple(self._ids[-n:]))
            if begin is not None:
                run = self._ids[begin : begin + min(budget, self.LENGTH)]
                return Tree.chain(run, [1.0] * len(run))
        return Tree()

    def close(self, remember: bool = True) -> None:
        pass


def indexes(capacity: int) -> dict[str, Callable[[], Memory]]:
    return {"posting": lambda: Posting(capacity), "trie": lambda: Trie(capacity), "prompt-lookup": PromptLookup}


def accepted(tree: Tree, text: Sequence[int]) -> int:
    """How many tokens of ``text`` the tree has on one path from its root."""
    children = {(parent, token): j for j, (parent, token) in enumerate(zip(tree.parents, tree.ids, strict=True), 1)}
    node = count = 0
    for token in text:
        if (node, token) not in children:
            break
        node = children[node, token]
        count += 1
    return count


@dataclass
class Tally:
    """Of one replay. ``firsts``: requests with an output, each one prefill step and one token."""

    firsts: int = 0
    steps: int = 0
    emitted: int = 0
    drafted: int = 0
    hits: int = 0
    said: float = 0.0
    learnt: int = 0
    seconds: float = 0.0
    queries: list[float] = field(default_factory=list)


def replay(pairs: Sequence[Pair], memory: Callable[[], Memory], budget: int, fresh: bool) -> tuple[Tally, Memory]:
    """All pairs in order, and the memory as it was left."""
    tally, index, clock = Tally(), memory(), time.perf_counter
    for prompt, output in pairs:
        if not output:
            continue
        if fresh:
            index = memory()
        begin = clock()
        line = index.open(prompt)
        line.extend(output[:1])
        tally.seconds += clock() - begin
        at = 1
        while at < len(output):
            begin = clock()
            tree = line.draft(budget)
            asked = clock()
            count = accepted(tree, output[at:])
            new = output[at : at + count + 1]
            learning = clock()
            line.extend(new)
            tally.seconds += clock() - learning
            tally.queries.append(asked - begin)
            tally.steps += 1
            tally.emitted += len(new)
            tally.drafted += len(tree)
            tally.hits += count
            tally.said += sum(tree.scores)
            at += len(new)
        begin = clock()
        line.close()
        tally.seconds += clock() - begin
        tally.firsts += 1
        tally.learnt += len(prompt) + len(output)
    return tally, index


@dataclass(frozen=True)
class Row:
    index: str
    budget: int
    mat: float
    decode_mat: float
    drafted: float
    hit: float
    said: float
    query_us: float
    query_us_p95: float
    learn_us: float
    tokens: int
    bytes: int


def measure(name: str, memory: Callable[[], Memory], pairs: Sequence[Pair], budget: int, fresh: bool) -> Row:
    tally, index = replay(pairs, memory, budget, fresh)
    median, p95 = np.percentile(np.array(tally.queries or [0.0]) * 1e6, [50, 95])
    return Row(
        name, budget,
        mat=(tally.emitted + tally.firsts) / max(1, tally.steps + tally.firsts),
        decode_mat=tally.emitted / max(1, tally.steps),
        drafted=tally.drafted / max(1, tally.steps),
        hit=tally.hits / max(1, tally.drafted),
        said=tally.said / max(1, tally.drafted),
        query_us=float(median), query_us_p95=float(p95), learn_us=1e6 * tally.seconds / max(1, tally.learnt),
        tokens=index.tokens, bytes=held(pairs, memory, fresh),
    )  # fmt: skip


def held(pairs: Sequence[Pair], memory: Callable[[], Memory], fresh: bool) -> int:
    """Bytes of the memory that all outputs leave behind (with ``fresh``: the last one)."""
    gc.collect()
    tracemalloc.start()
    index, line = memory(), None
    for prompt, output in pairs[-1:] if fresh else pairs:
        line = index.open(prompt)
        line.extend(output)
        line.close()
    line = None
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


def read(path: Path, encode: Callable[[str], list[int]] | None) -> Iterator[Pair]:
    """The file's pairs. Raises ``ValueError`` with the number of a line that holds none."""
    with open(path, encoding="utf-8") as file:
        for number, words in enumerate(file, 1):
            try:
                yield pair(json.loads(words), encode)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def pair(row: Any, encode: Callable[[str], list[int]] | None) -> Pair:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if {"prompt_ids", "output_ids"} <= row.keys():
        both = row["prompt_ids"], row["output_ids"]
        for ids in both:
            if not isinstance(ids, list) or any(type(i) is not int or not 0 <= i < 2**31 for i in ids):
                raise ValueError("prompt_ids and output_ids are lists of token ids")
        return Pair(*both)
    if {"prompt", "output"} <= row.keys():
        if encode is None:
            raise ValueError("text: name its tokenizer with --tokenizer")
        if not isinstance(row["prompt"], str) or not isinstance(row["output"], str):
            raise ValueError("prompt and output are text")
        return Pair(encode(row["prompt"]), encode(row["output"]))
    raise ValueError("neither prompt_ids and output_ids nor prompt and output")


def tokenizer(path: str) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(path)

    def encode(text: str) -> list[int]:
        ids: list[int] = loaded.encode(text, add_special_tokens=False)
        return ids

    return encode


def record(path: Path, count: int, model: str, max_tokens: int) -> None:
    loaded = ft.load(model)
    tests = itertools.islice(problems("test"), count)
    prompts = [loaded.text.encode([{"role": "user", "content": test.question}]) for test in tests]
    with ft.Engine(loaded, decoder=ft.Autoregressive()) as engine, open(path, "w", encoding="utf-8") as file:
        for begin in range(0, count, 50):
            some = prompts[begin : begin + 50]
            for prompt, (completion,) in zip(some, engine.generate(some, temperature=0.0, max_tokens=max_tokens), strict=True):
                file.write(json.dumps({"prompt_ids": prompt, "output_ids": completion.token_ids}) + "\n")
    print(f"{count} pairs in {path}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--budgets", default="8,16,64")
    parser.add_argument("--indexes", default="posting,trie,prompt-lookup")
    parser.add_argument("--fresh", action="store_true", help="a new memory for each request")
    parser.add_argument("--tokenizer", help="a folder or name that AutoTokenizer reads, for files of text")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="tokens remembered")
    parser.add_argument("--limit", type=int, help="only so many pairs")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--record", action="store_true", help="write the file instead of reading it")
    parser.add_argument("--count", type=int, default=300, help="problems to record")
    parser.add_argument("--model", default="nano", help="the model to record")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a recorded output")
    options = parser.parse_args()
    if options.record:
        return record(options.file, options.count, options.model, options.max_tokens)

    known = indexes(options.capacity)
    names = options.indexes.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no index {unknown[0]!r}: there are {', '.join(known)}")
    if not options.budgets.replace(",", "").isdigit():
        parser.error(f"--budgets: numbers with commas between them, not {options.budgets!r}")
    budgets = [int(budget) for budget in options.budgets.split(",")]
    try:
        encode = tokenizer(options.tokenizer) if options.tokenizer else None
        pairs = list(itertools.islice(read(options.file, encode), options.limit))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    written = sum(len(p.output) for p in pairs)
    print(f"{len(pairs)} requests, {written:,} output tokens, memory {'fresh' if options.fresh else 'kept'}")
    print(f"\n{'index':<15}{'budget':>6}{'MAT':>7}{'decode':>8}{'drafted':>9}{'hit':>7}{'said':>7}", end="")
    print(f"{'us':>8}{'p95':>8}{'learn':>7}{'tokens':>10}{'MB':>8}{'B/token':>9}")
    rows = []
    for name, budget in itertools.product(names, budgets):
        row = measure(name, known[name], pairs, budget, options.fresh)
        rows.append(row)
        print(f"{name:<15}{budget:>6}{row.mat:>7.3f}{row.decode_mat:>8.3f}{row.drafted:>9.1f}", end="")
        print(f"{row.hit:>7.3f}{row.said:>7.3f}{row.query_us:>8.0f}{row.query_us_p95:>8.0f}{row.learn_us:>7.2f}", end="")
        print(f"{row.tokens:>10,}{row.bytes / 1e6:>8.1f}{row.bytes / max(1, row.tokens):>9.0f}", flush=True)
    line = json.dumps(
        {
            "benchmark": "replay",
            "requests": len(pairs),
            "output_tokens": written,
            "fresh": options.fresh,
            "capacity": options.capacity,
            "rows": [{key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(row).items()} for row in rows],
        }
    )
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
