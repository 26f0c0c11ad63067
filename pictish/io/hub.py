"""Models on the Hugging Face Hub: `user/repo` or `user/repo@revision`, downloaded to its cache and checked.

Access tokens are the library's (HF_TOKEN, `hf auth login`): nothing here reads or stores them.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pictish.io.files import check_relative, one_line, printable, read_regular_file, sha256_file

MANIFEST = "pictish.json"  # of a repository: sha256 of each file of its parts
SUFFIXES = (".json", ".md", ".png", ".safetensors", ".txt", ".yaml")  # what is downloaded, and LICENSE
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
_LARGEST_MANIFEST = 1 << 22  # bytes
_NAMED = 5  # files in a warning

logger = logging.getLogger(__name__)


def is_repo(name: str) -> bool:
    """Whether a model's name is that of a repository: `user/repo[@revision]`, and no local folder."""
    return _REPO.fullmatch(name) is not None and not Path(name).exists()


def is_data(name: str) -> bool:
    """Whether a file of a repository is one that can run no code: safetensors, JSON, YAML, text, PNG."""
    path = PurePosixPath(name)
    return path.suffix in SUFFIXES or path.name == "LICENSE"


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a repository's files in the hub's cache; an interrupted download resumes.

    Files that are no plain data, such as pickles, are not downloaded but named in a warning. What is in the
    cache is used where the hub cannot be reached. ValueError for a repository or revision that does not
    exist, or whose files are not those of its manifest; OSError where the network fails.
    """
    from huggingface_hub import get_cached_repo_tree, resolve_revision, snapshot_download

    repo, mark, wanted = name.partition("@")
    if mark and revision is not None:
        raise ValueError(f"{name}: names a revision, and revision is {revision!r}; one of them fits")
    with hub_errors(name):
        commit = resolve_revision(repo, revision=wanted or revision)
        patterns = [*(f"*{suffix}" for suffix in SUFFIXES), "LICENSE", "*/LICENSE"]
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=patterns))
        files = [file.path for file in get_cached_repo_tree(repo, revision=commit)]
    ignored = sorted(file for file in files if not is_data(file) and file != ".gitattributes")
    if ignored:
        more = "" if len(ignored) <= _NAMED else f" and {len(ignored) - _NAMED} more"
        listed = ", ".join(map(printable, ignored[:_NAMED]))
        logger.warning(
            "%s: not downloaded, neither safetensors, JSON, YAML nor text: %s%s", name, listed, more
        )
    check_manifest(folder, name)
    return folder


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Errors of the hub's library, raised in the block, as one line that names the repository.

    Without the original, whose request holds the token.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.RepositoryNotFoundError:
        said = (
            "neither a folder nor a model on the hub; a private or gated one needs HF_TOKEN, or hf auth login"
        )
        raise ValueError(f"{name}: {said}") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{name}: the repository has no such revision") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        errors.OfflineModeIsEnabled,
    ):
        raise ValueError(
            f"{name}: no such folder, and the hub cannot be reached; the model is not in its cache either"
        ) from None
    except ValueError as error:  # a name or a card that the hub does not take
        raise ValueError(f"{name}: {one_line(error)}") from None
    except Exception as error:  # its HTTP client has exception types of its own
        raise OSError(f"{name}: {one_line(error)}") from None


def manifest_of(fingerprints: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
    """The manifest of parts with these fingerprints and files with these sha256, by their names."""
    document = {"format": 1, "parts": dict(fingerprints), "files": dict(digests)}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("utf-8")


def check_manifest(folder: Path, name: str) -> None:
    """ValueError, naming a file, unless a repository's files are those of its manifest, if it has one."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        files = json.loads(read_regular_file(path, _LARGEST_MANIFEST))["files"]
        digests = {str(file): str(digest) for file, digest in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}: {MANIFEST} is damaged ({one_line(error)})") from None
    for file, digest in digests.items():
        check_relative(file)
        if not (folder / file).is_file():
            raise ValueError(f"{name}: lacks {printable(file)}, which its {MANIFEST} lists")
        if sha256_file(folder / file) != digest:
            raise ValueError(f"{name}: {printable(file)} is not the file that its {MANIFEST} lists")
