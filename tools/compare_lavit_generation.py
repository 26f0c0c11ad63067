"""The language model's and the decoders' stages of tools/compare_lavit.py: words, image ids, pixels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pictish.data.tokens import TokenizedImage
from pictish.decoder.pixel import Decoder, sample
from pictish.lm.autoregressive import Branch, DecodeBatch, embed_ids
from pictish.lm.beams import beam_search
from pictish.lm.config import BeamSearchConfig
from pictish.lm.sequence import QUESTION, Codes, Features, Text
from pictish.lm.vocabulary import text_ids
from pictish.pipelines.describe import Describe
from pictish.pipelines.language import Language
from pictish.pipelines.lavit_replay import OfficialTextToImage, WithoutMarkers
from pictish.pipelines.settings import GenerationConfig
from tools.compare_lavit import Row, Run, Stage, same, tensors
from tools.compare_lavit_tokenizer import features_of

DECODERS = {"highres": "decoder", "lowres": "decoder-lowres"}
ROUNDED = 1.0  # of 255
KEPT = "argmax"  # the mask of which texts about images, pixels and round trip were recorded


def heads(run: Run) -> Iterator[Row]:
    """Codes to what the UNets read."""
    for which, folder in DECODERS.items():
        decoder = _decoder(run, folder)
        for name in run.masks:
            conditioning = decoder.conditioning(_tokens(run, _codes(run, name)))
            conditions = decoder.model.condition(
                conditioning, torch.zeros(len(conditioning.real), dtype=torch.bool)
            )
            assert conditions.sequence is not None
            sequence = "prompt_embeds." if conditions.pooled is not None else ""
            expected = run.expected[f"decoder.{which}.{sequence}{name}"]
            yield tensors(f"decoder.{which}.{sequence}{name}", conditions.sequence, expected)
            if conditions.pooled is not None:
                pooled = f"decoder.{which}.pooled.{name}"
                yield tensors(pooled, conditions.pooled, run.expected[pooled])


def pixels(run: Run) -> Iterator[Row]:
    """Image ids to images, step by step, by both decoders."""
    asked = run.config["pixels"]
    vocabulary = _language(run).model.vocabulary
    rows = run.inputs["pixels.image_tokens"]
    codes = [vocabulary.codes_of(row[vocabulary.is_code(row)]).tolist() for row in rows]
    for which, folder in DECODERS.items():
        decoder, tokens = _decoder(run, folder), _tokens(run, codes)
        noise = run.inputs[f"pixels.{which}.noise"]
        seen, rgb = _sample(decoder, tokens, noise, asked["steps"], asked["guidance"])
        start = f"pixels.{which}."
        yield same(f"{start}timesteps", seen.times, run.expected[f"{start}timesteps"])
        yield tensors(f"{start}unet_context", _swapped(seen.context), run.expected[f"{start}unet_context"])
        if f"{start}context_mask" in run.expected:
            assert seen.mask is not None
            mask = run.expected[f"{start}context_mask"]
            yield same(f"{start}context_mask", _swapped(seen.mask).bool(), mask.bool())
        if f"{start}time_ids" in run.expected:
            added = seen.added
            yield tensors(f"{start}time_ids", _swapped(added["time_ids"]), run.expected[f"{start}time_ids"])
            embeds = run.expected[f"{start}text_embeds"]
            yield tensors(f"{start}text_embeds", _swapped(added["text_embeds"]), embeds)
        for step, output in enumerate(seen.outputs):
            name = f"{start}unet_out.{step}"
            yield tensors(name, _swapped(output), run.expected[name])
        yield _latents(f"{start}vae_in", decoder, seen, run)
        yield _pictures(f"{start}rgb", rgb, run.expected[f"{start}rgb"])


def round_trip(run: Run) -> Iterator[Row]:
    """Images to codes and back."""
    asked = run.config["reconstruct"]
    rgb01 = run.inputs["reconstruct.rgb01"]  # (B, 3, S, S)
    squares = (rgb01 * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    count = len(squares)
    tokens = run.tokenizer.tokenize_pixels(squares, [tuple(squares.shape[1:3])] * count)
    decoder = _decoder(run, DECODERS["highres"])
    noise = run.inputs["reconstruct.noise"]
    seen, rgb = _sample(decoder, tokens, noise, asked["steps"], asked["guidance"])
    yield _latents("reconstruct.vae_in", decoder, seen, run)
    yield _pictures("reconstruct.rgb", rgb, run.expected["reconstruct.rgb"])


def features(run: Run) -> Iterator[Row]:
    """Rows of the understanding merger to embeddings."""
    projector = _language(run).model.projector
    assert projector is not None
    for name, mask in run.masks.items():
        projected = projector(features_of(run, mask, "understanding"))
        yield tensors(
            f"understanding.features.{name}", projected, run.expected[f"understanding.features.{name}"]
        )


def words(run: Run) -> Iterator[Row]:
    """Prompts to ids, by the fast tokenizer."""
    text_tokenizer = _language(run).model.text_tokenizer
    for prompt, ids in run.text["prompt_token_ids"].items():
        yield same(f"ids of {prompt[:36]!r}", text_ids(text_tokenizer, prompt), ids)


def texts(run: Run) -> Iterator[Row]:
    """Captions and answers, greedy and by beams."""
    language = _language(run)
    model = language.model
    encoded = run.tokenizer.encode(
        run.pixels, sizes=run.sizes, features_for="understanding", keep=run.masks[KEPT]
    )
    rows = [one.features for one in encoded if one.features is not None]
    for name, recorded in _recorded(run, "images", "prompt", "questions"):
        said: Sequence[str | None] = recorded.get("questions") or [recorded.get("prompt")] * len(rows)
        said = [QUESTION.format(one) for one in said] if "questions" in recorded else said
        prompts = [
            language.embed([Features(row), *([Text(one)] if one else [])], draw=False)
            for row, one in zip(rows, said, strict=True)
        ]
        yield from _embedded(run, name, [one.embedded for one in prompts])
        first = f"llm.{name}.prefill_logits_last"
        if first in run.expected:
            logits = DecodeBatch(model.language, prompts, 1, "dynamic").logits
            yield tensors(first, logits, run.expected[first])
        settings = recorded["settings"]
        way = BeamSearchConfig(
            num_beams=settings["num_beams"],
            min_new_tokens=settings["min_new_tokens"],
            max_new_tokens=settings["max_new_tokens"],
            length_penalty=settings["length_penalty"],
            early_stopping=bool(settings.get("early_stopping", False)),
        )
        written = beam_search(model.language, model.vocabulary, prompts, way)
        yield _sequences(run, name, written, model.eos)
        plain = [model.text_tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        equal = sum(ours == theirs for ours, theirs in zip(plain, recorded["text"], strict=True))
        yield Row(f"text.{name}", equal == len(plain), equal=f"{equal} of {len(plain)}")


def described(run: Run) -> Iterator[Row]:
    """`pictish describe` with its own settings, where it keeps what was kept."""
    describe = Describe(_language(run))
    if not torch.equal(_scores_keep(run), run.masks[KEPT]):
        return
    pictures = [Image.fromarray(square.numpy()) for square in run.pixels]
    for name, recorded in _recorded(run, "images", "questions"):
        questions = recorded.get("questions", [None] * len(pictures))
        said = describe.batch(pictures, questions)
        equal = sum(ours == theirs for ours, theirs in zip(said, recorded["text"], strict=True))
        yield Row(f"describe.{name}", equal == len(said), equal=f"{equal} of {len(said)}")


def drawn(run: Run) -> Iterator[Row]:
    """Words to image ids, with and without guidance, greedy and drawn."""
    drawer = _drawer(run)
    for name, recorded in _recorded(run, "prompts"):
        prompts = recorded["prompts"]
        full = [drawer.language.embed([Text(one)], draw=True) for one in prompts]
        yield from _embedded(run, name, [one.embedded for one in full])
        yield from _scores(run, name, full, recorded)
        yield _image_ids(run, name, [[one] for one in prompts], recorded)


def mixed(run: Run) -> Iterator[Row]:
    """An image and words to image ids, as the official code does it, defects included."""
    language = _language(run)
    model = language.model
    for name in run.expected.kinds("llm."):
        name, _, kind = name.partition(".")
        if kind != "prompt_ids":
            continue
        ids = run.expected[f"llm.{name}.prompt_ids"]
        code = model.vocabulary.is_code(ids)
        codes = model.vocabulary.codes_of(ids[code])
        yield same(f"llm.{name}.prompt codes", codes, _codes(run, KEPT)[0])
        said = model.text_tokenizer.decode(ids[~code])
        parts = [Codes(codes.numpy()), Text(said)]
        full = WithoutMarkers(language.tokenizer, model).embed(parts, draw=True)
        yield same(f"llm.{name}.prompt text", text_ids(model.text_tokenizer, said), ids[~code])
        yield from _embedded(run, name, [full.embedded])
        recorded = run.text[name]
        picture = Image.fromarray(run.pixels[0].numpy())
        if torch.equal(_scores_keep(run), run.masks[KEPT]):
            yield _image_ids(run, name, [[picture, said]], recorded)


STAGES: list[Stage] = [features, words, texts, described, drawn, mixed, heads, pixels, round_trip]


@dataclass
class _Seen:
    """What went through a UNet and into an autoencoder."""

    times: list[int] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    context: Tensor = field(default_factory=lambda: torch.empty(0))
    mask: Tensor | None = None
    added: dict[str, Tensor] = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))


def _sample(
    decoder: Decoder, tokens: Sequence[TokenizedImage], noise: Tensor, steps: int, guidance: float
) -> tuple[_Seen, Tensor]:
    """What was seen on the way, and images (B, H, W, 3) of 0 to 255."""
    model, seen = decoder.model, _Seen()
    latents: Any = model.latents

    def note(module: Any, args: Any, said: dict[str, Any], output: Any) -> None:
        seen.times.append(int(said["timestep"][0]))
        seen.outputs.append(output[0])
        seen.context, seen.mask = said["encoder_hidden_states"], said["encoder_attention_mask"]
        seen.added = said.get("added_cond_kwargs") or {}

    decode = latents.autoencoder.decode

    def noted(x: Tensor) -> Any:
        seen.latents = x
        return decode(x)

    hook = model.denoiser.network.register_forward_hook(note, with_kwargs=True)
    latents.autoencoder.decode = noted
    try:
        generators = [torch.Generator() for _ in tokens]
        settings = {"steps": steps, "guidance": guidance, "scheduler": model.config.sampling.scheduler}
        rgb = sample(model, decoder.conditioning(tokens), noise, generators, **settings)
    finally:
        hook.remove()
        latents.autoencoder.decode = decode
    return seen, (rgb * 255).round().permute(0, 2, 3, 1)


def _swapped(both: Tensor) -> Tensor:
    """Ours come conditioned first, then unconditional; theirs the other way round."""
    return torch.cat(both.chunk(2)[::-1])


def _latents(name: str, decoder: Decoder, seen: _Seen, run: Run) -> Row:
    """What the autoencoder is given, in units in which latents have about unit variance."""
    latents: Any = decoder.model.latents
    row = tensors(name, seen.latents * latents.scale, run.expected[name] * latents.scale)
    return replace(row, note=f"times {latents.scale:g}")


def _pictures(name: str, ours: Tensor, theirs: Tensor) -> Row:
    return tensors(name, ours, theirs.float(), ROUNDED)


def _decoder(run: Run, folder: str) -> Decoder:
    return Decoder.from_folder(run.folder / folder, run.tokenizer)


def _language(run: Run) -> Language:
    return _loaded(run.folder)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Language:
    return Language.from_folder(folder)


def _drawer(run: Run) -> OfficialTextToImage:
    """Without a decoder, which it does not need for tokens."""
    return OfficialTextToImage(_language(run))


def _codes(run: Run, mask: str) -> list[list[int]]:
    """Codes of each image by a recorded mask, as they were recorded."""
    counts = run.masks[mask].sum(dim=1).tolist()
    vocabulary = _language(run).model.vocabulary
    codes = vocabulary.codes_of(run.expected[f"tokenize.ids.{mask}"])
    return [part.tolist() for part in codes.split(counts)]


def _tokens(run: Run, codes: Sequence[Sequence[int]]) -> list[TokenizedImage]:
    tokenizer = run.tokenizer
    rest = {"cells": None, "grid": tokenizer.grid, "size": (tokenizer.image_size,) * 2}
    make = partial(TokenizedImage, tokenizer=tokenizer.fingerprint, codebook_size=tokenizer.codebook_size)
    return [make(ids=np.array(one), **rest) for one in codes]


def _scores_keep(run: Run) -> Tensor:
    """What the tokenizer keeps of itself."""
    return run.tokenizer.scores(run.pixels) > 0.5


def _recorded(run: Run, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was recorded of texts that has one of these keys."""
    for name in run.text:
        recorded = run.text.values_[name]
        if any(key in recorded for key in keys):
            yield name, run.text[name]


