"""The network of the dynamic tokenizer, and what it is trained on.

LaVIT's method (arXiv 2309.04669): a selector decides which patches are kept, a merger lets them take in what
was dropped, a codebook quantizes them. Beyond LaVIT, codes go back to their cells: a code need not say where
it is (docs/log.md).

Legend: B images, S side in pixels, N cells, M kept rows of all images, D width, C code dimension, F
features of a cell as decoders read them.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pictish.tokenizer.config import (
    ConvEncoderConfig,
    ErrorSelectorConfig,
    GridReconstructorConfig,
    SelectorConfig,
    TokenizerConfig,
)
from pictish.tokenizer.conv import ConvEncoder, GridReconstructor, as_maps, cell_errors
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.losses import Teacher, cosine_errors, pixel_loss
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.quantizers import build_quantizer
from pictish.tokenizer.reconstructor import Reconstructor
from pictish.tokenizer.selector import ErrorSelector, Selector, choose, draw_keep
from pictish.training.process_group import SINGLE_PROCESS, ProcessGroup

SHIFTS = 16  # pixels: more than the largest stride that a perceptual distance notices


class Losses(NamedTuple):
    """Scalars of one training batch, and the `ids` of its kept tokens; empty when not quantized.

    Of a process's share of the batch they are such that their mean over processes is the batch's.
    """

    total: Tensor
    pixel: Tensor
    mse: Tensor
    features: Tensor
    perceptual: Tensor
    selector: Tensor
    quantizer: Tensor
    keep_rate: Tensor
    ids: Tensor


class RoundTrip(NamedTuple):
    """What went through the codes and back."""

    features: Tensor  # (B, N, F) from the codes alone, as decoders read them
    keep: Tensor  # (B, N) bool
    ids: Tensor  # (M,) of all kept rows
    codes: Tensor  # (B, N, C) code vectors as `decode` reads them
    real: Tensor  # (B, N) bool: which of them there are


class DynamicTokenizer(nn.Module):
    """The network. Training calls `forward`; everybody else uses it through `Tokenizer`.

    With a reconstructor of kind `grid` codes are decoded at their cells. With LaVIT's, of kind `sequence`,
    only their order counts; such a network is not trained here.
    """

    def __init__(self, config: TokenizerConfig, teacher_features: int = 0):
        """`teacher_features` is the width of what a teacher sees, in training only."""
        super().__init__()
        self.config = config
        width, heads, ratio = config.width, config.heads, config.mlp_ratio
        self.encoder: Encoder | ConvEncoder
        if isinstance(config.encoder, ConvEncoderConfig):
            self.encoder = ConvEncoder(config.encoder, width)
            self.position = nn.Parameter(torch.randn(self.encoder.cells, width) * 0.02)
        else:
            self.encoder = Encoder(config.encoder)
            if config.project:
                self.project_in = nn.Linear(self.encoder.features, width)
                self.position = nn.Parameter(torch.randn(self.encoder.cells, width) * 0.02)
            elif self.encoder.features != width:
                raise ValueError(
                    f"project: false needs the encoder's width of {self.encoder.features}, not {width}"
                )
        self.selector: Selector | ErrorSelector
        if isinstance(config.selector, SelectorConfig):
            self.selector = Selector(width, config.encoder.grid, config.selector.neighbor_suppression)
        else:
            self.selector = ErrorSelector(width)
        self.merger = Merger(width, heads, ratio, config.merger.layers, config.merger.mode)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.quantizer.dim))
        self.reconstructor: Reconstructor | GridReconstructor | None = None
        if isinstance(config.reconstructor, GridReconstructorConfig):
            sizes = (config.encoder.grid, self.quantizer.dim, width, ratio, heads)
            self.reconstructor = GridReconstructor(config.reconstructor, *sizes)
        elif config.reconstructor is not None:
            assert isinstance(self.encoder, Encoder)  # the config refuses others
            self.reconstructor = Reconstructor(
                self.encoder.cells,
                self.quantizer.dim,
                self.encoder.features,
                width,
                config.reconstructor.heads or heads,
                ratio,
                config.reconstructor.layers,
                config.reconstructor.form,
            )
        self.to_teacher = nn.Linear(width, teacher_features) if teacher_features else None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.selector.logit_bias.device

    @property
    def features(self) -> int:
        """F: what a decoder reads of each cell."""
        if isinstance(self.reconstructor, GridReconstructor):
            return self.config.width + 3 * self.reconstructor.patch**2
        return self.encoder.features

    @property
    def pixel_side(self) -> int | None:
        """Side of the images that features hold, in pixels; None: they hold none."""
        if isinstance(self.reconstructor, GridReconstructor):
            return self.reconstructor.side
        assert isinstance(self.encoder, Encoder)
        return self.encoder.config.grid * self.encoder.config.pixels or None

    def embed(self, pixels: Tensor) -> Tensor:
        """Hidden rows (B, N, D) of uint8 `pixels` (B, S, S, 3)."""
        rows = self.encoder(pixels)
        if isinstance(self.encoder, ConvEncoder):
            return rows + self.position
        return self.project_in(rows) + self.position if self.config.project else rows

    def decode(self, vectors: Tensor, real: Tensor) -> Tensor:
        """Features (B, N, F) from code `vectors` (B, N, C), of which those are read that `real` (B, N) says.

        They lie at their cells, or, where the order is all that counts, one after the other.
        """
        assert self.reconstructor is not None
        if isinstance(self.reconstructor, Reconstructor):
            return self.reconstructor(vectors, real)
        return self._features(*self.reconstructor(vectors, real))

    def _features(self, rows: Tensor, pictures: Tensor) -> Tensor:
        """Rows (B, N, D) and the pixels of each cell, one behind the other: (B, N, F)."""
        assert isinstance(self.reconstructor, GridReconstructor)
        p = self.reconstructor.patch
        patches = rearrange(pictures, "b c (y p) (x q) -> b (y x) (p q c)", p=p, q=p)
        return torch.cat([rows, patches], dim=-1)

    def pixels_in(self, features: Tensor) -> Tensor | None:
        """The images (B, 3, s, s), about in [0, 1], that `features` (B, N, F) hold, if they hold any."""
        if isinstance(self.reconstructor, GridReconstructor):
            grid, p = self.reconstructor.grid, self.reconstructor.patch
            own = features[..., -3 * p**2 :]
            return rearrange(own, "b (y x) (p q c) -> b c (y p) (x q)", y=grid, p=p, q=p)
        if self.pixel_side is None:
            return None
        assert isinstance(self.encoder, Encoder)
        return self.encoder.to_pixels(features / self.encoder.scale + self.encoder.mean)

    def forward(
        self,
        pixels: Tensor,
        originals: Tensor,
        teacher: Teacher | None,
        generator: torch.Generator,
        quantize: bool,
        noise: float = 1.0,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> Losses:
        """One training step's losses of uint8 `pixels` (B, S, S, 3), one process's rows of the batch.

        `originals` (B, s, s, 3) uint8 are the same images at the reconstructed side. `generator` draws the
        keep mask with Gumbel `noise` of this scale.
        """
        assert isinstance(self.reconstructor, GridReconstructor)
        assert isinstance(self.selector, ErrorSelector)
        assert isinstance(self.config.selector, ErrorSelectorConfig)
        keep, free, errors, codes = self._merge_dense(pixels, generator, noise, process_group)
        vectors = self.quantizer.normalise(codes)  # (B, N, C)
        quantizer_loss = vectors.new_zeros(())
        ids = torch.empty(0, dtype=torch.long, device=pixels.device)
        if quantize:
            quantized = self.quantizer(codes[keep])
            vectors = vectors.to(quantized.vectors.dtype).masked_scatter(keep[..., None], quantized.vectors)
            # the library's mean is over this process's vectors, of which it may have more than another
            quantizer_loss = quantized.loss * process_group.mean(
                torch.ones_like(quantized.ids, dtype=vectors.dtype)
            )
            ids = quantized.ids
        rows, pictures = self.reconstructor(vectors, keep)
        target = as_maps(originals)
        pixel, mse = pixel_loss(pictures, target)
        selector = self.selector.loss(
            errors, cell_errors(pictures, target, self.reconstructor.grid), keep, process_group
        )
        features = perceptual = pixel.new_zeros(())
        total = pixel + self.config.selector.weight * selector + quantizer_loss
        if teacher is not None:
            assert self.to_teacher is not None
            looked = teacher.rows
            grid = teacher.encoder.config.grid
            pooled = F.adaptive_avg_pool2d(
                rearrange(rows[looked], "b (y x) d -> b d y x", y=self.reconstructor.grid), grid
            )
            predicted = self.to_teacher(rearrange(pooled, "b d y x -> b (y x) d"))
            features = cosine_errors(predicted, teacher.features(target[looked])).mean()
            down, right = torch.randint(0, SHIFTS, (2,), generator=generator).tolist()
            perceptual = teacher.distance(pictures[looked], target[looked], (down, right))
            total = total + teacher.config.features * features + teacher.config.perceptual * perceptual
        keep_rate = process_group.mean(keep.float(), free[:, None].expand_as(keep))
        return Losses(
            total,
            pixel=pixel.detach(),
            mse=mse.detach(),
            features=features.detach(),
            perceptual=perceptual.detach(),
            selector=selector.detach(),
            quantizer=quantizer_loss.detach(),
            keep_rate=keep_rate,
            ids=ids,
        )

    @torch.no_grad()
    def code_vectors(
        self,
        pixels: Tensor,
        generator: torch.Generator,
        noise: float = 1.0,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> Tensor:
        """Kept tokens (M, C), unquantized, of `pixels` (B, S, S, 3): where the codebook starts from.

        They are gathered from all processes.
        """
        keep, _, _, codes = self._merge_dense(pixels, generator, noise, process_group)
        return process_group.gathered(codes[keep])

    def _merge_dense(
        self, pixels: Tensor, generator: torch.Generator, noise: float, process_group: ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is kept (B, N), whose number of codes is free (B,), errors (B, N, 2) and codes (B, N, C)."""
        settings = self.config.selector
        assert isinstance(self.selector, ErrorSelector)
        assert isinstance(settings, ErrorSelectorConfig)
        hidden = self.embed(pixels)
        # The selector reads the hidden rows but does not bend them.
        errors = self.selector.errors(hidden.detach())
        scores = self.selector.scores(errors)
        logit_bias = self.selector.logit_bias_for(scores, settings.rate, process_group)
        if self.training:
            self.selector.update_logit_bias(logit_bias)
        keep, free = draw_keep(
            scores + logit_bias,
            noise,
            generator,
            fixed_length=settings.fixed_length_probability,
            exploration=settings.exploration_probability,
            process_group=process_group,
        )
        return keep, free, errors, self.to_code(self.merger(hidden, keep))

    @torch.no_grad()
    def set_level(self, batches: Iterable[Tensor], rate: float) -> None:
        """Set the logit bias so that images of uint8 pixels (B, S, S, 3) keep this fraction on average."""
        logits = [self.selector(self.embed(pixels)) for pixels in batches]
        self.selector.logit_bias.add_(self.selector.logit_bias_for(torch.cat(logits), rate))

    @torch.no_grad()
    def round_trip(
        self, pixels: Tensor, *, quantize: bool = True, draw: Callable[[Tensor], Tensor] = choose
    ) -> RoundTrip:
        """Uint8 `pixels` (B, S, S, 3) through the codes and back, kept by what `draw` makes of logits (B, N).

        For validation and for training what comes after. It is dense and not bit-stable from batch to batch
        as `Tokenizer` is.
        """
        hidden = self.embed(pixels)
        keep = draw(self.selector(hidden))
        codes = self.to_code(self.merger(hidden, keep))
        vectors = self.quantizer.normalise(codes)
        ids = torch.empty(0, dtype=torch.long, device=pixels.device)
        if quantize:
            quantized = self.quantizer(codes[keep])
            vectors, ids = vectors.masked_scatter(keep[..., None], quantized.vectors), quantized.ids
        real = keep
        if not self.config.places_codes:  # kept ones first, in their order
            order, real = kept_rows(keep, keep.shape[1])
            vectors = torch.take_along_dim(vectors, order[..., None], dim=1)
        return RoundTrip(self.decode(vectors, real), keep, ids, vectors, real)
