"""Words, or words and pictures, to a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.defaults import IMAGE_SCALE, TEMPERATURE, TEXT_SCALE
from pictish.pipelines.language import Language, Said
from pictish.pipelines.reconstruct import DEFAULT_SIZE, Reconstructor

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import Guidance, Prompt
    from pictish.lm.sampling import Sampling


class TextToImage:
    """Draws what a prompt says: `TextToImage.from_folder("starter")("a red apple", generator=...)`."""

    def __init__(self, language: Language, reconstructor: Reconstructor) -> None:
        self.language, self.reconstructor = language, reconstructor

    @classmethod
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        *,
        steps: int | None = None,
    ) -> "TextToImage":
        """Load all parts of one model folder, or the shipped `"starter"`; ValueError when one is missing.

        With `steps` 0 pixels come from the preview.
        """
        language = Language.from_folder(folder, device)
        return cls(language, Reconstructor.from_folder(folder, device, language.tokenizer, steps=steps))

    def __call__(
        self, prompt: str | Sequence[Said], generator: "torch.Generator", size: int = DEFAULT_SIZE
    ) -> Image.Image:
        """One RGB picture with `size` pixels on its longer side, with the usual sampling and guidance.

        The tokens draw from `generator`, the pixels' noise from a fresh one of the same seed: whatever the
        tokens drew before, tokens and seed alone give the picture.
        """
        import torch

        said = [prompt] if isinstance(prompt, str) else prompt
        tokens = self.tokens([said], [generator])
        noise = torch.Generator().manual_seed(generator.initial_seed())
        return self.reconstructor(tokens, size, generators=[noise])[0]

    def tokens(
        self,
        prompts: Sequence[Sequence[Said]],
        generators: "Sequence[torch.Generator]",
        *,
        sampling: "Sampling | None" = None,
        guidance: "Guidance | None" = None,
        min_tokens: int = 1,
        max_tokens: int | None = None,
        shapes: Sequence[tuple[int, int]] | None = None,
    ) -> list[TokenizedImage]:
        """Tokens of one picture a prompt, which `shapes` (height, width) gives a size, square by default.

        The same batch, generator seeds and weights give the same tokens; another batch may round differently.
        Raises ValueError for an empty prompt and for one that does not fit the model's context.
        """
        import numpy as np

        from pictish.lm.autoregressive import Guidance, generate
        from pictish.lm.grammar import ImagePiece, one_image
        from pictish.lm.sampling import Sampling

        language = self.language
        most = language.model.image_tokens.most
        allowed = most if max_tokens is None else max_tokens
        if not 1 <= min_tokens <= allowed <= most:
            raise ValueError(
                f"{min_tokens} to {allowed} tokens asked for; a picture of this model has 1 to {most}"
            )
        drawn = generate(
            language.model.language,
            language.model.vocabulary,
            self._prompts(prompts),
            one_image(allowed, min_tokens),
            sampling=sampling or Sampling(temperature=TEMPERATURE),
            guidance=guidance or Guidance(TEXT_SCALE, IMAGE_SCALE),
            generators=generators,
        )
        result = []
        for number, pieces in enumerate(drawn):
            (piece,) = pieces
            assert isinstance(piece, ImagePiece)
            result.append(
                TokenizedImage(
                    ids=np.array(piece.codes, dtype=np.int64),
                    cells=None,
                    grid=language.tokenizer.grid,
                    size=shapes[number] if shapes else (DEFAULT_SIZE, DEFAULT_SIZE),
                    tokenizer=language.tokenizer.fingerprint,
                    codebook_size=language.tokenizer.codebook_size,
                )
            )
        return result

    def _prompts(self, prompts: Sequence[Sequence[Said]]) -> "list[Prompt]":
        """Prompts to draw; one that comes several times is read once."""
        made: dict[tuple[str | int, ...], Prompt] = {}
        keys = [tuple(one if isinstance(one, str) else id(one) for one in said) for said in prompts]
        for key, said in zip(keys, prompts, strict=True):
            if key not in made:
                made[key] = self.language.prompt(said, draw=True)
        return [made[key] for key in keys]
