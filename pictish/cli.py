"""The `pictish` command: which function answers which words, and how errors reach the user."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from pictish.io.interrupt import Stopped, StoppedAtFailure, handled

# words -> (module:function, one line for `--help`). A module is imported only when its command is asked for.
COMMANDS: dict[str, tuple[str, str]] = {
    "tokenize": ("pictish.commands.tokenize:run", "Turn a folder of pictures into tokens."),
    "detokenize": ("pictish.commands.detokenize:run", "Turn tokens back into pictures."),
    "inspect": ("pictish.commands.inspect:run", "Show what was kept of a picture, or statistics of tokens."),
    "generate": ("pictish.commands.generate:run", "Draw what words say, or words and pictures."),
    "edit": ("pictish.commands.edit:run", "Change a picture as words say."),
    "describe": ("pictish.commands.describe:run", "Say what a picture shows, or answer a question."),
    "train tokenizer": ("pictish.commands.train:tokenizer", "Train a tokenizer."),
    "train lm": ("pictish.commands.train:lm", "Train a language model on text and picture codes."),
    "train decoder": ("pictish.commands.train:decoder", "Train a decoder: codes to pixels."),
    "train model": (
        "pictish.commands.train_model:run",
        "Train all parts of a model on your own pictures.",
    ),
    "model assemble": ("pictish.commands.model:assemble", "Put a model folder together from its parts."),
    "model export": ("pictish.commands.model:export", "Write the model of a checkpoint of a training run."),
    "model info": ("pictish.commands.model:info", "Show the parts of a model folder."),
    "config show": ("pictish.commands.config:show", "Print a configuration and what its keys mean."),
    "evaluate tokenizer": (
        "pictish.commands.evaluate_tokenizer:run",
        "Measure quality against the number of tokens.",
    ),
    "evaluate decoder": (
        "pictish.commands.evaluate_decoder:run",
        "Measure pictures drawn from tokens, or steps against quality.",
    ),
    "evaluate generation": (
        "pictish.commands.evaluate_generation:run",
        "Measure pictures drawn from words.",
    ),
    "evaluate understanding": (
        "pictish.commands.evaluate_understanding:run",
        "Measure captions and answers about pictures.",
    ),
    "evaluate editing": (
        "pictish.commands.evaluate_editing:run",
        "Measure edits, and prompts with pictures.",
    ),
    "data starter": ("pictish.commands.data:starter", "Build the starter data set as WebDataset shards."),
    "data shards": ("pictish.commands.data_shards:run", "Turn pictures with captions into raw shards."),
    "data tasks": ("pictish.commands.data:tasks", "Turn tokenized starter data into training samples."),
    "import lavit": ("pictish.commands.import_:lavit", "Turn an official LaVIT checkpoint into a model."),
}
GROUPS = {
    "train": "Train a part from a configuration, or a whole model on your own pictures.",
    "model": "Handle model folders.",
    "config": "Look at configurations.",
    "evaluate": "Measure a part and write the numbers down.",
    "data": "Build a data set.",
    "import": "Take over other people's weights.",
}
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 done in part, 2 a user's mistake, 130 stopped.

    Ctrl-C and SIGTERM stop it (`pictish.io.interrupt`). A mistake (ValueError, OSError, a wrong option) is
    one line on stderr; anything else is a bug and keeps its traceback, as mistakes do when PICTISH_TRACEBACK
    is set in the environment.
    """
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    logging.basicConfig(format="pictish: %(message)s")
    logging.getLogger("pictish").setLevel(logging.INFO)
    said = "interrupted"
    try:
        with handled():
            code = build(args)(args, prog_name="pictish", standalone_mode=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        code, said = 130, str(stopped)
    except TyperException as error:
        return _mistake(error, _usage(error))
    except StoppedAtFailure:
        return 1
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = error.filename is not None and error.strerror
        return _mistake(error, f"{error.filename}: {error.strerror}" if named else str(error))
    except ValueError as error:
        return _mistake(error, str(error))
    if code == 130:
        print(f"pictish: {said}", file=sys.stderr)
    return code or 0


def build(args: Sequence[str]) -> typer.Typer:
    """The program with the one command that `args` ask for; the others are there by name and help only."""
    app = typer.Typer(help="Read and write images as a foreign language.", **PLAIN)
    app.callback()(_top)
    groups = {name: typer.Typer(help=text, **PLAIN) for name, text in GROUPS.items()}
    for words, (target, text) in COMMANDS.items():
        *group, name = words.split()
        asked = list(args[: len(group) + 1]) == [*group, name]
        parent = groups[group[0]] if group else app
        parent.command(name, help=None if asked else text)(_function(target) if asked else _other)
    for name, sub in groups.items():
        app.add_typer(sub, name=name)
    return app


def _function(target: str) -> Callable[..., None]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _other() -> None:
    raise AssertionError("a command that was not asked for cannot run")


def _top(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=lambda asked: _version(asked), help="Print the version."
    ),
) -> None:
    pass


def _version(asked: bool) -> None:
    if asked:
        from pictish import __version__

        print(f"pictish {__version__}")
        raise typer.Exit


def _usage(error: TyperException) -> str:
    """A wrong option or argument in one line, with the way to the help."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See {context.command_path if context else 'pictish'} --help"


def _mistake(error: Exception, message: str) -> int:
    if os.environ.get("PICTISH_TRACEBACK"):
        raise error
    print(f"pictish: {' '.join(message.split())}", file=sys.stderr)
    return 2
