"""What `pictish train lm` passes to the loop, which knows neither tokenizer nor decoder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pictish.data.loader import ImageBytes
    from pictish.lm.config import TrainConfig
    from pictish.lm.documents import Look, Seen
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


def looking(tokenizer: "Tokenizer") -> "Look":
    """A function that tokenizes the images of raw shards while the language model trains."""
    return partial(_look, tokenizer)


def _look(tokenizer: "Tokenizer", pictures: "Sequence[ImageBytes]") -> "list[Seen | ValueError]":
    import numpy as np
    import torch

    from pictish.data.loader import decode_images
    from pictish.lm.documents import Seen

    decoded = list(decode_images(pictures, tokenizer.image_size, 0, exact=tokenizer.exact_squash))
    whole = [one for one in decoded if one.pixels is not None and one.size is not None]
    found: list[Seen | ValueError] = [ValueError(one.error or "cannot be read") for one in decoded]
    if whole:
        pixels = torch.from_numpy(np.stack([one.pixels for one in whole if one.pixels is not None]))
        tokens, rows = tokenizer.see(pixels, [one.size for one in whole if one.size is not None])
        seen = iter([Seen(t.ids, t.cells, r.cpu().numpy()) for t, r in zip(tokens, rows, strict=True)])
        found = [next(seen) if one.pixels is not None else f for one, f in zip(decoded, found, strict=True)]
    return found


def showing(config: "TrainConfig", tokenizer: "Tokenizer", run: Path) -> "Show | None":
    """A function that generates the config's `samples` during training, or None when there are none."""
    if not (config.sample_every and config.samples):
        return None
    from pictish.pipelines.reconstruct import Reconstructor

    reconstructor = Reconstructor.from_folder(config.tokenizer, tokenizer.device, tokenizer)
    return partial(_show, config, tokenizer, reconstructor, run)


def _show(
    config: "TrainConfig",
    tokenizer: "Tokenizer",
    reconstructor: "Reconstructor",
    run: Path,
    model: "UnifiedModel",
    step: int,
) -> None:
    """Write `run/samples/step-00001000.png`: one image per text, side by side."""
    from PIL import Image

    from pictish.commands.draw import generators
    from pictish.data.images import png_bytes
    from pictish.io.files import write_atomic
    from pictish.pipelines.language import Language
    from pictish.pipelines.settings import Drawing
    from pictish.pipelines.text_to_image import TextToImage

    drawer = TextToImage(Language(tokenizer, model), reconstructor)
    texts = [[text] for text in config.samples]
    tokens = drawer.tokens(texts, generators(range(len(texts))))
    pictures = reconstructor(tokens, 128, drawing=Drawing(upscale=1))
    sheet = Image.new("RGB", (128 * len(pictures), 128), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (128 * number, 0))
    write_atomic(run / "samples" / f"step-{step:08d}.png", png_bytes(sheet))
