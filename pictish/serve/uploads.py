"""Images of requests: bytes and data URLs, decoded by the hardened reader in worker processes."""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence

from PIL import Image

from pictish.data.images import load_image
from pictish.data.loader import WorkerPool, decoded_whole
from pictish.serve.config import ServeConfig
from pictish.serve.errors import ApiError, invalid

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


class Uploads:
    """Decodes what clients send; its processes start with `start`."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._pool: WorkerPool | None = None

    def start(self) -> None:
        """Start the processes."""
        self._pool = WorkerPool(self.config.decode_workers)

    def stop(self) -> None:
        """End them."""
        if self._pool is not None:
            self._pool.close()

    async def images(self, blobs: Sequence[bytes], param: str) -> list[Image.Image]:
        """Uploaded images as RGB, on white where they are transparent; ApiError 400 for anything else.

        They share `max_pixels` evenly, so that what a request holds does not grow with their number.
        """
        most = self.config.max_pixels // max(1, len(blobs))
        return [load_image(await self._decoded(blob, param, most)) for blob in blobs]

    async def mask(self, blob: bytes, like: Image.Image, param: str) -> Image.Image:
        """Where an edit may change an image, white on black (mode L): where the mask is transparent."""
        mask = await self._decoded(blob, param, self.config.max_pixels)
        if mask.mode != "RGBA":
            raise invalid(f"{param}: has no transparent pixels; those mark what may change", param)
        if mask.size != like.size:
            raise invalid(
                f"{param}: {mask.width} x {mask.height} pixels, the image has {like.width} x {like.height}",
                param,
            )
        changes = mask.getchannel("A").point([255 - level for level in range(256)])
        if changes.getbbox() is None:
            raise invalid(f"{param}: opaque everywhere; transparent pixels mark what may change", param)
        return changes

    async def data_url(self, url: str, param: str) -> Image.Image:
        """The image in a data URL; no other address is opened."""
        (image,) = await self.data_urls([url], param)
        return image

    async def data_urls(self, urls: Sequence[str], param: str) -> list[Image.Image]:
        """As `data_url`, for several; they share `max_pixels` as those of `images` do."""
        return await self.images([self._blob(url, param) for url in urls], param)

    def _blob(self, url: str, param: str) -> bytes:
        head = _DATA_URL.match(url)
        if head is None:
            raise invalid(
                f"{param}: data:image/png;base64,... fits; this server opens no addresses and no files",
                param,
                "invalid_image_url",
            )
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{param}: not valid base64", param, "invalid_image_url") from None

    async def _decoded(self, blob: bytes, param: str, max_pixels: int) -> Image.Image:
        """RGB or RGBA."""
        assert self._pool is not None, "started with the app"
        decoded = await asyncio.wrap_future(decoded_whole(self._pool, blob, max_pixels))
        if decoded.image is None:
            message = f"{param}: {decoded.error}"
            if decoded.transient:
                raise ApiError(503, message, param=param, code="try_again", headers={"Retry-After": "1"})
            raise invalid(message, param, "invalid_image")
        return decoded.image
