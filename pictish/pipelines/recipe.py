"""How an image was drawn from Python or by the server, in the form that `pictish generate --like` reads."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish import __version__
from pictish.data.provenance import Origin, digest_of, png_with_origin
from pictish.io.files import write_atomic
from pictish.pipelines.drawing import Drawn
from pictish.pipelines.language import Said
from pictish.pipelines.region import Region
from pictish.pipelines.settings import GenerationConfig

if TYPE_CHECKING:
    from pictish.pipelines.parts import ModelParts

INFO = "pictish"  # key of `Image.info`


def origin_of(
    pipeline: "ModelParts",
    said: Sequence[Said],
    seed: int,
    config: GenerationConfig,
    drawn: Drawn,
    *,
    aspect: str | None = None,
    edit: bool = False,
    region: Region | None = None,
    adaptor: str | None = None,
) -> Origin:
    """The recipe of an image, with the settings as they were used; `aspect` is width:height."""
    reconstructor = pipeline.reconstructor(preview=config.num_inference_steps == 0)
    images = [one for one in said if isinstance(one, Image.Image)]
    words = [one for one in said if isinstance(one, str)]
    settled = pipeline.text_to_image(adaptor=adaptor).settled(config, pictures=bool(images))
    drawing = reconstructor.settled(config.drawing, generated=True)
    return Origin(
        command="edit" if edit else "generate",
        prompt=words[0] if words else None,
        pictures=tuple(map(digest_of, images)),
        seed=seed,
        guidance=settled.guidance_scale,
        image_guidance=settled.image_guidance_scale,
        temperature=settled.temperature,
        top_k=settled.top_k,
        top_p=settled.top_p,
        min_p=settled.min_p,
        min_tokens=config.min_codes,
        max_tokens=config.max_codes,
        aspect=aspect,
        steps=drawing.steps,
        pixel_guidance=drawing.guidance,
        scheduler=drawing.scheduler,
        keep=drawn.kept if edit else None,
        region=None if region is None else ",".join(map(str, region)),
        precision=pipeline.precision,
        quantize=pipeline.quantize,
        upscale=drawing.upscale,
        size=max(drawn.image.size),
        adaptor=adaptor,
        adaptor_weights=None if adaptor is None else pipeline.adaptor_fingerprint(adaptor),
        pictish=__version__,
        tokenizer=pipeline.tokenizer.fingerprint,
        lm=pipeline.language_fingerprint,
        decoder=reconstructor.fingerprint,
        upscaler=reconstructor.upscaler_of(drawing),
        tokens=base64.b64encode(drawn.tokens.to_bytes()).decode(),
    )


def with_origin(image: Image.Image, origin: Origin) -> Image.Image:
    """The image, with its recipe and a digest of its pixels in `info`, for `save_image`."""
    image.info[INFO] = origin, _pixels(image)
    return image


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image of a `Pipeline` as PNG, with how it was drawn, which `pictish generate --like` reads.

    The file is written beside and renamed. ValueError for another kind of file, and for an image that was
    not drawn by a pipeline or has been changed since.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: {path.name} given; a recipe is stored in a file NAME.png")
    found = image.info.get(INFO)
    if found is None or found[1] != _pixels(image):
        was = "was not drawn by a pipeline" if found is None else "has been changed since it was drawn"
        raise ValueError(f"image: {was}; image.save writes it without a recipe")
    write_atomic(path, png_with_origin(image, found[0]))


def _pixels(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
