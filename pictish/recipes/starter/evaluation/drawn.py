"""What the evaluations of drawn images share: how they draw, and what their reports say first.

Legend: P images, E numbers of an embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pictish.evaluation.metrics import LEVEL
from pictish.evaluation.pictures import seed_of
from pictish.pipelines.drawing import generators
from pictish.pipelines.settings import GenerationConfig
from pictish.recipes.starter.evaluation.judge import SIDE

if TYPE_CHECKING:
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage

BATCH = 8
"""Prompts at a time: another batch may round differently."""


@dataclass(frozen=True)
class Shown:
    """The images of one way, one a prompt, and what the judge sees in them."""

    pictures: list[Image.Image]
    embeddings: np.ndarray
    """(P, E)"""


def seeds(seed: int, names: Iterable[str]) -> list[int]:
    """A seed for each name, the same whatever else is drawn."""
    return [seed_of(seed, name) for name in names]


def config_of(drawing: "Drawing", guidance_scale: float | None = None) -> GenerationConfig:
    """Settings of images of the judge's size whose pixels are drawn by `drawing`."""
    return GenerationConfig(
        guidance_scale=guidance_scale,
        size=SIDE,
        num_inference_steps=drawing.steps,
        decoder_guidance_scale=drawing.guidance,
        scheduler=drawing.scheduler,
        upscale=drawing.upscale,
    )


def decoded(
    drawer: "TextToImage", images: Sequence[Image.Image], seeds: Sequence[int], drawing: "Drawing"
) -> list[Image.Image]:
    """Images from their own codes, as many as the language model was trained on."""
    reconstructor = drawer.reconstructor
    tokens = reconstructor.tokenizer.tokenize(images, threshold=drawer.language.model.defaults.threshold)
    return reconstructor(tokens, SIDE, generators=generators(seeds), drawing=drawing)


def header(drawer: "TextToImage", drawing: "Drawing", language: str, seed: int) -> dict[str, Any]:
    """What made the images; `language` is the fingerprint of the language model."""
    return {
        "tokenizer": drawer.language.tokenizer.fingerprint,
        "language": language,
        "decoder": drawer.reconstructor.fingerprint,
        "steps": drawing.steps,
        "text_scale": drawer.usual.guidance,
        "temperature": drawer.usual.temperature,
        "threshold": drawer.language.model.defaults.threshold,
        "batch": BATCH,
        "seed": seed,
        "confidence": LEVEL,
    }
