"""What every request passes first: limits of open requests and of bodies, and API keys.

Plain ASGI. Starlette has a limit of bodies of its own, which answers in plain text.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Mapping

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pictish.serve.config import ServeConfig
from pictish.serve.errors import ApiError
from pictish.serve.metrics import Metrics

OPEN = ("/healthz", "/readyz", "/metrics")  # to everybody, however many requests there are


class Guard:
    """Refuses what is over a limit, before it reaches a route; counts and times every request."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self._digests = [_digest(key) for key in config.api_keys]
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open += 1
        try:
            if (refused := self._refused(scope)) is not None:
                await refused.response()(scope, receive, noting)
            else:
                await self.app(scope, self._limited(receive), noting)
        finally:
            self._open -= 1
            route = scope.get("route")  # its path is a template: as few labels as there are routes
            name = getattr(route, "path", "other") if status != 404 else "other"
            self.metrics.request(name, scope["method"], status, time.monotonic() - begun)

    def _refused(self, scope: Scope) -> ApiError | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN:
            return None
        if self._open > self.config.max_requests:
            return ApiError(503, "too many open requests", code="overloaded", headers={"Retry-After": "1"})
        if self._digests and path.startswith("/v1/") and not self._known(headers):
            return ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.config.max_body_bytes:
            return self._too_large()
        return None

    def _known(self, headers: Mapping[str, str]) -> bool:
        """Whether the key is one of ours; compared with all of them, in constant time."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(SecretStr(key.strip()))
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found) and scheme.lower() == "bearer"

    def _too_large(self) -> ApiError:
        most = self.config.max_body_bytes
        return ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large")

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, with an end to what a body may hold and to how long it may take."""
        size, complete = 0, False
        until = time.monotonic() + self.config.timeout

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # what follows is that the client has gone, whenever
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, "the body did not arrive in time") from None
            size += len(message.get("body", b""))
            if size > self.config.max_body_bytes:
                raise HTTPException(413, self._too_large().message)
            complete = not message.get("more_body", False)
            return message

        return limited


def _digest(key: SecretStr) -> bytes:
    return hashlib.sha256(key.get_secret_value().encode("utf-8", "surrogatepass")).digest()
