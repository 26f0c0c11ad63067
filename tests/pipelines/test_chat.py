"""Dialogues with imported and trained models that see, through the Python API and the command line."""

import pytest
import torch

import pictish
from pictish.cli import main
from pictish.pipelines.chat import Chat, messages_of
from pictish.pipelines.import_lladav import import_llada, import_lladav
from tests import lladav
from tests.lm.seeing import noise


class Silent:
    def begin(self, task, total):
        pass

    def advance(self, steps):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    lladav.write_lladav(folder / "source")
    import_lladav(folder / "source", folder / "lladav", progress=Silent())
    lladav.write_llada(folder / "text")
    import_llada(folder / "text", folder / "llada", progress=Silent())
    noise(0, 40, 30).save(folder / "a.png")
    return folder


@pytest.fixture(scope="module")
def pipe(folder) -> pictish.Pipeline:
    return pictish.Pipeline.from_pretrained(folder / "lladav", device="cpu")


def test_an_imported_model_describes_and_chats(pipe, folder):
    image = noise(0, 40, 30)
    first = pipe.describe(image, "What is it?", max_new_tokens=6)
    assert isinstance(first, str)
    assert pipe.describe([image, folder / "a.png"], "What is it?", max_new_tokens=6) == [first, first]
    messages = [{"role": "user", "content": [image, "What is it?"]}]
    answer = pipe.chat(messages, max_new_tokens=6)
    assert answer.text == first, "describe is a dialogue of one question"
    assert answer.settings["max_new_tokens"] == 6
    assert answer.settings["block_length"] == 32
    assert answer.settings["temperature"] == 0
    longer = [
        *messages,
        {"role": "assistant", "content": answer.text or "?"},
        {"role": "user", "content": "More?"},
    ]
    assert isinstance(pipe.chat(longer, max_new_tokens=6).text, str)
    assert "<|" not in first


def test_a_message_whose_end_is_given_is_filled_in(pipe):
    messages = [{"role": "user", "content": "Hello"}]
    ends = " a cat.", " two dogs!", None
    texts = [pipe.chat(messages, suffix=end, max_new_tokens=6).text for end in ends]
    assert len(set(texts)) > 1, "what follows is read"
    with pytest.raises(ValueError, match=r"suffix: .* is not valid UTF-8"):
        pipe.chat(messages, suffix="\ud800")


def test_the_picture_and_its_place_matter(pipe):
    def prompt(*content):
        chat = Chat(pipe.language_model)
        return chat.prompt(messages_of([{"role": "user", "content": list(content)}])).full

    one, other = prompt(noise(0), "a"), prompt(noise(1), "a")
    assert one.shape == other.shape
    assert not torch.equal(one, other)
    behind = prompt("a", noise(0))
    assert len(behind) == len(one) - 1, "no new line before the image"
    assert not torch.equal(behind, one[:-1])
    cells = pipe.language_model.vision.cells
    both = prompt(noise(0), noise(1), "a")
    alone = prompt("a")
    assert len(both) - len(alone) == 2 * (cells[0] * cells[1] + 1) + 1, "padded each, and a new line"


def test_sampled_answers_come_from_the_seed(pipe):
    messages = [{"role": "user", "content": [noise(0), "What?"]}]
    drawn = [pipe.chat(messages, temperature=2.0, seed=seed, max_new_tokens=8).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_model_without_a_tower_reads_text_alone(folder):
    pipe = pictish.Pipeline.from_pretrained(folder / "llada", device="cpu")
    assert isinstance(pipe.chat([{"role": "user", "content": "Hello"}], max_new_tokens=4).text, str)
    with pytest.raises(ValueError, match="no vision tower"):
        pipe.describe(noise(0))
    with pytest.raises(ValueError, match="no tokenizer found"):
        pipe.tokenize(noise(0))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a list such as"),
        ("hello", "a list such as"),
        ([{"role": "robot", "content": "a"}], "role 'robot'"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": " "}], "is empty"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "the assistant's",
        ),
    ],
)
def test_messages_that_are_none_are_refused_in_a_line(pipe, messages, message):
    with pytest.raises(ValueError, match=message):
        pipe.chat(messages)


def test_the_command_describes_with_it_too(folder, capsys):
    arguments = ["describe", str(folder / "a.png"), "What is it?", "--model", str(folder / "lladav")]
    assert main([*arguments, "--max-new-tokens", "4"]) == 0
    assert main([*arguments, "--codes"]) == 2
    assert "vision tower" in capsys.readouterr().err
