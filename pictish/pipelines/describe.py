"""A picture to words: a caption, or the answer to a question."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pictish.pipelines.language import Language, Precision, Said

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import Progress, Prompt
    from pictish.lm.config import BeamSearchConfig
    from pictish.lm.sampling import Sampling

MOST = 48  # text tokens


class Describe:
    """Says what a picture shows: `Describe.from_folder("starter")(image, "what is it?")`."""

    def __init__(self, language: Language) -> None:
        self.language = language

    @classmethod
    def from_folder(
        cls,
        folder: str | Path = "starter",
        device: "str | torch.device" = "cpu",
        precision: Precision = "float32",
    ) -> "Describe":
        """Load tokenizer and language model of one folder, or the shipped `"starter"`."""
        return cls(Language.from_folder(folder, device, precision))

    def __call__(
        self, image: Image.Image, question: str | None = None, *, continuous: bool | None = None
    ) -> str:
        """A caption, or the answer to `question`, as the model is used to, or the likeliest word by word."""
        return self.batch([image], [question], continuous=continuous)[0]

    def batch(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str | None],
        *,
        continuous: bool | None = None,
        max_new_tokens: int | None = None,
        lemmas: bool = False,
        sampling: "Sampling | None" = None,
        generators: "Sequence[torch.Generator] | None" = None,
        progress: "Progress | None" = None,
    ) -> list[str]:
        """One text a picture, of at most `max_new_tokens` tokens; pictures enter as codes or as features.

        What is left away is the model's own choice. A model that searches with beams, as LaVIT does, may end
        with an empty text; with `sampling` it draws instead. With `lemmas` answers have words in their basic
        form, as LaVIT's evaluation compares them, for which spaCy is needed. `progress` is called after
        each id. Raises ValueError for an empty question, and where the model was not made for continuous
        features.
        """
        defaults = self.language.model.defaults
        continuous = defaults.continuous if continuous is None else continuous
        texts: dict[int, str] = {}
        ways = [defaults.caption if question is None else defaults.answer for question in questions]
        for way in dict.fromkeys(ways):
            mine = [place for place, one in enumerate(ways) if one == way]
            prompts = [self.prompt(images[place], questions[place], continuous) for place in mine]
            if way is None or sampling is not None or self.language.model.masked is not None:
                own = None if generators is None else [generators[place] for place in mine]
                written = self._draw(prompts, max_new_tokens or MOST, sampling, own, progress)
            else:
                written = self._search(
                    prompts, way if max_new_tokens is None else _shorter(way, max_new_tokens), progress
                )
            texts |= dict(zip(mine, written, strict=True))
        if lemmas:
            texts |= {
                place: lemmatised(texts[place]) for place, one in enumerate(questions) if one is not None
            }
        return [texts[place] for place in range(len(images))]

    def prompt(self, image: Image.Image, question: str | None, continuous: bool) -> "Prompt":
        """What the model continues with a caption, or an answer; ValueError for an empty question."""
        from pictish.lm.sequence import QUESTION

        said: list[Said] = [image]
        if question is not None:
            if not question.strip():
                raise ValueError("an empty question; omit it for a caption")
            said.append(QUESTION.format(question))
        return self.language.prompt(said, draw=False, continuous=continuous)

    def _draw(
        self,
        prompts: "Sequence[Prompt]",
        max_new_tokens: int,
        sampling: "Sampling | None",
        generators: "Sequence[torch.Generator] | None",
        progress: "Progress | None",
    ) -> list[str]:
        """Texts, one id after the other; empty only where `max_new_tokens` ids are less than a letter."""
        from pictish.lm.sampler import sampler_of
        from pictish.lm.sampling import Sampling
        from pictish.lm.text import decode_text

        model = self.language.model
        sampling = sampling or Sampling(temperature=0)
        sampler = sampler_of(model)
        written = sampler.texts(prompts, max_new_tokens, sampling, generators, progress=progress)
        ends = model.defaults.filling.texts.stop_strings if model.masked is not None else ()
        return [cut(decode_text(model.text_tokenizer, ids), ends) for ids in written]

    def _search(
        self, prompts: "Sequence[Prompt]", way: "BeamSearchConfig", progress: "Progress | None"
    ) -> list[str]:
        """The likeliest texts by beam search, cut where the model is used to."""
        from pictish.lm.beams import beam_search
        from pictish.lm.text import decode_text

        model = self.language.model
        full = [prompt.full for prompt in prompts]
        written = beam_search(model.language, model.vocabulary, full, way, progress=progress)
        texts = [decode_text(model.text_tokenizer, ids, skip_special_tokens=True) for ids in written]
        return [cut(text, way.stop_strings, lower=way.lowercase) for text in texts]


def cut(text: str, ends: Sequence[str], *, lower: bool = False) -> str:
    """A text before the first of `ends`, stripped, and in lower case if wanted."""
    for end in ends:
        text = text.partition(end)[0]
    return text.strip().lower() if lower else text.strip()


def lemmatised(text: str) -> str:
    """A text with the basic forms of nouns and verbs; ValueError where spaCy or its model is missing."""
    try:
        import spacy

        words = spacy.load("en_core_web_sm")(text)
    except (ImportError, OSError):
        raise ValueError(
            "basic forms need spaCy: pip install 'pictish[lemmas]' && python -m spacy download en_core_web_sm"
        ) from None
    return " ".join(word.lemma_ if word.pos_ in ("NOUN", "VERB") else word.text for word in words)


def _shorter(way: "BeamSearchConfig", max_new_tokens: int) -> "BeamSearchConfig":
    return way.model_copy(
        update={"max_new_tokens": max_new_tokens, "min_new_tokens": min(way.min_new_tokens, max_new_tokens)}
    )
