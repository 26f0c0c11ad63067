"""How a served image was drawn, in the form that `pictish generate --like` reads."""

import base64
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image

from pictish import __version__
from pictish.data.provenance import Origin, digest_of
from pictish.io.model_folder import fingerprint, locate_model
from pictish.serve.jobs import Draw, Picture

if TYPE_CHECKING:
    from pictish.serve.serving import Serving


def origin_of(serving: "Serving", work: Draw, picture: Picture) -> Origin:
    """The recipe of an image, with the settings as they were used."""
    pipeline, config = serving.pipeline, work.config
    reconstructor = pipeline.reconstructor(preview=config.num_inference_steps == 0)
    images = [one for one in work.said if isinstance(one, Image.Image)]
    words = [one for one in work.said if isinstance(one, str)]
    settled = pipeline.text_to_image(adaptor=work.adaptor).settled(config, pictures=bool(images))
    drawing = reconstructor.settled(config.drawing, generated=True)
    aspect = None
    if work.shape is not None and work.source is None:
        height, width = work.shape
        aspect = f"{width}:{height}"
    return Origin(
        command="generate" if work.source is None else "edit",
        prompt=words[0] if words else None,
        pictures=tuple(map(digest_of, images)),
        seed=work.seed,
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
        keep=None if work.source is None else picture.kept,
        precision=pipeline.precision,
        upscale=drawing.upscale,
        size=max(picture.image.size),
        adaptor=work.adaptor,
        adaptor_weights=None if work.adaptor is None else _fingerprint(serving.adaptors[work.adaptor]),
        pictish=__version__,
        tokenizer=pipeline.tokenizer.fingerprint,
        lm=_fingerprint(locate_model(pipeline.model, "lm")),
        decoder=reconstructor.fingerprint,
        upscaler=reconstructor.upscaler_of(drawing),
        tokens=base64.b64encode(picture.tokens.to_bytes()).decode(),
    )


_fingerprint = cache(fingerprint)  # of a folder that is loaded, and so does not change
