from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictish.data.images import png_bytes
from pictish.data.shards import ShardWriter
from pictish.evaluation.pictures import PHOTOGRAPHS, Broken, PictureSource, photographs


def picture(seed: int, size=(20, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    (tmp_path / "pictures" / "broken.png").write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "shards", samples_per_shard=2) as writer:
        for seed in range(3):
            writer.write(f"key{seed}", {"png": png_bytes(picture(seed)), "txt": b"a caption"})
    return tmp_path / "shards"


def test_a_folder_gives_its_pictures_in_order_and_names_the_broken_one(folder):
    found = list(PictureSource([folder]).decode())
    assert [each.name for each in found] == ["a.png", "broken.png", "c.png", "sub/b.png"]
    assert isinstance(found[1], Broken)
    assert found[1].error
    assert [each.index for each in found if not isinstance(each, Broken)] == [0, 2, 3]
    assert np.array_equal(np.asarray(found[0].image), np.asarray(picture(0)))


def test_a_folder_of_shards_gives_the_pictures_inside(shards):
    source = PictureSource([shards])
    found = list(source.decode())
    names = [
        "shard-000000.tar/key0.png",
        "shard-000000.tar/key1.png",
        "shard-000001.tar/key2.png",
    ]
    assert [each.name for each in found] == names
    assert [each.index for each in found] == [0, 1, 2]
    for seed, each in enumerate(found):
        assert np.array_equal(np.asarray(each.image), np.asarray(picture(seed)))
    assert source.total is None


def test_files_folders_and_shards_together(folder, shards):
    source = PictureSource([folder / "a.png", folder / "sub", next(shards.glob("*1.tar"))])
    assert [each.name for each in source.decode()] == ["a.png", "b.png", "shard-000001.tar/key2.png"]


def test_limit_and_wanted(folder, shards):
    limited = PictureSource([folder], limit=3)
    assert [each.name for each in limited.decode()] == ["a.png", "broken.png", "c.png"]
    assert limited.total == 3
    assert PictureSource([folder], limit=9).total == 4
    assert [each.index for each in PictureSource([shards]).decode({0, 2})] == [0, 2]
    assert [each.index for each in PictureSource([folder]).decode({3})] == [3]


def test_what_is_left_out_is_named_and_the_rest_is_read(tmp_path, folder, shards, caplog):
    (folder / "._a.png").write_bytes(b"mac")
    (folder / "old.psd").write_bytes(b"8BPS")
    with ShardWriter(shards, prefix="two") as writer:
        writer.write("s", {"jpg": png_bytes(picture(7)), "png": png_bytes(picture(8))})
    (shards / "torn.tar").write_bytes(b"no tar" * 99)
    found = list(PictureSource([folder, shards]).decode())
    broken = {each.name: each.error for each in found if isinstance(each, Broken)}
    assert set(broken) == {"old.psd", "broken.png", "torn.tar", "two-000000.tar/s.png"}
    assert broken["two-000000.tar/s.png"] == "its sample has .jpg too, which is read"
    assert len(found) - len(broken) == 3 + 3 + 1
    assert "ignored 1 hidden file (._a.png)" in caplog.text


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images found"):
        PictureSource([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no such file"):
        PictureSource([tmp_path / "absent"])
    with ShardWriter(tmp_path / "words") as writer:
        writer.write("key", {"txt": b"a caption"})
    (found,) = PictureSource([tmp_path / "words"]).decode()
    assert isinstance(found, Broken)
    assert (found.name, found.error[:15]) == ("shard-000000.tar", "holds no images")


def test_photographs_are_colour_pictures_inside_scikit_image():
    found = list(photographs().decode())
    assert sorted(each.name for each in found) == sorted(PHOTOGRAPHS)
    for each in found:
        assert min(each.image.size) >= 300
        assert np.asarray(each.image).std(axis=-1).mean() > 2, f"{each.name} is grey"
