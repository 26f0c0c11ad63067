"""Dialogues in a sample's JSON: who says what, with images and videos anywhere. Layout: docs/formats.md."""

from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Kind = Literal["text", "image", "video"]
Part = tuple[Kind, str | tuple[str, ...]]  # a text, the name of a member, or the names of frames

MOST = 1000  # messages of a dialogue, parts of a message, frames of a video


def parse_messages(listed: Any) -> list[tuple[Role, list[Part]]]:
    """The messages of a JSON value; ValueError for anything but a dialogue that ends with the assistant.

    A system's message may come first; then user and assistant take turns.
    """
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST:
        raise ValueError(f"messages in its JSON is no list of 1 to {MOST} messages")
    found: list[tuple[Role, list[Part]]] = []
    for message in listed:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError("a message has no role; system, user and assistant are known")
        found.append((message["role"], _content(message.get("content"), message["role"])))
    turns = [role for role, _ in found[found[0][0] == "system" :]]
    if (
        not turns
        or len(turns) % 2
        or any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns))
    ):
        raise ValueError("after a system's message, user and assistant take turns, and the assistant is last")
    return found


def _content(content: Any, role: Role) -> list[Part]:
    if isinstance(content, str):
        content = [{"text": content}]
    if not isinstance(content, list) or len(content) > MOST:
        raise ValueError(f"content of a message is no text and no list of up to {MOST} parts")
    parts: list[Part] = []
    for part in content:
        kinds = [kind for kind in ("text", "image", "video") if isinstance(part, dict) and kind in part]
        match kinds:
            case ["text"]:
                if text := json_text(part["text"], "text of a message"):
                    parts.append(("text", text))
            case ["image"]:
                parts.append(("image", json_text(part["image"], "image of a message")))
            case ["video"]:
                frames = part["video"]
                if not isinstance(frames, list) or not 0 < len(frames) <= MOST:
                    raise ValueError(f"video of a message is no list of 1 to {MOST} frames")
                parts.append(("video", tuple(json_text(frame, "a frame") for frame in frames)))
            case _:
                raise ValueError(
                    'a part of a message is none of {"text": ...}, {"image": ...}, {"video": [...]}'
                )
    if not any(kind != "text" or str(value).strip() for kind, value in parts):
        raise ValueError(f"a message of the {role} is empty")
    if role == "assistant" and any(kind == "video" for kind, _ in parts):
        raise ValueError("a message of the assistant holds a video, which no model writes")
    return parts


def json_text(value: Any, what: str) -> str:
    """A JSON value that must be text; ValueError for others."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is missing or no text in its JSON")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{what} holds half of a character, which no UTF-8 has")
    return value
