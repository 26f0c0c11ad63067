"""What comes of a training: samples drawn, a model card written."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pictish.data.collect import TASKS
from pictish.data.images import load_image, png_bytes
from pictish.evaluation.drawing import SheetRow, contact_sheet
from pictish.io.files import printable, write_atomic
from pictish.io.finding import counted
from pictish.pipelines.assemble import parts_of
from pictish.pipelines.pipeline import Pipeline
from pictish.recipes.own.config import OwnConfig
from pictish.recipes.own.evaluation import held_out

SAMPLES, CARD = "samples.png", "README.md"


def draw_samples(config: OwnConfig, out: Path, pipe: Pipeline) -> None:
    """Held-out images beside their reconstruction and what their captions give; OUT/samples.png."""
    chosen = list(islice(held_out(out), config.samples))
    originals = [load_image(each.blob) for each in chosen]
    captions = [each.captions[0] for each in chosen]
    back = pipe.detokenize(pipe.tokenize(originals), upscale=1)
    drawn = [pipe.generate(captions, seed=seed, batch_size=len(captions)) for seed in (0, 1)]
    rows = []
    for place, caption in enumerate(captions):
        tiles = [(originals[place], ""), (back[place], "")]
        tiles += [(each[place], f"seed {seed}") for seed, each in enumerate(drawn)]
        rows.append(SheetRow("", printable(caption), (1, 1), tiles))
    columns = ["held-out image", "from its codes", "from its caption", "again"]
    subtitle = "images that were not trained on, and what the model makes of their codes and captions"
    write_atomic(out / SAMPLES, png_bytes(contact_sheet("Samples", subtitle, columns, rows)))


def write_card(config: OwnConfig, out: Path, manifest: dict[str, Any], numbers: dict[str, Any]) -> None:
    """OUT/README.md: what was trained on what, what was measured, how to use it, what is not known."""
    parts = parts_of(out)
    sizes = [f"| {name} | {part.fingerprint} | {part.weights / 1e6:.2f} |" for name, part in parts.items()]
    sources = manifest["sources"]
    samples = ", ".join(f"{name} {count:,}" for name, count in manifest["samples"].items())
    initial = config.tokenizer.initial
    text = f"""# {printable(out.resolve().name)}

A pictish model of {sum(source["pictures"] for source in sources):,} images, size `{config.size}`.

    pictish generate "{_example(out)}" --model {printable(out)}

![Held-out images, their reconstructions, and images generated from their captions]({SAMPLES})

| part | fingerprint | million weights |
|---|---|---|
{chr(10).join(sizes)}

## Data

{_lines_of(sources)}
Samples: {samples}. Held out: {manifest["validation"]}.

## Evaluation

{_measured(numbers)}
## Training

Settings: `train.yaml`; losses: `runs/*/metrics.jsonl`. Started from: {initial or "random weights"}.

## Limits

The model knows what its pictures show and no more. The licence of the weights follows from that of the
pictures, which this card does not know.
"""
    write_atomic(out / CARD, text.encode("utf-8"))


def _example(out: Path) -> str:
    """A held-out caption, for a command line."""
    caption = next((each.captions[0] for each in held_out(out)), "an image")
    return printable(caption).replace('"', "'")[:80]


def _measured(numbers: Mapping[str, Any]) -> str:
    """The evaluation as Markdown; intervals are of 95 %."""
    loss, said, answers = (numbers[name] for name in ("language_model_loss", "captions", "answers"))
    judged = numbers["words_to_pictures"]
    hits = list(judged["chance"])
    lines = [
        f"| on {numbers['held_out_pictures']:,} held-out images of {numbers['side']} pixels | |",
        "|---|---|",
        f"| codes per image | {numbers['codes_a_picture']:.1f} |",
        f"| PSNR of the decoder | {numbers['psnr_decoder']:.2f} dB |",
        f"| PSNR of the tokenizer's own reconstruction | {numbers['psnr_preview']:.2f} dB |",
        f"| loss of the language model a token | {'not measured' if loss is None else f'{loss:.3f}'} |",
        f"| captions that are exactly the image's | {_percent(said['exact'])} |",
        f"| F1 of their words with the image's caption | {_percent(said['token_f1'])} |",
    ]
    if (other := said["token_f1_with_another_picture"]) is not None:
        lines.append(f"| with another image's caption | {100 * other:.1f} % |")
    if answers is not None:
        lines.append(f"| right answers to {answers['asked']:,} questions | {_percent(answers['right'])} |")
    lines += [
        "",
        f"| text to image, among {judged['candidates']:,} held-out images | {' | '.join(hits)} |",
        "|---" * (1 + len(hits)) + "|",
    ]
    for name, called in (("drawn", "drawn from captions"), ("reconstructed", "reconstructed, as a ceiling")):
        lines.append(f"| {called} | {' | '.join(_percent(judged[name][hit]) for hit in hits)} |")
    chance = " | ".join(f"{100 * judged['chance'][hit]:.1f} %" for hit in hits)
    lines += [
        f"| by chance | {chance} |",
        "",
        "An image drawn from a caption hits where the held-out image with that caption is among the",
        f"nearest ones, by features of {judged['judge']}.",
    ]
    return "\n".join(lines) + "\n"


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _lines_of(sources: Sequence[dict[str, Any]]) -> str:
    lines = []
    for source in sources:
        left_out = sum(reason["count"] for reason in source["left_out"].values())
        said = ", ".join(f"`{place}`" for place in source["captions_from"]) or "nowhere"
        lines.append(
            f"- `{printable(source['source'])}`, {source['kind']}: {source['pictures']:,} images, "
            f"{source['captioned']:,} with captions (from {said}), "
            + "".join(f"{counted(source[kind], kind[:-1])}, " for kind in TASKS if source.get(kind))
            + f"{left_out:,} left out\n"
        )
    return "".join(lines)


def last_value(metrics: Path, names: Sequence[str]) -> tuple[int, float] | None:
    """Step and value of the last line of a run's metrics that has one of these names; None without any."""
    if not metrics.is_file():
        return None
    for line in reversed(metrics.read_text("utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:  # a line under way
            continue
        for name in names:
            if name in row:
                return row["step"], row[name]
    return None
