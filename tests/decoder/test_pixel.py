"""Drawing: an image depends on its codes and its seed, schedulers agree, sources stay."""

import diffusers.schedulers
import pytest
import torch

from pictish.decoder.condition import EncodedConditions
from pictish.decoder.pixel import Decoder, Source, sample
from pictish.decoder.schedulers import build_scheduler
from tests.decoder.tiny import TRANSFORMER, UNET, conditioning_of, config, decode, decoder_of

DIFFUSION = {"kind": "diffusion", "predicts": "epsilon"}
FLOW = {"kind": "flow", "predicts": "x0"}
SOURCE = {"channels": 2, "width": 16, "source": True}
FOR_DIFFUSION = [
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
FOR_FLOW = [
    "FlowMatchEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
EVERY = sorted(name for name in dir(diffusers.schedulers) if name.endswith("Scheduler"))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def decoder(tokenizer) -> Decoder:
    return Decoder(decoder_of(tokenizer), tokenizer, "0" * 12)


@pytest.fixture(scope="module")
def diffusing(tokenizer) -> Decoder:
    return Decoder(decoder_of(tokenizer, config(noise={**DIFFUSION, "predicts": "v"})), tokenizer, "0" * 12)


@pytest.mark.parametrize("scheduler", [{}, {"scheduler": "EulerAncestralDiscreteScheduler"}])
@pytest.mark.parametrize("network", [TRANSFORMER, UNET], ids=["transformer", "unet"])
def test_a_picture_does_not_depend_on_its_batch(tokenizer, tokens, network, scheduler):
    noise = DIFFUSION if scheduler else FLOW
    decoder = Decoder(decoder_of(tokenizer, config(network, noise=noise)), tokenizer, "0" * 12)
    together = decode(decoder, tokens[:5], seeded(0, 1, 2, 3, 4), **scheduler)
    assert together.dtype == torch.uint8
    assert together.shape == (5, 16, 16, 3)
    assert len({picture.numpy().tobytes() for picture in together}) == 5
    for place in range(5):
        alone = decode(decoder, [tokens[place]], seeded(place), **scheduler)[0]
        assert torch.equal(alone, together[place])


def test_seed_and_codes_make_the_picture(decoder, tokens):
    one = decode(decoder, tokens[:1], seeded(0))
    assert torch.equal(decode(decoder, tokens[:1], seeded(0)), one)
    assert not torch.equal(decode(decoder, tokens[:1], seeded(1)), one)
    assert not torch.equal(decode(decoder, tokens[1:2], seeded(0)), one)
    assert decode(decoder, [], []).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("residual", [None, 0.3])
def test_guidance_weighs_the_branches(tokenizer, residual):
    """1 is the branch that is told, 0 the one that is not, and between and beyond a straight line.

    A residual of both is about what the codes tell.
    """
    model = decoder_of(tokenizer, config(residual=residual))
    conditioning = conditioning_of(tokenizer, 2)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def drawn(guidance: float, conditioning=conditioning) -> torch.Tensor:
        with torch.inference_mode():
            name = "FlowMatchEulerDiscreteScheduler"
            return sample(
                model, conditioning, noise, seeded(0, 1), steps=1, guidance=guidance, scheduler=name
            )

    with torch.inference_mode():
        times, kept, prior = (
            torch.full((2,), 1000.0),
            torch.zeros(2, dtype=torch.bool),
            model.prior(conditioning),
        )
        branch, null = (
            model.decode(model(noise, times, conditioning, drop, prior), prior).clamp(0, 1)
            for drop in (kept, ~kept)
        )
    inside = (branch > 0.01) & (branch < 0.99) & (null > 0.01) & (null < 0.99)
    assert inside.float().mean() > 0.3
    assert (branch - null)[inside].abs().max() > 0.01
    # one step of Euler from pure noise leaves what is said of x0, but for a last millionth of noise
    assert torch.allclose(drawn(1), branch, atol=1e-3)
    assert torch.allclose(drawn(0), null, atol=1e-3)
    assert torch.allclose(drawn(0.5)[inside], ((branch + null) / 2)[inside], atol=1e-3)
    assert torch.equal(
        drawn(0, conditioning_of(tokenizer, 2, seed=9)._replace(pixels=conditioning.pixels)), drawn(0)
    )


class Oracle(torch.nn.Module):
    """Knows that images are normal about 0.2 with deviation 0.3: says the mean of x0 given a mixture."""

    shrink = patch = 1

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, noisy, times, conditions: EncodedConditions, prior, source) -> torch.Tensor:
        a, b = self.noise.levels(times)
        gain = a * 0.09 / (a**2 * 0.09 + b**2)
        clean = 0.2 + gain * (noisy - a * 0.2)
        return clean if self.noise.config.predicts == "x0" else (noisy - a * clean) / b


def drawn_by_oracle(tokenizer, noise: dict, scheduler: str, steps: int) -> torch.Tensor:
    model = decoder_of(tokenizer, config(noise=noise))
    model.denoiser = Oracle(model.noise)
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        conditioning = conditioning_of(tokenizer, 2)
        return (
            sample(model, conditioning, start, seeded(0, 1), steps=steps, guidance=1, scheduler=scheduler) * 2
            - 1
        )


@pytest.mark.parametrize(
    ("noise", "names"), [(DIFFUSION, FOR_DIFFUSION), (FLOW, FOR_FLOW)], ids=["diffusion", "flow"]
)
def test_schedulers_agree_at_many_steps(tokenizer, noise, names):
    found = {name: drawn_by_oracle(tokenizer, noise, name, 60) for name in names}
    for name, pictures in found.items():
        assert pictures.mean() == pytest.approx(0.2, abs=0.05), name
        assert pictures.std() == pytest.approx(0.3, abs=0.04), name
        if "Ancestral" not in name:
            assert (pictures - found[names[0]]).square().mean().sqrt() < 0.03, name


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("noise", "names"), [(DIFFUSION, FOR_DIFFUSION), (FLOW, FOR_FLOW)], ids=["diffusion", "flow"]
)
def test_few_steps_give_pictures_about_the_mean(tokenizer, noise, names, steps):
    for name in names:
        if "Ancestral" in name:  # see below
            continue
        pictures = drawn_by_oracle(tokenizer, noise, name, steps)
        assert pictures.mean() == pytest.approx(0.2, abs=0.25), name


