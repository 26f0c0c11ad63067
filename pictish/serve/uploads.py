"""Pictures of requests: bytes and data URLs, decoded by the hardened reader in worker processes."""

import asyncio
import base64
import binascii
import re

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

    async def image(self, blob: bytes, param: str) -> Image.Image:
        """An uploaded picture as RGB, on white where it is transparent; ApiError 400 for anything else."""
        return load_image(await self._decoded(blob, param))

    async def mask(self, blob: bytes, like: Image.Image, param: str) -> Image.Image:
        """Where an edit may change a picture, white on black (mode L): where the mask is transparent."""
        mask = await self._decoded(blob, param)
        if mask.mode != "RGBA":
            raise invalid(f"{param}: has no transparent pixels; those mark what may change", param)
        if mask.size != like.size:
            raise invalid(
                f"{param}: {mask.width} x {mask.height} pixels, the image has {like.width} x {like.height}",
                param,
            )
        return mask.getchannel("A").point([255 - level for level in range(256)])

    async def data_url(self, url: str, param: str) -> Image.Image:
        """The picture in a data URL; no other address is opened."""
        head = _DATA_URL.match(url)
        if head is None:
            raise invalid(
                f"{param}: data:image/png;base64,... fits; this server opens no addresses and no files",
                param,
                "invalid_image_url",
            )
        try:
            blob = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{param}: not valid base64", param, "invalid_image_url") from None
        return await self.image(blob, param)

    async def _decoded(self, blob: bytes, param: str) -> Image.Image:
        """RGB or RGBA."""
        assert self._pool is not None, "started with the app"
        decoded = await asyncio.wrap_future(decoded_whole(self._pool, blob, self.config.max_pixels))
        if decoded.image is None:
            message = f"{param}: {decoded.error}"
            if decoded.transient:
                raise ApiError(503, message, param=param, code="try_again", headers={"Retry-After": "1"})
            raise invalid(message, param, "invalid_image")
        return decoded.image
