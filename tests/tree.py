"""What the guards at the top of tests/ know of the tree: which folder is which package, its modules."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOT_PARTS = ("configs", "data", "decoder", "lm", "tokenizer")  # folders at the root (lm/ is yet to come)


def modules() -> dict[str, Path]:
    """Import name -> file of every module of ours, in the order of their names."""
    found = {}
    for folder in ("pictish", *ROOT_PARTS):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "pictish" else ("pictish", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def setup_list(section: str, key: str) -> list[str]:
    """Lines of one multi-line value of setup.cfg."""
    return [line.strip() for line in setup_cfg()[section][key].splitlines() if line.strip()]
