"""LaVIT's released language model as one of ours: a plain transformers folder that knows images.

Written from a description of the files, not from LaVIT's code. docs/models.md tells what was verified.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from pictish.data.importing import Meta, Part, Piece, Shape, Source, weight_files
from pictish.io.files import one_line, write_atomic
from pictish.io.model_folder import CONFIG, SHARDS, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.lm.config import BeamSearchConfig, DefaultsConfig, ImageGenerationConfig
from pictish.lm.model import PROJECTOR, FolderConfig, ImageTokens
from pictish.lm.sentencepiece import Piece as TextPiece
from pictish.lm.sentencepiece import picture_tokenizer, read_pieces

FOLDER = "language_model"
NEEDED_BY = "pictish generate, edit and describe"
FOREIGN = ("_name_or_path", "tokenizer_class", "transformers_version")  # not settings of the network
RECOMPUTED = "rotary_emb.inv_freq"  # in old files; transformers makes it anew

# The released code's own settings: text to image, several images in a prompt, captions, VQA.
DEFAULTS = DefaultsConfig(
    drawing=ImageGenerationConfig(
        guidance=4.0,
        among_pictures=5.0,
        image_guidance=5.0,  # as `among_pictures`: one scale from nothing to all that was said
        temperature=1.0,
        top_k=50,
        min_tokens=20,
        max_tokens=200,
    ),
    caption=BeamSearchConfig(num_beams=2, min_new_tokens=8, max_new_tokens=36, stop_strings=(".",)),
    answer=BeamSearchConfig(
        num_beams=5,
        min_new_tokens=2,
        max_new_tokens=10,
        length_penalty=0.0,
        early_stopping=True,
        stop_strings=("\n", "question:", "Long answer:", ",", "."),
        lowercase=True,
    ),
    continuous=True,
)


def plan_language(
    source: Source, *, codes: int, max_tokens: int, features: int, override: str
) -> Part | None:
    """The language model's folder, for a tokenizer of `codes` codes and at most `max_tokens` tokens.

    Its projector reads rows of `features` channels; it lies in the file `override`, and without that file
    there is none. None where something is wrong, which is noted in `source`.
    """
    faults = len(source.wrong)
    config, pieces = _config(source), _pieces(source)
    shards = weight_files(source, FOLDER, NEEDED_BY)
    if config is None or pieces is None or shards is None:
        return None
    rows = len(pieces) + 2 + codes
    if config.vocab_size < rows:
        source.wrong.append(
            f"{source.folder / FOLDER}/config.json: vocab_size is {config.vocab_size}; {len(pieces)} pieces "
            f"of text, 2 markers and {codes} codes need {rows}"
        )
    weights = _weights(source, config, shards)
    projector: list[Piece] = []
    if (source.folder / override).exists():
        found = source.table(override, NEEDED_BY)
        projector = _projector(source, override, found or {}, features, config.hidden_size)
    if len(source.wrong) > faults:
        return None
    if projector:
        weights[PROJECTOR] = projector
    return Part(
        "lm", weights, partial(_finish, config, pieces, ImageTokens("0" * 12, codes, max_tokens, features))
    )


def _config(source: Source) -> LlamaConfig | None:
    path = source.folder / FOLDER / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("model_type") != "llama":
            raise ValueError("a Llama was expected, it is another model")
        config = LlamaConfig(**{name: value for name, value in raw.items() if name not in FOREIGN})
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{config.num_attention_heads} heads do not divide {config.hidden_size}")
        return config
    except FileNotFoundError:
        source.lacks(f"{FOLDER}/config.json", NEEDED_BY)
    except Exception as error:  # transformers has many ways to refuse settings
        source.wrong.append(f"{path}: not the settings of a Llama ({one_line(error)}); copy it again")
    return None


def _pieces(source: Source) -> list[TextPiece] | None:
    path = source.folder / FOLDER / "tokenizer.model"
    try:
        pieces = read_pieces(path)
        picture_tokenizer(pieces, 1)
        return pieces
    except FileNotFoundError:
        source.lacks(f"{FOLDER}/tokenizer.model", NEEDED_BY)
    except ValueError as error:
        source.wrong.append(str(error))
    return None


def _weights(
    source: Source, config: LlamaConfig, shards: dict[str, list[str] | None]
) -> dict[str, list[Piece]]:
    """What each of our files holds, a file for each of theirs."""
    shapes = llama_shapes(config)
    unplaced = set(shapes)
    weights: dict[str, list[Piece]] = {}
    for number, (file, names) in enumerate(shards.items(), 1):
        found = source.table(file, NEEDED_BY)
        unplaced -= set(shapes if names is None else names)
        if found is None:
            continue
        wanted = {name: shapes[name] for name in (shapes if names is None else names) if name in shapes}
        recomputed = {name: meta.shape for name, meta in found.items() if name.endswith(RECOMPUTED)}
        source.expect(file, {**wanted, **recomputed})
        ours = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WEIGHTS
        weights[ours] = [
            Piece(name, source.folder / file, (name,), shape, found[name].dtype)
            for name, shape in wanted.items()
            if name in found
        ]
    if unplaced:
        source.wrong.append(
            f"{source.folder / FOLDER}: the index places {len(unplaced)} tensors nowhere, "
            f"{min(unplaced)} first; copy it again"
        )
    return weights


def llama_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """Names and shapes of a Llama's tensors."""
    width, hidden = config.hidden_size, config.intermediate_size
    each = width // config.num_attention_heads
    of_keys = each * (config.num_key_value_heads or config.num_attention_heads)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (of_keys, width) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (hidden, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, hidden)
        shapes |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def _projector(source: Source, file: str, found: dict[str, Meta], features: int, width: int) -> list[Piece]:
    """`vit_proj` under our name; that the file holds nothing strange is the tokenizer's to see to."""
    pieces = []
    for kind, shape in (("weight", (width, features)), ("bias", (width,))):
        meta = found.get(f"vit_proj.{kind}")
        if meta is None or meta.shape != shape:
            came = "missing" if meta is None else f"of shape {meta.shape}"
            source.wrong.append(f"{source.folder / file}: vit_proj.{kind} is {came}; {shape} would fit")
        else:
            path = source.folder / file
            pieces.append(Piece(f"body.{kind}", path, (f"vit_proj.{kind}",), shape, meta.dtype))
    return pieces


