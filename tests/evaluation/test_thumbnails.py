import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.evaluation.thumbnails import shapes, thumbnail


def picture(seed: int, side: int = 32) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return rough.repeat(side // 4, axis=0).repeat(side // 4, axis=1)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0, 60_000), st.sampled_from([16, 32, 64]))
def test_no_thumbnail_takes_more_bits_than_the_codes(bits, side):
    for width, height, depth in shapes(bits, side):
        assert 3 * width * height * depth <= bits
        assert 1 <= width <= side
        assert 1 <= height <= side


def test_more_bits_give_a_better_thumbnail_and_enough_bits_the_picture():
    original = picture(0)
    errors = [
        np.mean((thumbnail(original, bits).astype(float) - original) ** 2)
        for bits in (0, 24, 96, 384, 3 * 8 * 32 * 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert errors[1] < errors[0]


def test_a_picture_of_one_colour_needs_one_pixel():
    flat = np.full((32, 32, 3), (255, 0, 0), dtype=np.uint8)
    assert np.array_equal(thumbnail(flat, 3), flat)


def test_nothing_fits_into_no_bits():
    assert (thumbnail(picture(0), 2.9) == 128).all()
