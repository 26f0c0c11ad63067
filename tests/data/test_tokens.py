import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data.tokens import TokenizedImage

FINGERPRINT = "0123456789ab"


def make(ids=(3, 1, 3), cells=(0, 5, 63), codebook_size=2048, grid=(8, 8), size=(480, 640)):
    return TokenizedImage(
        np.asarray(ids), None if cells is None else np.asarray(cells), grid, size, FINGERPRINT, codebook_size
    )


def rewrite(blob, **facts):
    """The blob with other facts and a checksum that fits them."""
    tensors = safetensors.numpy.load(blob)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    mine = json.loads(header["__metadata__"]["pictish"])
    mine.update(facts, sha256="0" * 64)
    text = json.dumps(mine, sort_keys=True, separators=(",", ":"))
    blank = safetensors.numpy.save(facts.pop("tensors", tensors), {"pictish": text})
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


@st.composite
def images(draw):
    grid = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    cell_count = grid[0] * grid[1]
    codebook_size = draw(st.sampled_from([1, 2, 2048, 65_535, 65_536, 65_537, 2**32]))
    cells = draw(st.none() | st.sets(st.integers(0, cell_count - 1), min_size=1, max_size=40).map(sorted))
    count = len(cells) if cells is not None else draw(st.integers(1, 40))
    ids = draw(st.lists(st.integers(0, codebook_size - 1), min_size=count, max_size=count))
    size = draw(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)))
    return make(ids, cells, codebook_size, grid, size)


@settings(deadline=None)
@given(images())
def test_bytes_come_back_as_the_same_image(image):
    blob = image.to_bytes()
    back = TokenizedImage.from_bytes(blob, expect_tokenizer=FINGERPRINT)
    assert back == image
    assert (back.grid, back.size, back.codebook_size) == (image.grid, image.size, image.codebook_size)
    assert np.array_equal(back.ids, image.ids)
    assert (back.cells is None) == (image.cells is None)
    assert back.to_bytes() == blob


@settings(deadline=None)
@given(images())
def test_any_safetensors_reader_reads_the_blob(image):
    tensors = safetensors.numpy.load(image.to_bytes())
    assert tensors["ids"].dtype == (np.uint16 if image.codebook_size <= 65_536 else np.uint32)
    assert tensors["ids"].tolist() == image.ids.tolist()


def test_a_picture_of_25_tokens_is_a_small_file():
    assert len(make(range(25), range(25)).to_bytes()) < 500


@settings(max_examples=20, deadline=None)
@given(images(), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused(image, flip):
    blob = image.to_bytes()
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= flip
        with pytest.raises(ValueError, match=r"token|ids|cells|codebook") as error:
            TokenizedImage.from_bytes(bytes(damaged))
        assert "\n" not in str(error.value)


def test_a_cut_or_extended_blob_is_refused():
    blob = make().to_bytes()
    for other in (b"", blob[:7], blob[:-1], blob + b"\0", b"\xff" * 100, b"\0" * 8):
        with pytest.raises(ValueError, match="token file"):
            TokenizedImage.from_bytes(other)


def test_another_version_is_refused_by_name():
    assert TokenizedImage.from_bytes(rewrite(make().to_bytes())) == make()  # the helper itself is sound
    with pytest.raises(ValueError, match=r"format version 3; this program reads version 2$"):
        TokenizedImage.from_bytes(rewrite(make().to_bytes(), format=3))


def test_another_tokenizer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0123456789ab.*ffffffffffff"):
        TokenizedImage.from_bytes(make().to_bytes(), expect_tokenizer="f" * 12)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"grid": [8, 7]}, "cells"),
        ({"grid": [8]}, "grid"),
        ({"grid": [8, True]}, "grid"),
        ({"grid": [2**20, 2**20]}, "grid"),
        ({"size": [0, 4]}, "size"),
        ({"codebook_size": 3}, "ids"),
        ({"codebook_size": 65_537}, "uint16"),
        ({"codebook_size": "2048"}, "codebook_size"),
        ({"tokenizer": "../../etc/pas"}, "tokenizer"),
        ({"extra": 1}, "unknown"),
    ],
)
def test_facts_that_disagree_are_refused_though_the_checksum_fits(facts, complaint):
    with pytest.raises(ValueError, match=complaint):
        TokenizedImage.from_bytes(rewrite(make().to_bytes(), **facts))


def test_metadata_nested_without_end_is_refused():
    blob = safetensors.numpy.save({"ids": np.zeros(1, np.uint16)}, {"pictish": "[" * 100_000})
    with pytest.raises(ValueError, match="token file"):
        TokenizedImage.from_bytes(blob)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ids": [], "cells": []}, "at least one"),
        ({"ids": [1, 2]}, "3 entries for 2"),
        ({"ids": [-1, 0, 1]}, "0 to 2047"),
        ({"ids": [2048, 0, 1]}, "0 to 2047"),
        ({"ids": [0.5, 0.0, 1.0]}, "whole numbers"),
        ({"ids": [[1, 2, 3]]}, "vector"),
        ({"cells": [0, 5, 5]}, "rise"),
        ({"cells": [5, 0, 6]}, "rise"),
        ({"cells": [0, 1, 64]}, "0 to 63"),
        ({"codebook_size": 0}, "codebook_size"),
    ],
)
def test_parts_that_disagree_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**change)


def test_the_arrays_are_copies_and_read_only():
    ids = np.array([1, 2, 3])
    image = make(ids)
    ids[0] = 7
    assert image.ids[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        image.ids[0] = 9


def test_older_tokens_are_refused_with_what_to_do():
    wanted = r"^token file of format version 1; this program reads version 2: tokenize the images again"
    with pytest.raises(ValueError, match=wanted):
        TokenizedImage.from_bytes(rewrite(make().to_bytes(), format=1))


def test_bits_count_the_codebook_and_the_cells():
    assert make(cells=None).bits == 33
    assert make(cells=None, size=(3, 11)).bits_per_pixel == 1
    assert make().bits == pytest.approx(33 + math.log2(math.comb(64, 3)), abs=1e-9)
    assert make(range(64), range(64)).bits == 64 * 11, "every cell: there was nothing to choose"
    largest = make([1], [7], grid=(2**16, 2**16)).bits
    assert largest == pytest.approx(11 + 32, abs=1e-4)
    assert len(make()) == 3


def test_tokens_need_no_torch():
    modules = ", ".join(f"pictish.data.{name}" for name in ("tokens", "loader", "shards", "token_folder"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
