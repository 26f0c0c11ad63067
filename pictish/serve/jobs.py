"""What the engine is asked to do, and the thread-safe link from its thread to a request's event loop."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.language import Said
from pictish.pipelines.progress import Cancelled
from pictish.pipelines.settings import GenerationConfig

if TYPE_CHECKING:
    from pictish.lm.sampling import Sampling


@dataclass(frozen=True, eq=False)
class Draw:
    """One image of what is said; of an edit, `source` is the image in it that is changed."""

    said: tuple[Said, ...]
    seed: int
    config: GenerationConfig
    shape: tuple[int, int] | None = None  # height, width whose ratio the image has; None: square
    source: Image.Image | None = None
    mask: Image.Image | None = None  # mode L, white where the source may change; None: everywhere
    previews: int = 0
    adaptor: str | None = None  # name of the one that the language model is read through


@dataclass(frozen=True, eq=False)
class Write:
    """A text about an image: a caption, or the answer to `question`."""

    image: Image.Image
    question: str | None
    max_new_tokens: int | None
    sampling: "Sampling | None"  # None: the model's own way
    seed: int = 0
    adaptor: str | None = None


@dataclass(frozen=True, eq=False)
class Compute:
    """Something short that needs the model, done between two steps."""

    function: Callable[[], Any]


Work = Draw | Write | Compute


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn image, the tokens it was decoded from, and how many tokens were read for it."""

    image: Image.Image
    tokens: TokenizedImage
    prompt_tokens: int = 0
    kept: bool = False
    """Whether pixels of a source were kept where its tokens did not change."""


@dataclass(frozen=True)
class Text:
    """A whole text; `cut` when its limit ended it."""

    text: str
    prompt_tokens: int
    new_tokens: int
    cut: bool = False


@dataclass(frozen=True)
class Started:
    """Work has begun: what could be refused has not been."""


@dataclass(frozen=True, eq=False)
class Preview:
    """What of an image has been drawn so far."""

    image: Image.Image
    number: int


@dataclass(frozen=True)
class Piece:
    """More of a text."""

    text: str


@dataclass(frozen=True, eq=False)
class Failed:
    """The work ended without a result."""

    error: Exception


Result = Picture | Text | Failed
Event = Any  # Started, Preview, Piece, then a Result, or whatever a Compute returns


@dataclass(eq=False)
class Job:
    """Work under way. `cancel` may be called from any thread; the rest is for the engine's."""

    work: Work
    place: int  # among the jobs of its request
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[tuple[Job, Event, bool]]"  # of all jobs of its request; True: the last of this one
    cancelled: bool = False

    def cancel(self) -> None:
        """Have it dropped at the next step; one that is done stays so."""
        self.cancelled = True

    def send(self, event: Event, *, last: bool = False) -> None:
        """Something on the way to the result, or the result."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, (self, event, last))
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancelled = True

    def finish(self, result: Event) -> None:
        """The result."""
        self.send(result, last=True)

    def fail(self, error: Exception) -> None:
        """The end without one."""
        self.finish(Failed(error))


def while_awaited(jobs: Sequence[Job]) -> Callable[[int, int], None]:
    """A callback of a long computation, which raises `Cancelled` when nobody waits for any of these."""

    def check(done: int, of: int) -> None:
        if all(job.cancelled for job in jobs):
            raise Cancelled("nobody waits for this")

    return check
