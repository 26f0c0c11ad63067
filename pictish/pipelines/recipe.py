"""How an image was drawn from Python or by the server, in the form that `pictish generate --like` reads."""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pictish import __version__
from pictish.data.provenance import Origin, png_with_origin
from pictish.io.files import write_atomic
from pictish.pipelines.drawing import Drawn
from pictish.pipelines.region import Region
from pictish.pipelines.settings import Drawing, GenerationConfig

if TYPE_CHECKING:
    from pictish.pipelines.parts import ModelParts
    from pictish.pipelines.reconstruct import Reconstructor

CONFIG = {  # setting of `GenerationConfig`: the same in a `Request`, and the option
    "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "best_of": "best_of",
    "min_codes": "min_tokens",
    "max_codes": "max_tokens",
    "num_inference_steps": "steps",
    "decoder_guidance_scale": "pixel_guidance",
    "scheduler": "scheduler",
    "upscale": "upscale",
    "size": "size",
}
SAMPLED = ("guidance_scale", "image_guidance_scale", "temperature", "top_k", "top_p", "min_p", "best_of")
INFO = "pictish"  # key of `Image.info`


def sampling_facts(settled: GenerationConfig) -> dict[str, Any]:
    """What an `Origin` says of how tokens were sampled."""
    return {CONFIG[name]: getattr(settled, name) for name in SAMPLED}


def pixel_facts(reconstructor: "Reconstructor", drawing: Drawing) -> dict[str, Any]:
    """What an `Origin` says of how tokens became pixels, by a drawing that is `settled`, and by what."""
    return {
        "steps": drawing.steps,
        "pixel_guidance": drawing.guidance,
        "scheduler": drawing.scheduler,
        "upscale": drawing.upscale,
        "pictish": __version__,
        "tokenizer": reconstructor.tokenizer.fingerprint,
        "decoder": reconstructor.fingerprint,
        "upscaler": reconstructor.upscaler_of(drawing),
    }


def origin_of(
    pipeline: "ModelParts",
    prompt: str | None,
    pictures: tuple[str, ...],
    seed: int,
    config: GenerationConfig,
    drawn: Drawn,
    *,
    aspect: str | None = None,
    edit: bool = False,
    region: Region | None = None,
    adaptor: str | None = None,
) -> Origin:
    """The recipe of an image, with the settings as they were used.

    `pictures` are the digests of the images in its prompt, `aspect` is width:height.
    """
    reconstructor = pipeline.reconstructor(preview=config.num_inference_steps == 0)
    settled = pipeline.text_to_image(adaptor=adaptor).settled(config, pictures=bool(pictures))
    drawing = reconstructor.settled(config.drawing, generated=True)
    return Origin(
        command="edit" if edit else "generate",
        prompt=prompt,
        pictures=pictures,
        seed=seed,
        min_tokens=config.min_codes,
        max_tokens=config.max_codes,
        aspect=aspect,
        keep=drawn.kept if edit else None,
        region=None if region is None else ",".join(map(str, region)),
        precision=pipeline.precision,
        quantize=pipeline.quantize,
        size=max(drawn.image.size),
        adaptor=adaptor,
        adaptor_weights=None if adaptor is None else pipeline.adaptor_fingerprint(adaptor),
        lm=pipeline.language_fingerprint,
        tokens=base64.b64encode(drawn.tokens.to_bytes()).decode(),
        **sampling_facts(settled),
        **pixel_facts(reconstructor, drawing),
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
