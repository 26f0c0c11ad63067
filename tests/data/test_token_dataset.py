import json
import tempfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

import pictish
from pictish.data.shards import ShardFile
from pictish.data.tokens import TokenizedImage
from pictish.io import storage
from tests.bulk_runs import noise_png


def tokens(number: int) -> TokenizedImage:
    return TokenizedImage(np.array([number, 1, 2]), np.array([0, 2, 5]), (4, 4), (30, 40), "0123456789ab", 64)


def shards(folder, count: int, samples: int = 3):
    for shard in range(count):
        with ShardFile(folder / f"s-{shard}.tar") as file:
            for index in range(samples):
                number = shard * samples + index
                others = {"txt": f"größe {number}".encode(), "json": json.dumps({"n": number}).encode()}
                members = {"tokens": tokens(number).to_bytes(), "source.png": noise_png(number), **others}
                file.write(f"{shard}/{index}", members)
    return folder


def keys(dataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def same(sample):  # a DataLoader's worker gives it back as it is
    return sample[0]["__key__"]


def test_members_are_decoded_by_their_suffix(tmp_path):
    first, *rest = pictish.token_dataset(shards(tmp_path, 2))
    assert len(rest) == 5
    assert first["tokens"] == tokens(0)
    assert (first["txt"], first["json"], first["__key__"]) == ("größe 0", {"n": 0}, "0/0")
    assert isinstance(first["source.png"], Image.Image)
    assert first["source.png"].mode == "RGB"
    assert first["__url__"] == str(tmp_path / "s-0.tar")


def test_it_composes_as_webdataset_does(tmp_path):
    shards(tmp_path, 4)
    dataset = pictish.token_dataset(f"{tmp_path}/s-{{0..2}}.tar", tokenizer="0123456789ab", shardshuffle=10)
    ordered = keys(pictish.token_dataset([tmp_path / "s-0.tar", tmp_path / "s-1.tar", tmp_path / "s-2.tar"]))
    assert len(ordered) == 9
    batches = list(dataset.shuffle(5).to_tuple("__key__", "tokens").batched(4, collation_fn=list))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert sorted(key for batch in batches for key, _ in batch) == ordered
    loader = DataLoader(pictish.token_dataset(tmp_path), batch_size=1, num_workers=2, collate_fn=same)
    assert sorted(loader) == sorted([*ordered, "3/0", "3/1", "3/2"]), "each sample comes from one worker"


def test_a_worker_without_a_shard_is_no_silent_loss(tmp_path):
    loader = DataLoader(pictish.token_dataset(shards(tmp_path, 1)), num_workers=2, collate_fn=same)
    with pytest.raises(ValueError, match="a worker has no shards"):
        list(loader)


@pytest.mark.parametrize("url", ["pipe:touch HERE/ran", "pipe:curl http://x/a.tar", "http://x/a.tar", "-"])
def test_no_url_runs_a_command_or_leaves_the_machine(tmp_path, url):
    with pytest.raises(ValueError, match=r"no such file|commands are not run|a path, or one of"):
        list(pictish.token_dataset(url.replace("HERE", str(tmp_path))))
    assert list(tmp_path.iterdir()) == []


def raw(path, name: str, blob: bytes):
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
        tar.write({"__key__": "a", name: blob})
    return path


@pytest.mark.parametrize(
    ("name", "blob", "complaint"),
    [
        ("pyd", b"cos\nsystem\n(S'touch ran'\ntR.", r"bad\.tar: .*pickle"),
        ("pth", b"x", r"bad\.tar: .*pickle"),
        ("tokens", b"damaged", r"bad\.tar: a: "),
        ("png", b"damaged", r"bad\.tar: a: "),
        ("txt", b"\xff", r"bad\.tar: a: "),
        ("json", b"[" * 100_000, r"bad\.tar: a: "),
    ],
)
def test_what_is_damaged_or_a_pickle_is_named_or_handled(tmp_path, monkeypatch, name, blob, complaint):
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "bad.tar", name, blob)
    with pytest.raises(ValueError, match=complaint) as caught:
        list(pictish.token_dataset("bad.tar"))
    assert len(str(caught.value).splitlines()) == 1
    shards(tmp_path, 1)
    faults = []
    handler = lambda error: faults.append(error) or True  # noqa: E731
    assert keys(pictish.token_dataset(tmp_path, handler=handler)) == ["0/0", "0/1", "0/2"]
    assert len(faults) == 1
    assert not (tmp_path / "ran").exists()


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"s-0\.tar: 0/0: .*ba9876543210"):
        list(pictish.token_dataset(shards(tmp_path, 1), tokenizer="ba9876543210"))


@pytest.mark.parametrize("secure", [False, True])
def test_the_users_own_setting_of_webdataset_stays(tmp_path, monkeypatch, secure):
    """With WDS_SECURE webdataset's own opener reads no local files; ours does, and leaves the flag alone."""
    monkeypatch.setattr(webdataset.utils, "enforce_security", secure)
    assert len(keys(pictish.token_dataset(shards(tmp_path, 1)))) == 3
    assert webdataset.utils.enforce_security is secure


def test_shards_of_a_store(tmp_path, monkeypatch):
    """By fsspec's store in memory; tests/io/test_storage.py has the faults of a real one."""
    monkeypatch.setitem(storage.REMOTE, "memory", "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for path in sorted(shards(tmp_path / "local", 2).iterdir()):
        storage.upload(path, f"memory://{tmp_path.name}/{path.name}")
    dataset = pictish.token_dataset(f"memory://{tmp_path.name}")
    assert keys(dataset) == keys(pictish.token_dataset(tmp_path / "local"))
    assert list((tmp_path / "temporary").iterdir()) == []
