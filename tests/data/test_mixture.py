"""The training stream: exactly once an epoch, the same for any number of ranks, and resumable anywhere."""

import io
import itertools
import json
import os
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictish.data.mixture import Mixture, Report, Source
from pictish.data.samples import DamagedSample, PlainText
from pictish.data.shards import ShardFile
from pictish.data.tokens import TokenizedImage

OURS, THEIRS = "7d8480af75e7", "0123456789ab"
quick = settings(deadline=None, max_examples=12)


def write(path, keys, members=None):
    with ShardFile(path) as shard:
        for key in keys:
            shard.write(key, members(key) if members else {"txt": f"text {key}".encode()})
    return path


def pair(key):
    return {"png": b"P" + key.encode(), "txt": b"a caption"}


def take(stream, count):
    return list(itertools.islice(stream, count))


def places(drawn):
    return [(d.slot.number, d.slot.source, d.slot.epoch, d.sample.source, d.sample.key) for d in drawn]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of 1 to 12 plain texts: `shards(3, 5)` are the paths of one with three and one with five."""
    folder = tmp_path_factory.mktemp("shards")
    made = {n: write(folder / f"s{n:02d}.tar", [f"{n}-{i}" for i in range(n)]) for n in range(1, 13)}
    return lambda *sizes: tuple(made[size] for size in sizes)


sizes = st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True)
sources = st.lists(st.tuples(sizes, st.floats(0.1, 10)), min_size=1, max_size=3)


def mixture(shards, plan, seed=0, **settings):
    return Mixture(
        [Source(f"s{n}", shards(*sizes), weight) for n, (sizes, weight) in enumerate(plan)], seed, **settings
    )


@quick
@given(sources, st.integers(0, 2**63 - 1))
def test_every_sample_comes_exactly_once_an_epoch_of_its_source(shards, plan, seed):
    stream = mixture(shards, plan, seed)
    seen = Counter((d.slot.source, d.slot.epoch, d.sample.key) for d in take(stream, 150))
    assert set(seen.values()) == {1}
    for n, (sizes, _) in enumerate(plan):
        assert stream.sizes[f"s{n}"] == sum(sizes)
        last = max((epoch for source, epoch, _ in seen if source == f"s{n}"), default=0)
        for epoch in range(last):  # the epochs that are over are whole
            keys = {key for source, of, key in seen if (source, of) == (f"s{n}", epoch)}
            assert keys == {f"{size}-{i}" for size in sizes for i in range(size)}


@quick
@given(sources, st.integers(0, 99), st.integers(1, 5))
def test_ranks_take_slices_of_one_order(shards, plan, seed, world):
    alone = places(take(mixture(shards, plan, seed), 12 * world))
    ranks = [places(take(mixture(shards, plan, seed, lane=r, lanes=world), 12)) for r in range(world)]
    assert [place for turn in zip(*ranks, strict=True) for place in turn] == alone


@quick
@given(sources, st.integers(0, 99), st.integers(0, 90), st.integers(1, 4), st.data())
def test_a_stopped_stream_goes_on_with_the_very_next_sample(shards, plan, seed, stop, world, data):
    where = {"lane": data.draw(st.integers(0, world - 1)), "lanes": world}
    undisturbed = mixture(shards, plan, seed, **where)
    before = take(undisturbed, stop)
    position = json.loads(json.dumps(before[-1].position if before else undisturbed.position))
    assert json.loads(json.dumps(undisturbed.position)) == position
    resumed = mixture(shards, plan, seed, **where, position=position)
    assert resumed.position == position
    after = take(resumed, 30)
    assert places(after) == places(take(undisturbed, 30))
    assert after[-1].position == undisturbed.position


def test_another_number_of_ranks_goes_on_where_all_have_stopped(shards):
    plan = [((7, 5), 2.0), ((3,), 1.0)]
    alone = places(take(mixture(shards, plan), 60))
    ranks = [mixture(shards, plan, lane=r, lanes=4) for r in range(4)]
    for rank in ranks:
        take(rank, 5)
    furthest = max((rank.position for rank in ranks), key=lambda position: position["sample"])
    for world in (1, 2, 3):
        again = [
            places(take(mixture(shards, plan, lane=r, lanes=world, position=furthest), 10))
            for r in range(world)
        ]
        assert sorted(place for rank in again for place in rank) == alone[20 : 20 + 10 * world]


def test_a_position_beyond_many_blocks_and_epochs(shards):
    plan = [((7, 5), 2.0), ((3,), 1.0)]
    stream = mixture(shards, plan)
    for _ in range(3000):
        stream.draw()
    resumed = mixture(shards, plan, position=stream.position)
    assert places(take(resumed, 40)) == places(take(stream, 40))


def test_weights_are_shares_of_the_samples(shards):
    stream = mixture(shards, [((12,), 6.0), ((1,), 3.0), ((5,), 1.0)], seed=3)
    drawn = [stream.draw().source for _ in range(20_000)]
    counts = Counter(drawn)
    for name, share in (("s0", 0.6), ("s1", 0.3), ("s2", 0.1)):
        deviation = (share * (1 - share) / 20_000) ** 0.5
        assert abs(counts[name] / 20_000 - share) < 5 * deviation
    for shift in (1, 1020, 1024):  # no block of draws repeats another: equal by chance, 0.36 + 0.09 + 0.01
        equal = sum(one == other for one, other in zip(drawn, drawn[shift:], strict=False))
        assert abs(equal / (20_000 - shift) - 0.46) < 0.03


def test_the_order_differs_between_epochs_and_seeds_and_not_between_runs_or_places(shards, tmp_path):
    def epochs(seed, paths, count=4):
        stream = Mixture([Source("a", paths)], seed)
        return [[d.sample.key for d in take(stream, 21)] for _ in range(count)]

    here = shards(12, 9)
    orders = epochs(0, here) + epochs(1, here)
    assert len({tuple(order) for order in orders}) == 8
    assert epochs(0, here) == orders[:4]
    moved = tuple(tmp_path / path.name for path in reversed(here))
    for path, old in zip(moved, reversed(here), strict=True):
        path.write_bytes(old.read_bytes())
    assert epochs(0, moved) == orders[:4]
    # every place is equally likely: the first of 400 epochs of 12 samples, each about 33 times
    stream = Mixture([Source("a", shards(12))], 5)
    firsts = Counter(slot.row for n in range(4800) if (slot := stream.draw()) and n % 12 == 0)
    assert len(firsts) == 12
    assert max(abs(count - 400 / 12) for count in firsts.values()) < 5 * (400 / 12) ** 0.5


def test_the_order_is_the_one_that_was_promised(shards):
    """Runs must go on after an update of numpy or of this program; a change here breaks their positions."""
    stream = mixture(shards, [((4, 3), 1.0), ((2,), 0.5)], seed=11)
    promised = "s0 3-1, s1 2-0, s0 4-3, s0 4-2, s0 4-1, s0 4-0, s0 3-0, s0 3-2"
    assert ", ".join(f"{d.slot.source} {d.sample.key}" for d in take(stream, 8)) == promised


def test_shards_of_one_name_are_shuffled_apart(tmp_path):
    keys = [f"{number:03d}" for number in range(60)]
    paths = tuple(write(tmp_path / folder / "0.tar", keys) for folder in ("a", "b"))
    order = [drawn.sample.key for drawn in take(Mixture([Source("both", paths)], 0), 120)]
    assert Counter(order) == dict.fromkeys(keys, 2)
    neighbours = sum(one == other for one, other in itertools.pairwise(order))
    assert neighbours < 10, "of 60 pairs, about one by chance"
    alone = [drawn.sample.key for drawn in take(Mixture([Source("both", paths[:1])], 0), 60)]
    mixed = Mixture([Source("both", paths)], 0)
    first = [key for slot, key in ((mixed.draw(), key) for key in order) if slot.row < 60]
    assert first == alone, "the first of the name keeps its order"


def test_damage_is_reported_and_moves_no_other_sample(tmp_path):
    keys = [f"{n:02d}" for n in range(20)]

    def order(damaged_json=None, cut=False):
        folder = tmp_path / f"{damaged_json}-{cut}"
        write(
            folder / "a.tar",
            keys,
            lambda key: {"png": b"P", "json": b"{" if key == damaged_json else CAPTION},
        )
        write(folder / "b.tar", keys, pair)
        if cut:
            blob = (folder / "b.tar").read_bytes()
            (folder / "b.tar").write_bytes(blob[: len(blob) // 2])
        stream = Mixture([Source("a", (folder,))], 0)
        found = [(d.sample.source, d.sample.key) for d in take(stream, 19)]
        return found, stream

    whole, stream = order()
    assert stream.report.lines() == []
    less, stream = order("07")
    assert [place for place in whole if place != ("a.tar", "07")][:18] == less[:18]
    take(stream, 60)  # the sample comes again and is named once
    assert stream.report.skipped == {"its .json is no JSON": ["a.tar/07"]}
    assert stream.report.used == 79
    cut, stream = order(cut=True)
    left = [place for place in whole if place in cut]
    assert [place for place in cut if place in whole] == left
    ((reason, names),) = stream.report.skipped.items()
    assert "damaged" in reason or "truncated" in reason or "unexpected end" in reason
    assert names == ["b.tar after sample 12"]
    assert stream.sizes == {"a": 32}


CAPTION = b'{"caption": "x"}'


def flip_header(path):
    blob = bytearray(path.read_bytes())
    blob[8 * 512 + 3] ^= 1  # the first header of the third sample; each has two of a header and its bytes
    path.write_bytes(blob)


def cut(path):
    path.write_bytes(path.read_bytes()[: 9 * 512])


def add_pickle(path):
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("z.pkl")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"cos\n"))


def tokens(tokenizer):
    return TokenizedImage([1], [0], (4, 4), (9, 9), tokenizer, 64).to_bytes()


DAMAGE = [
    (flip_header, {}, "bad.tar after sample 1", "damaged"),
    (cut, {}, "bad.tar after sample 1", "truncated|unexpected end"),
    (add_pickle, {}, "bad.tar after sample 2", "pickle"),
    (None, {"b": {"txt": b"x"}}, "bad.tar/b", "has no image"),
    (None, {"b": {"png": b"P"}}, "bad.tar/b", "has no caption"),
    (None, {"b": {"png": b"P", "json": b"{"}}, "bad.tar/b", "no JSON"),
    (None, {"b": {"png": b"P", "txt": b"\xff"}}, "bad.tar/b", "not UTF-8"),
    (None, {"b": {"tokens": b"T", "txt": b"x"}}, "bad.tar/b", "not a token file"),
    (None, {"b": {"tokens": tokens(THEIRS), "txt": b"x"}}, "bad.tar/b", f"{THEIRS}.*{OURS}"),
]


@pytest.mark.parametrize(("damage", "others", "name", "reason"), DAMAGE)
def test_what_is_damaged_is_left_out_and_named_or_stops_a_strict_run(tmp_path, damage, others, name, reason):
    path = write(tmp_path / "bad.tar", "abc", lambda key: others.get(key, pair(key)))
    if damage:
        damage(path)
    good = [Source("a", (path,)), Source("b", (write(tmp_path / "good.tar", "xyz", pair),))]
    stream = Mixture(good, 0, tokenizer=OURS)
    drawn = take(stream, 40)
    usable = {"a", "c"} if others else set("ab"[: int(name.split()[-1])])
    assert {d.sample.key for d in drawn if d.slot.source == "a"} == usable
    assert {d.sample.key for d in drawn if d.slot.source == "b"} == set("xyz")
    ((found, names),) = stream.report.skipped.items()
    assert names == [name]
    assert len(stream.report.lines()) == 1
    assert stream.report.used == 40
    with pytest.raises(ValueError, match=rf"bad\.tar.*({reason})") as error:
        take(Mixture(good, 0, tokenizer=OURS, strict=True), 40)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_what_belongs_to_no_sample_is_reported_again_from_the_cache(tmp_path):
    path = write(tmp_path / "S" / "a.tar", "ab")
    with tarfile.open(path, "a") as archive:
        for name in ("._a.txt", "a.npy"):
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "S" / ".hidden.tar").write_bytes(b"")
    for _ in range(2):
        stream = Mixture([Source("s", (tmp_path / "S",))], 0, cache=tmp_path / "cache")
        assert len(take(stream, 4)) == 4
        assert stream.report.skipped == {"1 member of an unknown kind": ["a.tar/*.npy"]}
        assert stream.report.hidden == 2
        assert stream.report.lines()[-1] == "2 hidden files ignored"


def test_a_source_may_name_the_field_of_its_captions(tmp_path):
    members = {"png": b"P", "txt": b"a.png", "json": b'{"Label": "a cat"}'}
    path = write(tmp_path / "a.tar", "ab", lambda key: members)
    (drawn,) = take(Mixture([Source("s", (path,), caption_key="label")], 0), 1)
    assert drawn.sample.captions == ("a cat",)


def test_commands_are_not_run(tmp_path):
    for asked in (f"pipe:touch {tmp_path}/ran", f"pipe:touch {tmp_path}/ran.tar"):
        with pytest.raises(ValueError, match=r"source a: pipe:.*commands are not run"):
            Mixture([Source("a", (Path(asked),))], 0)
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_nothing_but_foreign_tokens_stops_soon(tmp_path):
    bad = write(tmp_path / "bad.tar", "abc", lambda key: {"tokens": tokens(THEIRS), "txt": b"x"})
    good = write(tmp_path / "good.tar", "xyz")
    for world in (1, 3):
        stream = Mixture([Source("bad", (bad,)), Source("good", (good,))], 0, tokenizer=OURS, lanes=world)
        with pytest.raises(ValueError, match=rf"source bad: 3 samples.*{THEIRS}.*{OURS}"):
            take(stream, 1000)


def test_lanes_beside_one_another_share_what_is_known(shards):
    plan = [((7, 5), 2.0), ((3,), 1.0)]
    first = mixture(shards, plan, lane=0, lanes=3)
    take(first, 4)
    others = [first.beside(lane) for lane in range(3)]
    alone = [places(take(mixture(shards, plan, lane=lane, lanes=3), 20)) for lane in range(3)]
    turns = [[places([next(other)])[0] for other in others] for _ in range(20)]  # in turn, epochs apart
    assert [list(lane) for lane in zip(*turns, strict=True)] == alone
    again = first.beside(1, others[1].position)
    assert places(take(again, 5)) == places(take(others[1], 5))


def test_half_a_small_source_damaged_does_not_stop_one_of_many_ranks(tmp_path):
    bad = write(
        tmp_path / "bad.tar", "ab", lambda key: {"png": b"P", **({"txt": b"x"} if key == "a" else {})}
    )
    stream = Mixture([Source("bad", (bad,))], 0, lane=1, lanes=2)
    assert {d.sample.key for d in take(stream, 200)} == {"a"}


def test_slots_read_ahead_in_threads_give_the_same(tmp_path, shards):
    alone = places(take(mixture(shards, [((7, 5), 2.0), ((3,), 1.0)]), 100))
    stream = mixture(shards, [((7, 5), 2.0), ((3,), 1.0)])
    slots = [stream.draw() for _ in range(100)]
    with ThreadPoolExecutor(4) as pool:
        samples = list(pool.map(stream.read, slots))
    found = [(s.number, s.source, s.epoch, x.source, x.key) for s, x in zip(slots, samples, strict=True)]
    assert found == alone
    stream.use(slots[0])
    stream.skip(slots[1], DamagedSample(stream.name_of(slots[1]), "its picture cannot be decoded"))
    name = f"{samples[1].source}/{samples[1].key}"
    assert stream.report == Report(1, skipped={"its picture cannot be decoded": [name]})


def test_sources_may_be_folders_of_pictures_and_of_shards(tmp_path):
    for name in ("cat.png", "dog.png"):
        (tmp_path / "F" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "F" / name).write_bytes(b"P")
        (tmp_path / "F" / name).with_suffix(".txt").write_text(name)
    write(tmp_path / "S" / "deep" / "one.tar", "ab")
    both = Source("all", (tmp_path / "S", tmp_path / "F", tmp_path / "S" / "deep" / "one.tar"))
    stream = Mixture([both], 0, cache=tmp_path / "run")
    found = {(d.sample.source, d.sample.key, type(d.sample).__name__) for d in take(stream, 4)}
    assert found == {
        ("F", "cat", "Pair"),
        ("F", "dog", "Pair"),
        ("one.tar", "a", "PlainText"),
        ("one.tar", "b", "PlainText"),
    }
    write(tmp_path / "F" / "one.tar", "ab")
    with pytest.raises(ValueError, match=r"source all: .*F holds shards and images"):
        Mixture([both], 0)


def test_an_index_is_kept_and_made_anew_for_changed_shards_only(tmp_path, monkeypatch):
    from pictish.data import mixture as module

    scanned = []

    def scan(path):
        scanned.append(path.name)
        return index_shard(path)

    index_shard = module.index_shard
    monkeypatch.setattr(module, "index_shard", scan)
    paths = (write(tmp_path / "a.tar", "abc"), write(tmp_path / "b.tar", "de"))
    run = tmp_path / "run"

    def order(**settings):
        scanned.clear()
        return places(take(Mixture([Source("s", paths)], 0, **settings), 10))

    first = order()
    assert order(cache=run, shared=True) == first
    assert not run.exists()  # somebody else writes it
    assert order(cache=run) == first
    assert scanned == ["a.tar", "b.tar"]
    assert order(cache=run) == first
    assert scanned == []
    os.utime(paths[0], ns=(1, 1))
    assert order(cache=run) == first
    assert scanned == ["a.tar"]
    (run / "s.safetensors").write_bytes((run / "s.safetensors").read_bytes()[:-5])
    assert order(cache=run) == first
    assert scanned == ["a.tar", "b.tar"]
    (tmp_path / "link.tar").symlink_to(paths[0])  # the order goes by the name that was given
    assert (
        len(
            {
                str(places(take(Mixture([Source("s", (p,))], 0, cache=run), 6)))
                for p in (paths[0], tmp_path / "link.tar")
            }
        )
        == 2
    )


def test_positions_of_other_streams_are_refused(shards, tmp_path):
    plan = [((7, 5), 2.0), ((3,), 1.0)]
    position = mixture(shards, plan).position
    for other, complaint in (
        ((plan, 1), "taken with seed 0; this run has 1"),
        ((plan[:1], 0), "taken with sources s0, s1; this run has s0"),
        (([((7, 5), 2.5), plan[1]], 0), "source s0 has changed since: its weight was 2.0, it is 2.5 now"),
        (([((7, 4), 2.0), plan[1]], 0), "source s0 has changed since: its size was 12, it is 11 now"),
        (([((8, 4), 2.0), plan[1]], 0), "source s0 has changed since: its digest was"),
    ):
        with pytest.raises(ValueError, match=complaint):
            mixture(shards, *other, position=position)
    for wrong in ({}, {**position, "sample": 3}, {**position, "sample": "x"}, {**position, "sources": 3}):
        with pytest.raises(ValueError, match="not a position of a mixture"):
            mixture(shards, plan, position=wrong)


def test_mistakes_in_sources_are_one_line(shards, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.tar").write_bytes(b"no")
    for sources, complaint in (
        (lambda: [], "came: none"),
        (lambda: [Source("a", shards(1)), Source("a", shards(2))], "came: a, a"),
        (lambda: [Source("a b", shards(1))], "letters, digits"),
        (lambda: [Source("a", shards(1), 0.0)], "weight is 0.0"),
        (lambda: [Source("a", shards(1), float("nan"))], "weight is nan"),
        (lambda: [Source("a", (tmp_path / "none.tar",))], "source a: .*no such file"),
        (lambda: [Source("a", (tmp_path / "empty",))], "source a: no samples in"),
        (lambda: [Source("a", ())], "source a: no samples in nothing was given"),
        (lambda: [Source("a", (tmp_path / "no.tar",))], r"source a: no samples in .*; no\.tar: "),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            Mixture(sources(), 0)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="seed must be 0"):
        Mixture([Source("a", shards(1))], -1)


def test_reports_of_ranks_add_up():
    report, other = Report(3), Report(4)
    for n in range(12):
        report.skip(f"a/{n}", "broken")
        other.skip(f"a/{n + 1}", "broken")
    other.skip("b", "lost")
    report.add(other)
    assert report.used == 7
    assert report.lines(2) == ["13 skipped, broken: a/0, a/1 and 11 more", "1 skipped, lost: b"]


def test_plain_text_is_what_the_helper_writes(shards):
    drawn = next(mixture(shards, [((1,), 1.0)]))
    assert drawn.sample == PlainText("s01.tar", "1-0", "text 1-0")
