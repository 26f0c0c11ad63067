"""Images in tiles: which grid, which pixels in which view, and the order of the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pictish.lm.vision.tiles import (
    Layout,
    arrange,
    best_grid,
    frame_layout,
    grids,
    padded,
    squashed,
    tiled,
    tiled_layout,
)

CELLS = (27, 27)


def marked(layout: Layout) -> torch.Tensor:
    """Rows (V, N, 3): view, line and cell."""
    h, w = layout.cells
    rows = torch.zeros(layout.views, h, w, 3)
    rows[..., 0] = torch.arange(layout.views)[:, None, None]
    rows[..., 1], rows[..., 2] = torch.arange(h)[:, None], torch.arange(w)
    return rows.flatten(1, 2)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((384, 384), 1485), ((640, 480), 2929), ((1000, 700), 3654), ((2304, 2304), 3699), ((120, 90), 1317)],
)
def test_lengths_are_those_that_are_published_of_lladav(size, tokens):
    layout = tiled_layout(size, best_grid(size, grids(6, 6), 384), CELLS, 4)
    assert layout.length == tokens
    assert arrange(marked(layout), layout, torch.full((3,), -1.0)).shape == (tokens, 3)


def test_the_whole_comes_first_and_a_separator_ends_every_line_of_the_map():
    layout = Layout((2, 2), tiles=(1, 2))
    rows = arrange(marked(layout), layout, torch.full((3,), -1.0)).tolist()
    assert rows[:4] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert rows[4:9] == [[1, 0, 0], [1, 0, 1], [2, 0, 0], [2, 0, 1], [-1, -1, -1]]
    assert rows[9:] == [[1, 1, 0], [1, 1, 1], [2, 1, 0], [2, 1, 1], [-1, -1, -1]]


def test_one_of_several_pictures_ends_with_a_separator_and_frames_are_reduced():
    assert Layout(CELLS, ended=True).length == 730
    assert frame_layout(CELLS, 2).length == 210
    layout = frame_layout((4, 4), 2)
    rows = arrange(marked(layout), layout, torch.zeros(3))
    assert rows[0].tolist() == [0, 0.5, 0.5], "the mean of four cells"
    assert rows[2].tolist() == [0, 0, 0], "the separator"


def test_tiles_show_the_picture_upright_in_the_middle_of_black():
    picture = Image.new("RGB", (40, 20), (200, 10, 10))
    views = tiled(picture, (1, 1), 20)
    assert views.shape == (2, 20, 20, 3)
    assert (views[0] == (200, 10, 10)).all(), "the whole is squashed"
    lit = (views[1] == (200, 10, 10)).all(axis=(1, 2))
    assert lit.tolist() == [False] * 5 + [True] * 10 + [False] * 5


def test_tiles_come_line_by_line():
    colours = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    picture = Image.fromarray(np.repeat(np.kron(colours, np.ones((8, 8), np.uint8))[..., None], 3, axis=2))
    views = tiled(picture, (3, 2), 8)
    assert [int(view[4, 4, 0]) for view in views[1:]] == [0, 40, 80, 120, 160, 200]


def test_a_padded_picture_is_whole_in_a_square_of_the_mean():
    view = padded(Image.new("RGB", (10, 20), (255, 0, 0)), 20, (0.5, 0.5, 0.5))[0]
    assert view[10, 0].tolist() == [127, 127, 127]
    assert view[10, 10].tolist() == [255, 0, 0]
    assert squashed(Image.new("RGB", (10, 20)), 4).shape == (1, 4, 4, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4, None]),
    st.integers(1, 5),
)
def test_every_size_has_rows_for_its_length_and_none_is_empty(size, wide, high, largest, cells):
    grid = best_grid(size, grids(wide, high), cells * 3)
    layout = tiled_layout(size, grid, (cells, cells), largest)
    assert min(layout.map) >= 1
    rows = arrange(marked(layout), layout, torch.zeros(3))
    assert rows.shape == (layout.length, 3)
    assert rows.isfinite().all()
