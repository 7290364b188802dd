"""The public names."""

from __future__ import annotations

import pytest

import mambaad


def test_every_public_name_is_there() -> None:
    for name in mambaad.__all__:
        assert getattr(mambaad, name) is not None
    assert set(mambaad.__all__) <= set(dir(mambaad))


def test_metrics_need_no_import_of_their_own() -> None:
    report = mambaad.metrics.score([[[0.1]], [[0.9]]], [[[0]], [[1]]])
    assert report.image_AUROC == report.pixel_AUROC == 1.0


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mambaad.nothing
