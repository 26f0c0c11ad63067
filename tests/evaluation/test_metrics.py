import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data.tokens import TokenizedImage
from pictish.evaluation.metrics import (
    PSNR_CEILING,
    CodeStatistics,
    FeatureDistance,
    bootstrap,
    length_summary,
    perplexity,
    psnr,
    ssim,
)

SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)


def pictures(seed: int, number: int = 3, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(number, side, side, 3), dtype=np.uint8)


def tokens(ids, size=(10, 20), tokenizer="0123456789ab", codes=64) -> TokenizedImage:
    return TokenizedImage(np.array(ids), np.arange(len(ids)), (8, 8), size, tokenizer, codes)


def test_psnr_is_that_of_scikit_image_and_goes_picture_by_picture():
    from skimage.metrics import peak_signal_noise_ratio

    ours, originals = pictures(0), pictures(1)
    expected = [peak_signal_noise_ratio(b, a) for a, b in zip(ours, originals, strict=True)]
    np.testing.assert_allclose(psnr(ours, originals), expected, rtol=1e-12)


def test_psnr_of_a_known_error():
    black = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    assert psnr(black + 255, black)[0] == pytest.approx(0)
    assert psnr(black + 1, black)[0] == pytest.approx(20 * math.log10(255))
    assert psnr(black, black)[0] == PSNR_CEILING


def test_ssim_of_flat_pictures_has_a_closed_form():
    a, b = 100, 120
    flat = np.full((1, 16, 16, 3), a, dtype=np.uint8), np.full((1, 16, 16, 3), b, dtype=np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(*flat)[0] == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), rel=1e-9)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    gentle = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, None, :, None], (1, 32, 1, 3))
    noise = np.random.default_rng(0).normal(size=gentle.shape)
    noisy = [np.clip(gentle + s * noise, 0, 255).astype(np.uint8) for s in (0, 5, 20, 60)]
    values = [ssim(each, gentle)[0] for each in noisy]
    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5


@pytest.fixture(scope="module")
def distance():
    return FeatureDistance()


def test_feature_distance_is_the_mean_over_scales_of_unit_feature_differences(distance):
    ours, originals = pictures(0, 2, 64), pictures(1, 2, 64)
    expected = np.zeros(2)
    maps = list(zip(distance.features(ours), distance.features(originals), strict=True))
    for a, b in maps:
        a, b = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (a, b))
        a, b = a.numpy(), b.numpy()
        for row in range(2):
            expected[row] += np.mean(
                [np.sum((a[row, :, y, x] - b[row, :, y, x]) ** 2) for y, x in np.ndindex(a.shape[2:])]
            )
    assert len(maps) == 5
    np.testing.assert_allclose(distance(ours, originals), expected / 5, rtol=1e-4)
    np.testing.assert_allclose(distance(ours, originals), distance(originals, ours), rtol=1e-5)
    assert distance(ours, ours) == pytest.approx([0, 0], abs=1e-6)


def test_pooled_features_are_seen_at_the_networks_own_size(distance):
    colours = np.random.default_rng(0).integers(0, 256, size=(2, 1, 1, 3), dtype=np.uint8)
    small, large = (distance.pooled(np.tile(colours, (1, side, side, 1))) for side in (32, 300))
    assert small.shape == (2, 1280)
    np.testing.assert_allclose(small, large, atol=1e-3)
    assert np.abs(small[0] - small[1]).max() > 0.1


def test_feature_distance_grows_with_blur_and_is_largest_for_another_picture(distance):
    from PIL import Image, ImageFilter

    from pictish.data.images import fit_square
    from pictish.evaluation.pictures import photographs

    images = [Image.fromarray(fit_square(each.image, 64)) for each in photographs().decode({0, 1, 2})]
    originals = np.stack([np.asarray(image) for image in images])

    def blurred(radius: float) -> np.ndarray:
        return np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(radius))) for image in images])

    values = [distance(blurred(radius), originals).mean() for radius in (0.5, 1, 2, 4)]
    values.append(distance(np.roll(originals, 1, axis=0), originals).mean())
    assert values == sorted(values)
    assert values[0] < 0.5 * values[-1] < 2


