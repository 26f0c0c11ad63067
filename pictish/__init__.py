"""pictish reads and writes images as a foreign language: a variable number of discrete codes a picture."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `tokenizer/`, `data/` and the other parts lie beside this folder (docs/architecture.md).
if not (Path(__file__).parent / "tokenizer").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
