"""Everything that `pictish train model` does, as one file: OUT/train.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pictish.configs import Config, load, parse
from pictish.configs.loader import overridden
from pictish.decoder.config import TrainConfig as DecoderTraining
from pictish.lm.config import TrainConfig as LanguageTraining
from pictish.tokenizer.config import TrainConfig as TokenizerTraining

Size = Literal["tiny", "small", "base"]
Stage = Literal["tokenizer", "decoder", "lm"]
STAGES: tuple[Stage, ...] = ("tokenizer", "decoder", "lm")
FILE = "train.yaml"


class OwnConfig(Config):
    """A tokenizer, a decoder and a language model, trained one after the other. Paths start at the folder."""

    part: Literal["model"] = "model"
    size: Size = Field(description="presets that this file began as: SIZE/tokenizer, SIZE/decoder, SIZE/lm")
    evaluate: int = Field(256, gt=0, description="held-out pictures that are measured at the end, at most")
    samples: int = Field(6, gt=0, le=64, description="held-out captions that are drawn at the end")
    tokenizer: TokenizerTraining = Field(description="pictures to codes at their cells, and back")
    decoder: DecoderTraining = Field(description="codes to pixels")
    lm: LanguageTraining = Field(description="captions to codes, and codes to captions")


def preset(size: Size, initial: str | None = None, overrides: Sequence[str] = ()) -> OwnConfig:
    """The configuration of a size, for data in the folder itself; `initial` is `tokenizer.initial`.

    ValueError for overrides that fit nothing.
    """
    raw = {stage: load(f"{size}/{stage}") for stage in STAGES}
    for stage in STAGES[:2]:
        shards = {"train": ["data/train/*.tar"], "validation": ["data/validation/*.tar"]}
        raw[stage]["data"] = {**raw[stage]["data"], **shards, "cache": "cache"}
    for stage in STAGES[1:]:
        raw[stage]["tokenizer"] = "tokenizer"
    if initial is not None:
        raw["tokenizer"]["initial"] = initial
    tokens = {
        split: {"pictures": {"paths": [f"tokens/{split}/*.tar"], "caption": 0.2}}
        for split in ("train", "validation")
    }
    raw["lm"]["data"] = {**raw["lm"]["data"], **tokens}
    whole: dict[str, Any] = {"size": size, **raw}
    return parse(OwnConfig, overridden(whole, overrides), f"--size {size}")


def located(config: OwnConfig, folder: Path) -> OwnConfig:
    """The configuration with its relative paths joined to `folder`."""
    raw = config.model_dump(mode="json")
    here = folder.resolve()

    def join(path: str | None) -> str | None:
        return path if path in (None, "starter") else str(here / path)

    for stage in STAGES[:2]:
        data = raw[stage]["data"]
        data["cache"] = join(data["cache"])
        for split in ("train", "validation"):
            data[split] = [join(path) for path in data[split]]
    for stage in STAGES[1:]:
        raw[stage]["tokenizer"] = join(raw[stage]["tokenizer"])
    raw["tokenizer"]["initial"] = join(raw["tokenizer"]["initial"])
    for split in ("train", "validation"):
        for source in raw["lm"]["data"][split].values():
            source["paths"] = [join(path) for path in source["paths"]]
    return parse(OwnConfig, raw, FILE)
