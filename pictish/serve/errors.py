"""Errors in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pictish.io.files import one_line, printable
from pictish.serve.schemas import ErrorBody

logger = logging.getLogger(__name__)
_LONGEST = 500  # letters of a message, which may quote the request
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


error_responses: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The request is malformed, or asks for what this model or server does not do."),
        (401, "The API key is missing or wrong."),
        (404, "The model is not served here."),
        (413, "The body is too large."),
        (429, "Too many requests wait; Retry-After says for how long."),
        (500, "The server failed."),
        (503, "The server is starting, stopping or overloaded."),
        (504, "The request took too long."),
    )
}


class ApiError(Exception):
    """What is wrong with a request, or with the server, as its client sees it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = printable(self.message)[:_LONGEST]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response itself."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A mistake of the client."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """Any exception as a client sees it: a ValueError is the fault of the request, others are bugs."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):  # one line by the rules of this library; `name: what came; what fits`
        message = one_line(error)
        name, colon, _ = message.partition(": ")
        return invalid(message, name if colon and name.isidentifier() else None)
    logger.error("a request failed", exc_info=error)
    return _bug()


def install_handlers(app: FastAPI) -> None:
    """Answer every error in one form."""

    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(place) or None
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
        return invalid(message, param).response()

    @app.exception_handler(ValueError)
    async def refused(request: Request, error: ValueError) -> JSONResponse:
        return as_api_error(error).response()

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return _bug().response()  # the ASGI server logs it


def _bug() -> ApiError:
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")
