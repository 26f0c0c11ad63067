"""The work of `pictish detokenize`: token files and shards of tokens to image files."""

import functools
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from pictish.data.shards import find_shards, name_of, read_shard
from pictish.data.token_folder import SUFFIX, Entry, Header, OutputFolder, find_tokens
from pictish.data.tokens import LARGEST, TokenizedImage
from pictish.io.files import one_line, printable, read_regular_file
from pictish.io.finding import Found, find, shard_suffix
from pictish.io.interrupt import in_units, stop_here
from pictish.io.report import Report, Writer
from pictish.pipelines.drawing import generators
from pictish.pipelines.reconstruct import Reconstructor
from pictish.pipelines.settings import Drawing
from pictish.training.runtime import resolve_device

ENCODING: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 92}),
    "webp": ("WEBP", {"quality": 90}),
}


def run(
    inputs: Sequence[Path],
    out: Path,
    model: str,
    drawing: Drawing,
    *,
    format: str,
    seed: int,
    size: int | None,
    lowres: bool,
    batch_size: int,
    device: str,
    overwrite: bool,
    strict: bool,
    quiet: bool,
) -> int:
    """Reconstruct the images of all tokens in `inputs`; returns the number of failures.

    `format` is one of ENCODING. ValueError where nothing can be done, as for tokens of another tokenizer.
    """
    sources, found = find_sources(inputs, f".{format}")
    steps = drawing.steps
    reconstructor = Reconstructor.from_folder(model, resolve_device(device), steps=steps, lowres=lowres)
    reconstructor.settled(drawing)  # refused before anything is written
    tokenizer = reconstructor.tokenizer
    refuse_others(sources, tokenizer.fingerprint)
    settings: dict[str, Any] = {
        "decoder": reconstructor.fingerprint,
        "format": format,
        "size": size or reconstructor.usual_size(drawing),
    }
    if reconstructor.decoder is not None:
        settings |= {"steps": steps, "guidance": drawing.guidance, "scheduler": drawing.scheduler}
        settings |= {"seed": seed}
    if (factor := reconstructor.factor(drawing)) > 1:
        settings |= {"upscale": factor, "upscaler": reconstructor.upscaler_of(drawing)}
    header = Header("pictures", tokenizer.fingerprint, tokenizer.codebook_size, settings)
    outputs = [name for source in sources for name in source.outputs if name not in source.meeting]
    with (
        Report("detokenizing", len(outputs), quiet=quiet, strict=strict) as report,
        OutputFolder(out, header, outputs, overwrite) as output,
    ):
        report.tell(found)
        work = Work(reconstructor, drawing, seed, size, format, batch_size, output, report)
        drawn, before = work.run(sources)
        output.finish()
    if not quiet:
        parts = [f"{drawn:,} images reconstructed in {report.seconds:.1f} s", f"{report.failures:,} failed"]
        print(", ".join([parts[0], *([f"{before:,} already done"] if before else []), parts[1]]))
    return report.failures


@dataclass(frozen=True)
class Source:
    """A token file, or a shard of many: where it lies and the images it gives."""

    path: Path
    name: str
    outputs: list[str]
    damage: str | None = None  # of a shard: what follows `outputs` cannot be read
    meeting: frozenset[str] = frozenset()  # outputs that two would give, and neither does

    def read(self) -> Iterator[tuple[str, str, bytes | Exception]]:
        """Name, output and bytes, or why there are none, of each of its images."""
        if shard_suffix(self.path.name) is None:
            blob: bytes | Exception
            try:
                blob = read_regular_file(self.path, LARGEST)
            except OSError as error:
                blob = ValueError(error.strerror or "cannot be read")
            except ValueError as error:
                blob = error
            yield self.name, self.outputs[0], blob
            return
        for output, sample in zip(self.outputs, read_shard(self.path), strict=False):
            missing = ValueError("holds no tokens")
            yield f"{self.name}/{sample['__key__']}", output, sample.get("tokens", missing)


