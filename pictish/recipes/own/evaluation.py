"""What a trained model is worth on held-out images: reconstruction, words to images, captions, answers.

Words to images are judged by the held-out images themselves. An image drawn from the caption of one is
right where, among all of them, one with that caption is nearest to it, by features of an ImageNet network
that no part of the model was trained with. Legend: P images, F features.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pictish.data.images import fit_square, load_image
from pictish.data.loader import ImageBytes
from pictish.data.samples import Pair, Question, Sample, index_shard
from pictish.data.words import words_of
from pictish.evaluation.metrics import FeatureDistance, means, psnr, rounded
from pictish.io.files import write_atomic
from pictish.pipelines.describe import Describe
from pictish.pipelines.drawing import generate
from pictish.pipelines.pipeline import Pipeline
from pictish.pipelines.settings import GenerationConfig
from pictish.recipes.own.config import OwnConfig

NUMBERS = "evaluation.json"
HITS = (1, 5)  # those below the number of candidates are measured
_BATCH = 32  # images
_SEED = 0  # of drawing, and of the intervals


@dataclass(frozen=True)
class HeldOut:
    """An image that was not trained on."""

    blob: bytes  # of its file
    captions: tuple[str, ...]  # one or more


def held_out(out: Path) -> Iterator[HeldOut]:
    """Held-out images with captions."""
    for sample in _samples(out, "captioned"):
        if isinstance(sample, Pair) and isinstance(sample.picture, ImageBytes):
            yield HeldOut(sample.picture.blob, sample.captions)


def evaluate(config: OwnConfig, out: Path, pipe: Pipeline, loss: float | None) -> dict[str, Any]:
    """Measure at most `config.evaluate` held-out images; OUT/evaluation.json.

    Images are compared as squares of the decoder's side. `loss`: the language model's on held-out samples.
    """
    pictures = list(islice(held_out(out), config.evaluate))
    side = getattr(config.decoder.model, "side", pipe.tokenizer.image_size)  # a preview is of the tokenizer's
    originals = np.stack([fit_square(load_image(each.blob), side) for each in pictures])
    reconstruction, decoded = _reconstruct(pipe, pictures, originals)
    drawn = _draw(pipe, [each.captions[0] for each in pictures], side)
    network = FeatureDistance(pipe.device)
    numbers = {
        "held_out_pictures": len(pictures),
        "side": side,
        **reconstruction,
        "language_model_loss": loss,
        "words_to_pictures": {
            "judge": network.NETWORK,
            **judged(
                [each.captions for each in pictures],
                _features(network, originals),
                {"drawn": _features(network, drawn), "reconstructed": _features(network, decoded)},
            ),
        },
        "captions": _captions(pipe, pictures),
        "answers": _answers(pipe, out, config.evaluate),
    }
    text = json.dumps(rounded(numbers), indent=1, sort_keys=True) + "\n"
    write_atomic(out / NUMBERS, text.encode("ascii"))
    return numbers


def _samples(out: Path, kind: str) -> Iterator[Sample]:
    for shard in sorted((out / "data" / "validation").glob(f"{kind}-*.tar")):
        index = index_shard(shard)
        yield from map(index.read, range(len(index)))


def _reconstruct(
    pipe: Pipeline, pictures: Sequence[HeldOut], originals: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """PSNR behind the codes, of the decoder and of the tokenizer itself; the decoder's images.

    originals and these are (P, side, side, 3) uint8.
    """
    side = originals.shape[1]
    lengths: list[int] = []
    drawn: dict[str, list[Image.Image]] = {"decoder": [], "preview": []}
    for start in range(0, len(pictures), _BATCH):
        batch = [each.blob for each in pictures[start : start + _BATCH]]
        tokens = [replace(one, size=(side, side)) for one in pipe.tokenize(batch)]
        lengths += map(len, tokens)
        for name, steps in (("decoder", None), ("preview", 0)):
            drawn[name] += pipe.detokenize(tokens, num_inference_steps=steps, size=side, upscale=1)
    pixels = {name: np.stack([np.asarray(one) for one in each]) for name, each in drawn.items()}
    quality = {f"psnr_{name}": float(psnr(each, originals).mean()) for name, each in pixels.items()}
    return {"codes_a_picture": float(np.mean(lengths)), **quality}, pixels["decoder"]


def _draw(pipe: Pipeline, captions: Sequence[str], side: int) -> np.ndarray:
    """An image of each caption, (P, side, side, 3) uint8."""
    drawer, config = pipe.text_to_image(pipe.reconstructor()), GenerationConfig(size=side, upscale=1)
    drawn = []
    for start in range(0, len(captions), _BATCH):
        prompts = [[caption] for caption in captions[start : start + _BATCH]]
        drawn += generate(drawer, prompts, [_SEED] * len(prompts), config)
    return np.stack([np.asarray(one.image) for one in drawn])


def _features(network: FeatureDistance, pictures: np.ndarray) -> np.ndarray:
    """(P, F) of length 1, of (P, side, side, 3) uint8."""
    parts = range(0, len(pictures), _BATCH)
    rows = np.concatenate([network.pooled(pictures[start : start + _BATCH]) for start in parts])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def judged(
    captions: Sequence[Sequence[str]], candidates: np.ndarray, judged: dict[str, np.ndarray]
) -> dict[str, Any]:
    """How often an image's own candidate is among the nearest ones, (P, F) each, and by chance.

    Candidates that have the first caption of an image among theirs are its own too.
    """
    own = np.array([[first in others for others in captions] for first, *_ in captions])  # (P, P)
    found: dict[str, Any] = {"candidates": len(captions)}
    measured = [k for k in HITS if k < len(captions)] or [1]
    found["chance"] = {f"hit@{k}": float(_by_chance(own.sum(axis=1), len(own), k).mean()) for k in measured}
    for name, features in judged.items():
        cosines = features @ candidates.T  # (P, P)
        best = np.where(own, cosines, -np.inf).max(axis=1, keepdims=True)
        ranks = ((cosines >= best) & ~own).sum(axis=1)  # candidates as near that are another's come first
        hits = np.stack([ranks < k for k in measured], axis=1).astype(float)
        found[name] = means(hits, [f"hit@{k}" for k in measured], _SEED)
    return found


def _by_chance(own: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Probability that `k` different candidates, drawn blindly, hold one of the `own` ones, (P,)."""
    missed = np.ones(len(own))
    for drawn in range(min(k, candidates)):
        missed *= np.maximum(candidates - own - drawn, 0) / (candidates - drawn)
    return 1 - missed


