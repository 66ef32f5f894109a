"""The Triton kernels: attention of the items of a work list, the merge of partial results, the write of new K and V.

Launched by ``triton_attention.py`` and ``write.py``, where arguments are explained. Softmax is online in base 2
(arXiv 1805.02867). Every address is an offset from a tensor's start, in 64 bits where it may be large. Exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _walk(
    sums, top, total, q, last, first, tree, k_ptr, v_ptr, slots_ptr, positions_ptr, k_slot, v_slot,
    begin, end, own, shift, scale, softcap,
    DIM: tl.constexpr, DIM_V: tl.constexpr, WIDE: tl.constexpr, WIDE_V: tl.constexpr, BLOCK: tl.constexpr,
    OPEN: tl.constexpr, STORED: tl.constexpr, TREE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Take slots ``begin`` to ``end`` into the running softmax. ``OPEN``: all rows see all of them."""
    n, d, dv = tl.arange(0, BLOCK), tl.arange(0, WIDE), tl.arange(0, WIDE_V)
    for start in range(begin, end, BLOCK):
        s = start + n
        there = s < end
        slot = tl.load(slots_ptr + s, mask=there, other=0).to(tl.int64)
        seen = there[None, :]
        if not OPEN:
            position = s + shift
            if STORED:
                position = tl.load(positions_ptr + s, mask=there, other=0)
            seen = seen & (position[None, :] <= last[:, None]) & (position[None, :] >= first[:, None])
            if TREE:
                # The shift of what is no new token is nonsense, and unused; a chain's word is -1, whatever its length.
                bit = tl.minimum(tl.maximum(s - own - 1, 0), 63).to(tl.int64)
                seen = seen & ((s <= own)[None, :] | (((tree[:, None] >> bit[None, :]) & 1) != 0))
        k = tl.load(k_ptr + slot[None, :] * k_slot + d[:, None], mask=there[None, :] & (d[:, None] < DIM), other=0.0)
        wanted = there
        if not OPEN:
            wanted = tl.max(seen.to(tl.int32), 0) > 0
        v = tl.load(v_ptr + slot[:, None] * v_slot + dv[None, :], mask=wanted[:, None] & (dv[None, :] < DIM_V), other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            shrunk = tl.exp2(tl.abs(scores) * (-2.0 * 1.4426950408889634 / softcap))
            size = softcap * (1.0 - shrunk) / (1.0 + shrunk)
            scores = tl.where(scores < 0, -size, size)
        scores = scores * 1.4426950408889634
        if not OPEN:
            # A weight of zero does not undo a NaN in V: who sees one has a score of NaN, for all others V is zero there.
            sound = tl.abs(v.to(tl.float32)) < float("inf")
            v = tl.where(sound, v, 0.0).to(v.dtype)
            scores = tl.where((tl.min(sound.to(tl.int32), 1) > 0)[None, :], scores, float("nan"))
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - safe[:, None])
        fade = tl.exp2(top - safe)
        total = total * fade + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * fade[:, None], input_precision="ieee")
        top = higher
    return sums, top, total


