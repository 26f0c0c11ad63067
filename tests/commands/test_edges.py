"""Text and numbers at their edges: refused by their own names before anything is loaded."""

import pytest

from pictish.cli import main
from pictish.pipelines.pipeline import Pipeline
from pictish.pipelines.text_to_image import TextToImage


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """What is said of a command line that is refused; loading would be a TypeError."""
    monkeypatch.setattr(TextToImage, "from_folder", None)
    monkeypatch.setattr(Pipeline, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)

    def run(*words) -> str:
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "weights" not in error
        return error

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--seed", 2**64), "seed"),
        (
            ("--seed", 2**64 - 2, "--count", 3),
            "--seed 18446744073709551614: 0 to 2**64 - 1 fit, for the last of 3",
        ),
        (("--seed", 10**40), "seed"),
        (("--count", 10**9), "--count 1000000000: 1 to 100000 fit"),
        (("--guidance", "1e30"), "--guidance: 1e+30 asked for; -100 to 100"),
        (("--guidance", "1e39"), "guidance: got 1e+39; a number of at most 3.4e+38 fits"),
        (("--image-guidance", "-1e300"), "image_guidance: got -1e+300"),
        (("--guidance", "inf"), "guidance"),
        (("--temperature", "1e10"), "--temperature: 10000000000.0 asked for; 0 (greedy) to 1000"),
        (("--temperature", "1e39"), "temperature: got 1e+39"),
        (("--pixel-guidance", "1e4"), "--pixel-guidance': Input should be less than or equal to 100"),
        (("--top-k", 2**70), "top_k"),
        (("--batch-size", 10**30), "--batch-size"),
        (("--max-tokens", 2**40), "--max-tokens: 1099511627776 asked for; 1 to 2147483647"),
    ],
)
def test_numbers_that_overflow_are_refused_by_name(refused, words, expected):
    assert expected in refused("generate", "a cat", *words)


@pytest.mark.parametrize("bad", ["a \udcff cat", "\ud800"])
def test_prompts_that_are_no_utf8_are_refused(refused, bad):
    assert "prompt: " in refused("generate", bad)
    assert "style: " in refused("generate", "a cat", "--style", bad)
    assert "question: " in (error := refused("describe", "cat.png", bad))
    assert "is not valid UTF-8" in error


def test_home_is_found_behind_an_equals_sign(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["generate", "a cat", "--model=~/no-model"]) == 2
    assert f"{tmp_path}/no-model" in capsys.readouterr().err
    assert main(["generate", "a cat", "--model", "~/no-model"]) == 2  # as of a program without a shell
    assert f"{tmp_path}/no-model" in capsys.readouterr().err
