"""From samples to documents: which task a sample becomes, which caption is taken, what is dropped.

Every choice is drawn from the seed and the sample's number in the stream, so it does not depend on who reads
it, or when. Raw images are tokenized here, many at a time, by a function that the command hands over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import PreTrainedTokenizerFast

from pictish.data import samples
from pictish.data.images import load_image
from pictish.data.loader import ImageBytes
from pictish.data.mixture import Mixture, Slot, Source
from pictish.data.samples import DamagedSample, Picture, Sample
from pictish.data.tokens import EncodedImage, TokenizedImage
from pictish.io.files import matching
from pictish.lm import sequence
from pictish.lm.config import DropoutConfig, SourceConfig
from pictish.lm.dialogue import Message, dialogue
from pictish.lm.packing import Position
from pictish.lm.sequence import Codes, Document, Encode, Features, Part, Task, Text
from pictish.lm.vision.model import Vision
from pictish.lm.vision.tiles import Seen
from pictish.lm.vocabulary import Vocabulary

CHUNK = 32  # samples read before their raw images are tokenized together


# Tokens and features for understanding of raw images in their order; a ValueError in place of a broken one.
EncodeImages = Callable[[Sequence[ImageBytes]], list[EncodedImage | ValueError]]


@dataclass(frozen=True)
class Maker:
    """What turns samples into documents."""

    vocabulary: Vocabulary
    encode: Encode
    eos: int
    sources: Mapping[str, SourceConfig]
    dropout: DropoutConfig
    longest: int  # tokens of a document
    encode_images: EncodeImages | None  # None: there are no raw images
    seed: int
    end_padding: int = 1  # texts are learned with EOS behind them, up to a multiple of this
    context: int | None = None  # positions of the model, if it says so
    vision: Vision | None = None  # what images are seen through; None: there are only codes and features
    text_tokenizer: PreTrainedTokenizerFast | None = None  # with a chat template, for dialogues
    tiles: bool = True  # whether images are seen in tiles
    preferences: bool = False  # whether it makes documents of preferences, or of all other samples

    def documents(self, mixture: Mixture) -> Iterator[tuple[Document, Position]]:
        """The stream's documents, each with the position behind it; what cannot be used is reported there."""
        while True:
            yield from self._chunk(mixture, [_draw(mixture) for _ in range(CHUNK)])

    def make(self, sample: Sample, slot: Slot, encoded: Mapping[int, EncodedImage | ValueError]) -> Document:
        """One sample's document; `encoded`: its raw images by `id`. ValueError when it cannot be made."""
        source = self.sources[slot.source]
        if isinstance(sample, samples.Preference) != self.preferences:
            raise ValueError(
                "no preference pair; objective.kind: preference learns only from those"
                if self.preferences
                else "a preference pair; only objective.kind: preference learns from those"
            )
        if isinstance(sample, samples.Preference):
            # a pair keeps its prompt: without it, what is chosen for one is rejected for another
            drawn = source.model_copy(update={"caption": 0.0})
            asked = replace(self, dropout=self.dropout.none())
            document = sequence.preference(
                *(asked._document(one, drawn, slot, encoded) for one in (sample.chosen, sample.rejected))
            )
        else:
            document = self._document(sample, source, slot, encoded)
        if len(document) > self.longest:
            both = "chosen and rejected together are " if self.preferences else ""
            raise ValueError(f"{both}longer than a row of {self.longest} tokens")
        if self.context is not None and document.positions.max() >= self.context:
            raise ValueError(f"longer than the model's context of {self.context} positions")
        return document

    def _document(
        self,
        sample: Sample,
        source: SourceConfig,
        slot: Slot,
        encoded: Mapping[int, EncodedImage | ValueError],
    ) -> Document:
        chance = np.random.default_rng((self.seed, slot.number)).random(4)
        messages = self._messages(sample, source, slot, encoded)
        if messages is not None:
            assert self.text_tokenizer is not None
            document = dialogue(messages, self.text_tokenizer, self.vocabulary, self.encode, self.eos)
        else:
            task, parts = self._parts(sample, source, chance, encoded)
            document = sequence.build(task, parts, self.vocabulary, self.encode, self.eos)
        if self.end_padding > 1 and (messages is not None or isinstance(parts[-1], Text)):
            document = sequence.pad_text(document, self.end_padding, self.eos)
        return document

    def _parts(
        self,
        sample: Sample,
        source: SourceConfig,
        chance: npt.NDArray[np.float64],
        encoded: Mapping[int, EncodedImage | ValueError],
    ) -> tuple[Task, list[Part]]:
        def codes(picture: Picture) -> Codes:
            tokens = picture if isinstance(picture, TokenizedImage) else _found(picture, encoded).tokens
            return Codes(tokens.ids, tokens.cells)

        def shown(picture: Picture) -> Codes | Features | Seen:
            if chance[3] >= source.continuous and self.vocabulary.codes:
                return codes(picture)
            if self.vision is not None:
                return self._seen(picture)
            if isinstance(picture, TokenizedImage):
                raise ValueError("continuous features need the image itself, and there are only tokens")
            features = _found(picture, encoded).features
            assert features is not None
            return Features(features)

        match sample:
            case samples.Pair():
                text = sample.captions[int(chance[1] * len(sample.captions))]
                if chance[0] < source.caption or not self.vocabulary.codes:
                    return "caption", sequence.caption(shown(sample.picture), text)
                drop = sequence.draw_drop(self.dropout, False, chance[2])
                return "drawing", sequence.drawing(text, codes(sample.picture), drop)
            case samples.Edit():
                drop = sequence.draw_drop(self.dropout, True, chance[2])
                before, after = codes(sample.before), codes(sample.after)
                return "edit", sequence.edit(before, sample.instruction, after, drop)
            case samples.Question():
                question, reply = sample.turns[int(chance[1] * len(sample.turns))]
                return "answer", sequence.answer(shown(sample.picture), question, reply)
            case samples.Document() if not self.vocabulary.codes:
                alone = sum(not isinstance(part, str) for part in sample.parts) == 1
                return "interleaved", [
                    Text(part, not given) if isinstance(part, str) else self._seen(part, alone)
                    for part, given in zip(sample.parts, sample.given, strict=True)
                ]
            case samples.Document():
                return "interleaved", [
                    Text(part, not given) if isinstance(part, str) else replace(codes(part), learn=not given)
                    for part, given in zip(sample.parts, sample.given, strict=True)
                ]
            case samples.Dialogue():
                raise ValueError("a dialogue, and the text tokenizer has no chat template")
            case samples.PlainText():
                return "text", [Text(sample.text, learn=True)]
            case samples.Preference():
                raise AssertionError("its two samples are made one by one")

    def _messages(
        self,
        sample: Sample,
        source: SourceConfig,
        slot: Slot,
        encoded: Mapping[int, EncodedImage | ValueError],
    ) -> list[Message] | None:
        """A dialogue, or questions about an image that is seen as one; None for other samples."""
        if self.text_tokenizer is None or not self.text_tokenizer.chat_template:
            return None
        said: list[Message] = []
        if isinstance(sample, samples.Question) and self.vision is not None:
            for place, (question, reply) in enumerate(sample.turns):
                seen: list[Part] = [self._seen(sample.picture), Text("\n")] if place == 0 else []
                said += [Message("user", (*seen, Text(question))), Message("assistant", (Text(reply),))]
        elif isinstance(sample, samples.Dialogue):
            alone = len(pictures(sample)) == 1
            said = [
                Message(
                    one.role, tuple(p for part in one.parts for p in self._said(part, one, alone, encoded))
                )
                for one in sample.messages
            ]
        else:
            return None
        rng = np.random.default_rng((self.seed, slot.number, 1))
        if source.turn_suffix:
            said = [
                replace(one, parts=(*one.parts, Text(source.turn_suffix)))
                if one.role == "user" and rng.random() < source.turn_suffix_share
                else one
                for one in said
            ]
        if source.system and said[0].role != "system":
            said.insert(0, Message("system", (Text(source.system),)))
        return said

    def _said(
        self,
        part: str | Picture | samples.Video,
        message: samples.Message,
        alone: bool,
        encoded: Mapping[int, EncodedImage | ValueError],
    ) -> list[Part]:
        """A part of a message; images of the assistant are codes, others are seen where that can be."""
        if isinstance(part, str):
            return [Text(part)]
        if isinstance(part, samples.Video):
            if self.vision is None:
                raise ValueError("a video, and the model has no vision tower to watch it with")
            return list(self.vision.watch([_opened(frame) for frame in part.frames]))
        if self.vision is not None and message.role != "assistant":
            return [self._seen(part, alone)]
        if not self.vocabulary.codes:
            raise ValueError("an image to be written, and the model writes none (tokenizer: none)")
        tokens = part if isinstance(part, TokenizedImage) else _found(part, encoded).tokens
        return [Codes(tokens.ids, tokens.cells, learn=message.role == "assistant")]

    def _seen(self, picture: Picture, alone: bool = True) -> Seen:
        if self.vision is None:
            raise ValueError("an image, and the model neither reads codes nor sees")
        return self.vision.look(_opened(picture), alone=alone, tiles=self.tiles)

    def _chunk(
        self, mixture: Mixture, drawn: list[tuple[Slot, Position, Sample | DamagedSample]]
    ) -> Iterator[tuple[Document, Position]]:
        raw = [p for _, _, sample in drawn if not isinstance(sample, DamagedSample) for p in pictures(sample)]
        images = [picture for picture in raw if isinstance(picture, ImageBytes)]
        encoded: dict[int, EncodedImage | ValueError] = {}
        if images and self.vocabulary.codes:
            if self.encode_images is None:
                raise ValueError(f"{images[0].name}: a raw image, and nothing here to tokenize it with")
            encoded = {id(p): found for p, found in zip(images, self.encode_images(images), strict=True)}
        for slot, position, sample in drawn:
            try:
                if isinstance(sample, DamagedSample):
                    raise sample
                document = self.make(sample, slot, encoded)
            except ValueError as error:
                if not isinstance(error, DamagedSample):
                    error = DamagedSample(mixture.name_of(slot), str(error))
                mixture.skip(slot, error)
                continue
            mixture.use(slot)
            yield replace(document, sample=mixture.name_of(slot)), position


