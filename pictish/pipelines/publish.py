"""A model as others get it: its parts, a model card and a manifest, in a folder or on the hub."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pictish.io.files import printable, read_regular_file, sha256_file, shown
from pictish.io.hub import MANIFEST, hub_errors, is_data, manifest_of
from pictish.io.model_folder import CONFIG, Part, resolve_model, whole_folder
from pictish.pipelines.assemble import PARTS, PartInfo, misfits, part_info

CARD = "README.md"
BESIDE = ("LICENSE", "evaluation.json", "samples.png")  # of a model folder, published with its parts
_LARGEST_CARD = 1 << 22  # bytes
_FRONT = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def save(model: str | Path, folder: Path, *, license: str | None = None, overwrite: bool = False) -> None:
    """Write the model's parts to `folder`, with a card and a manifest.

    ValueError when it exists and `overwrite` is False, when it holds anything that is not a model's, and for
    parts that do not fit or hold other files than data.
    """
    files = contents(model, folder.resolve().name, license)
    names = {Path(name).parts[0] for name in files}
    with whole_folder(folder, overwrite, lambda name: name in names | {CARD, MANIFEST, *BESIDE}) as temp:
        for name, content in files.items():
            target = temp / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)


def push(
    model: str | Path,
    repo: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload a pictish model",
) -> str:
    """Upload what `save` writes to a repository of the hub, made if it is not there; the commit's address.

    It is one commit: others get all of it or nothing. Weights that an interrupted upload has sent are not
    sent again. `private` is that of a new repository. Errors are those of `save` and of `hub.download`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = contents(model, repo, license)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    api = HfApi(library_name="pictish")
    with hub_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=revision)
        gone = [name for name in there if name.partition("/")[0] in PARTS and name not in files]
        operations += map(CommitOperationDelete, gone)
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    return commit.commit_url


def contents(model: str | Path, name: str, license: str | None = None) -> dict[str, Path | bytes]:
    """What is published of a model under `name`: relative names, each with a file or its bytes."""
    if license is not None and not re.fullmatch(r"[\w.+-]+", license, re.ASCII):
        raise ValueError(f"license: {shown(license)} asked for; an identifier such as apache-2.0 fits")
    root = resolve_model(model)
    parts = {name: part_info(root / name) for name in PARTS if (root / name / CONFIG).is_file()}
    if not parts:
        raise ValueError(f"{printable(model)}: not a model folder; it has none of {', '.join(PARTS)}")
    if lines := misfits(parts):
        raise ValueError("; ".join(lines))
    files: dict[str, Path | bytes] = {}
    digests: dict[str, str] = {}
    for part in sorted(path for path in root.iterdir() if (path / CONFIG).is_file()):
        for path in sorted(filter(Path.is_file, part.rglob("*"))):
            inside = path.relative_to(root).as_posix()
            if not is_data(inside):
                raise ValueError(f"{printable(path)}: only safetensors, JSON, YAML and text are published")
            files[inside] = path
            digests[inside] = sha256_file(path)
    files |= {beside: root / beside for beside in BESIDE if (root / beside).is_file()}
    own = root / CARD
    text = read_regular_file(own, _LARGEST_CARD).decode("utf-8", "replace") if own.is_file() else None
    files[CARD] = card(name, parts, text, license).encode("utf-8")
    files[MANIFEST] = manifest_of({part: info.fingerprint for part, info in parts.items()}, digests)
    return files


def card(name: str, parts: Mapping[Part, PartInfo], own: str | None, license: str | None) -> str:
    """The model card: what the hub indexes, how to use the model, its parts, and the card `own` of its run.

    The run's card says what it was trained on, what was measured, and its licence.
    """
    facts = ["library_name: pictish", "pipeline_tag: text-to-image", "tags: [image-tokenizer, image-to-text]"]
    if license is not None:
        facts.append(f"license: {license}")
    said = own or "Its data, licence and evaluation are not stated: the model folder had no README.md.\n"
    said = re.sub(r"--model \S+", f"--model {name}", _FRONT.sub("", said))
    rows = [f"| {part} | {info.fingerprint} | {info.weights / 1e6:.2f} |" for part, info in parts.items()]
    return f"""---
{chr(10).join(facts)}
---

# {name}

A model of pictish, which reads and writes images as short sequences of discrete codes.

```python
import pictish

pipe = pictish.Pipeline.from_pretrained("{name}")
pipe.generate("a red apple", seed=0).save("apple.png")
print(pipe.describe("apple.png"))
```

    pictish generate "a red apple" --model {name}

| part | fingerprint | million weights |
|---|---|---|
{chr(10).join(rows)}

{said}"""
