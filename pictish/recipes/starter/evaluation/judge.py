"""What an image shows, said by a judge that no model of ours has seen: the nearest emoji, and attributes.

Images are compared by features of an ImageNet network, by where which colour is, and by which colours
there are. All it knows comes from images and JSON of the starter data's three emoji sets.

Legend: P images, R references (the images it knows), C concepts, E numbers of an embedding, F features,
N pixels, K classes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pictish.recipes.starter.evaluation.emoji import image_of, read_emoji

if TYPE_CHECKING:
    import torch

ATTRIBUTES = ("style", "skin_tone", "gender", "role")
DETAIL = 32
"""Pixels that every image is reduced to first. So sharp and soft images compare, and real images find
another one of their concept more often than with all of their 128."""
SIDE = 128
"""Pixels that the network is then shown: four times as fast as the 260 it was trained on."""
GRID = 4
"""The layout is the mean colour of each of GRID x GRID fields."""
LEVELS = 5
"""The palette counts pixels of LEVELS x LEVELS x LEVELS colours."""
LAYOUT_WEIGHT, PALETTE_WEIGHT = 2.0, 0.25
"""Of the cosines of layout and palette, where that of the features has 1. Chosen by how often real images
find another image of their concept, and among equals by images drawn from true codes (docs/log.md)."""
BATCH = 32
_DECAY = 1e-2
_ROUNDS = 100

Features = Callable[[np.ndarray], np.ndarray]
"""Images (P, SIDE, SIDE, 3) uint8 to features (P, F)."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class References:
    """The images a judge knows, those of `SETS` in all splits, in the order of their keys."""

    keys: list[str]
    facts: Sequence[Mapping[str, Any]]
    """JSON of each, see docs/data.md."""
    pictures: list[bytes]
    """PNG of each."""
    embeddings: np.ndarray
    """(R, E) float32 of length 1."""

    def __len__(self) -> int:
        return len(self.keys)

    def picture(self, index: int) -> Image.Image:
        """A reference as RGB over white."""
        from pictish.data.images import load_image

        return load_image(self.pictures[index])

    def of_split(self, split: str) -> list[int]:
        """Indices of the references of one split."""
        return [index for index, facts in enumerate(self.facts) if facts["split"] == split]