@pytest.mark.parametrize("codes", [1, 2, 7, 512])
def test_perplexity_of_equally_frequent_codes_is_their_number(codes):
    counts = np.zeros(1000, dtype=np.int64)
    counts[:codes] = 13
    assert perplexity(counts) == pytest.approx(codes)


def test_perplexity_of_a_skewed_distribution():
    # H(1/2, 1/4, 1/4) = 1.5 bits
    assert perplexity(np.array([2, 1, 0, 1])) == pytest.approx(2**1.5)


@SETTINGS
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_lengths_agree_with_numpy(lengths):
    found = length_summary(Counter(lengths))
    assert found["total"] == sum(lengths)
    assert found["mean"] == pytest.approx(np.mean(lengths))
    assert (found["min"], found["max"]) == (min(lengths), max(lengths))
    assert found["p50"] == np.percentile(lengths, 50, method="inverted_cdf")
    assert found["p95"] == np.percentile(lengths, 95, method="inverted_cdf")


def test_code_statistics_of_two_pictures():
    statistics = CodeStatistics(64, "0123456789ab")
    statistics.add(tokens([5, 5, 9, 1], size=(10, 20)))
    statistics.add(tokens([5, 63], size=(30, 40)))
    found = statistics.summary()
    assert found["pictures"] == 2
    assert found["tokens"] == {"total": 6, "mean": 3.0, "p50": 2, "p95": 4, "min": 2, "max": 4}
    assert (found["codes_used"], found["dead_codes"], found["usage"]) == (4, 60, 4 / 64)
    bits = 6 * 6 + math.log2(math.comb(64, 4)) + math.log2(math.comb(64, 2))
    assert found["bits_per_token"] == pytest.approx(bits / 6)
    assert found["bits_per_picture"] == pytest.approx(bits / 2)
    assert found["bits_per_pixel"] == pytest.approx(bits / 1400)
    assert statistics.length_histogram() == {2: 1, 4: 1}
    assert statistics.most_used(3) == [(5, 3), (1, 1), (9, 1)]
    assert statistics.most_used(9) == [(5, 3), (1, 1), (9, 1), (63, 1)]


@pytest.mark.parametrize("other", [tokens([1], tokenizer="ba9876543210"), tokens([1], codes=65)])
def test_code_statistics_refuse_another_tokenizer(other):
    statistics = CodeStatistics(64, "0123456789ab")
    statistics.add(tokens([1]))
    with pytest.raises(ValueError, match=f"two tokenizers .*0123456789ab .*{other.tokenizer}"):
        statistics.add(other)
    assert statistics.summary()["pictures"] == 1


def test_no_tokens_are_an_error():
    with pytest.raises(ValueError, match="there was no image"):
        CodeStatistics(64, "0123456789ab").summary()


def test_bootstrap_interval_is_that_of_the_normal_mean():
    values = np.random.default_rng(0).normal(loc=[3, -1], scale=[1, 4], size=(2000, 2))
    for column, found in enumerate(bootstrap(values, seed=1)):
        mean, error = values[:, column].mean(), values[:, column].std() / math.sqrt(2000)
        assert found["mean"] == pytest.approx(mean)
        assert found["low"] == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
        assert found["high"] == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_bootstrap_depends_on_the_seed_alone():
    values = np.random.default_rng(0).normal(size=(20, 2))
    assert bootstrap(values, seed=1) == bootstrap(values.copy(), seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)
    # every column sees the same resamples: a paired difference is the difference of the columns
    both = np.column_stack([values, values[:, 0]])
    assert bootstrap(both, seed=1)[0] == bootstrap(both, seed=1)[2]
