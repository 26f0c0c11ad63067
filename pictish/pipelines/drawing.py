"""Prompts to images: how `Pipeline`, the commands and the evaluations generate and edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from pictish.data.tokens import TokenizedImage
from pictish.pipelines.language import Said
from pictish.pipelines.region import Region
from pictish.pipelines.settings import GenerationConfig

if TYPE_CHECKING:
    import torch

    from pictish.pipelines.reconstruct import Reconstructor
    from pictish.pipelines.text_to_image import TextToImage

AfterStep = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True)
class Drawn:
    """A generated image and the tokens that it was decoded from."""

    image: Image.Image
    tokens: TokenizedImage
    kept: bool = False
    """Whether pixels of a source were kept where its tokens did not change."""


def generate(
    drawer: "TextToImage",
    prompts: Sequence[Sequence[Said]],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    shapes: Sequence[tuple[int, int]] | None = None,
    language_progress: AfterStep | None = None,
    decoder_progress: AfterStep | None = None,
) -> list[Drawn]:
    """One image for each prompt and seed, of these `shapes` (height, width) in pixels, square by default.

    Arguments and errors are those of `TextToImage.tokens` and `Reconstructor`.
    """
    tokens = drawer.tokens(
        prompts,
        generators(seeds),
        config,
        shapes=shapes,
        progress=language_progress,
    )
    return render(drawer.reconstructor, tokens, seeds, config, progress=decoder_progress)


def edit(
    drawer: "TextToImage",
    sources: Sequence[Image.Image],
    instructions: Sequence[str],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    keep_unchanged: bool = True,
    region: Region | None = None,
    language_progress: AfterStep | None = None,
    decoder_progress: AfterStep | None = None,
) -> list[Drawn]:
    """Each source changed as its instruction says, in its aspect ratio; with a `region`, inside it alone.

    With `keep_unchanged` pixels stay where the new tokens reconstruct what the source's own do, if the
    decoder was trained for that. Other arguments and errors are those of `generate`.
    """
    tokens = drawer.tokens(
        list(zip(sources, instructions, strict=True)),
        generators(seeds),
        config,
        shapes=[(source.height, source.width) for source in sources],
        regions=None if region is None else [region] * len(sources),
        progress=language_progress,
    )
    kept = sources if keep_unchanged else None
    return render(drawer.reconstructor, tokens, seeds, config, sources=kept, progress=decoder_progress)


def render(
    reconstructor: "Reconstructor",
    tokens: Sequence[TokenizedImage],
    seeds: Sequence[int],
    config: GenerationConfig,
    *,
    sources: Sequence[Image.Image] | None = None,
    progress: AfterStep | None = None,
) -> list[Drawn]:
    """Images of generated tokens; of edits of `sources`, if given, keeping pixels as `edit` does."""
    kept = None if sources is None else reconstructor.kept(sources, tokens)
    images = reconstructor(
        tokens,
        config.size,
        # fresh ones, not where sampling left its own: tokens and seed alone give the image
        generators=generators(seeds),
        drawing=config.drawing,
        generated=True,
        sources=kept,
        progress=progress,
    )
    return [Drawn(image, token, kept is not None) for image, token in zip(images, tokens, strict=True)]


def generators(seeds: Sequence[int]) -> "list[torch.Generator]":
    """A torch generator on the CPU for each seed."""
    import torch

    return [torch.Generator().manual_seed(seed) for seed in seeds]
