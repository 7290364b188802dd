"""Which pictures are worth looking at; ``test_evaluate`` looks at them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mambaad.examples import choose, make_examples


def chosen(labels: list[int], scores: list[float]) -> dict[int, str]:
    return choose(np.array(labels, np.int64), np.array(scores, np.float32))


def test_kinds() -> None:
    found = chosen([1, 0, 1, 1, 0], [0.5, 0.1, 0.9, 0.2, 0.3])
    assert found == {2: "best", 3: "worst", 0: "median", 4: "false alarm"}
    assert chosen([0, 0], [0.2, 0.1]) == {0: "false alarm"}
    assert chosen([1], [0.2]) == {0: "best"}
    assert chosen([], []) == {}


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1, width=32)), max_size=8))
def test_the_best_is_the_highest(pictures: list[tuple[int, float]]) -> None:
    found = chosen([p[0] for p in pictures], [p[1] for p in pictures])
    assert len(found) <= 4
    for index, kind in found.items():
        assert pictures[index][0] == (kind != "false alarm")
        if kind in ("best", "false alarm"):
            assert pictures[index][1] == max(s for b, s in pictures if b == pictures[index][0])


def test_nothing_gives_nothing() -> None:
    assert make_examples((), {}, {}, {}, np.zeros(0, np.float32)) == ()
