"""Everything that `pictish train model` does, as one file: OUT/train.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pictish.configs import Config, load, parse
from pictish.configs.loader import overridden
from pictish.data.collect import SPLITS, TASKS
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
    evaluate: int = Field(256, gt=0, description="held-out images that are measured at the end, at most")
    samples: int = Field(6, gt=0, le=64, description="held-out captions that are drawn at the end")
    tokenizer: TokenizerTraining = Field(description="images to codes at their cells, and back")
    decoder: DecoderTraining = Field(description="codes to pixels")
    lm: LanguageTraining = Field(description="captions to codes, and codes to captions")


def preset(
    size: Size,
    initial: str | None = None,
    overrides: Sequence[str] = (),
    samples: Mapping[str, int] | None = None,
) -> OwnConfig:
    """The configuration of a size, for data in the folder itself; `initial` is `tokenizer.initial`.

    `samples`: how many there are by `split/kind`, of the manifest of `data`. Edits and questions, where there
    are any, are sources of the language model, each of their samples read as often as an image's captions.
    ValueError for overrides that fit nothing.
    """
    raw = {stage: load(f"{size}/{stage}") for stage in STAGES}
    for stage in STAGES[:2]:
        shards = {split: [f"data/{split}/*captioned-*.tar"] for split in SPLITS}
        raw[stage]["data"] = {**raw[stage]["data"], **shards, "cache": "cache"}
    for stage in STAGES[1:]:
        raw[stage]["tokenizer"] = "tokenizer"
    if initial is not None:
        raw["tokenizer"]["initial"] = initial
    sources = {split: _sources(split, samples or {}) for split in SPLITS}
    raw["lm"]["data"] = {**raw["lm"]["data"], **sources}
    whole: dict[str, Any] = {"size": size, **{str(stage): settings for stage, settings in raw.items()}}
    return parse(OwnConfig, overridden(whole, overrides), f"--size {size}")


def _sources(split: str, samples: Mapping[str, int]) -> dict[str, Any]:
    """The language model's sources of a split."""
    found: dict[str, Any] = {"pictures": {"paths": [f"tokens/{split}/captioned-*.tar"], "caption": 0.2}}
    for kind in TASKS:
        if count := samples.get(f"{split}/{kind}"):
            weight = round(count / samples[f"{split}/captioned"], 4) or 0.0001
            found[kind] = {"paths": [f"tokens/{split}/{kind}-*.tar"], "weight": weight}
    return found


_PATHS = ("folder", "path", "paths", "cache", "initial")  # keys of paths, wherever they stand


def located(config: OwnConfig, folder: Path) -> OwnConfig:
    """The configuration with its relative paths joined to `folder`."""
    here = folder.resolve()

    def join(value: Any) -> Any:
        if isinstance(value, list):
            return [join(each) for each in value]
        return str(here / value) if isinstance(value, str) and value != "starter" else value

    def joined(raw: Any) -> Any:
        if isinstance(raw, list):
            return [joined(each) for each in raw]
        if not isinstance(raw, dict):
            return raw
        return {key: join(value) if key in _PATHS else joined(value) for key, value in raw.items()}

    raw = joined(config.model_dump(mode="json"))
    for stage in STAGES[:2]:
        for split in SPLITS:
            raw[stage]["data"][split] = join(raw[stage]["data"][split])
    for stage in STAGES[1:]:
        raw[stage]["tokenizer"] = join(raw[stage]["tokenizer"])
    return parse(OwnConfig, raw, FILE)
