"""A dialogue with a language model that sees: messages with images in, the next answer out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from pictish.data.images import Picture, load_image
from pictish.data.words import check_text

if TYPE_CHECKING:
    import torch

    from pictish.lm.autoregressive import Progress, Prompt
    from pictish.lm.dialogue import Message
    from pictish.lm.model import UnifiedModel
    from pictish.lm.sampling import Sampling
    from pictish.lm.sequence import Part

CAPTION = "Describe the image."  # what is asked when there is no question
MOST = 128  # text tokens
Content = str | Picture | Sequence["str | Picture"]  # of a message: text, an image, or both in order


class Answer(NamedTuple):
    """What the model says, and the settings that it was sampled with."""

    text: str
    settings: dict[str, Any]


class Chat:
    """Answers dialogues: `Chat(model).batch([[{"role": "user", "content": [image, "What is it?"]}]])`."""

    def __init__(self, model: "UnifiedModel") -> None:
        if not model.text_tokenizer.chat_template:
            raise ValueError("this model has no chat template; it was not made for dialogues")
        self.model = model

    def batch(
        self,
        dialogues: Sequence[Sequence[Mapping[str, Any]]],
        *,
        max_new_tokens: int | None = None,
        sampling: "Sampling | None" = None,
        generators: "Sequence[torch.Generator] | None" = None,
        suffix: str | None = None,
        progress: "Progress | None" = None,
    ) -> list[Answer]:
        """One answer a dialogue; what is None is left to the model. ValueError as `messages_of`.

        With `suffix`, how the answers end, an answer is what stands before it; a masked model can do that.
        """
        from pictish.lm.sampler import sampler_of
        from pictish.lm.sampling import Sampling
        from pictish.lm.text import decode_text
        from pictish.lm.vocabulary import text_ids

        model, limit = self.model, max_new_tokens or MOST
        sampling = sampling or Sampling(temperature=0)
        prompts = [self.prompt(messages_of(one)) for one in dialogues]
        behind: list[int] = []
        if suffix is not None:
            check_text("suffix", suffix)
            end = model.vocabulary.turn_end
            behind = [*text_ids(model.text_tokenizer, suffix), model.eos if end is None else end]
        sampler = sampler_of(model)
        written = sampler.texts(prompts, limit, sampling, generators, suffix=behind, progress=progress)
        settings: dict[str, Any] = {"max_new_tokens": limit, **asdict(sampling)}
        if model.masked is not None:
            settings |= model.defaults.filling.texts.model_dump(mode="json")
        texts = [decode_text(model.text_tokenizer, self._turn(ids)) for ids in written]
        return [Answer(text.strip() if suffix is None else text.lstrip(), settings) for text in texts]

    def _turn(self, ids: Sequence[int]) -> list[int]:
        """The ids before the end of the turn."""
        end = self.model.vocabulary.turn_end
        return list(ids[: ids.index(end)] if end in ids else ids)

    def prompt(self, messages: Sequence[tuple[str, Sequence[str | Image.Image]]]) -> "Prompt":
        """Embeddings of a dialogue, with the header of the answer behind it."""
        import torch

        from pictish.lm.autoregressive import Prompt
        from pictish.lm.dialogue import dialogue
        from pictish.lm.packing import pack
        from pictish.lm.vocabulary import text_ids
        from pictish.training.isolation import inference

        model = self.model
        alone = sum(isinstance(part, Image.Image) for _, parts in messages for part in parts) == 1
        said = [self._message(role, parts, alone) for role, parts in messages]
        document = dialogue(
            said, model.text_tokenizer, model.vocabulary, lambda text: text_ids(model.text_tokenizer, text)
        )
        packed = pack([[document]], len(document)).to(next(model.parameters()).device)

        @inference
        def embedded() -> torch.Tensor:
            return model.embed(packed.ids, pictures=packed.pictures)[0]

        return Prompt(embedded(), blocks=packed.turns[0])

    def _message(self, role: str, parts: "Sequence[str | Image.Image]", alone: bool) -> "Message":
        from pictish.lm.dialogue import Message
        from pictish.lm.sequence import Text

        found: list[Part] = []
        for part in parts:
            if isinstance(part, str):
                found.append(Text(part))
            elif self.model.vision is None:
                raise ValueError("an image in a message, and this model has no vision tower to see it with")
            else:
                found.append(self.model.vision.look(part, alone=alone))
        return Message(role, tuple(found))  # type: ignore[arg-type]  # checked by messages_of


def messages_of(given: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str | Image.Image]]]:
    """Roles and parts of messages as users write them, images loaded; ValueError for others.

    An image directly before text is on a line of its own, as in training.
    """
    if not given or isinstance(given, str | Mapping):
        raise ValueError(
            'messages: a list such as [{"role": "user", "content": [image, "What is it?"]}] fits'
        )
    found: list[tuple[str, list[str | Image.Image]]] = []
    for message in given:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"messages: a role {role!r} was found; system, user and assistant fit")
        content = message.get("content")
        listed = content if isinstance(content, list | tuple) else [content]
        parts: list[str | Image.Image] = []
        for part in listed:
            if isinstance(part, str):
                check_text("messages", part)
                after = bool(parts) and isinstance(parts[-1], Image.Image)
                parts.append("\n" + part if after and not part.startswith("\n") else part)
            elif part is None:
                raise ValueError(f"messages: one of the {role} has no content")
            else:
                parts.append(load_image(part))
        if not any(not isinstance(part, str) or part.strip() for part in parts):
            raise ValueError(f"messages: one of the {role} is empty")
        found.append((role, parts))
    if found[-1][0] == "assistant":
        raise ValueError("messages: the last is the assistant's; one of the user's would fit")
    return found


def asked(image: Image.Image, question: str | None) -> list[dict[str, Any]]:
    """The dialogue that asks a question about an image, or for a caption; ValueError for an empty one."""
    if question is not None and not question.strip():
        raise ValueError("an empty question; omit it for a caption")
    return [{"role": "user", "content": [image, CAPTION if question is None else question.strip()]}]