class Judge:
    """Says which concept an image is nearest to, and which style, skin tone, gender and role it has."""

    def __init__(self, features: Features, references: References) -> None:
        self.features, self.references = features, references
        names = [facts["concept"] for facts in references.facts]
        self._order = np.argsort(names, kind="stable")
        self._names, self._starts = np.unique(np.array(names)[self._order], return_index=True)
        self._classifiers: dict[str, _Classifier] = {}

    @classmethod
    def from_data(
        cls,
        data: Path,
        cache: Path | None = None,
        device: "str | torch.device" = "cpu",
        advance: Advance = lambda count: None,
    ) -> "Judge":
        """A judge of the starter data in a folder; ValueError when that holds none.

        Embeddings are read from the file `cache` where that is of the same data and settings, else computed
        (minutes; `advance` is called with how many more are done) and written there.
        """
        features = network_features(device)
        return cls(features, read_references(data, features, cache, advance))

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(P, E) float32 of length 1: features, layout and palette, each of length 1, weighted."""
        return embed(self.features, pictures)

    def similarities(self, embeddings: np.ndarray, leave_out: Sequence[int] | None = None) -> np.ndarray:
        """Cosine with the nearest reference of each concept, (P, C), in the order of the concepts' names.

        `leave_out` is for each image the index of a reference that is not looked at; a concept that has no
        other is at -inf.
        """
        cosines = embeddings @ self.references.embeddings.T  # (P, R)
        if leave_out is not None:
            cosines[np.arange(len(cosines)), leave_out] = -np.inf
        return np.maximum.reduceat(cosines[:, self._order], self._starts, axis=1)

    def concepts(
        self, embeddings: np.ndarray, k: int, leave_out: Sequence[int] | None = None
    ) -> list[list[str]]:
        """The `k` distinct concepts nearest to each image, nearest first."""
        found = self.similarities(embeddings, leave_out)
        return [[str(self._names[place]) for place in np.argsort(-row, kind="stable")[:k]] for row in found]

    def hits(
        self,
        embeddings: np.ndarray,
        concepts: Sequence[str],
        k: int,
        leave_out: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Whether each image's concept is among the `k` nearest to it, (P,) bool."""
        nearest = self.concepts(embeddings, k, leave_out)
        return np.array([concept in row for concept, row in zip(concepts, nearest, strict=True)], dtype=bool)

    def similarity_to(
        self, embeddings: np.ndarray, concepts: Sequence[str], leave_out: Sequence[int] | None = None
    ) -> np.ndarray:
        """Cosine of each image with the nearest reference of its concept, (P,)."""
        places = np.searchsorted(self._names, np.array(concepts))
        return self.similarities(embeddings, leave_out)[np.arange(len(places)), places]

    def strict_hits(self, embeddings: np.ndarray, wanted: Sequence[int], k: int) -> np.ndarray:
        """Whether the reference `wanted` is among the `k` references nearest to each image, (P,) bool."""
        cosines = embeddings @ self.references.embeddings.T  # (P, R)
        own = cosines[np.arange(len(cosines)), wanted]
        return (cosines > own[:, None]).sum(axis=1) < k

    def attribute(self, name: str, embeddings: np.ndarray) -> list[str]:
        """The style, skin tone, gender or role that each image is likest to.

        Asked only of images that have one: whether there is any, it does not say. Multinomial logistic
        regression on the references of the train split, fitted when first asked for.
        """
        if name not in self._classifiers:
            self._classifiers[name] = self._fit(name)
        return self._classifiers[name](embeddings)

    def _fit(self, name: str) -> "_Classifier":
        """From the images of the train split that have one, and not two."""
        facts = self.references.facts
        known = [i for i in self.references.of_split("train") if isinstance(facts[i][name], str)]
        if not known:
            raise ValueError(f"no reference of the train split tells its {name}; give --data the whole data")
        return _Classifier.fit(self.references.embeddings[known], [facts[i][name] for i in known])


@dataclass(frozen=True)
class _Classifier:
    """Multinomial logistic regression."""

    classes: list[str]
    mean: np.ndarray
    """(E,)"""
    weight: np.ndarray
    """(E, K)"""
    bias: np.ndarray
    """(K,)"""

    def __call__(self, embeddings: np.ndarray) -> list[str]:
        scores = (embeddings - self.mean) @ self.weight + self.bias
        return [self.classes[place] for place in scores.argmax(axis=1)]

    @classmethod
    def fit(cls, embeddings: np.ndarray, values: Sequence[str]) -> "_Classifier":
        """From embeddings (P, E) and the class of each."""
        import torch
        from torch.nn import functional

        classes = sorted(set(values))
        mean = embeddings.mean(axis=0)
        scale = float((embeddings - mean).std()) or 1.0
        inputs = torch.from_numpy((embeddings - mean) / scale)
        targets = torch.tensor([classes.index(value) for value in values])
        weight = torch.zeros(inputs.shape[1], len(classes), requires_grad=True)
        bias = torch.zeros(len(classes), requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            solver.zero_grad()
            value = functional.cross_entropy(inputs @ weight + bias, targets) + _DECAY * (weight**2).sum()
            value.backward()
            return value

        solver.step(loss)
        return cls(classes, mean, weight.detach().numpy() / scale, bias.detach().numpy())


def network_features(device: "str | torch.device" = "cpu") -> Features:
    """Features of lite2's last stage, a mean over positions."""
    from pictish.evaluation.metrics import FeatureDistance

    distance = FeatureDistance(device)

    def features(pictures: np.ndarray) -> np.ndarray:
        return distance.features(pictures)[-1].mean(dim=(2, 3)).cpu().numpy()

    return features


def embed(features: Features, pictures: Sequence[Image.Image]) -> np.ndarray:
    """(P, E) float32, see `Judge.embed`."""
    from pictish.data.images import fit_square

    rows = []
    for start in range(0, len(pictures), BATCH):
        small = np.stack([fit_square(one, DETAIL) for one in pictures[start : start + BATCH]])
        large = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for one in small]
        seen = _unit(features(np.stack([np.asarray(one) for one in large])))
        layout = LAYOUT_WEIGHT**0.5 * _unit(colour_layout(small))
        colours = PALETTE_WEIGHT**0.5 * _unit(palette(small))
        rows.append(_unit(np.concatenate([seen, layout, colours], axis=1)))
    return np.concatenate(rows)


