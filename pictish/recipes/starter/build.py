"""Build the starter data: list the images, draw those whose shard is missing, write down what there is.

`OUT/<split>/<set>-000000.tar` holds the images, `OUT/manifest.json` the sha256 of every finished shard; it
is rewritten after each, so that a killed run resumes where it stopped.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pictish.data.shards import ShardFile
from pictish.io.files import (
    TEMP_SUFFIX,
    check_relative,
    only_writer,
    remove_leftovers,
    sha256_file,
    write_atomic,
)
from pictish.io.interrupt import in_units, stop_here
from pictish.recipes.starter import avatars
from pictish.recipes.starter.catalogue import CATALOGUE, Catalogue
from pictish.recipes.starter.concepts import EmojiWords
from pictish.recipes.starter.nouns import Nouns
from pictish.recipes.starter.photographs import PHOTOS, photo_listing
from pictish.recipes.starter.render import Markup, Rendered, Task, render, renderer_versions
from pictish.recipes.starter.samples import (
    Candidate,
    Listing,
    avatar_listing,
    emoji_listing,
    folder_listing,
    icon_listing,
    raster_listing,
    shards_of,
)
from pictish.recipes.starter.sources import Fetch, npm_pack, package_files, package_json, package_members

FORMAT, FORMAT_VERSION = "pictish-starter", 2
MANIFEST = "manifest.json"
CACHE = ".cache"
SIDE = 128  # pixels
SAMPLES_PER_SHARD = 1000
_CHUNK = 16  # images sent to a worker at once

Json = dict[str, Any]
Progress = Callable[[int, int], None]  # images settled so far, images in all
Draw = Callable[[Iterable[Task]], Iterator[Rendered]]  # in their order


def build(
    out: Path,
    cache: Path | None = None,
    sets: Sequence[str] | None = None,
    *,
    photos: Path | None = None,
    workers: int = 2,
    overwrite: bool = False,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    catalogue: Catalogue = CATALOGUE,
    fetch: Fetch = npm_pack,
    progress: Progress | None = None,
) -> Json:
    """Build the starter data in `out` and return its manifest; the bytes do not depend on `workers`.

    `sets` are names of the catalogue (None: all, of the folder sets those that are installed), `photos` is a
    folder of shards of photographs, see `photographs.py`. `cache` keeps the downloaded packages (None:
    `out/.cache`). With `workers` 0 the images are drawn in this process. ValueError for an unknown set, a
    missing tool, a package with other bytes than pinned, incomplete photographs, and for an `out` that holds
    something else; data of other settings or changed shards are replaced only with `overwrite`.
    """
    names = catalogue.choose(sets)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    versions = renderer_versions()
    _refuse_foreign(out)
    with only_writer(out):
        remove_leftovers(out)
        cache = cache or out / CACHE
        listings = _list(names, photos, catalogue, cache, fetch)
        settings = {
            **versions,
            "side": SIDE,
            "samples_per_shard": samples_per_shard,
            "labels": catalogue.labels.spec,
            "sets": {name: dict(listing.source) for name, listing in listings.items()},
        }
        done = _finished(out, settings, overwrite)
        plan = {
            shard: members
            for listing in listings.values()
            for shard, members in shards_of(listing.candidates, samples_per_shard).items()
        }
        drawn = functools.partial(_with_markup, catalogue=catalogue, cache=cache, fetch=fetch)
        total, settled = sum(map(len, plan.values())), 0
        if not (out / MANIFEST).exists():  # by which a start after a kill knows the folder for one of ours
            _write_manifest(out, settings, listings, done, complete=False)
        with _renderers(workers) as draw, in_units("shard"):
            for shard, members in plan.items():
                stop_here("interrupted; finished shards are kept, and the same command resumes there")
                if shard not in done:
                    done[shard] = _write_shard(out / shard, members, lambda tasks: draw(drawn(tasks)))
                    _write_manifest(out, settings, listings, done, complete=False)
                settled += len(members)
                if progress is not None:
                    progress(settled, total)
        return _write_manifest(out, settings, listings, done, complete=True)


def _list(
    names: Sequence[str], photos: Path | None, catalogue: Catalogue, cache: Path, fetch: Fetch
) -> dict[str, Listing]:
    """List the images of each set by its name."""
    listings = {}
    emoji = [source for source in catalogue.emoji if source.name in names]
    icons = [source for source in catalogue.icons if source.name in names]
    if emoji or icons or photos is not None:
        index, data = package_members(catalogue.nouns, ["dict/index.noun", "dict/data.noun"], cache, fetch)
        nouns = Nouns(index, data)
    if emoji or icons:
        labels, groups = package_json(catalogue.labels, ["en/data.json", "meta/groups.json"], cache, fetch)
        (keywords,) = package_json(catalogue.keywords, ["dist/emoji-en-US.json"], cache, fetch)
        words = EmojiWords(labels, groups, keywords, nouns)
    for source in emoji:
        if source.raster:
            files = package_files(source.package, lambda name: name.endswith(".webp"), cache, fetch)
            listings[source.name] = raster_listing(source, files, words)
        else:
            drawings, chars = package_json(source.package, ["icons.json", "chars.json"], cache, fetch)
            listings[source.name] = emoji_listing(source, drawings, chars, words)
    for icon_set in icons:
        (drawings,) = package_json(icon_set.package, ["icons.json"], cache, fetch)
        listings[icon_set.name] = icon_listing(icon_set, drawings, words, nouns)
    for style in catalogue.avatars:
        if style.name in names:
            listings[style.name] = avatar_listing(style, catalogue.avatar_core)
    for folder in catalogue.folders:
        if folder.name in names:
            listings[folder.name] = folder_listing(folder)
    if photos is not None:
        listings[PHOTOS] = photo_listing(photos, nouns)
    return listings


def _with_markup(tasks: Iterable[Task], catalogue: Catalogue, cache: Path, fetch: Fetch) -> list[Task]:
    """The tasks of a shard with its avatars as SVG, which one run of Node.js draws."""
    ready = list(tasks)
    places = [place for place, task in enumerate(ready) if isinstance(task, avatars.Avatar)]
    faces = [task for task in ready if isinstance(task, avatars.Avatar)]
    if not faces:
        return ready
    styles = {face.style for face in faces}
    wanted = [catalogue.avatar_core, *(s.package for s in catalogue.avatars if s.name in styles)]
    packages = {
        package.name: package_files(package, lambda name: name.endswith((".js", ".json")), cache, fetch)
        for package in wanted
    }
    for place, svg in zip(places, avatars.draw(faces, packages), strict=True):
        ready[place] = Markup(svg)
    return ready


def _refuse_foreign(out: Path) -> None:
    """ValueError unless `out` is new, empty, or a folder of ours."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the starter data needs a folder of its own")
    if out.is_dir() and not (out / MANIFEST).exists():
        names = (path.name for path in out.iterdir() if not path.name.endswith(TEMP_SUFFIX))
        strangers = sorted(name for name in names if name != CACHE)
        if strangers:
            raise ValueError(f"{out} holds {strangers[0]} but no starter data; choose a new or empty folder")


