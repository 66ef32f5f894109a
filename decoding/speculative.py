"""Speculative decoding with a smaller model, alone or beside other sources (arXiv 2211.17192, 2302.01318; trees: 2305.09781).

Exact under every rule. Target matching, the default, gives plain decoding's own text at the same seed, whatever is merged,
pruned or adapted. ``ratio``, ``block`` and ``tree`` (without replacement) accept more of a *sampled* draft and follow the same
distribution, not the same text; their draft budget is fixed, or a run could not be repeated (on a GPU fewer rows run at once,
lest memory for logits cuts it): a pool so small that drafts are cut still makes another text. Cost: a draft model forward a
level, then one target forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal

import numpy as np
import torch

from ..backend.batch import Output
from ..backend.decoder import Decision, Draft
from ..backend.model import Model
from ..backend.request import Row
from ..checks import flag, once, whole
from ..kernels.transfer import put
from ..kernels.views import TREE_LIMIT
from . import acceptance
from .acceptance import Accepted, HashCoins
from .draft_model import DraftModel
from .sampling import Nodes
from .source import Source
from .speculation import MOST_DRAFT, Speculation

Rule = Literal["match", "ratio", "block", "tree"]
RULES = ("match", "ratio", "block", "tree")


@once("rule", "fixed_draft")
class Speculative(Speculation):
    """Drafts from ``draft``: a model, another drafting decoder such as ``Lookahead()``, or several of them, in one tree.

    ``draft_tokens``: nodes a row at most; by default 5, or all of ``tree``. ``tree``: how many children a node of each depth
    gets from the draft model; default a chain. ``rule``: see the module. ``kv_slots``: size of the draft model's pool; default
    the engine's.
    """

    def __init__(
        self, draft: Model | Speculation | Sequence[Model | Speculation], draft_tokens: int | None = None, *,
        tree: Sequence[int] | None = None, rule: Rule = "match", adaptive: bool | None = None, kv_slots: int | None = None,
    ) -> None:  # fmt: skip
        if rule not in RULES:
            raise ValueError(f"rule={rule!r}: one of {', '.join(RULES)}")
        if tree is not None:
            if not isinstance(tree, Sequence) or not 0 < len(tree) <= MOST_DRAFT:
                raise ValueError(f"tree={tree!r:.100}: how many children a node of each depth has, a list of at least one")
            tree = [whole(f"tree[{depth}]", fan, 1, TREE_LIMIT) for depth, fan in enumerate(tree)]
        if draft_tokens is not None:
            draft_tokens = whole("draft_tokens", draft_tokens, 1, MOST_DRAFT)
        if adaptive is not None:
            flag("adaptive", adaptive)
        size = sum(accumulate(tree, mul)) if tree is not None else draft_tokens or 5
        if tree is not None and size > TREE_LIMIT and any(fan > 1 for fan in tree):
            raise ValueError(f"tree={list(tree)}: {size} nodes, at most {TREE_LIMIT}")
        fans = list(tree) if tree is not None else [1] * size
        given: object = draft
        parts: list[object] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not parts:
            raise ValueError("draft=[]: nothing to draft from")
        sources: list[Source] = []
        for part in parts:
            if isinstance(part, Speculation):
                sources += part.sources
            elif isinstance(part, Model):
                sources.append(DraftModel(part, fans, sampled=rule != "match", kv_slots=kv_slots))
            else:
                said = f"the class {part.__name__}" if isinstance(part, type) else type(part).__name__
                raise TypeError(f"draft={part!r:.100}: a model or a drafting decoder, not {said}")
        if rule != "match":
            if len(parts) != 1 or not isinstance(parts[0], Model):
                raise ValueError(
                    f"rule={rule!r} weighs the law that a draft was sampled from: it takes one draft model and nothing else"
                )
            if adaptive:
                raise ValueError(f"rule={rule!r} needs a fixed budget to be repeatable: adaptive=False")
            if rule != "tree" and any(fan > 1 for fan in fans):
                raise ValueError(f"rule={rule!r} judges chains; tree={list(fans)} has branches")
            if draft_tokens is not None and draft_tokens < size:
                raise ValueError(f"draft_tokens={draft_tokens} cuts a tree of {size}: under rule={rule!r} say it by tree")
        self.rule, self.fixed_draft = rule, 0 if rule == "match" else size
        super().__init__(
            sources, size if draft_tokens is None else draft_tokens, adaptive=rule == "match" if adaptive is None else adaptive
        )

    def _depth(self, row: Row) -> int:
        # Whether there is a draft for the first token depends on what the cache has of the prompt.
        return super()._depth(row) if self.rule == "match" or row.output else 0

    def decide(self, rows: Sequence[Row], draft: Draft | None, output: Output) -> Decision:
        if self.rule == "match" or draft is None or output.logits is None:
            return super().decide(rows, draft, output)
        nodes = Nodes.of(draft)
        logs = self._sampler.process(rows, output.logits, nodes)
        laws = logs.double().exp().cpu().numpy()
        ids, parents, ptr = draft.lists()
        emitted: list[int] = []
        places: list[int] = []
        kept: list[int] = []
        ends, kept_ends = [0], [0]
        failed: dict[int, Exception] = {}
        # Without a draft of its own a row has plain decoding's token, whether or not others have drafts.
        roots = put([begin + i for i, begin in enumerate(ptr[:-1])], output.logits.device)
        some = any(begin == end for begin, end in pairwise(ptr))
        alone = self._sampler.draw(rows, output.logits[roots]).tokens.tolist() if some else []
        for i, row in enumerate(rows):
            begin, end, first = ptr[i], ptr[i + 1], ptr[i] + i
            own = laws[first : first + 1 + end - begin]
            if not np.isfinite(own).all():
                end = begin  # what fails behind a drafted token fails again as the next root
                if not np.isfinite(own[0]).all():
                    failed[i] = FloatingPointError(f"no finite logit for output token {len(row.output)}")
                    own = np.ones_like(own)[:1] / own.shape[1]
            if begin == ptr[i + 1]:
                said = Accepted([], [alone[i]])
            else:
                said = self._judge(i, row, ids[begin:end], parents[begin:end], own[: 1 + end - begin])
            emitted += said.ids
            places += [first + node for node in (0, *said.path)]
            kept += [0, *said.path]
            ends.append(len(emitted))
            kept_ends.append(len(kept))
        chosen = torch.tensor(emitted)
        return Decision(emitted, ends, kept, kept_ends, failed=failed,
                        certainty=self._sampler.certainty(rows, output.logits, places),
                        logprobs=self._sampler.logprobs(rows, output.logits, logs, nodes, places, chosen))  # fmt: skip

    def _judge(self, i: int, row: Row, ids: list[int], parents: list[int], p: acceptance.Table) -> Accepted:
        coins = HashCoins(row.request.noise_seed, row.sample, row.index, len(row.output))
        source = self.sources[0]
        assert isinstance(source, DraftModel)
        laws = source.laws[i] if i < len(source.laws) else {}
        q = np.stack([laws.get(node, np.zeros(p.shape[1])) for node in range(len(p))])
        if self.rule == "tree":
            return acceptance.without_replacement(ids, parents, p, q, coins)
        return (acceptance.block if self.rule == "block" else acceptance.ratio)(ids, p, q[:-1], coins)
