"""One shard of tokens under way, whatever its images come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pictish.data.loader import Decoded
from pictish.data.shards import ShardFile
from pictish.data.tokens import TokenizedImage
from pictish.io.files import sha256_file


@dataclass
class Totals:
    """Sums over the images tokenized in this run, and how many were done before."""

    pictures: int = 0
    tokens: int = 0
    bits: float = 0.0
    pixels: int = 0
    before: int = 0

    def add(self, image: TokenizedImage) -> None:
        """Count one image."""
        self.pictures += 1
        self.tokens += len(image)
        self.bits += image.bits
        self.pixels += image.size[0] * image.size[1]

    def summary(self, failures: int, seconds: float) -> str:
        """One line for the end."""
        parts = [f"{self.pictures:,} images tokenized in {seconds:.1f} s"]
        if self.pictures:
            parts.append(f"{self.tokens / self.pictures:.1f} tokens per image")
            parts.append(f"{self.bits / self.pixels:.2g} bits per pixel")
        if self.before:
            parts.append(f"{self.before:,} already done")
        parts.append(f"{failures:,} broken")
        return ", ".join(parts)


@dataclass(frozen=True)
class Part:
    """Which image of which sample one is. A sample has one image, or several with names."""

    key: str  # of the sample
    member: str = "tokens"  # what its tokens are called: `source.tokens` for `source.png`
    last: bool = True  # of its sample
    others: Mapping[str, bytes] = field(default_factory=dict)  # what goes with the sample


@dataclass(frozen=True)
class Sample:
    """A sample whose images have all come: it is in the shard, or there is a `reason` why it is not."""

    key: str
    images: tuple[TokenizedImage, ...]
    reason: str | None = None
    transient: bool = False  # another try may succeed


class Refused(ValueError):
    """What lies in a shard's place must not be replaced."""


class TokenShard:
    """A shard that is there as a whole when the block ends, with equal bytes for equal images.

    `approve` is called with the finished file and its sha256 before it takes its place; its ValueError
    becomes Refused.
    """

    def __init__(self, path: Path, approve: Callable[[Path, str], None]) -> None:
        self.totals, self.sha256 = Totals(), ""
        self._approve = approve
        self._file = ShardFile(path, approve=self._finished)
        self._begin_sample()

    def _begin_sample(self) -> None:
        self._members: dict[str, bytes] = {}
        self._images: list[TokenizedImage] = []
        self._reason: str | None = None
        self._transient = False

    @property
    def samples(self) -> int:
        """How many were written."""
        return self._file.samples

    def __enter__(self) -> "TokenShard":
        self._file.__enter__()
        return self

    def add(self, part: Part, decoded: Decoded, image: TokenizedImage | None) -> Sample | None:
        """Take in one image, None for a broken one; the last one of a sample writes it, or leaves it out.

        Returns the sample then. ValueError for a key that no reader would accept.
        """
        if image is None:
            self._reason = self._reason or decoded.error or "no tokens"
            self._transient = self._transient or decoded.transient
        else:
            self._images.append(image)
            self._members[part.member] = image.to_bytes()
        if not part.last:
            return None
        sample = Sample(part.key, tuple(self._images), self._reason, self._transient)
        if sample.reason is None:
            self._file.write(part.key, {**self._members, **part.others})
            for one in self._images:
                self.totals.add(one)
        self._begin_sample()
        return sample

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def _finished(self, written: Path) -> None:
        self.sha256 = sha256_file(written)
        try:
            self._approve(written, self.sha256)
        except ValueError as error:
            raise Refused(*error.args) from error
