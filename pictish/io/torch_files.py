"""Tensors of other people's weight files: PyTorch's `.bin` and `.pth`, and safetensors.

A `.bin` is a pickle, which is a program. It is read by `torch.load` with `weights_only`, which runs nothing
but a fixed list of harmless constructors: the one place in pictish where such a file is opened.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pictish.io.files import one_line

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = ""  # the name of the tensor in a file that holds one tensor and no names


def open_tensors(path: Path) -> "dict[str, Tensor]":
    """The named tensors of a weights file, mapped from the disk: their bytes are read when they are used.

    A file that is one tensor gives it the name `SINGLE`. Raises ValueError for a file that is damaged, that
    holds anything but tensors, or that wants to run something; nothing of it is run.
    """
    loaded = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    import torch

    named = {SINGLE: loaded} if isinstance(loaded, torch.Tensor) else loaded
    if not isinstance(named, dict):
        raise ValueError(f"{path}: holds a {type(named).__name__}; tensors by name were expected")
    for name, value in named.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}; tensors by name, and nothing else, would fit"
            )
    return named


def _open_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # safetensors has its own exception type
        raise ValueError(
            f"{path}: not a safetensors file, or a damaged one ({one_line(error)}); copy it again"
        ) from error


def _open_pickle(path: Path) -> Any:
    import torch

    with path.open("rb") as file:  # a file that cannot be opened is an OSError
        starts_as_zip = file.read(2) == b"PK"
    mapped = starts_as_zip and zipfile.is_zipfile(path)  # before PyTorch 1.6 they were bare pickles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of pickle
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle raises anything: EOFError, KeyError, OSError ...
        if "eights only load failed" in str(error) and not (starts_as_zip and not mapped):
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"more than weights: it asks for {asked[1]}" if asked else "no plain weights"
            raise ValueError(f"{path}: refused, it is {what}; nothing of it was run") from None
        why = "it breaks off" if starts_as_zip and not mapped else one_line(error).split(". ")[0][:160]
        raise ValueError(f"{path}: damaged, or no PyTorch weights ({why}); copy it again") from None
