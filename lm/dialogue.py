"""Dialogues as documents: the chat template of the text tokenizer, images anywhere in the messages.

The template sees a mark in place of each message's content, so what users write can neither become special
tokens nor be trimmed; what stands between the marks is the template's, and is split into the end of one
message and the beginning of the next.

Legend: L tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from pictish.io.files import one_line
from pictish.lm.sequence import Document, Encode, Ids, Part, Text, concatenate, join
from pictish.lm.vocabulary import Vocabulary

START_HEADER, END_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
TURN_TOKENS = (START_HEADER, END_HEADER, END_OF_TURN)
# The layout of Llama 3 and LLaDA: the beginning of a text once, then header, content and end of each message.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token or '' }}{% endif %}"
    f"{START_HEADER}{{{{ message['role'] }}}}{END_HEADER}\n\n{{{{ message['content'] }}}}{END_OF_TURN}"
    "{% endfor %}{% if add_generation_prompt %}"
    f"{START_HEADER}assistant{END_HEADER}\n\n{{% endif %}}"
)
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """What one side says: text and images in reading order."""

    role: Role
    parts: tuple[Part, ...]


def dialogue(
    messages: Sequence[Message],
    text_tokenizer: PreTrainedTokenizerFast,
    vocabulary: Vocabulary,
    encode: Encode,
    eos: int | None = None,
) -> Document:
    """A document of messages: what the assistant says is learned, with the end of its turn.

    `structure` marks the template's other tokens: special ones and blanks of every message, and all of the
    assistant's header. With `eos`, that id ends the document and is learned; without, the assistant's header
    does, and it is a prompt. ValueError for messages that the template refuses.
    """
    pieces = list(_framed([message.role for message in messages], text_tokenizer, prompt=eos is None))
    found: list[Document] = []
    starts, assistant, length = [], [], 0
    for message, (head, tail) in zip(messages, pieces, strict=False):
        own = message.role == "assistant"
        header, end = (np.array(text_tokenizer.encode(text, add_special_tokens=False), np.int64)
                       for text in (head, tail))  # fmt: skip
        content = [replace(part, learn=own) if isinstance(part, Text) else part for part in message.parts]
        inside = join("dialogue", content, vocabulary, encode)
        kept = np.array(sorted(vocabulary.blank), np.int64)
        found += [
            _frame(header, learn=False, structure=np.isin(header, kept) | own),
            inside,
            _frame(end, learn=own, structure=np.isin(end, kept) & (not own)),
        ]
        starts.append(length)
        assistant.append(own)
        length += len(header) + len(inside) + len(end)
    last = [eos] if eos is not None else text_tokenizer.encode(pieces[-1][0], add_special_tokens=False)
    ending = np.array(last, np.int64)
    found.append(_frame(ending, learn=eos is not None, structure=np.full(len(ending), eos is None)))
    if eos is None:
        starts.append(length)
        assistant.append(True)
    joined = concatenate("dialogue", found)
    return replace(joined, turns=turns_of(starts, assistant, len(joined)))


def add_turns(text_tokenizer: PreTrainedTokenizerFast) -> None:
    """Give a text tokenizer, in place, marks of turns and a chat template."""
    text_tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in TURN_TOKENS], special_tokens=True
    )
    text_tokenizer.chat_template = TEMPLATE


def turns_of(starts: Sequence[int], assistant: Sequence[bool], length: int) -> Ids:
    """The turn (L,) of every token, from where messages start and which are the assistant's.

    A turn ends with an assistant's message; a system's message belongs to the first turn, what follows the
    last message to the last.
    """
    turns = np.zeros(length, np.int64)
    for place, before in zip(starts[1:], assistant, strict=False):
        turns[place:] += before
    return turns


def _frame(ids: Ids, *, learn: bool, structure: npt.NDArray[np.bool_]) -> Document:
    empty = np.zeros(0, np.int64)
    return Document("dialogue", ids, np.full(len(ids), learn), empty, None, structure=structure)


def _framed(
    roles: Sequence[Role], text_tokenizer: PreTrainedTokenizerFast, prompt: bool
) -> Iterator[tuple[str, str]]:
    """What the template puts before and behind the content of each message; with `prompt`, at last, what
    stands before the assistant's next words."""
    marks = [f"pictish{number}content" for number in range(len(roles))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    done = ""
    for count, mark in enumerate(marks, 1):
        rendered = _rendered(text_tokenizer, messages[:count], False)
        if not rendered.startswith(done) or rendered[len(done) :].count(mark) != 1:
            raise ValueError("the chat template does not write messages one after the other, each once")
        head, _, tail = rendered[len(done) :].partition(mark)
        yield head, tail
        done = rendered
    if prompt:
        rendered = _rendered(text_tokenizer, messages, True)
        if not rendered.startswith(done):
            raise ValueError("the chat template does not write messages one after the other, each once")
        yield rendered[len(done) :], ""


def _rendered(
    text_tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]], prompt: bool
) -> str:
    if not text_tokenizer.chat_template:
        raise ValueError("the text tokenizer has no chat template, and dialogues need one")
    try:
        return str(
            text_tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        )
    except Exception as error:  # a template is a program, and fails as one; transformers runs it in a sandbox
        raise ValueError(f"the chat template refuses these messages ({one_line(error)})") from None
