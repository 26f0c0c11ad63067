"""`pictish config show`: a configuration in full, with the meaning of its keys."""

from typing import Annotated

import typer

from pictish.commands import options


def show(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Shipped name or YAML file; without one all names.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as batch_size=32 data.views=1")
    ] = None,
    *,
    bare: Annotated[bool, options.files("--bare", help="Without comments.")] = False,
) -> None:
    """Print a configuration with everything that it extends resolved and every key explained."""
    from pictish.configs import load, parse, shipped_names
    from pictish.configs.explain import commented_yaml
    from pictish.io.plain_yaml import to_yaml

    if name is None:
        print("\n".join(shipped_names()))
        return
    raw = load(name, overrides or [])
    config = parse(class_of(raw, name), raw, name)
    print(to_yaml(config) if bare else commented_yaml(config), end="")


def class_of(raw, name: str):
    """The settings class that `part` names."""
    match raw.get("part"):
        case "tokenizer":
            from pictish.tokenizer.config import TrainConfig as Tokenizer

            return Tokenizer
        case "decoder":
            from pictish.decoder.config import TrainConfig as Decoder

            return Decoder
        case "lm":
            from pictish.lm.config import TrainConfig as Language

            return Language
        case "output-projector":
            from pictish.pipelines.continuous.config import TrainConfig as OutputProjector

            return OutputProjector
        case "model":
            from pictish.recipes.own.config import OwnConfig

            return OwnConfig
    raise ValueError(
        f"{name}: part {raw.get('part')!r} asked for; tokenizer, decoder, lm, output-projector or model fits"
    )
