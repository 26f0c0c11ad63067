"""`pictish generate`: words, or words and pictures, to pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pictish.commands.draw import (
    Device,
    MaxTokens,
    MinP,
    MinTokens,
    Model,
    Overwrite,
    PixelGuidance,
    Quiet,
    Scheduler,
    Seed,
    Size,
    Steps,
    Temperature,
    TopK,
    TopP,
    check_new,
    generators,
    given_picture,
    slug,
    store,
)

if TYPE_CHECKING:
    from pictish.pipelines.language import Said


def run(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT...", help="What to draw; one picture each. With --image it may be left away."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture that goes before the words; may be given again.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures a prompt.")] = 1,
    seed: Seed = 0,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the words; 1 adds nothing.")] = 2.5,
    image_guidance: Annotated[float, typer.Option(help="The same for the pictures given.")] = 1.5,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    min_tokens: MinTokens = 1,
    max_tokens: MaxTokens = None,
    steps: Steps = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    size: Size = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")] = 8,
    model: Model = "starter",
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw what each PROMPT says: OUT/words-of-the-prompt-SEED.png, and its tokens beside it.

    The same prompt, seed and model give the same picture on the same machine.
    """
    from pictish.lm.autoregressive import Guidance
    from pictish.lm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    given = [given_picture(path) for path in image or []]
    if not (prompts or given):
        raise ValueError("nothing to draw: give a PROMPT, an --image, or both")
    said: list[list[Said]] = [[*given, prompt] for prompt in prompts] if prompts else [[*given]]
    titles = prompts or [" ".join(path.stem for path in image or [])]
    jobs = [(words, seed + number) for words in said for number in range(count)]
    names = [f"{slug(title)}-{seed + number}" for title in titles for number in range(count)]
    check_new(out, names, overwrite)
    from pictish.pipelines.reconstruct import Drawing
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.training.world import resolve_device

    drawer = TextToImage.from_folder(model, resolve_device(device), steps=steps)
    drawing = Drawing(steps, pixel_guidance, scheduler)
    drawer.reconstructor.check(drawing)
    guide = Guidance(text_scale=guidance, image_scale=image_guidance)
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        seeded = generators([number for _, number in part])
        tokens = drawer.tokens(
            [words for words, _ in part],
            seeded,
            sampling=sampling,
            guidance=guide,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
        )
        # the noise goes on where the tokens' draws ended: one seed, one picture
        pictures = drawer.reconstructor(tokens, size, generators=seeded, drawing=drawing)
        for name, token, picture in zip(names[start:], tokens, pictures, strict=False):
            store(out, name, picture, token.to_bytes())
            if not quiet:
                print(f"{out / name}.png  {len(token)} tokens")
