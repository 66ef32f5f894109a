"""From logits to tokens: penalties and bias, temperature, filters, and the Gumbel-max draw. The only place that does it.

Exact: a draw follows the processed distribution. Cost: a few passes over the vocabulary; greedy rows need one.
Processing is a function of (logits, settings, tokens so far), so that drafted positions can be judged by their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..backend.decoder import Draft
from ..backend.request import Row, Sampling
from ..kernels.transfer import put, read
from . import candidates, noise

_Choice = tuple["list[float] | Tensor", "list[float] | Tensor | None", Tensor, "Tensor | None"]


@dataclass(slots=True)
class Drawn:
    """One token per logits row, in host memory."""

    tokens: Tensor
    """[N] int64"""
    logprobs: Tensor | None
    """[N] of the drawn tokens, raw or processed as each request asked; None if nobody did."""
    certainty: Tensor | None
    """[N] of the model's distributions; None if nobody asked."""
    failed: dict[int, Exception]
    """Row -> why nothing could be drawn."""


def process(
    logits: Tensor, sampling: Sequence[Sampling], prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> Tensor:
    """Log-probabilities [N, vocabulary] that tokens are drawn from (greedy: all on the best one), in float32.

    ``sampling``, ``prompts`` and ``outputs`` belong to each row of ``logits`` [N, vocabulary]: what came before it.
    """
    if any(s.edits_logits for s in sampling):
        logits = _edit(logits.to(torch.float32, copy=True), sampling, prompts, outputs)
    return _law(logits, sampling)


def _law(logits: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """The same of logits with penalties and bias in them."""
    scores = logits.float()
    temperature = put([[s.temperature] for s in sampling], scores.device)
    if min(s.temperature for s in sampling) > 0:
        return filter_scores(scores / temperature, sampling).log_softmax(-1)
    greedy = temperature == 0
    value, index = scores.max(-1, keepdim=True)
    best = torch.full_like(scores, -torch.inf).scatter_(1, index, value - value)  # 0, or NaN where nothing is finite
    scores = filter_scores(scores / temperature.masked_fill(greedy, 1.0), sampling)
    return torch.where(greedy, best, scores.log_softmax(-1))


def _edit(
    scores: Tensor, sampling: Sequence[Sampling], prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> Tensor:
    """Penalties and bias on ``scores`` [N, vocabulary], in place. ``prompts`` and ``outputs`` are what came before each row."""
    for row, s, prompt, output in zip(scores, sampling, prompts, outputs, strict=True):
        if s.repetition_penalty != 1:
            seen = put([*prompt, *output], row.device, torch.int64)
            old = row[seen]
            row[seen] = torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty)
        if (s.presence_penalty or s.frequency_penalty) and output:
            often = Counter(output)
            counts = put([float(n) for n in often.values()], row.device)
            row[put(list(often), row.device)] -= s.frequency_penalty * counts + s.presence_penalty
        if s.logit_bias:
            row[put(list(s.logit_bias), row.device)] += put([float(bias) for bias in s.logit_bias.values()], row.device)
    return scores


def filter_scores(scores: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """Top-k, then top-p, then min-p, each on what the one before left; ties at the edge of top-k stay, one token always does.

    ``scores`` [N, vocabulary] are float32, over temperature; what goes is minus infinity.
    """
    if not scores.is_cpu:
        return sort_and_filter(scores, sampling)
    table = scores.numpy()
    settings = candidates.Settings.of(sampling, temperature=1.0)
    some = np.flatnonzero((settings.kind > 0) & np.isfinite(table.max(1)))
    if not len(some):
        return scores
    left = candidates.kept(table[some], settings[some])
    filtered = table.copy()
    filtered[some] = -np.inf
    rows = some[left.rows]
    filtered[rows, left.tokens] = table[rows, left.tokens]
    return torch.from_numpy(filtered)


def sort_and_filter(scores: Tensor, sampling: Sequence[Sampling]) -> Tensor:
    """:func:`filter_scores` by sorting the vocabulary, where looking at the numbers would be to wait for them."""
    vocabulary = scores.shape[1]
    device = scores.device
    top_k = [min(s.top_k, vocabulary) or vocabulary for s in sampling]
    if min(top_k) < vocabulary:
        ranked = scores.topk(max(k for k in top_k if k < vocabulary), -1).values
        edge = put([[k - 1 if k < vocabulary else 0] for k in top_k], device)
        limit = ranked.gather(1, edge).masked_fill(put([[k == vocabulary] for k in top_k], device), -torch.inf)
        scores = scores.masked_fill(scores < limit, -torch.inf)
    if any(s.top_p < 1 for s in sampling):
        top_p = put([[s.top_p] for s in sampling], device)
        ordered, index = scores.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.cat((torch.zeros_like(mass[:, :1]), mass[:, :-1]), -1)
        gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, (before >= top_p) & (before > 0) & (top_p < 1))
        scores = scores.masked_fill(gone, -torch.inf)
    if any(s.min_p > 0 for s in sampling):
        min_p = put([[s.min_p] for s in sampling], device)
        floor = scores.max(-1, keepdim=True).values + min_p.log()
        scores = scores.masked_fill(scores < floor, -torch.inf)
    return scores


def certainty(logits: Tensor) -> Tensor:
    """How far from uniform each row of ``logits`` [N, vocabulary] is: KL(uniform || p) [N], in nats, float32 (arXiv 2502.18581).

    Over the tokens that have a probability: those of minus infinity, such as a padded vocabulary's, are left out.
    """
    scores = logits.float()
    mean, count = scores.mean(-1), torch.tensor(scores.shape[1])
    if not scores.is_cpu or not mean.isfinite().all():  # elsewhere, to look would be to wait
        possible = scores > -torch.inf
        count = possible.sum(-1)
        mean = scores.masked_fill(~possible, 0.0).sum(-1) / count
    return scores.logsumexp(-1) - mean - count.log()


FEW = 16
"""Rows of which single numbers are read sooner one by one."""


def _best(scores: Tensor) -> tuple[list[float] | Tensor, Tensor]:
    """The largest of each row of ``scores`` [N, M], NaN if there is one, and where it is [N]; a list on the host."""
    if scores.dtype != torch.float32 or not scores.is_cpu:
        value, index = scores.max(-1)
        return value, index
    table = scores.numpy()  # whose argmax is vectorised, as torch's on a CPU is not
    found = table.argmax(-1)
    if len(table) <= FEW:
        return [table.item(row, place) for row, place in enumerate(found.tolist())], torch.from_numpy(found)
    return table[np.arange(len(table)), found].tolist(), torch.from_numpy(found)


def _not_finite(values: list[float] | Tensor) -> list[tuple[int, float]]:
    """Those of ``values`` [N] that are not, and which they are."""
    found: list[float] = values.tolist() if isinstance(values, Tensor) else values
    if math.isfinite(sum(found)):  # else some value is not, or large ones added up to it
        return []
    return [(i, value) for i, value in enumerate(found) if not math.isfinite(value)]


class Nodes:
    """Places where a token is to be drawn: behind a row's output and some more tokens."""

    def __init__(self, places: Iterable[tuple[int, list[int]]]) -> None:
        """``places``: whose row each is, by number, and the tokens behind its output; looked at when somebody asks."""
        self._places = places

    @classmethod
    def of(cls, draft: Draft) -> Nodes:
        """The nodes of the rows' draft trees, each row's root first."""
        return cls(_places(draft))

    @cached_property
    def _known(self) -> list[tuple[int, list[int]]]:
        return list(self._places)

    @cached_property
    def owner(self) -> list[int]:
        """Whose row each is, by number."""
        return [row for row, _ in self._known]

    @cached_property
    def paths(self) -> list[list[int]]:
        """The tokens behind its output."""
        return [path for _, path in self._known]

    def length(self, rows: Sequence[Row], i: int) -> int:
        """Output tokens before place ``i``."""
        return len(rows[self.owner[i]].output) + len(self.paths[i])


def _places(draft: Draft) -> Iterator[tuple[int, list[int]]]:
    ids, parents, ptr = draft.lists()
    for r, (begin, end) in enumerate(pairwise(ptr)):
        paths: list[list[int]] = [[]]
        for token, parent in zip(ids[begin:end], parents[begin:end], strict=True):
            paths.append([*paths[parent], token])
        yield from ((r, path) for path in paths)


class Sampler:
    """Draws the next token of each row, or of each node of their draft trees. Keeps what depends only on which rows there are."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._sampling: list[Sampling] = []
        self._settings = candidates.Settings.of([])
        self._streams = np.empty(0, np.uint64)
        self._edits = False
        """Whether some row's logits are not used as they are."""
        self._greedy = True
        """Whether every row is greedy."""
        self._fewest = 0
        """The largest ``min_tokens`` of a row."""
        self._asked: list[str | None] = []
        """Which log-probability each row wants; empty if none does."""
        self._certainty = False
        """Whether some row wants to know how certain the model is."""
        self._vocabulary: Tensor | None = None

    def draw(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None = None) -> Drawn:
        """The next token of each of ``rows``, or the token at each of their ``nodes``; ``logits`` [N, vocabulary], a row a token.

        A node's token is what plain decoding would draw behind its path: processed with the path as output, by the noise of
        its own position. One of NaN or no finite logit fails alone.
        """
        self._prepare(rows)
        starved = self._fewest > 0 and any(len(row.output) < row.request.min_tokens for row in rows)
        draw = self._draw_on_host if logits.is_cpu else self._draw_on_device
        best, chosen, tokens, logprobs = draw(rows, logits, nodes, starved)
        certainty = self.certainty(rows, logits) if self._certainty else None
        if isinstance(best, Tensor):
            best, chosen, tokens, logprobs, certainty = read(best, chosen, tokens, logprobs, certainty)
        failed: dict[int, Exception] = {}
        for i, value in _not_finite(best):
            failed[i] = FloatingPointError(f"the largest logit for output token {self._length(rows, nodes, i)} is {value}")
        if chosen is not None and (starved or self._edits):
            for i, _ in _not_finite(chosen):
                failed.setdefault(i, ValueError(f"output token {self._length(rows, nodes, i)}: all tokens are ruled out"))
        return Drawn(tokens, logprobs, certainty, failed)

    def _draw_on_host(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None, starved: bool) -> _Choice:
        """The best logit of each place, the best one to draw from where these differ, the tokens, their log-probabilities."""
        scores = logits.float()
        best, tokens = _best(scores)
        chosen = None
        if starved or self._edits:
            scores = self._edited(rows, logits, nodes, starved)
            chosen, tokens = _best(scores)
        processed = None
        if not self._greedy:
            places = self._sampled(nodes, best if chosen is None else chosen)
            if self._asked:
                found, law = self._draw_at(rows, scores, nodes, places, 1)
                drawn = torch.from_numpy(found[:, 0])
                processed = torch.zeros(len(scores), dtype=torch.float64)
                processed[places] = torch.from_numpy(law[:, 0])
            elif len(places):
                drawn = torch.from_numpy(candidates.winners(*self._at(rows, scores, nodes, places)))
            if len(places) == len(scores):
                tokens = drawn
            elif len(places):
                tokens[places] = drawn
        return best, chosen, tokens, self._logprobs(logits, processed, tokens, nodes)

    def _draw_on_device(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None, starved: bool) -> _Choice:
        """The same without a look at the numbers, which would be to wait for them."""
        best, tokens = _best(logits)
        chosen = law = None
        if not self._greedy or self._edits or starved:
            processed = self.process(rows, logits, nodes, starved)
            chosen, tokens = _best(processed + self._noise(rows, logits, nodes))
            law = processed.gather(1, tokens[:, None])[:, 0] if self._asked else None
        return best, chosen, tokens, self._logprobs(logits, law, tokens, nodes)

    def _sampled(self, nodes: Nodes | None, best: list[float] | Tensor) -> np.ndarray:
        """The places [N] that are not greedy and can be drawn at: ``best`` are their largest scores."""
        warm = self._settings.temperature > 0
        return np.flatnonzero((warm if nodes is None else warm[nodes.owner]) & np.isfinite(np.asarray(best)))

    def _draw_at(self, rows: Sequence[Row], scores: Tensor, nodes: Nodes | None, places: np.ndarray, count: int
                 ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The best ``count`` tokens under the noise of each of ``places`` among ``scores``, and their log-probabilities."""
        if not len(places):
            return np.empty((0, count), np.int64), np.empty((0, count))
        return candidates.draw(*self._at(rows, scores, nodes, places), count)

    def _at(self, rows: Sequence[Row], scores: Tensor, nodes: Nodes | None, places: np.ndarray
            ) -> tuple[np.ndarray, candidates.Settings, np.ndarray]:  # fmt: skip
        """``scores``, settings and keys of ``places``."""
        table = scores.numpy()
        keys = self._keys(rows, nodes).numpy().view(np.uint64)
        settings = self._settings if nodes is None else self._settings[np.array(nodes.owner)]
        if len(places) < len(table):
            table, settings, keys = table[places], settings[places], keys[places]
        return table, settings, keys

    def process(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None = None, starved: bool = True) -> Tensor:
        """The log-probabilities [N, vocabulary] that tokens are drawn from at each node."""
        self._prepare(rows)
        scores = self._edited(rows, logits, nodes, starved) if starved or self._edits else logits
        return _law(scores, self._sampling if nodes is None else [self._sampling[r] for r in nodes.owner])

    def _edited(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None, starved: bool) -> Tensor:
        """A copy of ``logits`` in float32, with stops out of reach for the ``starved``, penalties and bias."""
        scores = logits.to(torch.float32, copy=True)
        if starved:
            self._mask_stops(rows, scores, nodes)
        if not self._edits:
            return scores
        if nodes is None:
            return _edit(scores, self._sampling, [row.prompt for row in rows], [row.output for row in rows])
        outputs = [[*rows[r].output, *path] for r, path in zip(nodes.owner, nodes.paths, strict=True)]
        return _edit(scores, [self._sampling[r] for r in nodes.owner], [rows[r].prompt for r in nodes.owner], outputs)

    def guess(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes, count: int) -> tuple[list[list[int]], list[list[float]]]:
        """What :meth:`draw` will likely say at each node, if the model that it asks agrees with these ``logits``: the ``count``
        tokens that do best under its own noise, best first, and their probabilities here."""
        self._prepare(rows)
        scores = self._edited(rows, logits, nodes, True) if self._edits or self._fewest else logits.float()
        count = min(count, scores.shape[1])
        if scores.is_cpu and self._greedy and count == 1:
            shares, found = scores.softmax(-1).max(-1, keepdim=True)
            return found.tolist(), shares.tolist()
        if scores.is_cpu:
            return self._guess_on_host(rows, scores, nodes, count)
        law = scores if self._greedy else _law(scores, [self._sampling[r] for r in nodes.owner])
        found = (law if self._greedy else law + self._noise(rows, logits, nodes)).topk(count, -1).indices
        found, shares = read(found, law.softmax(-1).gather(1, found))
        return found.tolist(), shares.tolist()

    def _guess_on_host(self, rows: Sequence[Row], scores: Tensor, nodes: Nodes, count: int
                       ) -> tuple[list[list[int]], list[list[float]]]:  # fmt: skip
        table = scores.numpy()
        found, law = np.zeros((len(table), count), np.int64), np.full((len(table), count), -np.inf)
        warm = np.empty(0, np.int64)
        if not self._greedy:
            warm = self._sampled(nodes, torch.from_numpy(table.max(1)))
            found[warm], law[warm] = self._draw_at(rows, scores, nodes, warm, count)
        cold = np.setdiff1d(np.arange(len(table)), warm)
        if len(cold):
            mine = table if len(cold) == len(table) else table[cold]
            found[cold] = candidates.largest(mine, count)
            law[cold] = np.take_along_axis(mine, found[cold], 1) - candidates.log_total(mine)[:, None]
        return found.tolist(), np.exp(law).tolist()

    def _prepare(self, rows: Sequence[Row]) -> None:
        if self._rows == rows:
            return
        self._rows = list(rows)
        self._sampling = [row.request.sampling for row in rows]
        self._settings = candidates.Settings.of(self._sampling)
        self._edits = any(s.edits_logits for s in self._sampling)
        self._greedy = all(s.temperature == 0 for s in self._sampling)
        self._fewest = max(row.request.min_tokens for row in rows)
        self._asked = [row.request.logprobs for row in rows]
        if not any(self._asked):
            self._asked.clear()
        self._certainty = any(row.request.certainty for row in rows)
        streams = [noise.stream(row.request.noise_seed, row.sample, noise.Lane.TARGET, row.index) for row in rows]
        self._streams = np.array(streams, np.uint64)

    def _keys(self, rows: Sequence[Row], nodes: Nodes | None) -> Tensor:
        """Of the noise [N] of each row or node."""
        positions, streams = np.array([len(row.output) for row in rows], np.uint64), self._streams
        if nodes is not None:
            positions, streams = (
                positions[nodes.owner] + np.array([len(path) for path in nodes.paths], np.uint64),
                streams[nodes.owner],
            )
        return noise.keys(streams, positions)

    def _noise(self, rows: Sequence[Row], logits: Tensor, nodes: Nodes | None) -> Tensor:
        if self._vocabulary is None or len(self._vocabulary) != logits.shape[1]:
            self._vocabulary = torch.arange(logits.shape[1], device=logits.device)
        return noise.gumbel(put(self._keys(rows, nodes), logits.device), self._vocabulary)

    def _mask_stops(self, rows: Sequence[Row], masked: Tensor, nodes: Nodes | None) -> None:
        """Stop tokens are out of reach before ``min_tokens``; in place."""
        for i, r in enumerate(range(len(rows)) if nodes is None else nodes.owner):
            request = rows[r].request
            if request.stop_ids and self._length(rows, nodes, i) < request.min_tokens:
                masked[i].index_fill_(0, put(list(request.stop_ids), masked.device), -torch.inf)

    def _logprobs(self, logits: Tensor, processed: Tensor | None, tokens: Tensor, nodes: Nodes | None) -> Tensor | None:
        """Of ``tokens`` [N], as each row asked; ``processed`` [N] is that of what they were drawn from, None: all on one."""
        if not self._asked:
            return None
        asked = self._asked if nodes is None else [self._asked[r] for r in nodes.owner]
        scores = logits.float()
        total = torch.from_numpy(candidates.log_total(scores.numpy())) if scores.is_cpu else scores.logsumexp(-1)
        raw = (scores.gather(1, tokens[:, None])[:, 0] - total).float()
        drawn = torch.zeros_like(raw) if processed is None else processed.float()
        return torch.where(put([a == "processed" for a in asked], raw.device), drawn, raw)

    def logprobs(
        self, rows: Sequence[Row], logits: Tensor, processed: Tensor, nodes: Nodes, places: Sequence[int], tokens: Tensor
    ) -> Tensor | None:
        """Of ``tokens`` that something else chose at ``places`` among the nodes, as each row asked; None if none did."""
        self._prepare(rows)
        index, tokens = put(places, logits.device), put(tokens, logits.device)
        some = Nodes([(nodes.owner[i], nodes.paths[i]) for i in places])
        law = processed[index].gather(1, tokens[:, None])[:, 0]
        return self._logprobs(logits[index], law, tokens, some) if self._asked else None

    def certainty(self, rows: Sequence[Row], logits: Tensor, places: Sequence[int] | None = None) -> Tensor | None:
        """Of the model at ``places`` among ``logits``, default all; None if none of ``rows`` asked."""
        self._prepare(rows)
        if not self._certainty:
            return None
        return certainty(logits if places is None else logits[put(places, logits.device)])

    @staticmethod
    def _length(rows: Sequence[Row], nodes: Nodes | None, i: int) -> int:
        return len(rows[i].output) if nodes is None else nodes.length(rows, i)
