"""What the evaluations of drawn pictures share: how they draw, and what their reports say first.

Legend: P pictures, E numbers of an embedding.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pictish.evaluation.metrics import LEVEL
from pictish.evaluation.pictures import seed_of

if TYPE_CHECKING:
    import torch

    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage

BATCH = 8
"""Prompts at a time: another batch may round differently."""


@dataclass(frozen=True)
class Shown:
    """The pictures of one way, one a prompt, and what the judge sees in them."""

    pictures: list[Image.Image]
    embeddings: np.ndarray
    """(P, E)"""


def generators(seed: int, names: Iterable[str]) -> "list[torch.Generator]":
    """A generator for each name, the same whatever else is drawn."""
    import torch

    return [torch.Generator().manual_seed(seed_of(seed, name)) for name in names]


def header(drawer: "TextToImage", drawing: "Drawing", language: str, seed: int) -> dict[str, Any]:
    """What made the pictures; `language` is the fingerprint of the language model."""
    return {
        "tokenizer": drawer.language.tokenizer.fingerprint,
        "language": language,
        "decoder": drawer.reconstructor.fingerprint,
        "steps": drawing.steps,
        "text_scale": drawer.usual.guidance,
        "temperature": drawer.usual.temperature,
        "batch": BATCH,
        "seed": seed,
        "confidence": LEVEL,
    }
