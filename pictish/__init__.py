"""pictish reads and writes images as a foreign language: a variable number of discrete codes an image.

The public API is below, see docs/python.md; each name is imported on first use, so that `import pictish` and
`pictish --help` load neither torch nor transformers.
"""

import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pictish.data.images import load_image
    from pictish.data.token_dataset import token_dataset
    from pictish.data.token_folder import read_tokens
    from pictish.data.tokens import TokenizedImage
    from pictish.decoder.pixel import Decoder as ImageDecoder
    from pictish.lm.model import UnifiedModel as LanguageModel
    from pictish.pipelines.pipeline import Pipeline
    from pictish.pipelines.progress import Cancelled, Progress
    from pictish.pipelines.recipe import save_image
    from pictish.pipelines.settings import GenerationConfig
    from pictish.tokenizer.dynamic import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "GenerationConfig",
    "ImageDecoder",
    "LanguageModel",
    "Pipeline",
    "Progress",
    "TokenizedImage",
    "Tokenizer",
    "__version__",
    "load_image",
    "read_tokens",
    "save_image",
    "token_dataset",
]

_PUBLIC = {  # name -> module and name in it
    "Cancelled": ("pictish.pipelines.progress", "Cancelled"),
    "GenerationConfig": ("pictish.pipelines.settings", "GenerationConfig"),
    "ImageDecoder": ("pictish.decoder.pixel", "Decoder"),
    "LanguageModel": ("pictish.lm.model", "UnifiedModel"),
    "Pipeline": ("pictish.pipelines.pipeline", "Pipeline"),
    "Progress": ("pictish.pipelines.progress", "Progress"),
    "TokenizedImage": ("pictish.data.tokens", "TokenizedImage"),
    "Tokenizer": ("pictish.tokenizer.dynamic", "Tokenizer"),
    "load_image": ("pictish.data.images", "load_image"),
    "read_tokens": ("pictish.data.token_folder", "read_tokens"),
    "save_image": ("pictish.pipelines.recipe", "save_image"),
    "token_dataset": ("pictish.data.token_dataset", "token_dataset"),
}

# In a checkout `tokenizer/`, `data/` and the other parts lie beside this folder (docs/architecture.md).
if not (Path(__file__).parent / "tokenizer").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_importing = threading.RLock()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _PUBLIC[name]
    with _importing:  # two threads would each find packages that the other has imported by half
        value = getattr(importlib.import_module(module), original)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
