"""The `pictish` command: which function answers which words, and how errors reach the user."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand
from typer.exceptions import TyperException

from pictish.io.interrupt import Stopped, StoppedAtFailure, handled
from pictish.io.streams import lasting_streams

# words -> (module:function, one line for `--help`). A module is imported only when its command is asked for.
COMMANDS: dict[str, tuple[str, str]] = {
    "tokenize": (
        "pictish.commands.tokenize:run",
        "Tokenize images: folders of images, or WebDataset shards.",
    ),
    "detokenize": ("pictish.commands.detokenize:run", "Reconstruct images from tokens."),
    "inspect": (
        "pictish.commands.inspect:run",
        "Visualize the tokens of an image, or summarize token files.",
    ),
    "generate": ("pictish.commands.generate:run", "Generate images from text, or from text and images."),
    "edit": ("pictish.commands.edit:run", "Edit an image with a text instruction."),
    "describe": ("pictish.commands.describe:run", "Caption an image, or answer a question about it."),
    "serve": ("pictish.commands.serve:run", "Serve a model over HTTP, in the shapes of OpenAI's API."),
    "ui": ("pictish.commands.ui:run", "Draw, edit, describe and look inside images in a browser."),
    "train tokenizer": ("pictish.commands.train:tokenizer", "Train a tokenizer."),
    "train lm": ("pictish.commands.train:lm", "Train a language model on text and image tokens."),
    "train decoder": ("pictish.commands.train:decoder", "Train a decoder that turns tokens into pixels."),
    "train output-projector": (
        "pictish.commands.train:output_projector",
        "Train an output projector: a frozen language model draws without codes.",
    ),
    "train model": (
        "pictish.commands.train_model:run",
        "Train all parts of a model on your own images.",
    ),
    "model assemble": ("pictish.commands.model:assemble", "Assemble a model folder from its parts."),
    "model export": ("pictish.commands.model:export", "Export the model of a training checkpoint."),
    "model info": ("pictish.commands.model:info", "List the parts of a model folder."),
    "model push": ("pictish.commands.model:push", "Upload a model to the Hugging Face Hub."),
    "config show": ("pictish.commands.config:show", "Print a configuration and what its keys mean."),
    "evaluate tokenizer": (
        "pictish.commands.evaluate_tokenizer:run",
        "Measure reconstruction quality vs. token count.",
    ),
    "evaluate decoder": (
        "pictish.commands.evaluate_decoder:run",
        "Measure decoded images, or quality vs. denoising steps.",
    ),
    "evaluate generation": (
        "pictish.commands.evaluate_generation:run",
        "Measure text-to-image generation.",
    ),
    "evaluate understanding": (
        "pictish.commands.evaluate_understanding:run",
        "Measure captioning and visual question answering.",
    ),
    "evaluate editing": (
        "pictish.commands.evaluate_editing:run",
        "Measure image editing and multimodal prompts.",
    ),
    "data starter": ("pictish.commands.data:starter", "Build the starter data set as WebDataset shards."),
    "data shards": ("pictish.commands.data_shards:run", "Turn images with captions into WebDataset shards."),
    "data results": (
        "pictish.commands.data_generated:results",
        "Write a table of generated images as JSONL.",
    ),
    "data geneval": (
        "pictish.commands.data_generated:geneval",
        "Arrange generated images in the layout of GenEval.",
    ),
    "data tasks": (
        "pictish.commands.data:tasks",
        "Build language-model training samples from tokenized starter data.",
    ),
    "import lavit": (
        "pictish.commands.import_:lavit",
        "Convert an official LaVIT checkpoint to a model folder.",
    ),
    "import iaa": (
        "pictish.commands.import_:iaa",
        "Convert an official IAA checkpoint: base, adaptors and CLIP tower.",
    ),
    "import llada": (
        "pictish.commands.import_:llada",
        "Convert an official LLaDA checkpoint to a model folder.",
    ),
    "import lladav": (
        "pictish.commands.import_:lladav",
        "Convert an official LLaDA-V checkpoint to a model folder.",
    ),
}
# transformers and diffusers import torchao where it is installed; these then warn of what is no user's doing
ABOUT_TORCHAO = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
GROUPS = {
    "train": "Train a part from a YAML configuration, or a whole model on your own images.",
    "model": "Work with model folders.",
    "config": "Inspect configurations.",
    "evaluate": "Evaluate a model and write a report.",
    "data": "Build a data set.",
    "import": "Import third-party checkpoints.",
}
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None}


class Command(TyperCommand):
    """A command whose `--help` shows its options in panels, readable in 80 columns.

    Panels need rich, which nothing else imports; lists of commands stay plain and fast.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help: paragraphs rewrapped, no type beside a flag or an argument, `--help` last."""
        from rich.markup import escape
        from typer import rich_utils

        paragraphs = (self.help or "").split("\n\n")
        self.help = escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
        param: Any
        for param in self.get_params(ctx):
            if isinstance(param, TyperArgument) or getattr(param, "is_flag", False):
                param.display_type_rich = lambda ctx: None
            param.help = escape(getattr(param, "help", None) or "")
        rich_utils.rich_format_help(obj=self, ctx=ctx, markup_mode="rich")

    def get_help_option(self, ctx: Any) -> Any:
        """The `--help` option, in the panel of the running."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = "Runtime"
        return option


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 done in part, 2 a user's mistake, 130 stopped.

    Ctrl-C and SIGTERM stop it (`pictish.io.interrupt`). A mistake (ValueError, OSError, a wrong option) is
    one line on stderr; anything else is a bug and keeps its traceback, as mistakes do when PICTISH_TRACEBACK
    is set in the environment.
    """
    args = [_expanded(arg) for arg in (sys.argv[1:] if args is None else args)] or ["--help"]
    with lasting_streams() as finish, _logging():  # the log's handler takes stderr as it is then
        return _run(args, finish)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Log to stderr; whoever calls `main` from Python gets their own settings back."""
    root = logging.getLogger()
    wanted = {"pictish": logging.INFO, **dict.fromkeys(ABOUT_TORCHAO, logging.ERROR)}
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in wanted}
    logging.basicConfig(format="pictish: %(message)s")
    for name, level in wanted.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)


