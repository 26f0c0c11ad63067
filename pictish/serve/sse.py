"""Server-sent events, as clients of OpenAI's API read them."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import StreamingResponse

from pictish.serve.errors import as_api_error

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "JSON, or with `stream` server-sent events.", "content": {"text/event-stream": {}}}
}
DONE = "data: [DONE]\n\n"


def server_sent(data: dict[str, Any]) -> str:
    """One event; it is named by its `type`, where it has one."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data, separators=(',', ':'))}\n\n"


def event_stream(events: AsyncGenerator[str, None]) -> StreamingResponse:
    """A response of `events`; an error on the way is the last of them."""

    async def until_an_error() -> AsyncGenerator[str, None]:
        try:
            async for event in events:
                yield event
        except Exception as error:
            yield server_sent(as_api_error(error).body())
        finally:
            await events.aclose()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(until_an_error(), media_type="text/event-stream", headers=headers)
