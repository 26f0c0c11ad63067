"""Requests as no client should send them: true ones with something changed, by a seed."""

import base64
import copy
import json
import random
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pictish.data.images import png_bytes

PNG = png_bytes(Image.effect_noise((24, 16), 60).convert("RGB"))
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
TOKENS = {
    "ids": [1, 2, 3],
    "cells": [0, 4, 7],
    "grid": [4, 4],
    "size": [64, 64],
    "tokenizer": "0" * 12,
    "codebook_size": 64,
}
DRAWING = {"prompt": "a red apple", "n": 1, "size": "32x32", "seed": 1, "num_inference_steps": 0}
PARTS = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": URL}}]
TRUE: dict[str, dict[str, Any]] = {
    "/v1/images/generations": {**DRAWING, "guidance_scale": 2.0, "best_of": 2, "stream": False},
    "/v1/images/edits": {**DRAWING, "image": PNG, "mask": PNG},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PARTS}], "max_tokens": 3, "seed": 0},
    "/v1/tokenize": {"image": URL, "budget": 3},
    "/v1/detokenize": {"tokens": TOKENS, "num_inference_steps": 0},
}
NUMBERS = (0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320)
WORDS = (
    "",
    " ",
    "x",
    "\0",
    "\ud800",
    "\u00e9" * 100,
    "[IMG]",
    "<code-00001>",
    "nan",
    "auto",
    "image",
    "a" * 5000,
)
ADDRESSES = ("../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1/", "data:image/png;base64,", URL)
SIZES = ("1x1", "0x0", "99999x1")
OTHERS = (None, True, False, [], [[]], {}, {"a": 1}, [None] * 50, TOKENS)
ODD: list[Any] = [*NUMBERS, *WORDS, *ADDRESSES, *SIZES, *OTHERS]
NAMES = ("model", "size", "stream", "modalities", "n", "mask", "cells", "other")  # of fields to add
KINDS = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "\u00e9")


@dataclass(frozen=True)
class Request:
    """One request."""

    path: str
    content: bytes
    content_type: str


def request(number: int) -> Request:
    """The request with this number: always the same one."""
    chance = random.Random(number)
    path = chance.choice(list(TRUE))
    body = copy.deepcopy(TRUE[path])
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        _change(body, chance)
    if path == "/v1/images/edits" and chance.random() < 0.9:
        content, kind = _form(body, chance)
    else:
        content, kind = json.dumps(body, default=lambda blob: blob.hex()).encode(), "application/json"
    if chance.random() < 0.3:
        content = _damaged(content, chance)
    if chance.random() < 0.05:
        kind = chance.choice(KINDS)
    return Request(path, content, kind)


def _change(value: Any, chance: random.Random) -> None:
    """Replace, remove or add something at any depth."""
    while True:
        if isinstance(value, dict) and value:
            key: Any = chance.choice(list(value))
        elif isinstance(value, list) and value:
            key = chance.randrange(len(value))
        else:
            return
        if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.7:
            value = value[key]
            continue
        match chance.randrange(5):
            case 0 if isinstance(value, dict):
                del value[key]
            case 1 if isinstance(value, dict):
                value[chance.choice(NAMES)] = odd(chance)
            case _:
                value[key] = odd(chance)
        return


def odd(chance: random.Random) -> Any:
    """Something that rarely fits."""
    return copy.deepcopy(chance.choice(ODD))


def _form(body: dict[str, Any], chance: random.Random) -> tuple[bytes, str]:
    """The fields as multipart/form-data, images sometimes damaged."""
    parts = []
    for name, value in body.items():
        blob = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
        if isinstance(value, bytes) and chance.random() < 0.3:
            blob = _damaged(blob, chance)
        file = f'; filename="{name}.png"' if isinstance(value, bytes) else ""
        head = f'--line\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + blob + b"\r\n")
    return b"".join([*parts, b"--line--\r\n"]), "multipart/form-data; boundary=line"


def _damaged(blob: bytes, chance: random.Random) -> bytes:
    """Bytes cut, doubled or changed."""
    place = chance.randrange(len(blob) + 1)
    match chance.randrange(4):
        case 0:
            return blob[:place]
        case 1:
            return blob[:place] + blob[place // 2 :]
        case 2:
            return blob[:place] + chance.randbytes(chance.randrange(1, 9)) + blob[place:]
        case _:
            return blob[:place] + chance.randbytes(1) + blob[place + 1 :]


def fault_of(status: int, content_type: str, content: bytes) -> str | None:
    """What is wrong with the answer to any of these; None: nothing."""
    if status == 200:
        return None
    if status not in (400, 404, 405, 413, 415, 422, 429):
        return f"status {status}: {content[:200]!r}"
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"status {status} without an error in OpenAI's form: {content_type} {content[:200]!r}"
    if set(error) != {"message", "type", "param", "code"} or not error["message"] or "\n" in error["message"]:
        return f"status {status}: {error}"
    return None
