"""Which pictures a set gives, with their captions and what is known about each."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pictish.data.starter.concepts import EmojiWords, concept_of, split_of
from pictish.data.starter.render import PngFile, Svg, Task
from pictish.data.starter.sources import EmojiSet, FolderSet, debian_version

SERIES_LIMIT = 64

# Terms that contradict the licence of the package as a whole: such pictures are left out.
_UNCLEAR = ("CC-BY-SA", "GFDL")


@dataclass(frozen=True)
class Candidate:
    """A picture to be made: its key in the shard, how to draw it, what its JSON says besides the split."""

    key: str
    split: str
    task: Task
    caption: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """The pictures of one set in a mixed order, how many were left out and why, and where they are from."""

    candidates: tuple[Candidate, ...]
    left_out: Mapping[str, int]
    source: Mapping[str, str]  # `digest` changes when any of the set's pictures does


def _shuffled(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    """Order pictures by the sha256 of their key: well mixed, and the same everywhere."""
    return tuple(sorted(candidates, key=lambda c: hashlib.sha256(c.key.encode()).digest()))


def _source(source: EmojiSet | FolderSet, version: str, digest: str) -> dict[str, str]:
    return {
        "package": source.package.name if isinstance(source, EmojiSet) else source.debian,
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
    """List an emoji set: a picture an icon; of several keys, one that emojibase knows, then the shortest."""
    keys: dict[str, set[str]] = defaultdict(set)
    for key, icon in chars.items():
        keys[icon].add(concept_of(key))
    candidates, seen = [], set()
    for icon in sorted(keys):
        concept = min(keys[icon], key=lambda c: (c not in words, c.count("-"), c))
        if concept in seen:
            continue
        seen.add(concept)
        known = words.describe(concept, icon)
        split = split_of(concept, known.composition, source.style_test)
        facts: dict[str, Any] = {
            "set": source.name,
            "style": source.name,
            "name": icon,
            "concept": concept,
            "label": known.label,
            "tags": list(known.tags),
            "group": known.group,
            "subgroup": known.subgroup,
            "skin_tone": known.skin_tone[0] if len(known.skin_tone) == 1 else list(known.skin_tone) or None,
            "gender": known.gender,
            "role": known.role,
            "package": source.package.name,
            "version": source.package.version,
            "license": source.license,
            "attribution": source.attribution,
        }
        key = f"{source.name}-{concept}"
        candidates.append(Candidate(key, split, _svg(icons, icon), known.caption, facts))
    repeated = len(chars) - len(candidates)
    left_out = {"repeated": repeated} if repeated else {}
    return Listing(
        _shuffled(candidates), left_out, _source(source, source.package.version, source.package.sha512)
    )


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
        "group": folders[0] if folders else None,
        "subgroup": "/".join(folders[1:]) or None,
        "skin_tone": None,
        "gender": None,
        "role": None,
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
    """Cut one set's pictures into shards: `split/set-000000.tar` and its pictures, so many at most."""
    by_split = defaultdict(list)
    for candidate in candidates:
        by_split[candidate.split].append(candidate)
    shards = {}
    for split, members in sorted(by_split.items()):
        for index, start in enumerate(range(0, len(members), samples_per_shard)):
            name = f"{split}/{members[0].facts['set']}-{index:06d}.tar"
            shards[name] = tuple(members[start : start + samples_per_shard])
    return shards
