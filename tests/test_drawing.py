"""The picture of scan paths."""

from __future__ import annotations

import numpy as np
import pytest

from mambaad.drawing import END, MARGIN, PANEL, START, TITLE, draw_scans


@pytest.mark.parametrize(("directions", "panels"), [(2, (2, 1)), (8, (4, 2)), ("distinct", (4, 2))])
def test_one_panel_a_direction(directions: int, panels: tuple[int, int]) -> None:
    picture = draw_scans("hilbert", directions, 4, 6)
    assert picture.size == (panels[0] * PANEL, panels[1] * (PANEL + TITLE))


def test_a_path_goes_from_blue_to_red() -> None:
    sheet = np.asarray(draw_scans("sweep", 2, 4, 4))
    cell = (PANEL - MARGIN) / 4

    def at(panel: int, row: int, column: int) -> tuple[int, ...]:
        y = TITLE + (row + 0.5) * cell
        x = panel * PANEL + MARGIN / 2 + (column + 0.5) * cell
        return tuple(sheet[round(y), round(x)].tolist())

    assert at(0, 0, 0) == START
    assert at(0, 3, 3) == END
    assert at(1, 3, 3) == START  # the second direction is the first backwards
    assert at(1, 0, 0) == END


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="scan method must be one of"):
        draw_scans("spiral", 8, 4, 4)