def _run(args: list[str], finish: Callable[[], None]) -> int:
    said = "interrupted"
    try:
        with handled():
            code = build(args)(args, prog_name="pictish", standalone_mode=False)
            finish()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        code, said = 130, str(stopped)
    except TyperException as error:
        return _mistake(error, _usage(error))
    except StoppedAtFailure:
        return 1
    except OSError as error:
        named = error.filename is not None and error.strerror
        return _mistake(error, f"{error.filename}: {error.strerror}" if named else str(error))
    except ValueError as error:
        return _mistake(error, str(error))
    if code == 130:
        print(f"pictish: {said}", file=sys.stderr)
    return code or 0


def _expanded(arg: str) -> str:
    """`~/folder` and `--option=~/folder` with the user's home in it, where no shell has put it."""
    option, equals, value = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    if value.startswith("~/"):
        return f"{option}{equals}{os.path.expanduser(value)}"  # noqa: PTH111  (it may be no path)
    return arg


def build(args: Sequence[str]) -> typer.Typer:
    """The program with the one command that `args` ask for; the others are there by name and help only."""
    app = typer.Typer(help="Read and write images as a foreign language.", **PLAIN)
    app.callback()(_top)
    groups = {name: typer.Typer(help=text, **PLAIN) for name, text in GROUPS.items()}
    for words, (target, text) in COMMANDS.items():
        *group, name = words.split()
        asked = list(args[: len(group) + 1]) == [*group, name]
        parent = groups[group[0]] if group else app
        parent.command(name, cls=Command, help=None if asked else text)(
            _function(target) if asked else _other
        )
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
        False,
        "--version",
        is_eager=True,
        callback=lambda asked: _version(asked),
        help="Print the version and exit.",
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
