"""`pictish train model`: a whole model of one's own images, one part after the other."""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pictish.commands import options
from pictish.commands.train import Base, Device, Lora, Quiet, base_overrides

if TYPE_CHECKING:
    from pictish.configs import Config
    from pictish.recipes.own.config import OwnConfig, Stage
    from pictish.recipes.own.rehearsal import Progress

_CALLED = {"tokenizer": "tokenizer", "decoder": "decoder", "lm": "language model"}
_EVERY = 30.0  # seconds between two lines where there is no terminal

Pictures = Annotated[
    Path,
    typer.Argument(
        metavar="PICTURES",
        help="A folder of images (name.txt, metadata.jsonl or metadata.csv), a JSONL, CSV or Parquet file, "
        "WebDataset shards, or a folder saved by datasets.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the preset, such as lm.data.rows=4 decoder.steps=500")
]
Val = Annotated[
    str, options.files(metavar="FRACTION|SOURCE", help="Images held out, or another source of them.")
]
CaptionKey = Annotated[
    str | None, options.files(metavar="FIELD", help="Field of the captions (default: known names).")
]
Workers = Annotated[int | None, options.runtime(min=0, help="Processes that decode images.")]


def run(
    pictures: Pictures,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model folder; it holds everything else too.")],
    overrides: Overrides = None,
    *,
    size: Annotated[
        Literal["tiny", "small", "base"],
        options.files(
            help="tiny: seconds, to see that everything runs; small: 300 to 3,000 images on a CPU; "
            "base: for a GPU. Times are not measured yet."
        ),
    ] = "small",
    val: Val = "0.05",
    caption_key: CaptionKey = None,
    initial: Annotated[
        str | None,
        options.files("--from", metavar="MODEL", help="Start from this model's tokenizer weights."),
    ] = None,
    base: Base = None,
    lora: Lora = None,
    dry_run: Annotated[
        bool, options.runtime("--dry-run", help="Read the images, write OUT/train.yaml, measure, and stop.")
    ] = False,
    workers: Workers = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Train tokenizer, decoder and language model on your own images; OUT becomes a model folder.

    Settings are written to OUT/train.yaml, which may be edited before training begins. Interrupted, the same
    command resumes. Images that cannot be used are named and left out, the exit code is then 1.
    """
    from pictish.io.files import check_apart, only_writer
    from pictish.recipes.own import prepare

    check_apart(out, [pictures])
    if lora is not None and base is None:
        raise ValueError(f"--lora {lora}: adapts a pretrained language model; give --base FOLDER")
    changes = [*(overrides or []), *base_overrides(base, lora, "lm.model.base")]
    say: Callable[[str], None] = (lambda line: None) if quiet else partial(print, flush=True)
    with only_writer(out):
        manifest = prepare.raw_shards(pictures, out, val, caption_key, workers, say)
        config, begun = prepare.settings(out, size, initial, changes, manifest["samples"])
        if dry_run or not begun:
            _measure(config, out, manifest, device, say)
        if not dry_run:
            if _train_all(config, out, device, quiet, say):
                _finish(config, out, manifest, device, say)
            say(f'model folder: {out}; try: pictish generate "..." --model {out}')
    if any(source["left_out"] for source in manifest["sources"]):
        raise typer.Exit(1)


def _measure(
    config: "OwnConfig", out: Path, manifest: dict[str, Any], device: str, say: Callable[[str], None]
) -> None:
    """Rehearse the training, and say how long it will take."""
    from pictish.recipes.own.config import STAGES
    from pictish.recipes.own.rehearsal import rehearse, steps_of

    say("measuring a few steps of each part on this machine ...")
    began, logger = time.monotonic(), logging.getLogger("pictish")
    level = logger.level
    logger.setLevel(logging.WARNING)  # what a rehearsal logs would be taken for the training
    try:
        measured = rehearse(config, out, partial(_train, device), partial(_tokenize, device))
    finally:
        logger.setLevel(level)
    counts = manifest["samples"]
    per_sample = {"captioned": 1, "edits": 2, "questions": 1}
    pictures = sum(per_sample.get(name.partition("/")[2], 0) * count for name, count in counts.items())
    minutes = measured.minutes(config, pictures)
    for stage in STAGES:
        a_step = measured.seconds_a_step[stage]
        steps = f"{steps_of(config, stage):>8,} steps of {a_step:.3g} s"
        say(f"  {_CALLED[stage]:<15}{steps}: {minutes[stage]:.1f} min")
    say(f"  {'tokens':<15}{pictures:>8,} images: {minutes['tokens']:.1f} min")
    total, took = sum(minutes.values()), time.monotonic() - began
    say(f"training will take about {total:.0f} min on this machine (measured in {took:.0f} s)")


def _train_all(config: "OwnConfig", out: Path, device: str, quiet: bool, say: Callable[[str], None]) -> bool:
    """Train what is not trained yet and put it into OUT; whether anything was."""
    from pictish.io.model_folder import CONFIG
    from pictish.pipelines.assemble import assemble
    from pictish.pipelines.run_folder import run_folder
    from pictish.recipes.own.config import STAGES, located

    there, trained = located(config, out), False
    for stage in STAGES:
        settings, folder = getattr(there, stage), out / "runs" / stage
        if not _is_trained(folder, settings):
            with run_folder(folder, settings, quiet):
                say(f"training the {_CALLED[stage]}; losses are in {folder / 'metrics.jsonl'}")
                line = _Line(_CALLED[stage], folder / "metrics.jsonl", say)
                _train(device, stage, settings, folder, line)
                trained = True
        assemble(out, {stage: folder}, overwrite=True)
        if stage == STAGES[0]:
            _tokenize(device, out)
    return trained or not (out / "README.md").is_file() or not (out / "lm" / CONFIG).is_file()


def _is_trained(run: Path, settings: "Config") -> bool:
    """Whether a run has come to its end by these very settings."""
    from pictish.configs import load
    from pictish.io.model_folder import CONFIG

    done = (run / "model" / CONFIG).is_file() and (run / CONFIG).is_file()
    return done and load(run / CONFIG) == settings.model_dump(mode="json")


def _train(device: str, stage: "Stage", settings: Any, run: Path, progress: "Progress") -> Path:
    """Train one part; the folder of its model."""
    match stage:
        case "tokenizer":
            from pictish.tokenizer.train import train as train_tokenizer

            return train_tokenizer(settings, run, device, progress)
        case "decoder":
            from pictish.decoder.train import train as train_decoder

            return train_decoder(settings, run, device, progress)
        case "lm":
            from pictish.lm.train import train as train_lm
            from pictish.pipelines.lm_training import code_vectors_of, image_tokens_of
            from pictish.tokenizer.dynamic import Tokenizer
            from pictish.training.runtime import resolve_device

            tokenizer = Tokenizer.from_folder(settings.tokenizer, resolve_device(device))
            known, vectors = image_tokens_of(tokenizer), code_vectors_of(tokenizer)
            return train_lm(settings, run, known, device, code_vectors=vectors, progress=progress)


def _tokenize(device: str, folder: Path) -> None:
    """FOLDER/data to FOLDER/tokens, by FOLDER/tokenizer: all but images without captions."""
    from pictish.bulk.batch_tokenizer import BatchTokenizerSettings, Selection
    from pictish.bulk.run import Plan
    from pictish.bulk.run import run as bulk
    from pictish.data.images import MAX_PIXELS

    machine = BatchTokenizerSettings(str(folder / "tokenizer"), device, Selection(), 0, 32, MAX_PIXELS)
    for split in ("train", "validation"):
        found = (folder / "data" / split).glob("*.tar")
        shards = sorted(str(shard) for shard in found if not shard.name.startswith("uncaptioned-"))
        plan = Plan(shards, str(folder / "tokens" / split), machine, "local", 1, 2, False, False, False, None)
        if failures := bulk(plan, quiet=True):
            raise ValueError(f"{folder / 'data' / split}: {failures:,} images could not be tokenized")


class _Line:
    """Says how far a training is: step, loss, time left. On a terminal in one line that moves."""

    def __init__(self, stage: str, metrics: Path, say: Callable[[str], None]) -> None:
        self._stage, self._metrics, self._say = stage, metrics, say
        self._moves = sys.stdout.isatty()
        self._began: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began, self._last = (now, done), now
        if done < total and now - self._last < (1.0 if self._moves else _EVERY):
            return
        self._last = now
        began, first = self._began
        a_step = (now - began) / max(1, done - first)
        line = f"  {self._stage} {done:,}/{total:,}{self._loss()}, {_duration(a_step * (total - done))} left"
        if not self._moves:
            self._say(line)
        elif done == total:
            self._say(f"\r{line}\033[K")
        else:
            print(f"\r{line}\033[K", end="", flush=True)

    def _loss(self) -> str:
        from pictish.recipes.own.results import last_value

        found = last_value(self._metrics, ("loss", "total"))
        return "" if found is None else f", loss {found[1]:.4g}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _finish(
    config: "OwnConfig", out: Path, manifest: dict[str, Any], device: str, say: Callable[[str], None]
) -> None:
    """Measure, draw samples and write the model card."""
    from pictish.pipelines.pipeline import Pipeline
    from pictish.recipes.own import evaluation, results

    pipe = Pipeline.from_pretrained(out, device=device)
    say("evaluating on held-out images ...")
    loss = results.last_value(out / "runs" / "lm" / "metrics.jsonl", ["validation_loss"])
    numbers = evaluation.evaluate(config, out, pipe, None if loss is None else loss[1])
    results.draw_samples(config, out, pipe)
    results.write_card(config, out, manifest, numbers)
    judged = numbers["words_to_pictures"]
    hit = list(judged["chance"])[-1]
    share, chance = judged["drawn"][hit]["mean"], judged["chance"][hit]
    say(
        f"{numbers['held_out_pictures']:,} held-out images: {numbers['codes_a_picture']:.1f} codes, "
        f"PSNR {numbers['psnr_decoder']:.2f} dB (decoder), {numbers['psnr_preview']:.2f} dB (preview)"
    )
    say(
        f"  drawn from captions: {hit} {100 * share:.0f} % among {judged['candidates']:,} held-out images "
        f"(by chance {100 * chance:.0f} %)"
    )
    say(f"{out / results.SAMPLES}, {out / evaluation.NUMBERS}, {out / results.CARD}")
