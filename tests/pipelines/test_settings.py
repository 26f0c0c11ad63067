"""What an unset option means is settled once; what cannot be asked for is named."""

import dataclasses
from types import SimpleNamespace

import pytest

from pictish.lm.config import ImageGenerationConfig
from pictish.pipelines.settings import (
    Drawing,
    GenerationConfig,
    Settings,
    settle_codes,
    settle_pixels,
    with_settings,
)


def test_keywords_are_the_fields_and_take_precedence():
    assert list(Settings.__annotations__) == [field.name for field in dataclasses.fields(GenerationConfig)]
    config = GenerationConfig(temperature=0.5, top_k=3)
    assert with_settings(config, {"top_k": 4}) == GenerationConfig(temperature=0.5, top_k=4)
    assert with_settings(None, {}) == GenerationConfig()
    with pytest.raises(TypeError, match="guidance"):
        with_settings(None, {"guidance": 4})  # type: ignore[typeddict-unknown-key]


def test_codes_are_drawn_as_asked_for_and_else_as_the_model_is_used_to():
    defaults = ImageGenerationConfig(
        guidance=2, among_pictures=3, temperature=0.5, top_k=7, best_of=3, min_tokens=4, max_tokens=9
    )
    settled = settle_codes(GenerationConfig(size=32), defaults, 16, pictures=False)
    assert settled == GenerationConfig(
        guidance_scale=2,
        image_guidance_scale=1.5,
        temperature=0.5,
        top_k=7,
        best_of=3,
        min_codes=4,
        max_codes=9,
        size=32,
    )
    assert settle_codes(GenerationConfig(), defaults, 16, pictures=True).guidance_scale == 3
    assert settle_codes(GenerationConfig(), defaults, 16, pictures=True).best_of == 1, "of text alone"
    asked = GenerationConfig(guidance_scale=0, temperature=0, top_k=1, max_codes=2)
    settled = settle_codes(asked, defaults, 16, pictures=True)
    assert (settled.guidance_scale, settled.temperature, settled.top_k) == (0, 0, 1)
    assert (settled.min_codes, settled.max_codes) == (2, 2), "fewer at most are fewer at least"
    assert settle_codes(GenerationConfig(), defaults, 5, pictures=False).max_codes == 5


def test_pixels_are_drawn_as_asked_for_and_else_as_the_decoder_is_used_to():
    sampling = SimpleNamespace(steps=4, guidance=1.5, scheduler="DDIMScheduler")
    usual, asked = Drawing(4, 1.5, "DDIMScheduler", 4), Drawing(2, 0.0, "PNDMScheduler", 1)
    decoder = SimpleNamespace(sampling=sampling, redraw=None)
    for generated in (True, False):
        assert settle_pixels(Drawing(), decoder, 4, generated=generated) == usual
        assert settle_pixels(asked, decoder, 4, generated=generated) == asked
        assert settle_pixels(Drawing(), None, 2, generated=generated) == Drawing(steps=0, upscale=2)
    decoder.redraw = SimpleNamespace(steps=8, guidance=1, scheduler="DDIMScheduler")
    assert settle_pixels(Drawing(), decoder, 4, generated=True) == usual
    assert settle_pixels(Drawing(), decoder, 4, generated=False) == Drawing(8, 1, "DDIMScheduler", 4)
    assert settle_pixels(asked, decoder, 4, generated=False) == asked


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale: nan asked for; -100 to 100"),
        ({"image_guidance_scale": float("inf")}, "image_guidance_scale: inf"),
        ({"temperature": -1}, "temperature: -1 asked for; 0 .greedy. to 1000"),
        ({"guidance_scale": 1e39}, "guidance_scale: 1e\\+39 asked for; -100 to 100"),
        ({"temperature": 1e300}, "temperature: 1e\\+300 asked for; 0 .greedy. to 1000"),
        ({"max_codes": 10**30}, "max_codes: 10{30} asked for"),
        ({"decoder_guidance_scale": -1e-9}, "decoder_guidance_scale: -1e-09"),
        ({"temperature": "hot"}, "temperature: hot"),
        ({"top_k": 0}, "top_k: 0 asked for; 1 to 2147483647"),
        ({"top_k": 1.5}, "top_k: 1.5"),
        ({"top_k": True}, "top_k: True"),
        ({"top_p": 0}, "top_p: 0 asked for; above 0, up to 1"),
        ({"min_p": 1.1}, "min_p: 1.1 asked for; 0 to 1"),
        ({"best_of": 65}, "best_of: 65 asked for; 1 to 64"),
        ({"min_codes": 0}, "min_codes: 0"),
        ({"max_codes": -3}, "max_codes: -3"),
        ({"num_inference_steps": 1001}, "num_inference_steps: 1001 asked for; 0 to 1000"),
        ({"decoder_guidance_scale": 101}, "decoder_guidance_scale: 101 asked for; 0 to 100"),
        ({"scheduler": 3}, "scheduler: 3"),
        ({"upscale": 3}, "upscale: 3 asked for; 1, 2 or 4 fit"),
        ({"size": 16_385}, "size: 16385 asked for; 1 to 16384"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        GenerationConfig(**settings)


def test_the_edges_of_the_ranges_are_taken():
    GenerationConfig(temperature=0, top_k=1, top_p=1, min_p=0, num_inference_steps=0, size=16_384)
    GenerationConfig(guidance_scale=-2.5, decoder_guidance_scale=100, min_p=1, num_inference_steps=1000)
