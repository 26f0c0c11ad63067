"""`pictish model`: model folders put together, taken from a run, looked at."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pictish.commands import options
from pictish.commands.options import Device

Model = Annotated[str, typer.Argument(metavar="MODEL", callback=options.local_model, help=options.MODEL)]
Overwrite = Annotated[bool, options.files("--overwrite", help="Replace parts that are there.")]
Quiet = Annotated[bool, options.runtime("--quiet", help="Only warnings and errors.")]
PartFolder = Annotated[
    Path | None,
    options.files(metavar="FOLDER", help="Folder of the part, of its training run, or of a whole model."),
]


def assemble(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder; parts that are there stay.")],
    *,
    tokenizer: PartFolder = None,
    lm: PartFolder = None,
    decoder: PartFolder = None,
    preview: PartFolder = None,
    upscaler: PartFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Copy parts into a model folder, after a check that they were made for the same tokenizer."""
    from pictish.pipelines import assemble as parts

    given: dict[Any, Path | None] = {"tokenizer": tokenizer, "lm": lm, "decoder": decoder}
    given |= {"preview": preview, "upscaler": upscaler}
    chosen = {name: folder for name, folder in given.items() if folder is not None}
    if not chosen:
        raise ValueError("nothing to assemble; give --tokenizer, --lm or --decoder")
    parts.assemble(out, chosen, overwrite=overwrite)
    if not quiet:
        _say(parts.parts_of(out))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the part.")],
    *,
    step: Annotated[int | None, options.files(help="Step of the checkpoint (default: the newest).")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the part that a training run had learned at a checkpoint, as at the end of the run."""
    from pictish.pipelines.export import export as write

    write(run, out, step, device, overwrite=overwrite)
    if not quiet:
        print(f"model folder: {out}")


def info(
    model: Model = "starter",
    *,
    json: Annotated[bool, options.files("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the parts of a model folder: kind, fingerprint, weights; exit code 1 if they do not fit."""
    from pictish.pipelines.assemble import misfits, parts_of

    found = parts_of(model)
    _say(found, json)
    if lines := misfits(found):
        for line in lines:
            print(f"pictish: {line}")
        raise typer.Exit(1)


def push(
    model: Model,
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Repository on the hub.")],
    *,
    private: Annotated[
        bool | None, options.files("--private/--public", help="Visibility of a new repository.")
    ] = None,
    license: Annotated[
        str | None, options.files(metavar="ID", help="Licence named in the model card, such as apache-2.0.")
    ] = None,
    revision: Annotated[
        str | None, options.files(metavar="BRANCH", help="Branch to commit to (default: main).")
    ] = None,
) -> None:
    """Upload a model to the Hugging Face Hub with a model card; interrupted uploads resume.

    HF_TOKEN or `hf auth login` give access.
    """
    from pictish.pipelines import publish

    print(publish.push(model, repo, license=license, private=private, revision=revision))


def _say(parts: "dict[Any, Any]", as_json: bool = False) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        facts = {name: {**asdict(part), "folder": str(part.folder)} for name, part in parts.items()}
        print(json.dumps(facts, indent=1, sort_keys=True))
        return
    print(f"{'part':<16}{'kind':<12}{'fingerprint':<14}{'tokenizer':<14}{'weights':>12}{'MB':>8}")
    for name, part in parts.items():
        print(
            f"{name:<16}{part.kind or '':<12}{part.fingerprint:<14}{part.tokenizer or '':<14}"
            f"{part.weights:>12,}{part.bytes / 1e6:>8.1f}"
        )