def _captions(pipe: Pipeline, pictures: Sequence[HeldOut]) -> dict[str, Any]:
    """How often a caption is one of an image's, and how many words they share; beside another's captions."""
    said = _described(pipe, [(each.blob, None) for each in pictures])
    own = [each.captions for each in pictures]
    rows = [[_exact(text, told), _token_f1(text, told)] for text, told in zip(said, own, strict=True)]
    others = [_token_f1(text, told) for text, told in zip(said, [*own[1:], own[0]], strict=True)]
    measured = means(np.array(rows), ["exact", "token_f1"], _SEED)
    return {**measured, "token_f1_with_another_picture": float(np.mean(others)) if len(own) > 1 else None}


def _answers(pipe: Pipeline, out: Path, limit: int) -> dict[str, Any] | None:
    """How often held-out questions are answered right; None where there are none."""
    asked = [
        (sample.picture.blob, question, answer)
        for sample in _samples(out, "questions")
        if isinstance(sample, Question) and isinstance(sample.picture, ImageBytes)
        for question, answer in sample.turns
    ][:limit]
    if not asked:
        return None
    said = _described(pipe, [(blob, question) for blob, question, _ in asked])
    right = [[_exact(text, [answer])] for text, (_, _, answer) in zip(said, asked, strict=True)]
    return {"asked": len(asked), **means(np.array(right), ["right"], _SEED)}


def _described(pipe: Pipeline, asked: Sequence[tuple[bytes, str | None]]) -> list[str]:
    """A caption of each image, or the answer to its question."""
    describe = Describe(pipe.language)
    said: list[str] = []
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        said += describe.batch([load_image(blob) for blob, _ in batch], [question for _, question in batch])
    return said


def _exact(text: str, told: Sequence[str]) -> float:
    """1 where a text has the words and signs of one of others, whatever their case; else 0."""
    return float(_plain(text) in map(_plain, told))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[.,;:!?]+(?=\s|$)", "", text.lower()).split())


def _token_f1(text: str, told: Sequence[str]) -> float:
    """F1 of the words of a text, as a bag, with those of the likest of others; 0 to 1."""
    words = Counter(words_of(text))
    return max(_f1(words, Counter(words_of(other))) for other in told)


def _f1(words: Counter[str], others: Counter[str]) -> float:
    total = words.total() + others.total()
    return 2 * (words & others).total() / total if total else 0.0