def some_documents(maker: Maker, mixture: Mixture, count: int) -> list[Document]:
    """The first `count` documents of a stream of one source, none of its samples twice: for validation."""
    (size,) = mixture.sizes.values()
    once = takewhile(lambda made: made[1]["sample"] <= size, maker.documents(mixture))
    return [document for document, _ in islice(once, count)]


def sources_of(sources: dict[str, SourceConfig], weights: dict[str, float]) -> list[Source]:
    """What a mixture reads: sources with the stage's weights, those of weight 0 left out."""
    found = []
    for name, source in sources.items():
        if (weight := weights.get(name, source.weight)) > 0:
            found.append(Source(name, tuple(matching(source.paths)), weight, source.caption_key))
    return found


def pictures(sample: Sample) -> list[Picture]:
    """All images of a sample."""
    match sample:
        case samples.Pair() | samples.Question():
            return [sample.picture]
        case samples.Edit():
            return [sample.before, sample.after]
        case samples.Document():
            return [part for part in sample.parts if not isinstance(part, str)]
        case samples.Dialogue():
            said = [
                part for message in sample.messages for part in message.parts if not isinstance(part, str)
            ]
            return [p for one in said for p in (one.frames if isinstance(one, samples.Video) else [one])]
        case samples.PlainText():
            return []
        case samples.Preference():
            both = [*pictures(sample.chosen), *pictures(sample.rejected)]
            return list({id(picture): picture for picture in both}.values())


