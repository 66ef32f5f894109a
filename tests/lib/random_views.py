"""Random mixtures of what views can say, from a numpy generator: for where hypothesis is not to be had, or too slow."""

from types import SimpleNamespace

import numpy as np

from forethought.kernels.views import Views


def random_views(rng: np.random.Generator, write: SimpleNamespace, longest: int = 40) -> Views:
    """Up to six rows: decode rows, chunks, trees, rows that ask nothing; over common contexts, whole rows before them, and
    contexts of their own of up to ``longest`` slots; in order or scattered, moved or not, fused or not, hidden or not."""
    trees, fused, moved, hiding = rng.random(4) < 0.4
    slots = 12 * longest + 600
    free = iter(rng.permutation(slots).tolist() if rng.random() < 0.5 else range(slots))
    stored: dict[int, int] = {}

    def store(count: int, start: int) -> list[int]:
        found = [next(free) for _ in range(count)]
        steps = rng.integers(1, 4, count) if fused else np.ones(count, np.int64)
        stored.update(zip(found, (start + np.cumsum(steps) - steps).tolist(), strict=True))
        return found

    def offset() -> int:
        return int(rng.integers(-15, 16)) if moved and rng.random() < 0.7 else 0

    contexts = [store(int(rng.integers(1, longest + 1)), 0) for _ in range(2)]
    rows = []
    for _ in range(rng.integers(1, 7)):
        parts = []
        for _ in range(rng.choice([0, 0, 1, 2])):
            seen = contexts[rng.integers(len(contexts))]
            parts.append(write.Part(seen[: rng.choice([0, len(seen) // 2, len(seen)])], offset()))
        past = list(contexts[rng.integers(len(contexts))]) if rng.random() < 0.7 else []
        past += store(int(rng.integers(0, 13)), stored[past[-1]] + 1 if past else 0)
        after = stored[past[-1]] + 1 if past else 0
        count, parents = int(rng.choice([0, 1, 1, 1, 2, 3, 9, 20])), None
        if trees and count and rng.random() < 0.6:
            parents = [-1, *(int(rng.integers(0, i + 1)) for i in range(count - 1))]
            depths = [0]
            for parent in parents[1:]:
                depths.append(depths[parent] + 1)
            new = [next(free) for _ in range(count)]
            stored.update((slot, after + depth) for slot, depth in zip(new, depths, strict=True))
        else:
            new = store(count, after)
        parts.append(write.Part([*past, *new], by := offset()))
        last = rng.integers(-1, longest, (count, len(parts))).tolist() if hiding and rng.random() < 0.5 else None
        rows.append(write.Row([stored[slot] + by for slot in new], parts, parents, last))
        contexts.append([*past, *new])
    return write.views(rows, stored if trees or fused or rng.random() < 0.5 else None)