@triton.jit(do_not_specialize=["first_item"])
def attend_items(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, items_ptr, open_ptr, pairs_ptr, slots_ptr, positions_ptr, tree_ptr,
    cos_ptr, sin_ptr, sinks_ptr, q_token, q_head, k_slot, k_head, v_slot, v_head, first_item, scale, softcap,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    WIDE: tl.constexpr, WIDE_V: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, STORED: tl.constexpr, TREE: tl.constexpr, SOFTCAP: tl.constexpr, PARTIAL: tl.constexpr,
    SINKS: tl.constexpr, LSE: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One item for one KV head: up to ``ROWS`` rows, each a query and one of the heads that share the KV head."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    index = tl.program_id(0)
    kv_head = index % KV_HEADS
    index = first_item + index // KV_HEADS
    item = items_ptr + 6 * index
    pair_begin, pair_end = tl.load(item), tl.load(item + 1)
    begin, end, base, own = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    shift = base - begin
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    pair = pair_begin + row // GROUP
    real = pair < pair_end
    head = kv_head * GROUP + row % GROUP
    query = tl.load(pairs_ptr + 4 * pair, mask=real, other=0).to(tl.int64)
    last = tl.load(pairs_ptr + 4 * pair + 1, mask=real, other=-1)
    first = tl.load(pairs_ptr + 4 * pair + 2, mask=real, other=0)
    tree = query
    if TREE:
        tree = tl.load(tree_ptr + query, mask=real, other=0)

    d, dv = tl.arange(0, WIDE), tl.arange(0, WIDE_V)
    q_rows = q_ptr + query[:, None] * q_token + head.to(tl.int64)[:, None] * q_head
    inside = real[:, None] & (d[None, :] < DIM)
    q = tl.load(q_rows + d[None, :], mask=inside, other=0.0)
    if TURNED:
        # Channel d turns with its partner: out = a cos - b sin for the first of a pair, b cos + a sin for the second.
        if INTERLEAVED:
            partner, angle, second = d ^ 1, d // 2, d % 2
        else:
            second = (d >= HALF).to(tl.int32)
            partner, angle = d + HALF - 2 * HALF * second, d - HALF * second
        turns = inside & (d[None, :] < 2 * HALF)
        other = tl.load(q_rows + partner[None, :], mask=turns, other=0.0).to(tl.float32)
        at = pair.to(tl.int64)[:, None] * HALF + angle[None, :]
        cos = tl.load(cos_ptr + at, mask=turns, other=1.0)
        sin = tl.load(sin_ptr + at, mask=turns, other=0.0)
        q = (q.to(tl.float32) * cos + other * tl.where(second[None, :] != 0, sin, -sin)).to(q.dtype)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDE_V], tl.float32)
    k_ptr += kv_head.to(tl.int64) * k_head
    v_ptr += kv_head.to(tl.int64) * v_head
    wide, wide_end = begin, end
    if MASKED:
        wide, wide_end = tl.load(open_ptr + 2 * index), tl.load(open_ptr + 2 * index + 1)
    sums, top, total = _walk(
        sums, top, total, q, last, first, tree, k_ptr, v_ptr, slots_ptr, positions_ptr, k_slot, v_slot, wide, wide_end, own,
        shift, scale, softcap, DIM, DIM_V, WIDE, WIDE_V, BLOCK, True, STORED, TREE, SOFTCAP)  # fmt: skip
    if MASKED:
        for side in range(2):  # what lies before, and behind
            sums, top, total = _walk(
                sums, top, total, q, last, first, tree, k_ptr, v_ptr, slots_ptr, positions_ptr, k_slot, v_slot,
                begin + (wide_end - begin) * side, wide + (end - wide) * side, own,
                shift, scale, softcap, DIM, DIM_V, WIDE, WIDE_V, BLOCK, False, STORED, TREE, SOFTCAP)  # fmt: skip

    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=real, other=0.0).to(tl.float32) * 1.4426950408889634
        higher = tl.maximum(top, sink)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        fade = tl.exp2(top - safe)
        total = total * fade + tl.exp2(sink - safe)
        sums = sums * fade[:, None]
        top = higher
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    sums = sums / total[:, None]
    row_of = pair.to(tl.int64) if PARTIAL else query
    out = out_ptr + (row_of * HEADS + head)[:, None] * DIM_V + dv[None, :]
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=real[:, None] & (dv[None, :] < DIM_V))
    if LSE:
        # A NaN among the scores is in the total, but not always in the top.
        lse = tl.where(nothing, float("-inf"), (top + tl.log2(total)) * 0.6931471805599453)
        tl.store(lse_ptr + row_of * HEADS + head, lse, mask=real)


