"""Starter data with held-out splits, and a model folder with a tiny language model, for evaluations."""

import json
import shutil
import zlib
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from pictish.data.images import png_bytes
from pictish.data.shards import ShardWriter
from pictish.lm.model import UnifiedModel
from pictish.lm.vocabulary import widen
from pictish.pipelines.lm_training import image_tokens_of
from pictish.tokenizer.dynamic import Tokenizer
from tests.evaluation.emoji import HUES, TONES, facts_of, write_starter_data
from tests.lm.tiny import tiny_model, tiny_tokenizer

HELD_OUT = {
    "red kite": {"group": "activities", "subgroup": "game"},
    "blue kite": {"group": "activities", "subgroup": "game"},
    "pear": {"group": "food-drink", "subgroup": "food-fruit", "tags": ["fruit"]},
}


def boxed(style: str, shown: str, tone: str | None = None) -> Image.Image:
    """A box whose colour and place follow from what is shown, a bar of skin, and one of the style."""
    picture = Image.new("RGBA", (64, 64))
    number = zlib.crc32(shown.encode())
    left, top = number % 5 * 12, number // 5 % 2 * 12
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, left + 15, top + 19), fill=(number >> 8 & 255, number >> 16 & 255, 128))
    if tone:
        pen.rectangle((0, 34, 63, 47), fill=TONES[tone])
    pen.rectangle((0, 52, 63, 63), fill=(HUES[style], 255 - HUES[style], HUES[style]))
    return picture


def write_held_out_data(folder: Path) -> Path:
    """The data of `write_starter_data` with a test split beside it: things, and cooks in every tone."""
    write_starter_data(folder)
    known = {"role": "cook", "group": "people-body", "subgroup": "person-role"}
    told = dict(HELD_OUT)
    for gender in ("man", "woman"):
        for tone in TONES:
            told[f"{gender} cook, {tone} skin tone"] = {**known, "gender": gender, "skin_tone": tone}
    for style in HUES:
        with ShardWriter(folder / "test", 1000, style) as shards:
            for number, (caption, facts) in enumerate(told.items()):
                picture = boxed(style, caption.split(",")[0], facts.get("skin_tone"))
                concept = f"1f5{number:02x}"
                whole = facts_of(style, concept, caption, **facts, split="test")
                shards.write(
                    f"{style}-{concept}", {"png": png_bytes(picture), "json": json.dumps(whole).encode()}
                )
    return folder


def save_tiny_language(folder: Path, models: Path) -> Path:
    """A model folder with the tokenizer and preview of `models`, and a random language model."""
    shutil.copytree(models / "tokenizer", folder / "tokenizer")
    shutil.copytree(models / "decoder", folder / "preview")
    tokenizer = Tokenizer.from_folder(folder)
    text = tiny_tokenizer()
    language = tiny_model("llama", len(text), dtype=torch.float32)
    language.config.max_position_embeddings = 256  # rotary: there is no table to grow
    tokens = image_tokens_of(tokenizer)
    widen(language, text, tokens.codes, cells=tokens.cells, generator=torch.Generator().manual_seed(0))
    UnifiedModel(language, text, tokens, None).save(folder / "lm")
    return folder
