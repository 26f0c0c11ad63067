"""Which images a set gives, with their captions and what is known about each."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pictish.recipes.starter import avatars, icons, portraits
from pictish.recipes.starter.catalogue import AvatarSet, EmojiSet, FolderSet, IconSet
from pictish.recipes.starter.concepts import EmojiWords, Words, composition_of, concept_of, split_of
from pictish.recipes.starter.nouns import Nouns
from pictish.recipes.starter.phrases import AVATAR, ICON
from pictish.recipes.starter.render import Encoded, PngFile, Svg, Task
from pictish.recipes.starter.sources import Package, debian_version

SERIES_LIMIT = 64

# Terms that contradict the licence of the package as a whole: such images are left out.
_UNCLEAR = ("CC-BY-SA", "GFDL")


@dataclass(frozen=True)
class Candidate:
    """An image to be made: its key in the shard, how to draw it, what its JSON says besides the split."""

    key: str
    split: str
    task: Task
    caption: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """The images of one set in a mixed order, how many were left out and why, and where they are from."""

    candidates: tuple[Candidate, ...]
    left_out: Mapping[str, int]
    source: Mapping[str, str]  # `digest` changes when any of the set's images does


def _shuffled(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    """Order images by the sha256 of their key: well mixed, and the same everywhere."""
    return tuple(sorted(candidates, key=lambda c: hashlib.sha256(c.key.encode()).digest()))


def _facts(
    source: EmojiSet | IconSet | AvatarSet, style: str, name: str, concept: str, words: Words
) -> dict[str, Any]:
    """What the JSON of an image of an npm package says."""
    return {
        "set": source.name,
        "style": style,
        "name": name,
        "concept": concept,
        "label": words.label,
        "tags": list(words.tags),
        "keywords": list(words.keywords),
        "wider": list(words.wider),
        "group": words.group,
        "subgroup": words.subgroup,
        "skin_tone": words.skin_tone[0] if len(words.skin_tone) == 1 else list(words.skin_tone) or None,
        "gender": words.gender,
        "role": words.role,
        "attributes": {},
        "package": source.package.name,
        "version": source.package.version,
        "license": source.license,
        "attribution": source.attribution,
    }


def _source(source: EmojiSet | IconSet | AvatarSet | FolderSet, version: str, digest: str) -> dict[str, str]:
    return {
        "package": source.debian if isinstance(source, FolderSet) else source.package.name,
        "version": version,
        "license": source.license,
        "attribution": source.attribution,
        "digest": digest,
    }


def _svg(icons: Mapping[str, Any], name: str) -> Svg:
    """Resolve an icon's name into markup: aliases override sizes, and their flips and turns add up."""
    chain = []
    while name not in icons["icons"]:
        alias = icons.get("aliases", {}).get(name)
        if alias is None or alias in chain:
            raise ValueError(f"the icon set {icons['prefix']} names an icon {name!r} that it does not have")
        chain.append(alias)
        name = alias["parent"]
    chain.append(icons["icons"][name])

    def number(key: str, default: float) -> float:
        return float(next((link[key] for link in (*chain, icons) if key in link), default))

    return Svg(
        body=chain[-1]["body"],
        left=number("left", 0),
        top=number("top", 0),
        width=number("width", 16),
        height=number("height", 16),
        flip_horizontal=sum(bool(link.get("hFlip")) for link in chain) % 2 == 1,
        flip_vertical=sum(bool(link.get("vFlip")) for link in chain) % 2 == 1,
        quarter_turns=sum(int(link.get("rotate", 0)) for link in chain) % 4,
    )


def emoji_listing(
    source: EmojiSet, icons: Mapping[str, Any], chars: Mapping[str, str], words: EmojiWords
) -> Listing:
    """List an iconify emoji set: an image an icon; of several keys, one emojibase knows, then the shortest.

    A set without code points has names that are emojibase's labels; what is called otherwise is left out.
    """
    keys: dict[str, set[str]] = defaultdict(set)
    left_out: Counter[str] = Counter()
    for key, icon in chars.items():
        keys[icon].add(concept_of(key))
    if not chars:
        for icon in icons["icons"]:
            if concept := words.concept_named(icon):
                keys[icon].add(concept)
            else:
                left_out["unknown"] += 1
    found: dict[str, str] = {}
    for icon in sorted(keys):
        concept = min(keys[icon], key=lambda c: (c not in words, c.count("-"), c))
        found.setdefault(concept, icon)
    if repeated := (len(chars) or len(keys)) - len(found):
        left_out["repeated"] = repeated
    candidates = [_emoji(source, concept, icon, _svg(icons, icon), words) for concept, icon in found.items()]
    return Listing(
        _shuffled(candidates), left_out, _source(source, source.package.version, source.package.sha512)
    )


