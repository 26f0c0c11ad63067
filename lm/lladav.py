"""LLaDA and LLaDA-V as one of ours: a plain transformers folder, with what it sees through.

Written from a description of the files, not from their code. Names come in two layouts, LLaDA's own and that
of a Llama; a stage-1 file of LLaDA-V holds the projector alone. Sizes are those of the tensors.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerFast

from pictish.data.importing import Part, Piece, Source
from pictish.io.files import one_line, write_atomic
from pictish.io.model_folder import CONFIG, WEIGHTS
from pictish.io.plain_yaml import to_yaml
from pictish.lm.config import DefaultsConfig, MaskedDefaults, MaskedForm, TextFillingConfig
from pictish.lm.dialogue import TEMPLATE
from pictish.lm.lavit import llama_shapes, write_index
from pictish.lm.lladav_table import NEEDED_BY, Table, settings_of, table_of
from pictish.lm.lladav_vision import SIGHT, plan_vision
from pictish.lm.model import VISION, FolderConfig
from pictish.lm.vision.config import VisionConfig
from pictish.lm.vocabulary import text_vocabulary

MASKS = ("<|mdm_mask|>", "<|mask|>", "[MASK]")  # what text tokenizers of this family call the mask
# One id a step, as published; blocks are added until the turn ends, where the official sampler fills 128.
DEFAULTS = DefaultsConfig(masked=MaskedDefaults(texts=TextFillingConfig(steps=32, block_length=32)))


def plan_llada(
    source: Source, *, seeing: bool, base: Source | None = None, tower: Source | None = None
) -> Part | None:
    """The folder `lm` of a LLaDA, or with `seeing` of a LLaDA-V; None where something is wrong.

    Faults are noted in `source`, `base` and `tower`. `base` is the LLaDA that a stage-1 projector belongs to,
    `tower` a SigLIP folder where the vision tower is not among the weights.
    """
    words = base or source
    raw, table = settings_of(source), table_of(words)
    base_raw = raw if base is None else settings_of(base)
    if table is None or raw is None or base_raw is None:
        return None
    config = _language_config(words, base_raw, table)
    text = None if config is None else _text(words, base_raw, config["vocab_size"])
    if config is None or text is None:
        return None
    weights = _language_pieces(words, table, config, () if not seeing else SIGHT)
    vision = None
    if seeing:
        found = plan_vision(source, raw, table, tower, config["hidden_size"], stage_1=base is not None)
        if found is None:
            return None
        vision, weights[VISION] = found
    if source.wrong or words.wrong or (tower is not None and tower.wrong):
        return None
    return Part("lm", weights, partial(_finish, config, vision, *text))


def _language_config(source: Source, raw: Mapping[str, Any], table: Table) -> dict[str, Any] | None:
    """Settings of transformers' Llama, sizes by the tensors; None where they make no sense."""
    path = source.folder / "config.json"

    def said(*names: str, default: Any = None) -> Any:
        return next((raw[name] for name in names if raw.get(name) is not None), default)

    try:
        embedding = table.metas.get("model.embed_tokens.weight")
        gate = table.metas.get("model.layers.0.mlp.gate_proj.weight")
        keys = table.metas.get("model.layers.0.self_attn.k_proj.weight")
        if embedding is None or gate is None or keys is None:
            named = "model.embed_tokens.weight, or model.transformer.wte.weight"
            raise ValueError(f"its weights are no LLaDA's, there is no {named}, or no layer 0")
        if {len(meta.shape) for meta in (embedding, gate, keys)} != {2}:
            raise ValueError("its embedding and projections are no matrices")
        rows, width = embedding.shape
        numbers = [re.match(r"model\.layers\.(\d{1,6})\.", name) for name in table.metas]
        layers = max(int(number[1]) for number in numbers if number) + 1
        heads = said("num_attention_heads", "n_heads")
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise ValueError(f"num_attention_heads is {heads!r}, which does not divide the width {width}")
        of_keys, rest = divmod(keys.shape[0], width // heads)
        if rest or not of_keys or heads % of_keys:
            raise ValueError(
                f"k_proj has {keys.shape[0]} rows, which heads of {width // heads} do not divide"
            )
        context = said("max_position_embeddings", "max_sequence_length", default=4096)
        eps, theta = said("rms_norm_eps", default=1e-5), said("rope_theta", default=500000.0)
        parameters = raw.get("rope_parameters")
        if isinstance(parameters, dict):
            theta = parameters.get("rope_theta", theta)
        scaling = raw.get("rope_scaling") or (parameters if isinstance(parameters, dict) else {})
        if scaling and scaling.get("rope_type", scaling.get("type", "default")) != "default":
            raise ValueError("rope_scaling is not supported")
        if not isinstance(context, int) or not 0 < context <= 1 << 24:
            raise ValueError(f"max_position_embeddings is {context!r}; a whole number of tokens would fit")
        for name, value in {"rms_norm_eps": eps, "rope_theta": theta}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
                raise ValueError(f"{name} is {value!r}; a number above 0 would fit")
    except ValueError as error:
        source.wrong.append(f"{path}: {one_line(error)}")
        return None
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": gate.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of_keys,
        "max_position_embeddings": context,
        "rms_norm_eps": float(eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
        "tie_word_embeddings": False,
        "is_causal": False,  # transformers too reads it in both directions then
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _text(source: Source, raw: Mapping[str, Any], rows: int) -> tuple[PreTrainedTokenizerFast, int] | None:
    """The text tokenizer, and the id of the mask: as the settings say, else as it is called there."""
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        source.lacks(path.name, NEEDED_BY)
        return None
    try:
        words: Any = PreTrainedTokenizerFast.from_pretrained(source.folder, local_files_only=True)
        known = words.get_vocab()
        mask = raw.get("mask_token_id")
        if mask is None:
            mask = next((known[name] for name in MASKS if name in known), None)
        if isinstance(mask, bool) or not isinstance(mask, int) or not 0 <= mask < rows:
            raise ValueError(
                f"no mask is known among the {rows} ids: config.json has {str(mask)[:40]} as mask_token_id, "
                f"and no token is called {MASKS[0]}"
            )
        if max(known.values()) >= rows:
            raise ValueError(f"has ids up to {max(known.values())}, and the weights have {rows} rows")
        if words.eos_token_id is None:
            raise ValueError("has no end-of-text token; tokenizer_config.json would name it")
        text_vocabulary(words, mask)
        return words, mask
    except Exception as error:  # tokenizers raises many kinds for a file that is not whole
        source.wrong.append(f"{path}: {one_line(error)[:300]}")
    return None


def _language_pieces(
    source: Source, table: Table, config: Mapping[str, Any], known: tuple[str, ...]
) -> dict[str, list[Piece]]:
    """A file of ours for each of theirs that holds weights of the language model; differences are noted.

    Names that begin with one of `known` are not the language model's.
    """
    layers = config["num_hidden_layers"]
    if layers > len(table.metas):  # a stranger's number; else a million names are made to be missed
        source.wrong.append(f"{source.folder}: layers are numbered up to {layers - 1}, and most are missing")
        return {}
    shapes = llama_shapes(LlamaConfig(**config))
    table.compare(source, shapes, known=known)
    pieces: dict[str, list[Piece]] = {}
    for name in shapes:
        if name in table.metas:
            pieces.setdefault(table.places[name][0], []).append(table.piece(source, name, name))
    count = len(pieces)
    names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    names = [WEIGHTS] if count == 1 else names
    return {name: pieces[file] for name, file in zip(names, sorted(pieces), strict=True)}


def _finish(
    config: Mapping[str, Any],
    vision: VisionConfig | None,
    words: PreTrainedTokenizerFast,
    mask: int,
    folder: Path,
    _: str,
) -> None:
    """All files but the weights."""
    settings = LlamaConfig(**config)
    settings.architectures = ["LlamaForCausalLM"]
    settings.dtype = write_index(folder, sorted(folder.glob("model*.safetensors")))
    settings.save_pretrained(folder)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    stored = FolderConfig(
        image_tokens=None,
        projector=False,
        vision=vision,
        mask=mask,
        masked=MaskedForm(),
        defaults=DEFAULTS,
    )
    write_atomic(folder / CONFIG, to_yaml(stored).encode())
