"""The five stages of LLaDA-V from one config, and how samples become documents of a model that sees."""

import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from pictish.configs import load, parse
from pictish.data.mixture import Report
from pictish.lm.config import TrainConfig
from pictish.lm.model import UnifiedModel
from pictish.lm.train import train
from tests.shards import write_shard  # noqa: F401  (kept for its helper, see below)

NOISE = np.random.default_rng(0)


def png(width: int = 20, height: int = 12) -> bytes:
    stream = io.BytesIO()
    pixels = NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()
