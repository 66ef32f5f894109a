"""Speculation: several tokens a forward without changing one of them. What all drafting decoders share.

Sources propose trees, a budget cuts them, one forward verifies, ``acceptance.py`` decides (arXiv 2211.17192, 2302.01318;
trees: 2305.09781). Exact: with target matching, the default, the text is plain decoding's own at the same seed. Cost per
step: one forward of 1 + n tokens a row and the proposals. Not here: where drafts come from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_

import torch

from ..backend.batch import Output
from ..backend.decoder import Decision, Decoder, Draft
from ..backend.kv import KVPool
from ..backend.model import Model
from ..backend.request import Request, Row
from ..checks import flag, instance, once, whole
from ..schema import FinishReason
from . import acceptance
from .pace import WATCHED, Mean, Pace
from .sampling import Nodes, Sampler
from .source import Source
from .tree import Tree, above, best, flatten, merge

MOST_DRAFT = 4096
"""Nodes a row: more are verified by no model's call in a time that could pay."""
LEARNT, YOUNG = (2, 4), 256
"""Acceptance is learnt from one step in so many, at first, and after so many steps: that says enough."""


@dataclass(slots=True)
class _Round:
    """What was proposed in the step under way."""

    rows: list[Row]
    proposed: list[list[Tree] | None]
    """Of each source: a tree a row, scored by the source; None if it was not asked."""
    verified: list[Tree]
    """What of these went into the call."""
    tokens: int
    """In the call, as far as it is known here."""
    start: float
    """When the proposals were there."""
    asking: float
    """Seconds that they took."""
    emitted: int = 0
    known: bool = False
    """Whether what came of it has been learnt."""


