"""Where captions stand: the field names that data sets use, and the captions of a record."""

from collections.abc import Mapping
from typing import Any

CAPTION_FIELDS = (
    "caption",
    "captions",
    "text",
    "txt",
    "prompt",
    "description",
    "sentence",
    "sentences",
    "alt_text",
    "alt",
)
"""Known names, in any case; of several the first that holds text counts."""


def captions_of(record: Mapping[str, Any], key: str | None = None) -> tuple[str | None, tuple[str, ...]]:
    """The field of a record that holds its captions, and these: none empty, all different.

    `key` names the field; else the first of `CAPTION_FIELDS` that holds text, or a list of texts. Without any
    the field is None.
    """
    names = {str(name).lower(): str(name) for name in record}
    for wanted in CAPTION_FIELDS if key is None else (key.lower(),):
        if wanted in names:
            value = record[names[wanted]]
            listed = value if isinstance(value, list | tuple) else [value]
            texts = [" ".join(text.split()) for text in listed if isinstance(text, str)]
            if any(texts):
                return names[wanted], tuple(dict.fromkeys(filter(None, texts)))
    return None, ()
