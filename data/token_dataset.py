"""Shards as a webdataset pipeline for training loops of your own.

Shuffling, splitting over processes and batching are webdataset's; opening and reading is ours, so that no URL
runs a command (`pipe:`) and nothing is unpickled, whatever `WDS_SECURE` is for the rest of the program. The
trainers of pictish read shards with `pictish.data.mixture`, which can resume at any sample.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pictish.data.images import load_image
from pictish.data.shards import Sample, read_shard
from pictish.data.tokens import TokenizedImage
from pictish.io.files import one_line, printable
from pictish.io.finding import IMAGES, SHARDS
from pictish.io.storage import download, find_shards, is_remote

logger = logging.getLogger(__name__)

Handler = Callable[[Exception], bool]
"""What to do with a shard or a sample that cannot be read: True skips it, False ends the iteration."""


def token_dataset(
    urls: str | Path | Sequence[str | Path],
    *,
    tokenizer: str | None = None,
    shardshuffle: int = 0,
    handler: Handler | None = None,
) -> Any:
    """A `webdataset.DataPipeline` over the samples of shards, with `.shuffle`, `.map`, `.batched` and so on.

    Args:
        urls: shards or folders of shards, local or `s3://`, `gs://`; braces expand, `"shard-{000..009}.tar"`.
        tokenizer: fingerprint that tokens must have, `pipe.tokenizer.fingerprint`; None accepts any.
        shardshuffle: size of the buffer in which shards are shuffled; 0 keeps their order.
        handler: what to do with damaged shards and samples, such as `webdataset.warn_and_continue`; the
            default raises ValueError that names shard and sample.

    Yields dicts of `__key__`, `__url__` and, by suffix, what a sample has: `tokens` a TokenizedImage, images
    (`png`, `jpg` ...) a PIL image (upright RGB), `txt` a string, `json` the parsed object, anything else its
    bytes. Named images keep their name (`source.png`). ValueError when no shard is found.

    Shards are divided among the processes of torch.distributed and the workers of a DataLoader: each needs
    one at least. A shard of an object store is downloaded to TMPDIR while it is read.
    """
    import webdataset

    dataset = webdataset.FluidWrapper([{"url": url} for url in _shards(urls)])
    # The pipeline calls a stage with what the one before gave; those of webdataset need no wrapper.
    dataset = dataset.compose(webdataset.split_by_node, webdataset.split_by_worker, _some)
    if shardshuffle:
        dataset = dataset.shuffle(shardshuffle)
    handler = handler or webdataset.reraise_exception
    reader = webdataset.pipelinefilter(_samples)
    return dataset.compose(reader(handler)).map(_Decode(tokenizer), handler=handler)


def _shards(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """All shards, in the order given, those of a folder by name."""
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for given in [urls] if isinstance(urls, str | Path) else urls:
        for place in expand_urls(str(given)):
            shards, beside = find_shards([place])
            for name, reason in beside.problems:
                logger.warning("%s: %s", printable(name), printable(reason))
            if not shards:
                raise ValueError(f"{printable(place)}: no shards found; looked for {' '.join(SHARDS)}")
            found += sorted(shard.place for shard in shards)
    if not found:
        raise ValueError("no shards found: urls is empty")
    return found


def _some(shards: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The shards of this worker; a loop that waits for one without any would hang or lose its part."""
    empty = True
    for shard in shards:
        empty = False
        yield shard
    if empty:
        raise ValueError(
            "a worker has no shards: use at most as many processes x workers as there are shards"
        )


def _samples(shards: Iterable[dict[str, str]], handler: Handler) -> Iterator[Sample]:
    for shard in shards:
        try:
            yield from _read(shard["url"])
        except (ValueError, OSError) as error:
            if not handler(error):
                return


def _read(url: str) -> Iterator[Sample]:
    if not is_remote(url):
        path = Path(url)
        yield from ({**sample, "__url__": url} for sample in read_shard(path))
        return
    with tempfile.TemporaryDirectory(prefix="pictish-") as folder:
        path = Path(folder, url.rpartition("/")[2])
        download(url, path)
        yield from ({**sample, "__url__": url} for sample in read_shard(path))


class _Decode:
    """Members of a sample from their bytes; a class, since workers of a DataLoader may pickle the dataset."""

    def __init__(self, tokenizer: str | None) -> None:
        self.tokenizer = tokenizer

    def __call__(self, sample: Sample) -> Sample:
        try:
            return {name: self._member(name, value) for name, value in sample.items()}
        except (ValueError, RecursionError) as error:
            name = f"{printable(sample['__url__'])}: {printable(sample['__key__'])}"
            raise ValueError(f"{name}: {one_line(error)}") from error

    def _member(self, name: str, value: Any) -> Any:
        match name.rpartition(".")[2]:
            case "tokens":
                return TokenizedImage.from_bytes(value, self.tokenizer)
            case suffix if suffix in IMAGES:
                return load_image(value)
            case "txt":
                return value.decode("utf-8")
            case "json":
                return json.loads(value)
        return value  # __key__, __url__
