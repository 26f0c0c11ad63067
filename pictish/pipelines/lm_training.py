"""What the training loop of the language model is given, since it knows neither tokenizer nor decoder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pictish.data.loader import ImageBytes
    from pictish.data.tokens import EncodedImage
    from pictish.lm.config import TrainConfig
    from pictish.lm.documents import EncodeImages
    from pictish.lm.model import ImageTokens, UnifiedModel
    from pictish.lm.train import Show
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.tokenizer.dynamic import Tokenizer


def image_tokens_of(tokenizer: "Tokenizer") -> "ImageTokens":
    """What a language model needs to know about a tokenizer."""
    from pictish.lm.model import ImageTokens

    return ImageTokens(
        tokenizer.fingerprint,
        tokenizer.codebook_size,
        tokenizer.cells,
        tokenizer.network.config.width,
        cells=tokenizer.cells if tokenizer.places_codes else None,
    )


def code_vectors_of(tokenizer: "Tokenizer") -> "Tensor":
    """The codebook (codes, width), in id order, for soft targets and alignment."""
    import torch

    with torch.no_grad():  # inference tensors could not be trained with
        codes = torch.arange(tokenizer.codebook_size, device=tokenizer.device)
        return tokenizer.network.quantizer.decode(codes).float()


def image_encoder(tokenizer: "Tokenizer") -> "EncodeImages":
    """A function that encodes the images of raw shards while the language model trains, as inference does."""
    return partial(_encode, tokenizer)


def _encode(tokenizer: "Tokenizer", pictures: "Sequence[ImageBytes]") -> "list[EncodedImage | ValueError]":
    import numpy as np
    import torch

    from pictish.data.loader import decode_images

    decoded = list(decode_images(pictures, tokenizer.image_size, 0, exact=tokenizer.exact_resize))
    whole = [one for one in decoded if one.pixels is not None and one.size is not None]
    found: list[EncodedImage | ValueError] = [ValueError(one.error or "cannot be read") for one in decoded]
    if whole:
        pixels = torch.from_numpy(np.stack([one.pixels for one in whole if one.pixels is not None]))
        sizes = [one.size for one in whole if one.size is not None]
        encoded = iter(tokenizer.encode(pixels, sizes=sizes, features_for="understanding"))
        found = [
            next(encoded) if one.pixels is not None else f for one, f in zip(decoded, found, strict=True)
        ]
    return found


def showing(config: "TrainConfig", tokenizer: "Tokenizer", run: Path) -> "Show | None":
    """A function that generates the config's `samples` during training, or None when there are none."""
    if not (config.sample_every and config.samples):
        return None
    from pictish.pipelines.reconstruct import Reconstructor

    assert config.tokenizer is not None
    reconstructor = Reconstructor.from_folder(config.tokenizer, tokenizer.device, tokenizer)
    return partial(_show, config, tokenizer, reconstructor, run)


def _show(
    settings: "TrainConfig",
    tokenizer: "Tokenizer",
    reconstructor: "Reconstructor",
    run: Path,
    model: "UnifiedModel",
    step: int,
) -> None:
    """Write `run/samples/step-00001000.png`: one image per text, side by side."""
    from PIL import Image

    from pictish.data.images import png_bytes
    from pictish.io.files import write_atomic
    from pictish.pipelines.drawing import generate
    from pictish.pipelines.language import Language
    from pictish.pipelines.settings import GenerationConfig
    from pictish.pipelines.text_to_image import TextToImage

    drawer = TextToImage(Language(tokenizer, model), reconstructor)
    config = GenerationConfig(size=128, upscale=1)
    drawn = generate(drawer, [[text] for text in settings.samples], range(len(settings.samples)), config)
    pictures = [one.image for one in drawn]
    sheet = Image.new("RGB", (128 * len(pictures), 128), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (128 * number, 0))
    write_atomic(run / "samples" / f"step-{step:08d}.png", png_bytes(sheet))
