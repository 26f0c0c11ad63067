"""The network of the dynamic tokenizer, and what it is trained on.

LaVIT's method (arXiv 2309.04669): a frozen encoder's patch features are scored by a selector; kept ones are
merged with what was dropped, quantized, and a reconstructor predicts all features from the codes alone.

Legend: B pictures, N cells, M kept rows of all pictures, D width, C code dimension, F feature channels.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pictish.tokenizer.config import TokenizerConfig
from pictish.tokenizer.encoder import Encoder
from pictish.tokenizer.losses import cosine_errors
from pictish.tokenizer.merger import Merger, kept_rows
from pictish.tokenizer.quantizers import build_quantizer
from pictish.tokenizer.reconstructor import Reconstructor
from pictish.tokenizer.selector import Draw, Selector, choose, draw_gate, guide_loss
from pictish.training.share import ALONE, Share


class Losses(NamedTuple):
    """Scalars of one training batch, and the `ids` of its kept tokens; empty when not quantized.

    Of a process's share of the batch they are such that their mean over processes is the batch's.
    """

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
        if config.project:
            self.project_in = nn.Linear(self.encoder.features, width)
            # A convolutional encoder does not say where a patch is, and the reconstructor never sees cells.
            self.position = nn.Parameter(torch.randn(self.encoder.cells, width) * 0.02)
        elif self.encoder.features != width:
            raise ValueError(
                f"project: false needs a width of {self.encoder.features}, that of the encoder, not {width}"
            )
        self.selector = Selector(width, config.encoder.grid, config.selector.relief)
        self.merger = Merger(width, heads, ratio, config.merger.layers, config.merger.mode)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, self.quantizer.dim))
        # Training only: what a code says of its own patch. Without it tokens speak of the whole picture, and
        # it hardly matters which patches are kept (docs/log.md).
        if config.alone:
            self.alone = nn.Sequential(
                nn.Linear(self.quantizer.dim, width), nn.GELU(), nn.Linear(width, self.encoder.features)
            )
        self.reconstructor: Reconstructor | None = None
        if config.reconstructor is not None:
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

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.selector.level.device

    def embed(self, features: Tensor) -> Tensor:
        """Standardised features (B, N, F) to hidden rows (B, N, D) that know their place."""
        return self.project_in(features) + self.position if self.config.project else features

    def forward(
        self,
        raw: Tensor,
        generator: torch.Generator,
        quantize: bool,
        noise: float = 1.0,
        share: Share = ALONE,
    ) -> Losses:
        """One training step's losses from raw encoder features (B, N, F), a process's `share` of the batch.

        `generator` draws the keep mask with Gumbel `noise` of this scale.
        """
        assert self.reconstructor is not None
        features = self.encoder.standardise(raw.float())
        settings = self.config.selector
        draw, costs, keep, codes = self._merge_dense(features, generator, noise, share)
        vectors = self.quantizer.normalise(codes)  # (B, N, C)
        quantizer_loss = vectors.new_zeros(())
        ids = torch.empty(0, dtype=torch.long, device=raw.device)
        if quantize:
            quantized = self.quantizer(codes[keep])
            vectors = vectors.to(quantized.vectors.dtype).masked_scatter(keep[..., None], quantized.vectors)
            # the library's mean is over this process's vectors, of which it may have more than another
            quantizer_loss = quantized.loss * share.mean(torch.ones_like(quantized.ids, dtype=vectors.dtype))
            ids = quantized.ids
        predicted = self.reconstructor.gated(vectors, draw.gate)
        errors = cosine_errors(predicted, features)  # (B, N)
        cosine = errors.mean()
        guide = guide_loss(costs, errors, draw.blind & ~keep, share)
        alone = cosine.new_zeros(())
        if self.config.alone:
            alone = share.mean(cosine_errors(self.alone(vectors[keep]), features[keep]))
        total = cosine + self.config.alone * alone + settings.guide * guide + quantizer_loss
        if self.config.magnitude:  # the cosine leaves open how long a vector is: how dark, how saturated
            total = total + self.config.magnitude * F.mse_loss(predicted.float(), features)
        keep_rate = share.mean(keep.float(), draw.free[:, None].expand_as(keep))
        return Losses(
            total, cosine.detach(), alone.detach(), guide.detach(), quantizer_loss.detach(), keep_rate, ids
        )

    @torch.no_grad()
    def code_vectors(
        self, raw: Tensor, generator: torch.Generator, noise: float = 1.0, share: Share = ALONE
    ) -> Tensor:
        """Kept tokens (M, C), unquantized, of raw features (B, N, F): where the codebook starts from.

        They are those of all processes, of a `share` each.
        """
        _, _, keep, codes = self._merge_dense(self.encoder.standardise(raw.float()), generator, noise, share)
        return share.gathered(codes[keep])

    def _merge_dense(
        self, features: Tensor, generator: torch.Generator, noise: float, share: Share
    ) -> tuple[Draw, Tensor, Tensor, Tensor]:
        """A draw, the selector's costs, the mask (B, N), and unquantized codes (B, N, C) of all rows."""
        settings = self.config.selector
        hidden = self.embed(features)
        # The selector reads the hidden rows but does not bend them: its gradient slowed everything else down.
        costs = self.selector.costs(hidden.detach())
        scores = self.selector.spread(costs)
        level = self.selector.level_for(scores, settings.rate, share)
        if self.training:
            self.selector.remember(level)
        parts = {"budgets": settings.budgets, "blind": settings.blind}
        draw = draw_gate(scores + level, noise, generator, **parts, share=share)
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
        assert self.reconstructor is not None
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
