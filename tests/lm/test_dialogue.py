"""Dialogues by the text tokenizer's chat template; images in them are in test_lladav_stages.py."""

import pytest

from pictish.lm.dialogue import TEMPLATE, Message, add_turns, dialogue, turns_of
from pictish.lm.sequence import Text
from pictish.lm.vocabulary import text_ids, text_vocabulary
from tests.lm.tiny import tiny_tokenizer


def tokenizer(template: str = TEMPLATE):
    words = tiny_tokenizer()
    add_turns(words)
    words.chat_template = template
    return words


def made(messages, template: str = TEMPLATE, eos: int | None = None):
    words = tokenizer(template)
    said = [Message(role, (Text(text),)) for role, text in messages]
    return words, dialogue(said, words, text_vocabulary(words), lambda text: text_ids(words, text), eos)


def test_a_prompt_ends_with_the_header_of_the_answer():
    words, document = made([("system", "s"), ("user", " two  spaces \n")])
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert words.decode(document.ids) == (
        "<bos>" + header.format("system") + "s<|eot_id|>" + header.format("user")
        + " two  spaces \n<|eot_id|>" + header.format("assistant")
    ), "what users write is not trimmed"  # fmt: skip
    assert not document.learn.any()


def test_other_templates_work_too():
    template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    words, document = made([("user", "a"), ("assistant", "b"), ("user", "c")], template)
    assert words.decode(document.ids) == "[user] a\n[assistant] b\n[user] c\n[assistant] "
    assert words.decode(document.ids[document.learn]) == "b\n"
    assert document.turns.tolist() == sorted(document.turns.tolist())
    assert document.turns[-1] == 1


def test_an_answer_that_is_learned_ends_with_the_end_of_the_text():
    words, document = made([("user", "a"), ("assistant", "b")], eos=2)
    assert words.decode(document.ids[document.learn]) == "b<|eot_id|><eos>"


def test_turns_end_with_the_assistant():
    assert turns_of([1, 3, 5, 7], [False, False, True, False], 9).tolist() == [0] * 7 + [1] * 2
    assert turns_of([], [], 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{{ messages[0]['content'] }}", "one after the other"),
        ("{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}", "one after the other"),
        ("{{ raise_exception('only users speak') }}", "only users speak"),
        ("{% for m in", "refuses these messages"),
        ("{{ messages.__class__.__mro__ }}", "refuses these messages|one after the other"),
    ],
)
def test_templates_that_cannot_be_used_are_said_in_a_line(template, message):
    with pytest.raises(ValueError, match=message) as caught:
        made([("user", "a"), ("assistant", "b")], template)
    assert "\n" not in str(caught.value)


def test_the_mask_may_not_stand_for_text():
    words = tokenizer()
    assert text_vocabulary(words, words.convert_tokens_to_ids("<|start_header_id|>")).mask is not None
    assert text_vocabulary(words, 10**6).mask == 10**6, "a row of the model that no text has"
    with pytest.raises(ValueError, match="stands for text"):
        text_vocabulary(words, words.convert_tokens_to_ids("a"))
    vocabulary = text_vocabulary(words)
    end = words.convert_tokens_to_ids("<|eot_id|>")
    assert vocabulary.turn_end == end
    assert end not in vocabulary.unspoken, "a model may end its turn"
