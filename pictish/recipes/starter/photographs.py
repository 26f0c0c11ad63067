"""Photographs from a folder of WebDataset shards: images with a label, a source and a licence.

FOLDER/<split>-000000.tar    KEY.jpg, png or webp, and KEY.json
    caption, label (may be null), source, licence     the split is that of the shard's name
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pictish.data.shards import find_shards, scan_shard
from pictish.io.files import one_line, printable
from pictish.io.finding import IMAGES
from pictish.recipes.starter.nouns import Nouns
from pictish.recipes.starter.phrases import PHOTO
from pictish.recipes.starter.render import Photograph
from pictish.recipes.starter.samples import Candidate, Listing

PHOTOS = "photos"  # name of the set
SPLITS = ("train", "validation", "test")


def photo_listing(folder: Path, nouns: Nouns) -> Listing:
    """List the photographs of a folder; ValueError for a shard of no split and an incomplete sample."""
    candidates, inventory = [], hashlib.sha256()
    for shard in find_shards([folder]):
        split = shard.name.rpartition("-")[0]
        if split not in SPLITS:
            raise ValueError(
                f"{printable(shard.name)}: shards of photographs are called {', '.join(SPLITS)}-000000.tar"
            )
        with shard.open("rb") as file:
            inventory.update(hashlib.file_digest(file, "sha256").digest())
            for key, places in scan_shard(shard):
                suffix = next((suffix for suffix in IMAGES if suffix in places), None)
                if suffix is None or "json" not in places:
                    raise ValueError(f"{printable(shard.name)}: {printable(key)} lacks its image or .json")
                offset, size = places["json"]
                file.seek(offset)
                try:
                    said = json.loads(file.read(size))
                    facts = _facts(f"{split}/{key}", said, nouns)
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise ValueError(
                        f"{printable(shard.name)}: {printable(key)}.json needs source, licence and a label: "
                        f"{one_line(error)}"
                    ) from error
                task = Photograph(shard, *places[suffix], suffix)
                candidates.append(Candidate(f"{PHOTOS}-{key}", split, task, _caption(facts), facts))
    source = {
        "package": ", ".join(sorted({candidate.facts["package"] for candidate in candidates})),
        "version": "unknown",
        "license": ", ".join(sorted({candidate.facts["license"] for candidate in candidates})),
        "attribution": "the JSON of each image",
        "digest": inventory.hexdigest(),
    }
    return Listing(tuple(candidates), Counter(), source)


def _facts(name: str, said: dict[str, Any], nouns: Nouns) -> dict[str, Any]:
    """What the JSON of a photograph says; the concept is its label's."""
    label = said.get("label")
    if label is not None and not isinstance(label, str):
        raise TypeError("label is no text")
    sense = nouns.sense(label.split(" ")) if label else None
    return {
        "set": PHOTOS,
        "style": PHOTO,
        "name": name,
        "concept": f"{PHOTOS}/{label or name}",
        "label": label,
        "tags": [],
        "keywords": [],
        "wider": [] if sense is None else nouns.wider(sense),
        "group": None,
        "subgroup": None,
        "skin_tone": None,
        "gender": None,
        "role": None,
        "attributes": {},
        "package": str(said["source"]),
        "version": "unknown",
        "license": str(said["licence"]),
        "attribution": str(said["source"]),
    }


def _caption(facts: dict[str, Any]) -> str:
    return str(facts["label"] or "photo")
