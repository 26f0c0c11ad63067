"""What comes before training: the images as raw shards in OUT/data, the settings in OUT/train.yaml."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pictish.configs import load, parse
from pictish.configs.explain import commented_yaml
from pictish.data.collect import PICTURES, TASKS, Found, look, read_manifest, write_raw_shards
from pictish.io.files import printable, write_atomic
from pictish.io.finding import counted
from pictish.io.model_folder import resolve_model
from pictish.recipes.own.config import FILE, STAGES, OwnConfig, Size, preset
from pictish.tokenizer.config import EncoderConfig, FileWeights

FEW = 20  # held-out images
_EVERY = 30.0  # seconds between two lines


def raw_shards(
    pictures: Path, out: Path, val: str, key: str | None, workers: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The manifest of OUT/data, which is made of the images if it is not there yet."""
    fraction, other = fraction_or_source(val)
    wanted = [(os.path.realpath(path), key) for path in (pictures, *([other] if other else []))]
    manifest = read_manifest(out / "data")
    if manifest is None:
        if strangers := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
            raise ValueError(f"{out}: holds {strangers[0]}; choose an empty folder for a new model")
        decoders = min(4, os.cpu_count() or 1) if workers is None else workers
        found = look(pictures, key, decoders, _counted("read", say))
        validation: float | Found = fraction if other is None else look(other, key, decoders)
        if not found.captioned:
            fields = ", ".join(found.reading.fields)
            raise ValueError(
                f"{pictures}: no captions found for {found.pictures:,} images; write name.txt beside "
                f"name.jpg, or a metadata.jsonl{f'; give --caption-key one of {fields}' if fields else ''}"
            )
        manifest = write_raw_shards(found, out / "data", validation, _counted("written", say))
    made = [(source["source"], source["caption_key"]) for source in manifest["sources"]]
    same_share = other is not None or manifest["validation"] == fraction
    if made != wanted or not same_share:
        raise ValueError(
            f"{out / 'data'}: was made from {' and '.join(name for name, _ in made)} with --val "
            f"{manifest['validation']}; give the same, or another OUT"
        )
    if not manifest["samples"].get("validation/captioned"):
        raise ValueError(f"--val {val}: holds no image with captions; give another one, and another OUT")
    for line in described(manifest):
        say(line)
    return manifest


def _check_weights(config: OwnConfig, out: Path) -> None:
    """ValueError where the encoder's weights are a file that is missing."""
    encoder = config.tokenizer.model.encoder
    if isinstance(encoder, EncoderConfig) and isinstance(encoder.weights, FileWeights):
        path = out / Path(encoder.weights.path).expanduser()
        if not path.is_file():
            raise ValueError(
                f"{printable(path)}: the weights of timm's {encoder.model} are needed here, and nothing is "
                f"downloaded; put them there, or change tokenizer.model.encoder in {printable(out / FILE)}"
            )


def fraction_or_source(val: str) -> tuple[float, Path | None]:
    """--val as a fraction, or as the path of a source."""
    try:
        return float(val), None
    except ValueError:
        return 0.0, Path(val)


def described(manifest: dict[str, Any]) -> list[str]:
    """What was found, in lines."""
    lines = []
    for source in manifest["sources"]:
        said = ", ".join(f"{place} ({count:,})" for place, count in source["captions_from"].items())
        smallest, median, largest = (
            "{1} x {0}".format(*source["sizes"][name]) for name in ("smallest", "median", "largest")
        )
        lines += [
            f"{printable(source['source'])}: {source['kind']}",
            f"  {source['pictures']:,} images, {source['captioned']:,} with captions"
            + (f" from {said}" if said else ""),
            *(
                f"  {counted(source[kind], kind[:-1])} from {kind}.jsonl"
                for kind in TASKS
                if source.get(kind)
            ),
            f"  {smallest} to {largest} pixels, median {median}; {source['copies']:,} exact copies",
        ]
        for reason, left_out in source["left_out"].items():
            names = ", ".join(map(printable, left_out["names"][:5]))
            more = f" and {left_out['count'] - 5:,} more" if left_out["count"] > 5 else ""
            lines.append(f"  left out, {reason}: {names}{more}")
        if source["ignored"]:
            others = ", ".join(f"{count:,} {printable(name)}" for name, count in source["ignored"].items())
            lines.append(f"  other files, not read: {others}")
    counts = manifest["samples"]
    held_out = sum(counts.get(f"validation/{kind}", 0) for kind in PICTURES)
    few = "; an evaluation of so few says little, a larger --val holds out more" if held_out < FEW else ""
    return [*lines, f"held out for validation: {held_out:,} images{few}"]


def _counted(what: str, say: Callable[[str], None]) -> Callable[[int], None]:
    """Says every half a minute how many images were read or written."""
    last = time.monotonic()

    def count(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            say(f"  {done:,} images {what}")

    return count


def settings(
    out: Path, size: Size, initial: str | None, overrides: Sequence[str], samples: Mapping[str, int]
) -> tuple[OwnConfig, bool]:
    """The settings in OUT/train.yaml, written if it is not there yet, and whether training has begun.

    `samples`: how many there are, of the manifest of OUT/data.
    """
    path = out / FILE
    if initial is not None and initial != "starter":
        initial = os.path.realpath(resolve_model(initial))
    wanted = preset(size, initial, overrides, samples)
    if not path.is_file():
        header = (
            f"pictish train model PICTURES {out} --size {size}\n"
            "All settings of this model; edit them before training begins and run the command again.\n"
            "Relative paths start at this folder. Presets are not measured yet."
        )
        write_atomic(path, commented_yaml(wanted, header).encode())
    config = parse(OwnConfig, load(path), str(path))
    _check_weights(config, out)
    asked = {
        f"--size {size}": size not in (config.size, "small"),
        f"--from {initial}": initial is not None and config.tokenizer.initial != initial,
        f"{' '.join(overrides)}": bool(overrides) and config != wanted,
    }
    if others := [name for name, other in asked.items() if other]:
        raise ValueError(f"{path}: has other settings than {others[0]}; edit it, or choose another OUT")
    return config, any((out / "runs" / stage / "config.yaml").is_file() for stage in STAGES)
