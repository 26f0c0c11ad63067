"""`pictish detokenize`: tokens back to pictures."""

import enum
import errno
import functools
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pictish.commands.options import LowRes, PixelGuidance, Scheduler, Size, Steps, Upscale

if TYPE_CHECKING:
    from PIL import Image

    from pictish.data.token_folder import OutputFolder
    from pictish.data.tokens import TokenizedImage
    from pictish.io.report import Report
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.settings import Drawing


class Format(enum.StrEnum):
    """Kind of the pictures written."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


ENCODING: dict[Format, tuple[str, dict[str, Any]]] = {
    Format.png: ("PNG", {}),
    Format.jpg: ("JPEG", {"quality": 92}),
    Format.webp: ("WEBP", {"quality": 90}),
}


def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="TOKENS...", help="Token folders, token files, or token shards.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the pictures.")],
    *,
    model: Annotated[str, typer.Option(help="Model folder, or `starter`.")] = "starter",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    size: Size = None,
    format: Annotated[Format, typer.Option(help="Kind of the pictures.")] = Format.png,
    steps: Steps = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    lowres: LowRes = False,
    upscale: Upscale = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that each picture starts from.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures that are there.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first damaged token file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Turn tokens back into pictures: OUT/sub/name.png for TOKENS/sub/name.tokens, in the original's shape.

    Run again, it goes on where it stopped. Damaged tokens are named and left out, the exit code is then 1.
    """
    from pictish.data.token_folder import Header, OutputFolder
    from pictish.io.report import Report
    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.settings import Drawing
    from pictish.training.world import resolve_device

    sources = find_sources(inputs, f".{format.value}")
    where = resolve_device(device)
    reconstructor = Reconstructor.from_folder(model, where, steps=steps, lowres=lowres)
    drawing = Drawing(steps, pixel_guidance, scheduler, upscale)
    reconstructor.settled(drawing)  # refused before anything is written
    tokenizer = reconstructor.tokenizer
    refuse_others(sources, tokenizer.fingerprint)
    settings: dict[str, Any] = {
        "decoder": reconstructor.fingerprint,
        "format": format.value,
        "size": size or reconstructor.usual_size(drawing),
    }
    if reconstructor.decoder is not None:
        settings |= {"steps": steps, "guidance": pixel_guidance, "scheduler": scheduler, "seed": seed}
    if (factor := reconstructor.factor(drawing)) > 1:
        settings |= {"upscale": factor, "upscaler": reconstructor.upscaler_of(drawing)}
    header = Header("pictures", tokenizer.fingerprint, tokenizer.codebook_size, settings)
    outputs = [name for source in sources for name in source.outputs]
    with (
        Report("detokenizing", len(outputs), quiet=quiet, strict=strict) as report,
        OutputFolder(out, header, outputs, overwrite) as output,
    ):
        work = Work(reconstructor, drawing, seed, size, format, batch_size, output, report)
        drawn, before = work.run(sources)
        output.finish()
    if not quiet:
        parts = [f"{drawn:,} pictures made in {report.seconds:.1f} s", f"{report.failures:,} broken"]
        print(", ".join([parts[0], *([f"{before:,} were done before"] if before else []), parts[1]]))
    if report.failures:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Source:
    """A token file, or a shard of many: where it lies and the pictures it gives."""

    path: Path
    name: str
    outputs: list[str]
    damage: str | None = None  # of a shard: what follows `outputs` cannot be read

    def read(self) -> "Iterator[tuple[str, str, bytes | Exception]]":
        """Name, output and bytes, or why there are none, of each of its pictures."""
        from pictish.data.shards import read_shard
        from pictish.data.tokens import LARGEST
        from pictish.io.files import read_regular_file

        if self.path.suffix != ".tar":
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