def test_a_scheduler_that_loses_the_picture_is_named(tokenizer):
    """Ancestral steps this long are roots of negative numbers, by rounding: diffusers gives NaN."""
    with pytest.raises(ValueError, match="EulerAncestralDiscreteScheduler: no finite numbers after 3 steps"):
        drawn_by_oracle(tokenizer, DIFFUSION, "EulerAncestralDiscreteScheduler", 3)


@pytest.mark.parametrize("noise", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_every_scheduler_of_diffusers_draws_or_is_refused(tokenizer, noise):
    drew, refused, wrong = [], {}, {}
    for name in EVERY:
        try:
            pictures = drawn_by_oracle(tokenizer, noise, name, 20)
        except ValueError as error:
            refused[name] = str(error)
            continue
        except Exception as error:
            wrong[name] = repr(error)
            continue
        if pictures.mean() != pytest.approx(0.2, abs=0.2):  # PNDM is the coarsest
            wrong[name] = pictures.mean()
        drew.append(name)
    assert not wrong
    assert all(name in line and "\n" not in line for name, line in refused.items())
    assert set(FOR_DIFFUSION if noise is DIFFUSION else FOR_FLOW) <= set(drew)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FooScheduler", "scheduler FooScheduler: diffusers has none of that name; try FlowMatchEuler"),
        ("scheduling_utils", "diffusers has none of that name"),
        ("DDIMScheduler", "scheduler DDIMScheduler: not for noise of kind flow; try FlowMatchEuler"),
    ],
)
def test_a_scheduler_that_cannot_be_had(decoder, tokens, name, line):
    with pytest.raises(ValueError, match=line):
        decode(decoder, tokens[:1], seeded(0), scheduler=name)


def test_a_scheduler_for_flows_does_not_fit_diffusion(diffusing):
    with pytest.raises(ValueError, match="not for noise of kind diffusion; try DDIMScheduler"):
        build_scheduler("FlowMatchEulerDiscreteScheduler", diffusing.model.config.noise)