def colour_layout(pixels: np.ndarray) -> np.ndarray:
    """How far from white the mean colour of each field is, (P, GRID * GRID * 3) from 0 to 1.

    pixels (P, DETAIL, DETAIL, 3) uint8.
    """
    count, field = len(pixels), DETAIL // GRID
    fields = pixels.reshape(count, GRID, field, GRID, field, 3).mean(axis=(2, 4))
    return (1 - fields / 255).reshape(count, -1)


def palette(pixels: np.ndarray) -> np.ndarray:
    """Roots of how many pixels have each colour, (P, LEVELS ** 3), a pixel shared by its eight nearest.

    pixels (P, DETAIL, DETAIL, 3) uint8. White, the paper, is not counted.
    """
    count, colours = len(pixels), LEVELS**3
    places = pixels.reshape(count, -1, 3) / 255 * (LEVELS - 1)  # (P, N, 3)
    below = np.minimum(places.astype(np.int64), LEVELS - 2)
    above = places - below
    start = np.arange(count)[:, None] * colours
    found = np.zeros(count * colours)
    for corner in np.ndindex(2, 2, 2):
        part = np.where(corner, above, 1 - above).prod(axis=2)  # (P, N)
        index = start + (below + corner) @ (LEVELS**2, LEVELS, 1)
        found += np.bincount(index.ravel(), part.ravel(), minlength=len(found))
    shares = found.reshape(count, colours)
    shares[:, -1] = 0
    return np.sqrt(shares)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows as float32 of length 1; one of nothing but zeros stays so."""
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)).astype(np.float32)


def read_references(
    data: Path, features: Features, cache: Path | None = None, advance: Advance = lambda count: None
) -> References:
    """The emoji of all splits in the starter data with their embeddings, see `Judge.from_data`."""
    emoji = read_emoji(data)
    keys = [picture.key for picture in emoji]
    name = _name_of(data / "manifest.json", keys)
    embeddings = None if cache is None else _read_cache(cache, name)
    if embeddings is None:
        rows = []
        for start in range(0, len(keys), BATCH):
            rows.append(embed(features, [image_of(each) for each in emoji[start : start + BATCH]]))
            advance(len(rows[-1]))
        embeddings = np.concatenate(rows)
        if cache is not None:
            _write_cache(cache, name, embeddings)
    return References(
        keys, [picture.facts for picture in emoji], [picture.tokens for picture in emoji], embeddings
    )


def settings() -> dict[str, Any]:
    """How embeddings are made, JSON-ready."""
    from pictish.evaluation.metrics import FeatureDistance

    return {
        "network": FeatureDistance.NETWORK,
        "detail": DETAIL,
        "side": SIDE,
        "grid": GRID,
        "levels": LEVELS,
        "layout_weight": LAYOUT_WEIGHT,
        "palette_weight": PALETTE_WEIGHT,
    }


def _name_of(manifest: Path, keys: Sequence[str]) -> str:
    """What embeddings depend on: the data, and how they are made."""
    digest = hashlib.sha256(manifest.read_bytes())
    digest.update(json.dumps([settings(), list(keys)], sort_keys=True).encode())
    return digest.hexdigest()


def _read_cache(path: Path, name: str) -> np.ndarray | None:
    """Embeddings of a file that was written under the same name, else None."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("name") == name:
                found: np.ndarray = file.get_tensor("embeddings")
                return found
    except (SafetensorError, OSError):
        pass  # a torn file is written anew
    return None


def _write_cache(path: Path, name: str, embeddings: np.ndarray) -> None:
    from safetensors.numpy import save

    from pictish.io.files import write_atomic

    write_atomic(path, save({"embeddings": np.ascontiguousarray(embeddings)}, {"name": name}))