def raster_listing(source: EmojiSet, files: Mapping[str, bytes], words: EmojiWords) -> Listing:
    """List an emoji set of files named by their code points."""
    candidates = {}
    for name in sorted(files, key=lambda name: (len(name), name)):
        concept = concept_of(Path(name).stem)
        if concept not in candidates:
            candidates[concept] = _emoji(source, concept, Path(name).stem, Encoded(files[name]), words)
    repeated = len(files) - len(candidates)
    left_out = {"repeated": repeated} if repeated else {}
    return Listing(
        _shuffled(list(candidates.values())),
        left_out,
        _source(source, source.package.version, source.package.sha512),
    )


def _emoji(source: EmojiSet, concept: str, icon: str, task: Task, words: EmojiWords) -> Candidate:
    known = words.describe(concept, icon)
    facts = _facts(source, source.name, icon, concept, known)
    split = split_of(concept, composition_of(facts), source.style_test)
    return Candidate(f"{source.name}-{concept}", split, task, known.caption, facts)


def icon_listing(source: IconSet, drawings: Mapping[str, Any], words: EmojiWords, nouns: Nouns) -> Listing:
    """List a set of icons, each painted in two ways: those whose names are things one can draw.

    An icon that is called like an emoji has its concept, and so its split.
    """
    candidates, left_out = [], Counter[str]()
    inventory = hashlib.sha256(source.package.sha512.encode())
    for name in sorted(drawings["icons"]):
        weight = next((weight for weight in source.weights if name.endswith(weight)), None)
        if weight is None or drawings["icons"][name].get("hidden"):
            continue
        bare = name.removesuffix(weight)
        shown = icons.thing(bare, nouns)
        if shown is None:
            left_out["sign"] += 1
            continue
        concept = words.concept_named(bare) or f"icon/{shown.replace(' ', '-')}"
        sense = nouns.sense(shown.split(" "))
        wider = () if sense is None else tuple(nouns.wider(sense))
        for number, look in enumerate(icons.looks(f"{source.name}/{name}")):
            facts = _facts(source, f"{ICON} {source.name}", name, concept, Words(shown, shown, wider=wider))
            facts["attributes"] = look.attributes
            task = icons.paint(_svg(drawings, name), look)
            inventory.update(task.svg.encode())
            candidates.append(
                Candidate(
                    f"{source.name}-{name}-{number}", split_of(concept), task, look.caption(shown), facts
                )
            )
    return Listing(
        _shuffled(candidates), left_out, _source(source, source.package.version, inventory.hexdigest())
    )


def avatar_listing(source: AvatarSet, core: Package) -> Listing:
    """List a style of avatars: families of faces that differ from each other in one attribute."""
    candidates = []
    inventory = hashlib.sha256(f"{core.sha512} {source.package.sha512}".encode())
    for face in avatars.faces(source.name):
        concept = f"{source.name}/{face.family}"
        caption = portraits.caption(face.attributes)
        facts = _facts(source, f"{AVATAR} {source.name}", concept, concept, Words(caption))
        facts["attributes"] = dict(face.attributes)
        split = split_of(concept, composition_of(facts))
        inventory.update(json.dumps(face.avatar.options, sort_keys=True).encode())
        key = f"{source.name}-{face.family}-{face.number}"
        candidates.append(Candidate(key, split, face.avatar, caption, facts))
    return Listing(_shuffled(candidates), {}, _source(source, source.package.version, inventory.hexdigest()))


def folder_listing(source: FolderSet) -> Listing:
    """List a folder of PNG files: links and files with the same bytes as another count once."""
    version = debian_version(source.debian)
    files = sorted(p for p in source.folder.rglob("*.png") if p.is_file() and not p.is_symlink())
    names = {path: path.relative_to(source.folder).as_posix() for path in files}
    left_out: Counter[str] = Counter()
    digests: set[str] = set()
    inventory = hashlib.sha256()
    kept = []
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        inventory.update(f"{names[path]} {digest}\n".encode())
        if digest in digests:
            left_out["repeated"] += 1
            continue
        digests.add(digest)
        kept.append(path)
    crowded = _crowded([names[path] for path in kept])
    authors = _authors([names[path] for path in kept])
    candidates = []
    for path in kept:
        name = names[path]
        license_name = source.licenses.get(Path(name).stem.removesuffix("_mirror"), source.license)
        if name in crowded:
            left_out["series"] += 1
        elif license_name != source.license and license_name.startswith(_UNCLEAR):
            left_out["license"] += 1
        else:
            candidates.append(_file_candidate(source, version, path, name, license_name, authors))
    return Listing(_shuffled(candidates), left_out, _source(source, version, inventory.hexdigest()))


