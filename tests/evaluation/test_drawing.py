import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.data.images import png_bytes
from pictish.data.tokens import TokenizedImage
from pictish.evaluation.codebook import CODES, EXAMPLES, CodeExamples, draw_codes, gather_codes
from pictish.evaluation.drawing import (
    ACCENT,
    Panels,
    SheetRow,
    contact_sheet,
    crop_cell,
    four_panels,
)
from pictish.evaluation.pictures import PictureSource
from pictish.evaluation.plot import quality_chart
from pictish.evaluation.sheets import contact_sheet_of
from pictish.evaluation.tokenizer import Evaluation
from tests.evaluation.fakes import FakeDistance, FakePreview, FakeTokenizer

ORANGE = tuple(int(ACCENT[place : place + 2], 16) for place in (1, 3, 5))


def grey_blocks(number: int, folder: Path, side: int = 8) -> Path:
    """Images of 4 x 4 blocks in four greys; at `side` 4 the tokenizer sees them exactly."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(number):
        levels = generator.choice([10, 120, 135, 245], size=(4, 4))
        pixels = np.kron(levels, np.ones((side, side))).astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").save(folder / f"{index:02}.png")
    return folder


def panels(size=(300, 200), grid=(4, 4), kept=(1, 6), **changes) -> Panels:
    given = {
        "picture": Image.new("RGB", size, "#204060"),
        "reconstruction": Image.new("RGB", (64, 64), "#206040"),
        "grid": grid,
        "cells": np.array(kept),
        "scores": np.linspace(0.5, 1, len(kept)),
        "ids": np.arange(len(kept)) + 1000,
        "title": "a title",
        "caption": "a caption",
    }
    return Panels(**{**given, **changes})


def test_four_panels_show_picture_and_reconstruction_at_the_pictures_own_shape():
    for size in ((300, 200), (200, 300), (256, 256)):
        sheet = four_panels(panels(size, kept=(0,)))
        for colour, place in (((0x20, 0x40, 0x60), 0), ((0x20, 0x60, 0x40), 3)):
            alike = np.abs(np.asarray(sheet).astype(int) - colour).sum(axis=-1) < 30
            quarter = np.array_split(np.arange(sheet.width), 4)[place]
            rows, columns = np.nonzero(alike[:, quarter])
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
            assert max(width, height) >= 400


def test_four_panels_outline_the_kept_cells_and_no_other():
    sheet = np.asarray(four_panels(panels((400, 400), kept=(0, 5))))
    orange = np.abs(sheet.astype(int) - ORANGE).sum(axis=-1) < 12
    rows, columns = np.nonzero(orange)
    # cells 0 and 5 of 4 x 4 in 400 px: the upper left quarter
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 200
    assert not orange[rows.min() : rows.min() + 100, columns.min() + 110 : columns.min() + 200].any()


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (900, 7), (40, 100)])
@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (16, 16), (3, 5)])
def test_four_panels_of_any_shape(size, grid):
    cells = grid[0] * grid[1]
    sheet = four_panels(panels(size, grid, kept=tuple(range(cells)), title="x" * 300, caption="y" * 40))
    assert sheet.width < 3200
    assert sheet.height < 1300
    edges = np.asarray(sheet)[:, [0, 1, -2, -1]]
    assert (edges == 255).all(), "something runs over the margin"


def test_crop_cell_is_the_region_of_the_cell():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(3, axis=0).repeat(5, axis=1)
    picture = Image.fromarray(pixels).convert("RGB")
    for cell in range(16):
        crop = np.asarray(crop_cell(picture, cell, (4, 4)))
        assert crop.shape == (3, 5, 3)
        assert (crop == cell).all()


def test_crop_cell_of_a_picture_smaller_than_the_grid():
    picture = Image.new("RGB", (2, 1))
    assert all(min(crop_cell(picture, cell, (8, 8)).size) == 1 for cell in range(64))


def test_contact_sheet_of_an_evaluation(tmp_path):
    source = PictureSource([grey_blocks(12, tmp_path / "pictures")])
    evaluation = Evaluation(FakeTokenizer(), FakePreview(), FakeDistance(), seed=0)
    measured = evaluation.measure("pictures", source.decode())
    blob = contact_sheet_of(evaluation, measured, source)
    assert blob == contact_sheet_of(evaluation, measured, source)
    sheet = Image.open(io.BytesIO(blob))
    assert sheet.height > 9 * 112
    assert sheet.width > 5 * 112  # original, automatic, 4, 8, 16


def test_contact_sheet_holds_every_tile():
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
    tiles = [(Image.new("RGB", (64, 64), colour), "1.0 dB") for colour in colours]
    rows = [
        SheetRow("best", "a.png", (64, 64), tiles[:2]),
        SheetRow("worst", "a very long name / of a picture.png", (64, 30), tiles[2:]),
    ]
    sheet = np.asarray(contact_sheet("title", "subtitle", ["original", "automatic"], rows))
    areas = [(sheet == [int(c[p : p + 2], 16) for p in (1, 3, 5)]).all(axis=-1).sum() for c in colours]
    assert areas[0] == areas[1] == 112 * 112
    assert areas[2] == areas[3] == 112 * round(112 * 30 / 64)


def test_code_sheet_shows_patches_that_have_the_code(tmp_path):
    """In these images a code is a grey level, so that every row of the sheet has one colour."""
    source = PictureSource([grey_blocks(6, tmp_path / "pictures", side=4)])
    tokenizer = FakeTokenizer()
    examples = gather_codes(source.decode(), tokenizer, budget=16)
    most = examples.statistics.most_used(CODES)
    assert len(most) == 4
    assert sum(count for _, count in most) == 6 * 16
    sheet = np.asarray(Image.open(io.BytesIO(draw_codes(examples, source))))
    for level in (10, 120, 135, 245):
        alike = (sheet == level).all(axis=-1)
        assert alike.sum() > 10 * 60 * 60
        (rows,) = np.nonzero(alike.sum(axis=1) > 500)  # text has greys too, but never so many in a line
        assert 60 <= np.ptp(rows) < 64


def test_code_examples_are_a_bounded_uniform_sample():
    token = TokenizedImage(np.array([7]), np.array([3]), (4, 4), (4, 4), "0123456789ab", 64)
    examples = CodeExamples(64, "0123456789ab", (4, 4))
    for index in range(5000):
        examples.add(index, token)
    assert examples.statistics.counts[7] == 5000
    (uses,) = examples.uses.values()
    assert len(uses) == len(set(uses)) == EXAMPLES
    assert 1000 < np.mean([index for index, _ in uses]) < 4000


def test_gather_codes_needs_a_readable_picture(tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(ValueError, match="no readable image"):
        gather_codes(PictureSource([tmp_path]).decode(), FakeTokenizer())


def test_quality_chart_is_a_png_and_always_the_same(tmp_path):
    source = PictureSource([grey_blocks(5, tmp_path / "pictures")])
    evaluation = Evaluation(FakeTokenizer(), FakePreview(), FakeDistance(), seed=0)
    sets = [evaluation.measure(name, source.decode()) for name in ("pictures", "photographs")]
    one, again, two = (quality_chart(evaluation.report(sets[:number])) for number in (1, 1, 2))
    assert one == again
    assert Image.open(io.BytesIO(two)).height > Image.open(io.BytesIO(one)).height + 200


def test_png_bytes_keep_the_pixels():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(picture)))), np.asarray(picture))
