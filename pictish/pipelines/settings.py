"""How images are generated: `GenerationConfig`, and the one place where a model's defaults complete it.

Everything that generates, the command line included, asks here what an unset option means.
"""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from pictish.decoder.config import DiffusionConfig
    from pictish.lm.autoregressive import Guidance
    from pictish.lm.config import DefaultsConfig, ImageGenerationConfig
    from pictish.lm.sampling import Sampling

LARGEST_SIZE = 16_384  # pixels
LARGEST_SCALE = 100  # of guidance
LARGEST_TEMPERATURE = 1000
LARGEST_COUNT = 2**31 - 1
MOST_CANDIDATES = 64


@dataclass(frozen=True)
class Drawing:
    """How codes become pixels; what is None is the decoder's own choice."""

    steps: int | None = None
    """Of the diffusion decoder; 0 is the preview."""
    guidance: float | None = None
    scheduler: str | None = None
    """Class name of a diffusers scheduler."""
    upscale: int | None = None
    """Super-resolution factor; 1 is off, None the factor of the model's upscaler, if it has one."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of generation and decoding; None uses the model's default. ValueError if out of range."""

    guidance_scale: float | None = None
    """Text classifier-free guidance scale of the language model, -100 to 100 (1 disables it)."""
    image_guidance_scale: float | None = None
    """The same for images in the prompt (1 disables it)."""
    temperature: float | None = None
    """Sampling temperature, 0 to 1000; 0 always takes the most likely code."""
    top_k: int | None = None
    """Samples from the k most likely codes."""
    top_p: float | None = None
    """Nucleus sampling: smallest set of codes with total probability >= top_p; in (0, 1]."""
    min_p: float | None = None
    """Drops codes less likely than min_p times the most likely one; in [0, 1]."""
    best_of: int | None = None
    """Candidates drawn for a text prompt, 1 to 64; the one that the model would most likely caption with the
    prompt is kept."""
    min_codes: int | None = None
    """Minimum number of codes of an image."""
    max_codes: int | None = None
    """Maximum number of codes of an image."""
    num_inference_steps: int | None = None
    """Steps of the diffusion decoder, 0 to 1000; 0 uses the feed-forward preview instead."""
    decoder_guidance_scale: float | None = None
    """Classifier-free guidance scale of the decoder, 0 to 100 (1 disables it)."""
    scheduler: str | None = None
    """Class name of a diffusers scheduler, such as "DDIMScheduler"."""
    upscale: int | None = None
    """Super-resolution factor: 1 (off), 2 or 4."""
    size: int | None = None
    """Longer side of the image in pixels."""

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "image_guidance_scale"):
            self._check(name, -LARGEST_SCALE, LARGEST_SCALE, f"{-LARGEST_SCALE} to {LARGEST_SCALE}")
        self._check("temperature", 0, LARGEST_TEMPERATURE, f"0 (greedy) to {LARGEST_TEMPERATURE}")
        self._check("top_p", 0, 1, "above 0, up to 1", above=True)
        self._check("min_p", 0, 1, "0 to 1")
        self._check("decoder_guidance_scale", 0, LARGEST_SCALE, f"0 to {LARGEST_SCALE}")
        for name in ("top_k", "min_codes", "max_codes"):
            self._check(name, 1, LARGEST_COUNT, f"1 to {LARGEST_COUNT}", whole=True)
        self._check("best_of", 1, MOST_CANDIDATES, f"1 to {MOST_CANDIDATES}", whole=True)
        self._check("num_inference_steps", 0, 1000, "0 to 1000", whole=True)
        self._check("size", 1, LARGEST_SIZE, f"1 to {LARGEST_SIZE}", whole=True)
        if self.upscale not in (None, 1, 2, 4):
            raise ValueError(f"upscale: {self.upscale} asked for; 1, 2 or 4 fit")
        if self.scheduler is not None and not isinstance(self.scheduler, str):
            raise ValueError(f"scheduler: {self.scheduler} asked for; the name of a diffusers class fits")

    def _check(
        self, name: str, least: float, most: float, fits: str, *, whole: bool = False, above: bool = False
    ) -> None:
        """ValueError unless the setting is None or a number in its range; `above`: not `least` itself."""
        value = getattr(self, name)
        if value is None:
            return
        kind: Any = numbers.Integral if whole else numbers.Real
        number = isinstance(value, kind) and not isinstance(value, bool)
        if not (
            number and math.isfinite(value) and least <= value <= most and not (above and value == least)
        ):
            raise ValueError(f"{name}: {value} asked for; {fits} fits")

    @property
    def drawing(self) -> Drawing:
        """The part that concerns the decoder."""
        return Drawing(self.num_inference_steps, self.decoder_guidance_scale, self.scheduler, self.upscale)

    @property
    def sampling(self) -> "Sampling":
        """How ids are sampled, by a config that `settle_codes` has completed."""
        from pictish.lm.sampling import Sampling

        assert self.temperature is not None
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)

    def guidance(self, defaults: "DefaultsConfig") -> "Guidance":
        """How ids are guided, by a config that `settle_codes` has completed."""
        from pictish.lm.autoregressive import Guidance

        assert self.guidance_scale is not None
        assert self.image_guidance_scale is not None
        return Guidance(
            self.guidance_scale,
            self.image_guidance_scale,
            defaults.drawing.guidance_ramp,
            defaults.drawing.guidance_rescale,
            defaults.filling.guidance_interval,
        )