def _embedded(run: Run, name: str, prompts: Sequence[Tensor]) -> Iterator[Row]:
    """Prompts (L, D) against recorded ones, padded somewhere."""
    masks = run.expected[f"llm.{name}.attention_mask"].bool()
    theirs = run.expected[f"llm.{name}.inputs_embeds"]
    yield same(f"llm.{name}.attention_mask sums", [len(one) for one in prompts], masks.sum(dim=1))
    kept = [rows[mask] for rows, mask in zip(theirs, masks, strict=True)]
    if [len(one) for one in prompts] == [len(one) for one in kept]:
        yield tensors(f"llm.{name}.inputs_embeds", torch.cat(list(prompts)), torch.cat(kept))


def _sequences(run: Run, name: str, ours: Sequence[Sequence[int]], eos: int) -> Row:
    """Generated ids, without the column that comes before them and the padding behind."""
    recorded = run.expected[f"llm.{name}.sequences"]
    wanted = [row[1 : 1 + len(row)].tolist() for row in recorded]
    right = 0
    for mine, theirs in zip(ours, wanted, strict=True):
        behind = theirs[len(mine) :]
        right += list(mine) == theirs[: len(mine)] and (not behind or behind[0] == eos)
    return Row(f"llm.{name}.sequences", right == len(wanted), equal=f"{right} of {len(wanted)} rows")


