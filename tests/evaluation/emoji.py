"""Starter data of a few emoji, drawn as flat shapes, and features that are cheap and tell them apart."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pictish.data.shards import ShardWriter

TONES = {"light": "#f7d7c4", "medium": "#b57c4e", "dark": "#40281c"}
HUES = {"noto": 0, "twemoji": 70, "fluent-emoji-flat": 140}
THINGS = ("apple", "bell", "cloud", "drum")
ROLES = ("farmer", "singer")
SHOWN = (*THINGS, *(f"{gender} {role}" for gender in ("man", "woman") for role in ROLES))
HELD_OUT = ("singer", "dark", "woman")


def drawn(style: str, shown: str, tone: str | None = None) -> Image.Image:
    """A box whose place follows from what is shown, a bar in the colour of the style, and people's skin."""
    picture = Image.new("RGBA", (64, 64))
    place = SHOWN.index(shown)
    left, top = place % 4 * 16, place // 4 * 16
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, left + 13, top + 13), fill=("red", "blue", "green", "orange")[place % 4])
    if tone:
        pen.rectangle((0, 34, 63, 47), fill=TONES[tone])
    pen.rectangle((0, 52, 63, 63), fill=(HUES[style], 255 - HUES[style], HUES[style]))
    return picture


def facts_of(style: str, concept: str, caption: str, **known: object) -> dict[str, object]:
    """The JSON of one emoji with everything that docs/data.md names."""
    unknown = dict.fromkeys(("group", "subgroup", "skin_tone", "gender", "role"))
    origin = {"package": "none", "version": "1", "license": "MIT", "attribution": "https://example.org"}
    words = {"set": style, "style": style, "name": caption, "concept": concept, "caption": caption}
    return {**unknown, **origin, **words, "label": caption, "tags": [], "split": "train", **known}


def every_emoji() -> list[tuple[str, dict[str, object], Image.Image]]:
    """Key, facts and image: four things and twelve people in three styles, one of the people held out."""
    made = []
    for style in HUES:
        for number, thing in enumerate(THINGS):
            concept = f"1f3{number}0"
            made.append((f"{style}-{concept}", facts_of(style, concept, thing), drawn(style, thing)))
        people = [(role, tone, gender) for role in ROLES for tone in TONES for gender in ("man", "woman")]
        for number, (role, tone, gender) in enumerate(people):
            concept = f"1f46{number:x}"
            split = "composition-test" if (role, tone, gender) == HELD_OUT else "train"
            facts = facts_of(
                style,
                concept,
                f"{gender} {role}, {tone} skin tone",
                skin_tone=tone,
                gender=gender,
                role=role,
                split=split,
            )
            made.append((f"{style}-{concept}", facts, drawn(style, f"{gender} {role}", tone)))
    return made


def write_starter_data(folder: Path) -> Path:
    """The emoji as `pictish data starter` lays them out."""
    samples = every_emoji()
    for split in ("train", "composition-test"):
        for style in HUES:
            own = [each for each in samples if (each[1]["set"], each[1]["split"]) == (style, split)]
            with ShardWriter(folder / split, 1000, style) as shards:
                for key, facts, picture in own:
                    buffer = io.BytesIO()
                    picture.save(buffer, format="PNG")
                    members = {"png": buffer.getvalue(), "json": json.dumps(facts).encode()}
                    shards.write(key, {**members, "txt": str(facts["caption"]).encode()})
    (folder / "manifest.json").write_text('{"format": "pictish-starter-data"}')
    return folder


def cheap_features(pictures: np.ndarray) -> np.ndarray:
    """Grey levels of 16 x 16 fields, (P, 256), in place of a network's features."""
    count, side = pictures.shape[:2]
    fields = pictures.reshape(count, 16, side // 16, 16, side // 16, 3).mean(axis=(2, 4, 5))
    return (255 - fields.reshape(count, -1)).astype(np.float32)