def _finished(out: Path, settings: Json, overwrite: bool) -> dict[str, Json]:
    """Return what the manifest says about shards that are there and are to stay.

    With `overwrite` the others are deleted: changed ones, and those of sets with other settings.
    """
    path = out / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != FORMAT or manifest["version"] != FORMAT_VERSION:
            raise ValueError("another format")
        before, shards = dict(manifest["settings"]), dict(manifest["shards"])
        before["sets"] = dict(before["sets"])
        digests = {shard: entry["sha256"] for shard, entry in shards.items()}
        for shard in shards:
            check_relative(shard)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a manifest of starter data (version {FORMAT_VERSION})") from error
    shards = {shard: entry for shard, entry in shards.items() if (out / shard).exists()}
    if before != settings and not overwrite:
        changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        raise ValueError(
            f"{out} holds starter data made with other settings ({', '.join(changed)}); "
            "choose another folder or give --overwrite"
        )
    stale = [
        shard
        for shard in shards
        if _of_set(before, shard) != _of_set(settings, shard) or sha256_file(out / shard) != digests[shard]
    ]
    if stale and not overwrite:
        raise ValueError(f"{out / stale[0]} was changed after it was written; --overwrite makes it again")
    for shard in stale:
        (out / shard).unlink()
        del shards[shard]
    return shards


def _of_set(settings: Json, shard: str) -> Json:
    """The settings that the bytes of one shard depend on."""
    name = shard.rpartition("/")[2].rpartition("-")[0]
    return {**settings, "sets": settings["sets"].get(name)}


def _write_shard(path: Path, members: Sequence[Candidate], draw: Draw) -> Json:
    """Write one shard and return its entry in the manifest."""
    left_out: Counter[str] = Counter()
    with ShardFile(path) as shard:
        for member, rendered in zip(members, draw(member.task for member in members), strict=True):
            if rendered.blob is None:
                left_out[str(rendered.left_out)] += 1
                continue
            facts = {**member.facts, "caption": member.caption, "split": member.split}
            text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
            shard.write(
                member.key,
                {
                    "json": f"{text}\n".encode(),
                    rendered.suffix: rendered.blob,
                    "txt": member.caption.encode(),
                },
            )
        samples = shard.samples
    return {"samples": samples, "left_out": dict(left_out), "sha256": sha256_file(path)}


def _write_manifest(
    out: Path, settings: Json, listings: Mapping[str, Listing], shards: Mapping[str, Json], complete: bool
) -> Json:
    """Write down what there is: no time, no absolute path, nothing about this run."""
    counts: dict[str, dict[str, int]] = {}
    left_out = {name: Counter(listing.left_out) for name, listing in listings.items()}
    for shard, entry in shards.items():
        split, file = shard.split("/")
        name = file.rpartition("-")[0]
        of_split = counts.setdefault(split, {})
        of_split[name] = of_split.get(name, 0) + entry["samples"]
        left_out[name].update(entry["left_out"])
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "complete": complete,
        "settings": settings,
        "counts": counts,
        "left_out": {name: dict(reasons) for name, reasons in left_out.items()},
        "shards": dict(shards),
    }
    write_atomic(out / MANIFEST, f"{json.dumps(manifest, sort_keys=True, indent=1)}\n".encode())
    return manifest


@contextlib.contextmanager
def _renderers(workers: int) -> Iterator[Draw]:
    """Give a function that draws images in order, in worker processes that die with this one."""
    one = functools.partial(render, side=SIDE)
    if workers == 0:
        yield functools.partial(map, one)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield functools.partial(pool.map, one, chunksize=_CHUNK)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and die when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