def texts(sample: Sample) -> list[str]:
    """All text of a sample: what a text tokenizer is trained on."""
    match sample:
        case samples.Pair():
            return list(sample.captions)
        case samples.Edit():
            return [sample.instruction]
        case samples.Question():
            return [text for question, reply in sample.turns for text in (question, reply)]
        case samples.Document():
            return [part for part in sample.parts if isinstance(part, str)]
        case samples.Dialogue():
            return [part for message in sample.messages for part in message.parts if isinstance(part, str)]
        case samples.PlainText():
            return [sample.text]
        case samples.Preference():
            return [*texts(sample.chosen), *texts(sample.rejected)]


def _draw(mixture: Mixture) -> tuple[Slot, Position, Any]:
    slot = mixture.draw()
    try:
        return slot, mixture.position, mixture.read(slot)
    except DamagedSample as error:
        return slot, mixture.position, error


def _opened(picture: Picture) -> Image.Image:
    """A raw image in RGB; ValueError for tokens, and for what cannot be read."""
    if isinstance(picture, TokenizedImage):
        raise ValueError("a vision tower needs the image itself, and there are only tokens")
    return load_image(picture.blob)


def _found(picture: ImageBytes, encoded: Mapping[int, EncodedImage | ValueError]) -> EncodedImage:
    found = encoded[id(picture)]
    if isinstance(found, ValueError):
        raise found
    return found
