"""Writes the captions.json of a language model whose training is over, from the shards it learned to draw.

python -m tools.write_captions MODEL/lm SHARDS...

`pictish train lm` does so at its end; this is for models of earlier versions.
"""

import argparse
from pathlib import Path

from pictish.data.mixture import Source
from pictish.io.files import write_atomic
from pictish.lm.captions import CAPTIONS, known_captions, to_bytes


def main() -> None:
    """Write the file, and say what it holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the language model")
    parser.add_argument("shards", type=Path, nargs="+", help="shards of drawings, or folders of them")
    settings = parser.parse_args()
    captions = known_captions([Source("drawings", tuple(settings.shards))])
    blob = to_bytes(captions)
    write_atomic(settings.folder / CAPTIONS, blob)
    print(f"{settings.folder / CAPTIONS}  {len(captions):,} captions  {len(blob):,} bytes")


if __name__ == "__main__":
    main()
