from __future__ import annotations

import pytest

from mambaad.data.catalogue import PUBLISHED, Counts, PublishedSet, published
from mambaad.data.layouts import LAYOUTS
from mambaad.errors import ConfigError

SETS = pytest.mark.parametrize("known", PUBLISHED.values(), ids=PUBLISHED)


@SETS
def test_categories_add_up_to_the_published_total(known: PublishedSet) -> None:
    counts = list(known.categories.values())
    if None in counts:
        assert set(counts) == {None}
        return
    numbers = [c for c in counts if c is not None]
    defective = [c.defective for c in numbers]
    assert known.total == Counts(
        sum(c.train for c in numbers),
        sum(c.test for c in numbers),
        None if None in defective else sum(d for d in defective if d is not None),
    )


@SETS
def test_every_set_can_be_read_and_found(known: PublishedSet) -> None:
    assert known.layout in LAYOUTS
    assert "http" in known.source
    assert known.licence
    assert PUBLISHED[known.name] is known


@pytest.mark.parametrize(
    ("name", "classes", "pictures"),
    [
        # pictures in all, as usually published
        ("mvtec-ad", 15, 5354),
        ("visa", 12, 10821),
        ("real-iad", 30, 151050),
        ("mvtec-3d", 10, 4147),
        ("uni-medical", 3, 20352),
        ("mvtec-loco", 5, 3346),
        ("btad", 3, 2540),
        ("mpdd", 6, 1346),
    ],
)
def test_published_numbers(name: str, classes: int, pictures: int) -> None:
    known = published(name)
    assert known.total is not None
    assert (len(known.categories), known.total.train + known.total.test) == (classes, pictures)


def test_real_iad_has_its_good_pictures() -> None:
    total = published("real-iad").total
    assert total is not None
    assert total.defective is not None
    assert total.train + total.test - total.defective == 99_721


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'imagenet' is known; known: \['mvtec-ad', 'visa'"):
        published("imagenet")