def _file_candidate(
    source: FolderSet, version: str, path: Path, name: str, license_name: str, authors: frozenset[str]
) -> Candidate:
    """Describe one PNG file of a folder set."""
    folders = Path(name).parent.parts
    stem = Path(name).stem.removesuffix("_mirror")
    text = path.with_name(f"{stem}.txt")
    caption = _first_line(text) if text.is_file() else None
    subject = " ".join(folders[-1].replace("_", " ").split()) if folders else ""
    if caption is None:
        title = _title(stem, authors)
        caption = f"{title}, {subject}" if title and subject else title or subject or source.style
    # The mirrored twin of a stamp must not sit in another split than the stamp.
    concept = f"{source.name}/{Path(name).with_name(stem).as_posix()}.png"
    facts: dict[str, Any] = {
        "set": source.name,
        "style": source.style,
        "name": name,
        "concept": concept,
        "label": None,
        "tags": [],
        "keywords": [],
        "wider": [],
        "group": folders[0] if folders else None,
        "subgroup": "/".join(folders[1:]) or None,
        "skin_tone": None,
        "gender": None,
        "role": None,
        "attributes": {},
        "package": source.debian,
        "version": version,
        "license": license_name,
        "attribution": source.attribution,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", name.removesuffix(".png").lower()).strip("-")[-60:].strip("-")
    key = f"{source.name}-{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Candidate(key, split_of(concept), PngFile(path), caption, facts)


def _first_line(path: Path) -> str | None:
    """Return the English caption of a stamp: the first line of its text file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(lines[0].split()).rstrip(".") or None if lines else None


def _series(name: str) -> str:
    """Return what a numbered series of files has in common."""
    return re.sub(r"\d+", "#", name)


def _crowded(names: list[str]) -> set[str]:
    """Return the files over the limit in numbered series (1,378 stars), by the sha256 of their names."""
    series = defaultdict(list)
    for name in names:
        series[_series(name)].append(name)
    over: set[str] = set()
    for members in series.values():
        ordered = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
        over.update(ordered[SERIES_LIMIT:])
    return over


def _tokens(stem: str) -> list[str]:
    """Split a file's stem into words, without the numbers at its end."""
    words = [word for word in re.split(r"[\s_.]+", re.sub(r"\.svg", "", stem)) if word not in ("", "-")]
    while words and re.fullmatch(r"\d+[a-z]?", words[-1]):
        words.pop()
    return words


def _numbered(stem: str) -> bool:
    """Say whether a file's stem ends like Open Clip Art's `title_author_01`."""
    return re.search(r"_\d*$", stem) is not None


def _authors(names: list[str]) -> frozenset[str]:
    """Return the endings of one or two words that are authors, as in Open Clip Art's `title_author_01.png`.

    Two words that end two titles or more, or one that ends three, and never begins or is inside a title.
    """
    titles, inside = defaultdict(set), set()
    for name in names:
        words = _tokens(Path(name).stem)
        inside.update(words[: -2 if _numbered(Path(name).stem) else None])
        for length in (1, 2):
            if _numbered(Path(name).stem) and len(words) > length:
                titles[" ".join(words[-length:])].add(" ".join(words[:-length]))
    return frozenset(
        ending
        for ending, found in titles.items()
        if len(found) >= 3 - ending.count(" ") and not inside.intersection(ending.split(" ")[-1:])
    )


def _title(stem: str, authors: frozenset[str]) -> str:
    """Return a file's stem as words: no author, no number at the end, no dashes."""
    words = _tokens(stem)
    for length in (2, 1):
        if _numbered(stem) and len(words) > length and " ".join(words[-length:]) in authors:
            words = words[:-length]
            break
    return " ".join(" ".join(words).replace("-", " ").split())


def shards_of(candidates: tuple[Candidate, ...], samples_per_shard: int) -> dict[str, tuple[Candidate, ...]]:
    """Cut one set's images into shards: `split/set-000000.tar` and up to `samples_per_shard` images."""
    by_split = defaultdict(list)
    for candidate in candidates:
        by_split[candidate.split].append(candidate)
    shards = {}
    for split, members in sorted(by_split.items()):
        for index, start in enumerate(range(0, len(members), samples_per_shard)):
            name = f"{split}/{members[0].facts['set']}-{index:06d}.tar"
            shards[name] = tuple(members[start : start + samples_per_shard])
    return shards