def find_sources(inputs: Sequence[Path], suffix: str) -> list[Source]:
    """Everything to be read, in order; ValueError when there is nothing, or two would give one picture."""
    from pictish.data.shards import find_shards, name_of, read_shard
    from pictish.data.token_folder import SUFFIX, find_tokens
    from pictish.io.files import one_line, printable
    from pictish.io.storage import holds_shards

    def holds_tokens(folder: Path) -> bool:
        return next(folder.rglob(f"*{SUFFIX}"), None) is not None

    shards = [entry for entry in inputs if holds_shards(entry, unless=holds_tokens)]
    others = [entry for entry in inputs if entry not in shards]
    sources = []
    for file in find_tokens(others) if others else []:
        sources.append(Source(file.path, file.name, [file.name.removesuffix(SUFFIX) + suffix]))
    for path in find_shards(shards) if shards else []:
        outputs: list[str] = []
        damage = None
        try:
            for sample in read_shard(path):
                outputs.append(name_of(sample["__key__"]) + suffix)
        except ValueError as error:
            damage = one_line(error).removeprefix(f"{path.name}: ")
        sources.append(Source(path, path.name, outputs, damage))
    taken: dict[str, Source] = {}
    for source in sources:
        for output in source.outputs:
            if output in taken:
                first, second = printable(taken[output].path), printable(source.path)
                raise ValueError(f"{first} and {second} would both give {printable(output)}; give them apart")
            taken[output] = source
    return sources


def refuse_others(sources: Sequence[Source], fingerprint: str) -> None:
    """ValueError when the first tokens that can be read are of another tokenizer than `fingerprint`."""
    from pictish.data.tokens import TokenizedImage
    from pictish.io.files import printable

    for name, _, blob in itertools.chain.from_iterable(map(_readable, sources)):
        try:
            found = TokenizedImage.from_bytes(blob).tokenizer if isinstance(blob, bytes) else fingerprint
        except ValueError:
            continue
        if found != fingerprint:
            raise ValueError(
                f"{printable(name)}: tokens of tokenizer {found}, this model has {fingerprint}; "
                "give --model the folder that wrote them"
            )
        if isinstance(blob, bytes):
            return


@dataclass(frozen=True)
class Work:
    """What pictures are made with, and where they go."""

    reconstructor: "Reconstructor"
    drawing: "Drawing"
    seed: int
    size: int | None
    format: Format
    batch_size: int
    output: "OutputFolder"
    report: "Report"

    def run(self, sources: Iterable[Source]) -> tuple[int, int]:
        """Make all pictures; how many were made, and how many were done before."""
        from pictish.io.interrupt import in_units, stop_here
        from pictish.io.report import Writer

        before = 0
        drawn = 0
        batch: list[tuple[str, str, str, TokenizedImage]] = []
        with Writer(self.report) as writer, in_units("batch"):
            for source in sources:
                for name, output, blob in _readable(source):
                    stop_here("interrupted; what was drawn is kept, and the same command goes on from there")
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

    def _token(self, name: str, blob: bytes | Exception) -> "TokenizedImage | None":
        """The tokens, or None when they are damaged or another tokenizer's, which is reported."""
        from pictish.data.tokens import TokenizedImage
        from pictish.io.files import one_line

        try:
            if isinstance(blob, Exception):
                raise blob
            token = TokenizedImage.from_bytes(blob, expect_tokenizer=self.reconstructor.tokenizer.fingerprint)
            self.reconstructor.tokenizer.check(token)
        except ValueError as error:
            self.report.failed(name, one_line(error))
            return None
        return token

    def _draw(self, batch: "list[tuple[str, str, str, TokenizedImage]]", writer: Any) -> int:
        from pictish.pipelines.drawing import generators

        images = self.reconstructor(
            [token for *_, token in batch],
            size=self.size,
            # the same seed for each: a picture does not depend on its place in the folder
            generators=generators([self.seed] * len(batch)),
            drawing=self.drawing,
        )
        for (name, output, sha256, token), image in zip(batch, images, strict=True):
            writer.put(name, functools.partial(self._store, name, output, sha256, len(token), image))
        return len(batch)

    def _store(self, name: str, output: str, source: str, tokens: int, image: "Image.Image") -> None:
        from pictish.data.token_folder import Entry

        kind, options = ENCODING[self.format]
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        blob = buffer.getvalue()
        try:
            self.output.store(output, blob, Entry(name, source, hashlib.sha256(blob).hexdigest(), tokens))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ValueError("a name too long for this file system") from error


def _readable(source: Source) -> "Iterator[tuple[str, str, bytes | Exception]]":
    """What a source gives before its damage, if it has any."""
    yield from itertools.islice(source.read(), len(source.outputs))
