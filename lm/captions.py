"""The captions that a language model was trained to draw: `captions.json` in its folder.

    {"format": "pictish-captions", "version": 1, "captions": ["a dog", "grinning cat", ...]}

They serve to say that a prompt is unlike anything in the training data. Of captions with the same content
words ("a red apple", "please draw a red apple") one is kept. The file is not part of the model's fingerprint.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pictish.data.words import content_words
from pictish.io.files import one_line, read_regular_file, shown

if TYPE_CHECKING:
    from pictish.data.mixture import Source

CAPTIONS = "captions.json"
FORMAT, FORMAT_VERSION = "pictish-captions", 1
MOST = 8_000  # captions in a file
LONGEST = 200  # letters of a caption
MOST_BYTES = 1 << 22
SAMPLES = 200_000  # of a source that are read, at most


def known_captions(sources: "Iterable[Source]", seed: int = 0, cache: Path | None = None) -> list[str]:
    """At most `MOST` captions of the pairs in `sources`, unique and sorted.

    Of each source at most `SAMPLES` samples are read, without decoding an image; damaged samples are passed
    over, for training reports them. ValueError for a source without samples. `cache`: as for a Mixture.
    """
    from pictish.data.mixture import Mixture
    from pictish.data.samples import Pair

    ranks: dict[str, int] = {}  # of a caption in the list of a sample; its first is the plainest
    for source in sources:
        mixture = Mixture([source], seed, cache=cache)
        for drawn in islice(mixture, min(SAMPLES, sum(mixture.sizes.values()))):
            if isinstance(drawn.sample, Pair):
                for rank, caption in enumerate(drawn.sample.captions):
                    text = " ".join(caption.split())
                    ranks[text] = min(rank, ranks.get(text, rank))
    return select(sorted(ranks, key=lambda text: (ranks[text], len(text), text)))


def select(captions: Iterable[str]) -> list[str]:
    """Those of `captions`, the most telling first, that a file keeps: sorted.

    One for each set of content words; of more than `MOST` those that bring a new word come first. Joiners and
    other characters that no terminal should print are left out of them.
    """
    seen: set[frozenset[str]] = set()
    words: set[str] = set()
    news: list[str] = []
    others: list[str] = []
    for given in captions:
        caption = "".join(filter(str.isprintable, given))
        content = frozenset(content_words(caption))
        if content and content not in seen and len(caption) <= LONGEST:
            seen.add(content)
            (others if content <= words else news).append(caption)
            words |= content
    return sorted((news + others)[:MOST])


def to_bytes(captions: Iterable[str]) -> bytes:
    """The bytes of a captions.json."""
    value = {"format": FORMAT, "version": FORMAT_VERSION, "captions": sorted(set(captions))}
    return f"{json.dumps(value, ensure_ascii=False, indent=0)}\n".encode()


def read_captions(path: Path) -> list[str]:
    """The captions in a file, sorted; none when there is no file. ValueError for any other content."""
    if not path.exists():
        return []
    try:
        value = json.loads(read_regular_file(path, MOST_BYTES).decode("utf-8"))
        if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (
            FORMAT,
            FORMAT_VERSION,
        ):
            raise ValueError(f"it is not {FORMAT} of version {FORMAT_VERSION}")
        captions = value.get("captions")
        if not isinstance(captions, list) or len(captions) > MOST:
            raise ValueError(f"captions is no list of at most {MOST:,} texts")
        for caption in captions:
            if not (isinstance(caption, str) and 0 < len(caption) <= LONGEST and caption.isprintable()):
                raise ValueError(f"a caption is 1 to {LONGEST} printable letters, came {shown(caption)}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, or no captions of a model: {one_line(error)}") from None
    return sorted(set(captions))