@once("sources", "draft_tokens", "adaptive", "pace")
class Speculation(Decoder):
    """Drafts from ``sources``, all in one tree of at most ``draft_tokens`` nodes a row.

    ``adaptive``: the budget follows what acceptance and step times turn out to be, down to nothing; otherwise every step drafts
    ``draft_tokens`` as far as there is room.
    """

    def __init__(self, sources: Sequence[Source], draft_tokens: int, *, adaptive: bool = True) -> None:
        draft_tokens = whole("draft_tokens", draft_tokens, 1, MOST_DRAFT)
        for source in sources:
            instance("sources", source, Source, "drafts come from Source objects")
        self.sources, self.draft_tokens, self.adaptive = tuple(sources), draft_tokens, flag("adaptive", adaptive)
        self.pace = Pace(len(self.sources), draft_tokens)
        self._sampler = Sampler()
        self._luck: dict[int, tuple[float, float]] = {}
        """By row: tokens accepted lately, and how many were to be expected of what was drafted."""
        self._followed: list[set[int]] = [set() for _ in self.sources]
        """Of each source: the rows that it was asked for in the last steps, without a break."""
        self._length = Mean()
        """Of outputs."""
        self._round: _Round | None = None
        self._turn = 0
        self._bound = False

    def bind(self, model: Model) -> None:
        if self._bound:
            raise ValueError(f"this {type(self).__name__} serves an engine already: make one for each")
        self._bound = True
        for source in self.sources:
            source.bind(model)

    def models(self) -> list[Model]:
        return [model for source in self.sources for model in source.models()]

    def slots(self, request: Request, pool: KVPool) -> dict[KVPool, int]:
        need = super().slots(request, pool)
        for source in self.sources:
            need |= source.slots(request, pool)
        return need

    def admit(self, row: Row) -> None:
        for source in self.sources:
            source.start(row)

    # ---- drafting -------------------------------------------------------------------------------------------------------

    def draft(self, rows: Sequence[Row], budget: int) -> Draft | None:
        self._close_round(time.perf_counter())
        start = time.perf_counter()
        proposed: list[list[Tree] | None] = [None] * len(self.sources)
        asked = [self._plan(s, rows) if self.adaptive else self.draft_tokens for s in range(len(self.sources))]
        if budget < 1 or not any(asked):
            self._round = _Round(list(rows), proposed, [], len(rows), time.perf_counter(), 0.0)
            return None
        depths = [self._depth(row) for row in rows]
        if any(depth > 0 for depth in depths):
            proposed = [self._ask(s, nodes, rows, depths) if nodes else None for s, nodes in enumerate(asked)]
        trees = self._cut(rows, proposed, depths, budget)
        draft = flatten(trees)
        tokens = len(rows) + sum(map(len, trees))
        now = time.perf_counter()
        self._round = _Round(list(rows), proposed, trees, tokens, now, now - start)
        return draft

    def _plan(self, s: int, rows: Sequence[Row]) -> int:
        """Nodes a row to ask of source ``s``."""
        nodes, followed = self.pace.plan(s, len(rows)), self._followed[s]
        if not nodes:
            followed.clear()
            return 0
        new = [row for row in rows if id(row) not in followed]
        if self.pace.records[s].probing or not new or not self._length.count:
            return nodes
        usual = self._length.value
        left = sum(max(usual - len(row.output), usual / 8) for row in new) / len(new)
        return nodes if self.pace.repays(s, len(rows), len(new), left) else 0

    def _depth(self, row: Row) -> int:
        """How deep a draft for ``row`` may be."""
        return row.request.max_tokens - len(row.output) - 1

    def _ask(self, s: int, nodes: int, rows: Sequence[Row], depths: Sequence[int]) -> list[Tree]:
        """The trees of source ``s``."""
        if self.pace.records[s].probing and len(rows) > WATCHED:
            some = set(self._watched(len(rows)))
            depths = [depth if i in some else 0 for i, depth in enumerate(depths)]
        start = time.perf_counter()
        trees = self.sources[s].propose(rows, nodes, depths, self.pace.floor(s) if self.adaptive else 0.0)
        for tree in trees:
            tree.sources = [1 << s] * len(tree)
        record = self.pace.records[s]
        new = {id(row) for row, depth in zip(rows, depths, strict=True) if depth > 0} - self._followed[s]
        self._followed[s] |= new
        if new:
            record.late.add(self.sources[s].late / len(new))
        if self.adaptive:
            record.trees.extend((nodes, trees[i]) for i in self._watched(len(rows)))
        record.cost.add(nodes * sum(depth > 0 for depth in depths), time.perf_counter() - start - self.sources[s].late)
        return trees

    def _cut(self, rows: Sequence[Row], proposed: list[list[Tree] | None], depths: Sequence[int], budget: int) -> list[Tree]:
        """One tree a row, within the budgets."""
        asked = [s for s, trees in enumerate(proposed) if trees is not None]
        if not asked:
            return [Tree() for _ in rows]
        trees = []
        for i, depth in enumerate(depths):
            own = [proposed[s][i] for s in asked]  # type: ignore[index]
            if self.adaptive:
                own = [self._valued(tree, s, rows[i]) for tree, s in zip(own, asked, strict=True)]
            trees.append(best(merge(own), self.draft_tokens, depth) if len(own) > 1 or not self.adaptive else own[0])
        values = sorted((score for tree in trees for score in tree.scores), reverse=True)
        count = budget
        if self.adaptive:
            probing = any(self.pace.records[s].probing for s in asked)
            least = max(self.draft_tokens, len(rows)) if probing else 0
            count = min(budget, max(least, self.pace.choose(values[:budget], len(rows))[0]))
        return trees if count >= len(values) else [above(tree, values[count]) for tree in trees]

    def _valued(self, tree: Tree, s: int, row: Row) -> Tree:
        """``tree`` with its scores made into acceptances, as far as they are known; no two are equal, none above its parent's."""
        accepted, expected = self._luck.get(id(row), (0.0, 0.0))
        values = self.pace.records[s].values(tree, min(2.0, (accepted + 2) / (expected + 2)))
        return Tree(tree.ids, tree.parents, values, tree.sources)

    # ---- deciding -------------------------------------------------------------------------------------------------------

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        if output.logits is None:
            raise ValueError("this model is a backbone without an LM head: it writes no text")
        if draft is None:
            drawn = self._sampler.draw(rows, output.logits)
            self._learn(rows, [[token] for token in drawn.tokens.tolist()], output.tokens)
            return Decision(emitted=drawn.tokens, logprobs=drawn.logprobs, certainty=drawn.certainty, failed=drawn.failed)
        return self._match(rows, draft, output.logits, output.tokens)

    def _match(self, rows: Sequence[Row], draft: Draft, logits: torch.Tensor, tokens: int) -> Decision:
        """Target matching: every node's token is drawn as plain decoding would, and the path that has them all stays."""
        drawn = self._sampler.draw(rows, logits, Nodes.of(draft))
        targets, (ids, parents, ptr) = drawn.tokens.tolist(), draft.lists()
        emitted: list[int] = []
        places: list[int] = []  # of each emitted token: the node it was drawn at
        kept: list[int] = []
        ends, kept_ends = [0], [0]
        lines: list[list[int]] = []
        failed: dict[int, Exception] = {}
        for i in range(len(rows)):
            begin, end, first = ptr[i], ptr[i + 1], ptr[i] + i
            said = acceptance.match(ids[begin:end], parents[begin:end], targets[first : first + 1 + end - begin])
            path = [0, *said.path]
            if drawn.failed:
                bad = next((k for k, node in enumerate(path) if first + node in drawn.failed), len(path))
                if bad == 0:
                    failed[i] = drawn.failed[first]
                path = path[: max(1, bad)]  # what fails behind a drafted token fails again as the next root
            said_ids = said.ids[: len(path)]
            emitted += said_ids
            lines.append(said_ids)
            places += [first + node for node in path]
            kept += path
            ends.append(len(emitted))
            kept_ends.append(len(kept))
        self._learn(rows, lines, tokens)

        def of_emitted(found: torch.Tensor | None) -> torch.Tensor | None:
            return None if found is None else found[torch.tensor(places, device=found.device)]

        return Decision(emitted, ends, kept, kept_ends, failed=failed,
                        logprobs=of_emitted(drawn.logprobs), certainty=of_emitted(drawn.certainty))  # fmt: skip

    # ---- learning -------------------------------------------------------------------------------------------------------

    def _close_round(self, now: float) -> None:
        """The step before this one is over."""
        step, self._round = self._round, None
        if step is not None and step.emitted:
            self.pace.count(len(step.rows), step.tokens, step.emitted, now - step.start, step.asking)

    def _learn(self, rows: Sequence[Row], lines: Sequence[Sequence[int]], tokens: int) -> None:
        """What the target said behind each root; ``tokens`` in the call."""
        step = self._round
        if step is None or not self.adaptive:
            return
        if step.known or len(rows) < len(step.rows) or not all(map(is_, rows, step.rows)):
            self._round = None  # this is another step, for which nothing was to be drafted
            return
        step.known = True
        if tokens == step.tokens:  # else prompts were computed too, and its time says nothing
            step.emitted = sum(len(line) for line in lines[: len(step.rows)])
        watched = self._watched(len(step.rows))
        self._turn += 1
        if self._turn % LEARNT[self._turn > YOUNG] and not any(record.probing for record in self.pace.records):
            return
        for i in watched:
            for record, trees in zip(self.pace.records, step.proposed, strict=True):
                if trees is not None and trees[i]:
                    expected, accepted = record.learn(trees[i], step.verified[i], lines[i])
                    before = self._luck.get(id(step.rows[i]), (0.0, 0.0))
                    self._luck[id(step.rows[i])] = 0.95 * before[0] + accepted, 0.95 * before[1] + expected

    def _watched(self, rows: int) -> list[int]:
        """The rows that are learnt from in the step under way: others in the next."""
        return [(WATCHED * self._turn + k) % rows for k in range(min(WATCHED, rows))]

    def preempt(self, row: Row) -> None:
        for source, followed in zip(self.sources, self._followed, strict=True):
            source.suspend(row)
            followed.discard(id(row))

    def release(self, row: Row, outcome: FinishReason) -> None:
        self._luck.pop(id(row), None)
        finished = outcome in ("stop", "length")
        if finished:
            self._length.add(len(row.output))
        for source, followed in zip(self.sources, self._followed, strict=True):
            followed.discard(id(row))
            source.stop(row, finished)