def _finish(
    config: LlamaConfig, pieces: list[TextPiece], tokens: ImageTokens, folder: Path, tokenizer: str
) -> None:
    """All files but the weights."""
    files = sorted(folder.glob("model*.safetensors"))
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = write_index(folder, files)
    config.save_pretrained(folder)
    picture_tokenizer(pieces, tokens.codes).save_pretrained(folder)
    # suppressed were ids 3 to 31999 alone: the control pieces and the image's start stayed possible
    drawing = DEFAULTS.drawing.model_copy(update={"ignored_ids": (0, 1, 2, len(pieces))})
    stored = FolderConfig(
        image_tokens=ImageTokens(tokenizer, tokens.codes, tokens.max_tokens, tokens.features),
        projector="linear" if (folder / PROJECTOR).is_file() else False,
        defaults=DEFAULTS.model_copy(update={"drawing": drawing}),
    )
    write_atomic(folder / CONFIG, to_yaml(stored).encode())


def write_index(folder: Path, files: Sequence[Path]) -> torch.dtype:
    """Write the index of the weight `files` where they are several; returns the type that loads them all."""
    from safetensors import safe_open

    placed, total, types = {}, 0, set()
    for path in files:
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no mapping
                piece = weights.get_slice(name)
                placed[name] = path.name
                types.add(piece.get_dtype())
                size = 4 if piece.get_dtype() == "F32" else 2
                total += size * int(torch.Size(piece.get_shape()).numel())
    if len(files) > 1:
        digests = {path.name: _sha256(path) for path in files}
        index: dict[str, Any] = {"metadata": {"total_size": total, "sha256": digests}, "weight_map": placed}
        write_atomic(folder / SHARDS, json.dumps(index, indent=1, sort_keys=True).encode())
    return torch.bfloat16 if types == {"BF16"} else torch.float16 if types == {"F16"} else torch.float32


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
