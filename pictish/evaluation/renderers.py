"""What turns a model's codes back into images, whichever decoders it has."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pictish.evaluation.pictures import resized

if TYPE_CHECKING:
    import torch

    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.preview import Preview
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.tokenizer.dynamic import Tokenizer


class Renderer(Protocol):
    """Codes to images of `side` pixels: a `Preview`, or `Detokenized`."""

    side: int

    def decode(self, tokens: "Sequence[TokenizedImage]") -> "torch.Tensor":
        """Images as uint8 (B, side, side, 3), squashed as the tokenizer encodes them."""


class Detokenized:
    """The images that `pictish detokenize` draws with a diffusion decoder, as squares, not upscaled."""

    def __init__(self, reconstructor: "Reconstructor") -> None:
        from pictish.pipelines.settings import Drawing

        assert reconstructor.decoder is not None
        self.reconstructor, self.side = reconstructor, reconstructor.decoder.side
        self.drawing = reconstructor.settled(Drawing(upscale=1))

    def decode(self, tokens: "Sequence[TokenizedImage]") -> "torch.Tensor":
        """Images as uint8 (B, side, side, 3), each from noise of seed 0."""
        import torch

        from pictish.pipelines.drawing import generators

        drawn = self.reconstructor.pixels(tokens, self.drawing, generators([0] * len(tokens)))
        return torch.from_numpy(resized(drawn, self.side))


def preview_of(model: str, tokenizer: "Tokenizer", device: "str | torch.device") -> "Preview | None":
    """The preview of a model folder: a trained head, or the pixels that the tokenizer itself reconstructs."""
    from pictish.decoder.preview import Preview
    from pictish.io.model_folder import find_decoder

    if tokenizer.places_codes or find_decoder(model, "preview") is not None:
        return Preview.from_folder(model, tokenizer, device)
    return None


def renderer_of(model: str, tokenizer: "Tokenizer", device: "str | torch.device") -> Renderer:
    """The preview of a model folder, or its diffusion decoder; ValueError for a model that has neither."""
    from pictish.pipelines.reconstruct import Reconstructor

    preview = preview_of(model, tokenizer, device)
    return preview or Detokenized(Reconstructor.from_folder(model, device, tokenizer))
