"""Adaptors by name: which folders they lie in, and a language model read through one of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pictish.io.files import printable
from pictish.io.model_folder import CONFIG, locate_model
from pictish.training.isolation import loading

if TYPE_CHECKING:
    from pictish.lm.adapted import Base
    from pictish.lm.model import UnifiedModel
    from pictish.pipelines.language import Language
    from pictish.tokenizer.dynamic import Tokenizer

BESIDE = "adaptors"  # folder of a model folder that holds some, by name


def adaptor_folders(model: str | Path, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The adaptors in a model folder's `adaptors/` and those in `folders`, by the folders' names.

    Each of `folders` is an adaptor's, a training run's (named as the run), or holds adaptors. ValueError for
    a folder that is none of these, and for two adaptors of one name.
    """
    found: dict[str, Path] = {}
    beside = Path(model).expanduser() / BESIDE
    for folder in (*([beside] if str(model) != "starter" and beside.is_dir() else []), *folders):
        inside = folder / "model"
        if (folder / CONFIG).is_file() and not (inside / CONFIG).is_file():
            here = {folder.resolve().name: folder}
        elif (inside / CONFIG).is_file():
            here = {folder.resolve().name: inside}
        else:
            here = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))}
        if not here:
            raise ValueError(f"{printable(folder)}: no adaptor, nor a folder of adaptors")
        for name, path in here.items():
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(f"two adaptors are called {name}: {found[name]} and {path}; rename one")
            found[name] = path
    return found


def choose_adaptor(
    name: str | None, model: str | Path, folders: Sequence[Path] = ()
) -> tuple[str, Path] | None:
    """Name and folder of the adaptor called `name`; without a name, the one of `folders` if there are any.

    ValueError for a name that there is not, and for several folders without a name.
    """
    if name is None and not folders:
        return None
    found = adaptor_folders(model, folders)
    if name is None:
        given = adaptor_folders("starter", folders)
        if len(given) > 1:
            raise ValueError(
                f"{len(given)} adaptors were given, {', '.join(sorted(given))}; choose one by name"
            )
        return next(iter(given.items()))
    if name not in found:
        known = f"; there are {', '.join(sorted(found))}" if found else ", and the model has none"
        raise ValueError(f"no adaptor is called {printable(name)}{known}")
    return name, found[name]


def base_of(model: "UnifiedModel", folder: str | Path) -> "Base":
    """A loaded model of ours as the base of adaptors; `folder` is where it came from."""
    from pictish.lm.adapted import Base, weights_fingerprint

    fingerprint = weights_fingerprint(locate_model(folder, "lm"))
    return Base(model.language, model.text_tokenizer, fingerprint, knows_pictures=True)


@loading
def language_with(tokenizer: "Tokenizer", base: "Base", folder: Path) -> "Language":
    """The base read through the adaptor in `folder`, joined with the tokenizer whose images it reads."""
    from pictish.lm.adapted import load_adaptor
    from pictish.pipelines.language import Language

    return Language(tokenizer, load_adaptor(folder, base))
