"""An image to words: a caption, or the answer to a question."""

from collections.abc import Sequence
from dataclasses import replace
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
    """Says what an image shows: `Describe.from_folder("starter")(image, "what is it?")`."""

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
        languages: Sequence[Language] | None = None,
        prompts: "Sequence[Prompt] | None" = None,
    ) -> list[str]:
        """One text an image, of at most `max_new_tokens` tokens; images enter as codes or as features.

        `languages` has for each image what answers about it, such as one base read through different
        adaptors; rows of all of them are decoded together where they read the same vocabulary. `prompts`
        are those of `describe_prompt`, where they have been read already.

        Arguments that are None are left to the model. One that searches with beams, as LaVIT does, may end
        with an empty text; with `sampling` it draws instead. With `lemmas` answers have words in their basic
        form, as LaVIT's evaluation compares them, for which spaCy is needed. `progress` is called after
        each id. Raises ValueError for an empty question, and where the model was not made for continuous
        features.
        """
        chosen = [self.language] * len(images) if languages is None else list(languages)
        settings = [language.model.defaults for language in chosen]
        ways = [
            one.caption if question is None else one.answer
            for one, question in zip(settings, questions, strict=True)
        ]
        prompts = prompts or [
            describe_prompt(language, image, question, one.continuous if continuous is None else continuous)
            for language, image, question, one in zip(chosen, images, questions, settings, strict=True)
        ]
        texts: dict[int, str] = {}
        drawn = [
            place
            for place, way in enumerate(ways)
            if way is None or sampling is not None or chosen[place].model.masked is not None
        ]
        for key in dict.fromkeys(_together(chosen[place]) for place in drawn):
            mine = [place for place in drawn if _together(chosen[place]) == key]
            own = None if generators is None else [generators[place] for place in mine]
            written = _draw(
                [chosen[place] for place in mine],
                [prompts[place] for place in mine],
                max_new_tokens or MOST,
                sampling,
                own,
                progress,
            )
            texts |= dict(zip(mine, written, strict=True))
        searched = [place for place in range(len(images)) if place not in texts]
        for search in dict.fromkeys((id(chosen[place]), ways[place]) for place in searched):
            mine = [place for place in searched if (id(chosen[place]), ways[place]) == search]
            way = search[1]
            assert way is not None
            if max_new_tokens is not None:
                way = _shorter(way, max_new_tokens)
            written = _search(chosen[mine[0]], [prompts[place] for place in mine], way, progress)
            texts |= dict(zip(mine, written, strict=True))
        if lemmas:
            texts |= {
                place: lemmatised(texts[place]) for place, one in enumerate(questions) if one is not None
            }
        return [texts[place] for place in range(len(images))]


def describe_prompt(
    language: Language, image: Image.Image, question: str | None, continuous: bool
) -> "Prompt":
    """What the model continues with a caption, or an answer; ValueError for an empty question."""
    from pictish.lm.sequence import QUESTION

    said: list[Said] = [image]
    if question is not None:
        if not question.strip():
            raise ValueError("an empty question; omit it for a caption")
        said.append(QUESTION.format(question))
    prompt = language.prompt(said, draw=False, continuous=continuous)
    return replace(prompt, model=language.model.language)


def _together(language: Language) -> object:
    """What languages share whose rows are decoded together; of masked models each is alone."""
    return language.model.vocabulary if language.model.masked is None else id(language.model)


def _draw(
    languages: Sequence[Language],
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

    sampler = sampler_of(languages[0].model)
    sampling = sampling or Sampling(temperature=0)
    written = sampler.texts(prompts, max_new_tokens, sampling, generators, progress=progress)
    result = []
    for language, ids in zip(languages, written, strict=True):
        model = language.model
        ends = model.defaults.filling.texts.stop_strings if model.masked is not None else ()
        result.append(cut(decode_text(model.text_tokenizer, ids), ends))
    return result


def _search(
    language: Language, prompts: "Sequence[Prompt]", way: "BeamSearchConfig", progress: "Progress | None"
) -> list[str]:
    """The likeliest texts by beam search, cut where the model is used to."""
    from pictish.lm.beams import beam_search
    from pictish.lm.text import decode_text

    model = language.model
    full = [prompt.branch("full") for prompt in prompts]
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
