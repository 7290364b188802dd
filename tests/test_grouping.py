"""Maps cut by category; masks are tested with the evaluation that reads them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from mambaad.grouping import joined, regroup


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("counts", [[7], [1, 6], [2, 2, 3], [1] * 7])
def test_batches_are_regrouped(batch: int, counts: list[int]) -> None:
    numbers = np.arange(7 * 2, dtype=np.float32).reshape(7, 1, 2)
    reported: list[int] = []

    def parts() -> Iterator[NDArray[np.float32]]:
        buffer = np.empty((batch, 1, 2), np.float32)  # overwritten by every batch
        for start in range(0, 7, batch):
            part = numbers[start : start + batch]
            buffer[: len(part)] = part
            yield buffer[: len(part)]
            reported.append(start + len(part))

    pairs = zip(regroup(parts(), counts), counts, strict=True)
    found = [joined(pieces, count) for pieces, count in pairs]
    assert [len(maps) for maps in found] == counts
    assert np.array_equal(np.concatenate(found), numbers)
    assert reported[-1] == 7