def _scores(run: Run, name: str, full: Sequence[Branch], recorded: dict[str, Any]) -> Iterator[Row]:
    """Scores of image ids at the first steps: log-probabilities of both branches, weighed."""
    model = _language(run).model
    scale = recorded["settings"]["guidance_scale"]
    nothing = Branch.of(embed_ids(model.language, [model.vocabulary.begin]))
    steps = sorted(map(int, run.expected.kinds(f"llm.{name}.scores_visual.")))
    batch = DecodeBatch(model.language, [*full, *[nothing] * len(full)], len(steps), "dynamic")
    for step in steps:
        with_words, without = batch.logits.chunk(2)
        guided = with_words
        if scale != 1:
            with_words, without = with_words.log_softmax(-1), without.log_softmax(-1)
            guided = without + scale * (with_words - without)
        theirs = run.expected[f"llm.{name}.scores_visual.{step}"]
        possible = theirs.isfinite()
        ours = guided[:, model.vocabulary.begin :][:, : theirs.shape[1]]
        yield tensors(f"llm.{name}.scores_visual.{step}", ours[possible], theirs[possible])
        taken = run.expected[f"llm.{name}.sequences"][:, step + 1].tolist()
        batch.step([*taken, *taken])


def _image_ids(run: Run, name: str, said: list[list[Any]], recorded: dict[str, Any]) -> Row:
    """Codes that are drawn for prompts, by the settings that were recorded."""
    settings = recorded["settings"]
    seed = re.search(r"manual_seed\((\d+)\)", recorded.get("note", ""))
    generator = torch.Generator().manual_seed(int(seed[1]) if seed else 0)
    top_p = settings["top_p"] if settings["top_p"] < 1 else None
    sampled = settings["do_sample"]
    config = GenerationConfig(
        guidance_scale=settings["guidance_scale"],
        image_guidance_scale=settings["guidance_scale"],
        temperature=settings["temperature"] if sampled else 0.0,
        top_k=settings["top_k"] if sampled else None,
        top_p=top_p if sampled else None,
        min_codes=settings["min_new_tokens"],
        max_codes=settings["max_new_tokens"],
    )
    drawn = _drawer(run).tokens(said, generator, config)
    vocabulary = _language(run).model.vocabulary
    most = _language(run).model.image_tokens.max_tokens  # theirs may go on to the length of a longer prompt
    wanted = [row[vocabulary.is_code(row)][:most] for row in run.expected[f"llm.{name}.sequences"]]
    ours = [vocabulary.ids_of(tokens.ids).tolist() for tokens in drawn]
    right = sum(mine == theirs.tolist() for mine, theirs in zip(ours, wanted, strict=True))
    return Row(f"llm.{name}.sequences", right == len(wanted), equal=f"{right} of {len(wanted)} rows")
