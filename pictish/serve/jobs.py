"""What the engine is asked to do, and the thread-safe link between a request and its work."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.language import Said
from pictish.pipelines.settings import GenerationConfig

if TYPE_CHECKING:
    from pictish.lm.sampling import Sampling


@dataclass(frozen=True, eq=False)
class Draw:
    """One picture of what is said; of an edit `source` is the picture in it that is changed."""

    said: tuple[Said, ...]
    seed: int
    config: GenerationConfig
    shape: tuple[int, int] | None = None  # height, width whose ratio the picture has; None: square
    source: Image.Image | None = None
    mask: Image.Image | None = None  # mode L, of the size of the source: 255 where it may change
    previews: int = 0


@dataclass(frozen=True, eq=False)
class Write:
    """A text about a picture: a caption, or the answer to `question`."""

    image: Image.Image
    question: str | None
    max_new_tokens: int | None
    sampling: "Sampling | None"  # None: the model's own way
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Compute:
    """Something short that needs the model, done between two steps."""

    function: Callable[[], Any]


Work = Draw | Write | Compute


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture, its tokens, and how many tokens were read for it."""

    image: Image.Image
    tokens: TokenizedImage
    prompt_tokens: int
    kept: bool = False


@dataclass(frozen=True, eq=False)
class Preview:
    """What of a picture has been drawn so far."""

    image: Image.Image
    number: int


@dataclass(frozen=True)
class Piece:
    """More of a text."""

    text: str


@dataclass(frozen=True)
class Text:
    """A whole text; `cut`: it was ended by its limit."""

    text: str
    prompt_tokens: int
    new_tokens: int
    cut: bool = False


_numbers = itertools.count()


@dataclass(eq=False)
class Job:
    """Work under way: the engine sends events, the request reads them, and may cancel."""

    work: Work
    loop: asyncio.AbstractEventLoop
    number: int = field(default_factory=lambda: next(_numbers))
    cancelled: bool = False
    _events: "asyncio.Queue[tuple[str, Any]]" = field(default_factory=asyncio.Queue)

    def cancel(self) -> None:
        """Have it dropped at the next step; a job that is done stays so."""
        self.cancelled = True

    async def events(self) -> AsyncIterator[Any]:
        """Previews or pieces, then the result; raises what the work raised."""
        while True:
            kind, value = await self._events.get()
            if kind == "error":
                raise value
            yield value
            if kind == "result":
                return

    async def result(self) -> Any:
        """The result alone."""
        last = None
        async for last in self.events():
            pass
        return last

    # ---- the engine's side, in its own thread

    def send(self, value: Any) -> None:
        """Something on the way to the result."""
        self._put("event", value)

    def finish(self, value: Any) -> None:
        """The result."""
        self._put("result", value)

    def fail(self, error: BaseException) -> None:
        """The end without one."""
        self._put("error", error)

    def _put(self, kind: str, value: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancelled = True