class Settings(TypedDict, total=False):
    """The fields of `GenerationConfig` as keyword arguments, for type checkers."""

    guidance_scale: float | None
    image_guidance_scale: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    best_of: int | None
    min_codes: int | None
    max_codes: int | None
    num_inference_steps: int | None
    decoder_guidance_scale: float | None
    scheduler: str | None
    upscale: int | None
    size: int | None


def with_settings(config: GenerationConfig | None, settings: Settings) -> GenerationConfig:
    """The config with `settings` in place of its own; TypeError for one that does not exist."""
    if config is not None and not isinstance(config, GenerationConfig):
        raise TypeError(f"config: {type(config).__name__} given; a GenerationConfig would fit")
    known = [field.name for field in dataclasses.fields(GenerationConfig)]
    if unknown := sorted(set(settings) - set(known)):
        raise TypeError(f"{unknown[0]}: no such argument; the settings are {', '.join(known)}")
    return dataclasses.replace(config or GenerationConfig(), **settings)


def settle_codes(
    config: GenerationConfig,
    defaults: "ImageGenerationConfig",
    most: int,
    *,
    pictures: bool,
    ranks: bool = True,
) -> GenerationConfig:
    """The config with the language model's defaults in place of None, where they may turn a filter off.

    `most` is how many codes an image of the model can have; with `pictures` in the prompts text guidance
    may have another default. Candidates are ranked of prompts without, by models that can (`ranks`).
    """
    among = defaults.among_pictures if pictures else None
    usual: dict[str, Any] = {
        "guidance_scale": defaults.guidance if among is None else among,
        "image_guidance_scale": defaults.image_guidance,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "best_of": defaults.best_of if ranks and not pictures else 1,
        "min_codes": min(defaults.min_tokens, config.max_codes or most),
        "max_codes": min(defaults.max_tokens or most, most),
    }
    asked = {name: getattr(config, name) for name in usual}
    settled = {name: usual[name] if value is None else value for name, value in asked.items()}
    return dataclasses.replace(config, **settled)


def settle_pixels(
    drawing: Drawing, decoder: "DiffusionConfig | None", factor: int, *, generated: bool
) -> Drawing:
    """The drawing with the diffusion decoder's defaults and the upscaler's `factor` for what is None.

    A decoder may have other defaults for codes that a language model `generated` (`sampling`) than for those
    of an image that is reconstructed (`redraw`). Without a decoder the preview draws, in no steps.
    """
    upscale = factor if drawing.upscale is None else drawing.upscale
    if decoder is None:
        return Drawing(steps=0, upscale=upscale)
    own = decoder.sampling if generated or decoder.redraw is None else decoder.redraw
    return Drawing(
        own.steps if drawing.steps is None else drawing.steps,
        own.guidance if drawing.guidance is None else drawing.guidance,
        drawing.scheduler or own.scheduler,
        upscale,
    )
