"""docs/formats.md shows the bytes that are really written."""

import json
import re

from pictish.data.token_folder import Entry, Header, OutputFolder
from pictish.data.tokens import TokenizedImage
from tests.tree import ROOT

TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_example_of_a_token_file():
    rows = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} )+) ", TEXT, flags=re.MULTILINE)
    blob = bytes.fromhex("".join(rows))
    image = TokenizedImage([1201, 7, 2047, 7], [3, 9, 10, 62], (8, 8), (480, 640), "7d8480af75e7", 2048)
    assert blob == image.to_bytes()
    assert TokenizedImage.from_bytes(blob) == image


def test_the_example_of_a_manifest(tmp_path):
    examples = re.findall(r"^```json\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    (example,) = (text for text in examples if '"files"' in text)
    facts = json.loads(example)
    header = Header.from_json(facts)
    with OutputFolder(tmp_path, header, list(facts["files"]), overwrite=False) as output:
        for name, entry in facts["files"].items():
            output.note(name, Entry.from_json(entry))
        output.finish()
    assert (tmp_path / "manifest.json").read_text() == example.replace("…", "\\u2026")
