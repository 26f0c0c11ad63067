"""`pictish edit`: a picture and what is to change about it, to a picture."""

from pathlib import Path
from typing import Annotated

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


def run(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to be changed.")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION", help="What to do with it.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("edited"),
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 1,
    seed: Seed = 0,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the words; 1 adds nothing.")] = 2.5,
    image_guidance: Annotated[float, typer.Option(help="How strictly to keep to the picture.")] = 1.5,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    min_tokens: MinTokens = 1,
    max_tokens: MaxTokens = None,
    steps: Steps = None,
    pixel_guidance: PixelGuidance = None,
    scheduler: Scheduler = None,
    keep: Annotated[
        bool, typer.Option(help="Leave the pixels alone where the new tokens tell what the old ones did.")
    ] = True,
    size: Size = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step of the model.")] = 8,
    model: Model = "starter",
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Change IMAGE as INSTRUCTION says: OUT/name-words-of-the-instruction-SEED.png, in the shape of IMAGE."""
    from pictish.lm.autoregressive import Guidance
    from pictish.lm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p)
    source = given_picture(image)
    seeds = range(seed, seed + count)
    names = [f"{slug(image.stem)}-{slug(instruction)}-{number}" for number in seeds]
    check_new(out, names, overwrite)
    from pictish.pipelines.reconstruct import Drawing
    from pictish.pipelines.text_to_image import TextToImage
    from pictish.training.world import resolve_device

    drawer = TextToImage.from_folder(model, resolve_device(device), steps=steps)
    drawing = Drawing(steps, pixel_guidance, scheduler)
    drawer.reconstructor.check(drawing)
    for start in range(0, count, batch_size):
        seeded = generators(seeds[start : start + batch_size])
        tokens = drawer.tokens(
            [[source, instruction]] * len(seeded),
            seeded,
            sampling=sampling,
            guidance=Guidance(text_scale=guidance, image_scale=image_guidance),
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            shapes=[(source.height, source.width)] * len(seeded),
        )
        kept = drawer.reconstructor.kept(source, tokens) if keep else None
        pictures = drawer.reconstructor(tokens, size, generators=seeded, drawing=drawing, sources=kept)
        for name, token, picture in zip(names[start:], tokens, pictures, strict=False):
            store(out, name, picture, token.to_bytes())
            if not quiet:
                print(f"{out / name}.png  {len(token)} tokens")
