"""Which files are members of which sample, by their names alone: in shards and in image folders alike.

A sample is files of one name but for the suffix. A file with another part in its name (`KEY.source.png`,
`KEY.caption.txt`) belongs to the sample KEY where that needs it, else it begins a sample of its own.
"""

import re
from collections.abc import Iterable, Mapping

from pictish.data.captions import CAPTION_FIELDS
from pictish.io.finding import IMAGES, split_name

CAPTIONS = ("txt", "caption", "text")  # suffixes of text that is a caption as it stands
TEXTS = (*CAPTIONS, "json", "jsonl", "cls")
_PART = re.compile(r"[a-z0-9_-]+")


def is_image(suffix: str) -> bool:
    """Whether a member of this suffix, or this name (`source.png`), is an image or the tokens of one."""
    return suffix.rpartition(".")[2] in (*IMAGES, "tokens")


def is_member(suffix: str) -> bool:
    """Whether a sample may have a member `KEY.suffix`: its kind is known, and its part has a plain name."""
    part, _, kind = suffix.rpartition(".")
    if not part:
        return kind in TEXTS or is_image(kind)
    return _PART.fullmatch(part) is not None and (is_image(kind) or is_named_caption(suffix))


def is_named_caption(suffix: str) -> bool:
    """Whether a member is text by the name of a caption, such as `caption.txt`."""
    part, _, kind = suffix.rpartition(".")
    return kind == "txt" and part in CAPTION_FIELDS


def image_members(members: Iterable[str], *, tokens: bool = False) -> dict[str, list[str]]:
    """The images of a sample by name (`""` has none), each with its members: the first counts.

    Raw images alone, or with `tokens` also those that are tokenized, which come before them.
    """
    order = {suffix: place for place, suffix in enumerate(("tokens", *IMAGES))}
    found: dict[str, list[str]] = {}
    asked = (s for s in members if is_image(s) and (tokens or not s.endswith("tokens")))
    for suffix in sorted(asked, key=lambda s: order[s.rpartition(".")[2]]):
        found.setdefault(suffix.rpartition(".")[0], []).append(suffix)
    return found


def owners(folder: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """The sample that each name without suffix belongs to, of the suffixes that each name in a folder has.

    `v1.0` is a sample, `0003.source` belongs to `0003` that has a text or JSON, `07.caption` to `07`, and so
    does `07.input`; parts that are numbers need JSON. In a folder of one image, `caption` belongs to it.
    """
    images = {stem for stem, suffixes in folder.items() if any(map(is_image, suffixes))}
    texts = {stem for stem, suffixes in folder.items() if any(s in TEXTS for s in suffixes)}
    found = {stem: stem for stem in folder}
    captions: set[str] = set()  # samples whose caption has a name
    for stem in texts - images:
        parent, _, part = stem.rpartition(".")
        if parent and part.lower() in CAPTION_FIELDS:
            found[stem] = parent
            captions.add(parent)
    for stem in images - texts:
        parent, _, part = stem.rpartition(".")
        named = _PART.fullmatch(part.lower()) is not None and any(map(str.isalpha, part))
        numbered = parent in texts and "json" in folder[parent] and _PART.fullmatch(part.lower()) is not None
        if parent in texts | captions and (named or numbered):
            found[stem] = parent
    if len(images) == 1 and not images & texts:
        (only,) = images
        if found[only] == only and only not in captions:
            found |= {stem: only for stem in texts - images if stem.lower() in CAPTION_FIELDS}
    return found


def split_member(name: str) -> tuple[str, str, str]:
    """Folder (with its `/`), name without suffix, and suffix of a member."""
    folder, slash, base = name.rpartition("/")
    return (folder + slash, *split_name(base))