@triton.jit
def merge_pairs(
    partial_ptr, partial_lse_ptr, out_ptr, lse_ptr, merge_ptr, merge_list_ptr, sinks_ptr,
    HEADS: tl.constexpr, DIM_V: tl.constexpr, WIDE_V: tl.constexpr, BLOCK: tl.constexpr,
    SINKS: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """One head of one query: its partial results weighted by their log-sum-exps, and the sink."""
    query, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = tl.load(merge_ptr + query), tl.load(merge_ptr + query + 1)
    n, dv = tl.arange(0, BLOCK), tl.arange(0, WIDE_V)
    top = tl.full([], float("-inf"), tl.float32)
    if SINKS:
        top = tl.load(sinks_ptr + head).to(tl.float32)
    total = tl.where(top == float("-inf"), 0.0, 1.0)
    sums = tl.zeros([WIDE_V], tl.float32)
    for start in range(begin, end, BLOCK):
        there = start + n < end
        pair = tl.load(merge_list_ptr + start + n, mask=there, other=0).to(tl.int64) * HEADS + head
        lse = tl.load(partial_lse_ptr + pair, mask=there, other=float("-inf"))
        part = tl.load(partial_ptr + pair[:, None] * DIM_V + dv[None, :], mask=there[:, None] & (dv[None, :] < DIM_V), other=0.0)
        higher = tl.maximum(top, tl.max(lse, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(lse - safe)
        fade = tl.exp(top - safe)
        total = total * fade + tl.sum(weights, 0)
        sums = sums * fade + tl.sum(weights[:, None] * part, 0)
        top = higher
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    sums = sums / total
    at = query * HEADS + head
    tl.store(out_ptr + at * DIM_V + dv, sums.to(out_ptr.dtype.element_ty), mask=dv < DIM_V)
    if LSE:
        tl.store(lse_ptr + at, tl.where(nothing, float("-inf"), top + tl.log(total)))


@triton.jit
def write_tokens(
    qkv_ptr, cos_ptr, sin_ptr, slots_ptr, q_ptr, k_ptr, v_ptr, q_norm_ptr, k_norm_ptr,
    qkv_token, qkv_head, cos_token, sin_token, k_slot, k_head, v_slot, v_head, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr, NORMED: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Some heads of one new token: norm and rotation where they are q or k; q is put aside, k and v in the pool."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    head, d = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE), tl.arange(0, WIDE)
    is_q, is_v = head < HEADS, head >= HEADS + KV_HEADS
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (d < DIM)[None, :]
    if INTERLEAVED:
        partner = d ^ 1
    else:
        partner = tl.where(d < WIDTH // 2, d + WIDTH // 2, d - WIDTH // 2)
    turns = d < WIDTH
    row = qkv_ptr + token * qkv_token + head[:, None] * qkv_head
    x = tl.load(row + d[None, :], mask=inside, other=0.0)
    y = x.to(tl.float32)
    z = tl.load(row + partner[None, :], mask=inside & turns[None, :], other=0.0).to(tl.float32)
    if NORMED:
        shrink = tl.rsqrt(tl.sum(y * y, 1) / DIM + eps)[:, None]
        for_q = tl.load(q_norm_ptr + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]
        for_k = tl.load(k_norm_ptr + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]
        y = y * shrink * tl.where(is_q[:, None], for_q, for_k)
        for_q = tl.load(q_norm_ptr + partner, mask=turns, other=0.0).to(tl.float32)[None, :]
        for_k = tl.load(k_norm_ptr + partner, mask=turns, other=0.0).to(tl.float32)[None, :]
        z = z * shrink * tl.where(is_q[:, None], for_q, for_k)
    cos = tl.load(cos_ptr + token * cos_token + d, mask=turns, other=1.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + token * sin_token + d, mask=turns, other=0.0).to(tl.float32)[None, :]
    y = tl.where(is_v[:, None], x, (y * cos + z * sin).to(x.dtype))
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS)
    k_at = slot * k_slot + (head - HEADS).to(tl.int64) * k_head
    v_at = slot * v_slot + (head - HEADS - KV_HEADS).to(tl.int64) * v_head
    tl.store(q_ptr + (token * HEADS + head[:, None]) * DIM + d[None, :], y, mask=inside & is_q[:, None])
    tl.store(k_ptr + k_at[:, None] + d[None, :], y, mask=inside & is_k[:, None])
    tl.store(v_ptr + v_at[:, None] + d[None, :], y, mask=inside & is_v[:, None])
