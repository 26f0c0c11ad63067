"""A picture to words: a caption, or the answer to a question."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish.pipelines.language import Language, Said

if TYPE_CHECKING:
    import torch

    from pictish.lm.sampling import Sampling

MOST = 48  # text tokens


class Describe:
    """Says what a picture shows: `Describe.from_folder("starter")(image, "what is it?")`."""

    def __init__(self, language: Language) -> None:
        self.language = language

    @classmethod
    def from_folder(cls, folder: str | Path = "starter", device: "str | torch.device" = "cpu") -> "Describe":
        """Load tokenizer and language model of one folder, or the shipped `"starter"`."""
        return cls(Language.from_folder(folder, device))

    def __call__(self, image: Image.Image, question: str | None = None, *, continuous: bool = False) -> str:
        """A caption, or the answer to `question`, the likeliest word by word."""
        return self.batch([image], [question], continuous=continuous)[0]

    def batch(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str | None],
        *,
        continuous: bool = False,
        most: int = MOST,
        sampling: "Sampling | None" = None,
        generators: "Sequence[torch.Generator] | None" = None,
    ) -> list[str]:
        """One text a picture, never empty, of 1 to `most` tokens; pictures enter as codes or as features.

        Raises ValueError for an empty question, and where the model was not made for continuous features.
        """
        from pictish.lm.autoregressive import generate
        from pictish.lm.grammar import Request, TextPiece
        from pictish.lm.sampling import Sampling
        from pictish.lm.sequence import QUESTION

        prompts = []
        for image, question in zip(images, questions, strict=True):
            said: list[Said] = [image]
            if question is not None:
                if not question.strip():
                    raise ValueError("an empty question; leave it away for a caption")
                said.append(QUESTION.format(question))
            prompts.append(self.language.prompt(said, draw=False, continuous=continuous))
        model = self.language.model
        written = generate(
            model.language,
            model.vocabulary,
            prompts,
            Request(most),
            sampling=sampling or Sampling(temperature=0),
            generators=generators,
        )
        result = []
        for pieces in written:
            ids = [token for piece in pieces if isinstance(piece, TextPiece) for token in piece.ids]
            result.append(str(model.text_tokenizer.decode(ids)).strip())
        return result