def picture(seed: int) -> torch.Tensor:
    return (torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(seed)) * 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("noise", "residual"),
    [(DIFFUSION, None), (FLOW, None), (FLOW, 0.3)],
    ids=["diffusion", "flow", "residual"],
)
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_what_stays_of_a_source_is_its_pixels(tokenizer, tokens, noise, residual, strength):
    model = decoder_of(tokenizer, config(noise=noise, condition=SOURCE, residual=residual))
    decoder = Decoder(model, tokenizer, "0" * 12)
    stays = torch.zeros(3, 16, dtype=torch.bool)
    stays[1, [0, 6]] = True
    stays[2] = True
    sources = [Source(picture(seed), row) for seed, row in enumerate(stays)]
    drawn = decode(decoder, tokens[:3], seeded(0, 1, 2), sources=sources, strength=strength, steps=4)
    where = stays.view(3, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    for source, found, kept in zip(sources, drawn, where, strict=True):
        assert torch.equal(found[kept], source.pixels[kept])
        if not kept.all():
            assert (found[~kept] != source.pixels[~kept]).float().mean() > 0.5
    alone = decode(decoder, tokens[1:2], seeded(1), sources=sources[1:2], strength=strength, steps=4)
    assert torch.equal(alone[0], drawn[1])


def test_what_is_shown_of_a_source_tells_the_rest(tokenizer, tokens):
    decoder = Decoder(decoder_of(tokenizer, config(condition=SOURCE)), tokenizer, "0" * 12)
    half = torch.arange(16) < 8
    one, other = (
        decode(decoder, tokens[:1], seeded(0), sources=[Source(picture(seed), half)])[0] for seed in (0, 1)
    )
    assert not torch.equal(one[8:], other[8:])


@pytest.mark.parametrize("scheduler", FOR_DIFFUSION)
def test_less_strength_stays_nearer_to_the_source(tokenizer, scheduler):
    model = decoder_of(tokenizer, config(noise=DIFFUSION, condition=SOURCE))
    model.denoiser = Oracle(model.noise)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    bright = torch.full((1, 3, 16, 16), 0.95)

    def distance(strength: float) -> float:
        with torch.inference_mode():
            source = (bright, torch.zeros(1, 1, 16, 16))
            drawing = {"steps": 10, "guidance": 1, "scheduler": scheduler, "strength": strength}
            drawn = sample(model, conditioning_of(tokenizer, 1), noise, seeded(0), source=source, **drawing)
        return float((drawn - bright).abs().mean())

    near, far, whole = distance(0.1), distance(0.5), distance(1.0)
    assert near < 0.1
    assert near < far < whole


def test_about_a_prior_less_strength_stays_nearer_to_what_the_codes_tell(tokenizer):
    model = decoder_of(tokenizer, config(noise=DIFFUSION, condition=SOURCE, residual=0.3))
    model.denoiser = Oracle(model.noise)
    conditioning, noise = conditioning_of(tokenizer, 1), torch.randn(1, 3, 16, 16, generator=seeded(1)[0])
    source = (torch.ones(1, 3, 16, 16), torch.zeros(1, 1, 16, 16))  # nothing of it stays
    drawing = {"steps": 10, "guidance": 1, "scheduler": "DDIMScheduler", "source": source}
    with torch.inference_mode():
        near, far, whole = (
            (
                sample(model, conditioning, noise, seeded(0), strength=strength, **drawing)
                - conditioning.pixels
            )
            .abs()
            .mean()
            for strength in (0.1, 0.5, 1.0)
        )
    assert near < far < whole


def test_progress_counts_to_the_total(decoder, tokens):
    said: list[tuple[int, int]] = []
    progress = lambda done, total: said.append((done, total))  # noqa: E731
    decode(decoder, tokens, seeded(*range(7)), steps=3, progress=progress)
    assert said == [(done, 6) for done in range(1, 7)]  # two micro-batches


@pytest.mark.parametrize("residual", [None, 0.3])
@pytest.mark.parametrize("network", [TRANSFORMER, UNET], ids=["transformer", "unet"])
def test_another_size_is_drawn(tokenizer, tokens, network, residual):
    decoder = Decoder(decoder_of(tokenizer, config(network, residual=residual)), tokenizer, "0" * 12)
    assert decode(decoder, tokens[:1], seeded(0), size=(16, 24)).shape == (1, 16, 24, 3)
    assert decode(decoder, tokens[:1], seeded(0), size=(32, 12)).shape == (1, 32, 12, 3)


@pytest.mark.parametrize("size", [(17, 16), (16, 4), (64, 16), (0, 16)])
def test_a_size_that_cannot_be_drawn(decoder, tokens, size):
    line = f"size: {size[1]} x {size[0]} pixels asked for; multiples of 4 from 8 to 32 fit this decoder"
    with pytest.raises(ValueError, match=line):
        decode(decoder, tokens[:1], seeded(0), size=size)


def test_a_size_is_a_multiple_of_the_patch(tokenizer, tokens):
    settings = {**TRANSFORMER["settings"], "patch_size": 8}
    model = decoder_of(tokenizer, config({"kind": "transformer", "settings": settings}))
    decoder = Decoder(model, tokenizer, "0" * 12)
    with pytest.raises(ValueError, match="multiples of 8 from 8 to 32 fit"):
        decode(decoder, tokens[:1], seeded(0), size=(16, 20))
    assert decode(decoder, tokens[:1], seeded(0), size=(16, 24)).shape == (1, 16, 24, 3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"steps": 0}, "steps: 0 asked for; 1 to 1000 fit, and 0 for the preview"),
        ({"guidance": -1.0}, "guidance: -1.0 asked for"),
        ({"guidance": float("nan")}, "guidance: nan asked for"),
        ({"strength": 0.0}, "strength: 0.0 asked for"),
        ({"strength": 0.5}, "no source image to start from"),
        ({"sources": [Source(picture(0), torch.ones(16).bool())]}, "not trained with source images"),
    ],
)
def test_settings_that_do_not_fit(decoder, tokens, changes, line):
    with pytest.raises(ValueError, match=line):
        decode(decoder, tokens[:1], seeded(0), **changes)
