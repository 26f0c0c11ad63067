"""What tokenizers are trained on: pixels, and a teacher that is not part of them."""

import pytest
import torch

from pictish.configs import load, parse
from pictish.tokenizer.config import TeacherConfig
from pictish.tokenizer.conv import as_maps, cell_errors
from pictish.tokenizer.losses import Teacher, cosine_errors, map_distances, pixel_loss
from pictish.tokenizer.network import DynamicTokenizer
from tests.tokenizer.conftest import random_pixels, tiny_config


def teacher_of(**changes) -> Teacher:
    raw = load("tiny/tokenizer")["teacher"] | changes
    teacher = Teacher(parse(TeacherConfig, raw, "test"), torch.device("cpu"))
    teacher.fit(as_maps(random_pixels(40, 16)))
    return teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return teacher_of()


def test_a_teachers_features_are_standardised_by_what_it_was_fit_to(teacher):
    features = teacher.features(as_maps(random_pixels(40, 16)))
    assert features.shape == (40, 16, teacher.encoder.features)
    assert not features.requires_grad
    channels = features.flatten(0, 1)
    assert channels.mean(dim=0).abs().max() < 1e-3
    levels = channels.square().mean(dim=0).split(teacher.encoder.groups)
    shares = torch.stack([level.sum() for level in levels])
    assert torch.allclose(shares / shares.sum(), torch.tensor([0.5, 0.5]), atol=0.05)


def test_a_teachers_distance_passes_a_gradient_on_to_pictures_and_to_nothing_else(teacher):
    originals = as_maps(random_pixels(2, 16))
    pictures = originals.flip(0).requires_grad_()
    distance = teacher.distance(pictures, originals, (1, 3))
    distance.backward()
    assert pictures.grad.abs().sum() > 0
    assert originals.grad is None
    assert not list(teacher.encoder.parameters())
    assert float(teacher.distance(originals, originals, (2, 0))) < 1e-5
    assert len(teacher.levels(originals)) > 2, "pictures are compared at every depth"


def test_a_shifted_distance_is_that_of_shifted_pictures(teacher):
    one, other = as_maps(random_pixels(2, 16)), as_maps(random_pixels(2, 16, seed=5))
    moved = (each.roll((3, 1), dims=(2, 3)) for each in (one, other))
    expected = map_distances(*(teacher.levels(each) for each in moved)).mean()
    assert float(teacher.distance(one, other, (3, 1))) == pytest.approx(float(expected), rel=1e-5)
    assert float(teacher.distance(one, other, (0, 0))) != pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_a_teacher_looks_at_a_fraction_which_processes_divide_evenly(fraction):
    rows = torch.arange(16)
    looked = rows[teacher_of(fraction=fraction).rows]
    assert len(looked) == 16 * fraction
    halves = [part[teacher_of(fraction=fraction).rows] for part in rows.split(8)]
    assert torch.equal(torch.cat(halves), looked)


def test_a_teacher_has_levels_and_no_pixels():
    raw = load("tiny/tokenizer")["teacher"]
    for changes in ({"pixels": 4}, {"levels": [], "level_weights": [], "pixels": 4}):
        with pytest.raises(ValueError, match="a teacher's encoder has levels, and pixels: 0"):
            teacher_of(encoder=raw["encoder"] | changes)


def test_a_teacher_adds_to_the_loss_by_its_weights(teacher):
    def losses(teacher: Teacher | None, width: int):
        torch.manual_seed(0)
        network = DynamicTokenizer(tiny_config(), width)
        pixels = random_pixels(8, 32)
        draws = torch.Generator().manual_seed(0)
        return network(pixels, pixels[:, ::2, ::2], teacher, draws, quantize=False)

    taught, plain = losses(teacher, teacher.encoder.features), losses(None, 0)
    assert plain.features == plain.perceptual == 0
    assert taught.features > 0.5
    assert taught.perceptual > 0
    added = teacher.config.features * taught.features + teacher.config.perceptual * taught.perceptual
    assert taught.total.item() == pytest.approx((plain.total + added).item(), rel=1e-4)


def test_pixel_loss_of_known_pictures():
    black, grey = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    assert pixel_loss(black, black) == (0, 0)
    loss, mse = pixel_loss(black, grey)
    assert (float(loss), float(mse)) == pytest.approx((0.5 + 2 * 0.25, 0.25))
    stripes = black.clone()
    stripes[..., ::2] = 1.0
    assert float(pixel_loss(stripes, grey)[0]) == pytest.approx(0.5 + 2 * 0.25 + 0.5 * 1.0), (
        "edges are missed"
    )


def test_errors_of_cells_are_those_of_their_pixels():
    originals = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = originals.clone()
    pictures[1, :, 2:4, 6:8] += 0.3  # cell (1, 3) of a 4 x 4 grid
    errors = cell_errors(pictures, originals, 4)
    assert errors.shape == (2, 16)
    assert errors[1, 7].item() == pytest.approx(0.09)
    assert errors.sum().item() == pytest.approx(0.09)


def test_cosine_errors_of_known_angles():
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
    predicted = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    assert cosine_errors(predicted, target)[0].tolist() == pytest.approx([0, 1, 2])