def find_sources(inputs: Sequence[Path], suffix: str) -> tuple[list[Source], Found]:
    """Everything to be read, in order, and what cannot be; ValueError when there is nothing.

    Two that would give one image are not drawn, and named.
    """
    shards = [entry for entry in inputs if _is_shards(entry)]
    others = [entry for entry in inputs if entry not in shards]
    sources, found = [], Found()
    for file in find_tokens(others, found) if others else []:
        sources.append(Source(file.path, file.name, [file.name.removesuffix(SUFFIX) + suffix]))
    for path in find_shards(shards, found) if shards else []:
        outputs: list[str] = []
        damage = None
        try:
            for sample in read_shard(path):
                outputs.append(name_of(sample["__key__"]) + suffix)
        except ValueError as error:
            damage = one_line(error).removeprefix(f"{path.name}: ")
        sources.append(Source(path, path.name, outputs, damage))
    givers: dict[str, list[Source]] = {}
    for source in sources:
        for output in source.outputs:
            givers.setdefault(output, []).append(source)
    meeting = {output: those for output, those in givers.items() if len(those) > 1}
    problems = [
        (
            " and ".join(str(one.path) for one in those),
            f"would both be written to {output}; give them in separate runs",
        )
        for output, those in meeting.items()
    ]
    if len(meeting) == len(givers) and problems:
        raise ValueError("; ".join(f"{printable(names)}: {printable(why)}" for names, why in problems))
    found.problems += problems
    return [replace(source, meeting=frozenset(meeting)) for source in sources], found


def refuse_others(sources: Sequence[Source], fingerprint: str) -> None:
    """ValueError when the first tokens that can be read are of another tokenizer than `fingerprint`."""
    for name, _, blob in itertools.chain.from_iterable(map(_readable, sources)):
        try:
            found = TokenizedImage.from_bytes(blob).tokenizer if isinstance(blob, bytes) else fingerprint
        except ValueError:
            continue
        if found != fingerprint:
            raise ValueError(
                f"{printable(name)}: written by tokenizer {found}, but this model has {fingerprint}; "
                "set --model to the model that wrote the tokens"
            )
        if isinstance(blob, bytes):
            return


@dataclass(frozen=True)
class Work:
    """What images are made with, and where they go."""

    reconstructor: Reconstructor
    drawing: Drawing
    seed: int
    size: int | None
    format: str
    batch_size: int
    output: OutputFolder
    report: Report

    def run(self, sources: Iterable[Source]) -> tuple[int, int]:
        """Make all images; how many were made, and how many were done before."""
        before = 0
        drawn = 0
        batch: list[tuple[str, str, str, TokenizedImage]] = []
        with Writer(self.report) as writer, in_units("batch"):
            for source in sources:
                for name, output, blob in _readable(source):
                    stop_here(
                        "interrupted; finished images are kept, and the same command resumes from there"
                    )
                    token = self._token(name, blob)
                    if token is None:
                        continue
                    assert isinstance(blob, bytes)
                    sha256 = hashlib.sha256(blob).hexdigest()
                    entry = self.output.finished(output)
                    if entry is not None and entry.source_sha256 == sha256:
                        before += 1
                        self.report.done()
                        continue
                    batch.append((name, output, sha256, token))
                    if len(batch) == self.batch_size:
                        drawn += self._draw(batch, writer)
                        batch = []
                if source.damage is not None:
                    self.report.failed(source.name, source.damage)
            drawn += self._draw(batch, writer)
        return drawn, before

    def _token(self, name: str, blob: bytes | Exception) -> TokenizedImage | None:
        """The tokens, or None when they are damaged or another tokenizer's, which is reported."""
        try:
            if isinstance(blob, Exception):
                raise blob
            token = TokenizedImage.from_bytes(blob, expect_tokenizer=self.reconstructor.tokenizer.fingerprint)
            self.reconstructor.tokenizer.check(token)
        except ValueError as error:
            self.report.failed(name, one_line(error))
            return None
        return token

    def _draw(self, batch: list[tuple[str, str, str, TokenizedImage]], writer: Writer) -> int:
        images = self.reconstructor(
            [token for *_, token in batch],
            size=self.size,
            # the same seed for each: an image does not depend on its place in the folder
            generators=generators([self.seed] * len(batch)),
            drawing=self.drawing,
        )
        for (name, output, sha256, token), image in zip(batch, images, strict=True):
            writer.put(name, functools.partial(self._store, name, output, sha256, len(token), image))
        return len(batch)

    def _store(self, name: str, output: str, source: str, tokens: int, image: Image.Image) -> None:
        kind, options = ENCODING[self.format]
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        blob = buffer.getvalue()
        self.output.store(output, blob, Entry(name, source, hashlib.sha256(blob).hexdigest(), tokens))


def _readable(source: Source) -> Iterator[tuple[str, str, bytes | Exception]]:
    """What a source gives before its damage, if it has any, and what nothing else would give too."""
    for name, output, blob in itertools.islice(source.read(), len(source.outputs)):
        if output not in source.meeting:
            yield name, output, blob


def _is_shards(entry: Path) -> bool:
    """A shard, or a folder with shards and no token files."""
    if not entry.is_dir():
        return shard_suffix(entry.name) is not None
    found = find([entry])
    return bool(found.shards) and not any(name.endswith(".tokens") for name in found.others)
