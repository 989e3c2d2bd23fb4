"""Files of Stein et al. as one data set: which rows, in which order, by whom; exact resume; damage that costs what it hits."""

import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from astroclip.files.fits_files import UnreadableFile
from astroclip.files.identifiers import target_ids
from astroclip.formats.hdf5_columns import NoSuchColumn, NotASurvey
from astroclip.formats.shard_files import (
    examine_shard,
    find_shards,
    gaps_between,
    shard_name,
    used_files,
    without_repeats,
    write_shards,
)
from astroclip.core.block_order import block_order, row_blocks, cut_batches
from astroclip.surveys.pairs import TEST, TRAIN, VALIDATION, split_of
from astroclip.surveys.shards import Shards, paper_image_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "North: 70 images in two files; south: 130 in three; south-train: 20 of the south."
    place = tmp_path_factory.mktemp("images")
    write_shards(place, 70, per_file=40, region="north", size=16)
    write_shards(place, 130, per_file=50, region="south", size=16, seed=1)
    write_shards(place, 20, per_file=20, region="south-train", size=16, seed=2)
    return place


@pytest.fixture
def copy(folder, tmp_path):
    "The south alone, to be damaged."
    return write_shards(tmp_path, 130, per_file=50, size=16, seed=1)


def epoch(shards, fields=("targetid",), batch_size=16, block=8, window=3, **how):
    return list(shards.batches(fields, batch_size, block=block, window=window, **how))


def rows_of(batches):
    return [b["row"].tolist() for b in batches]


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def test_a_row_is_a_file_and_a_place(folder):
    shards = Shards(folder)
    assert len(shards) == 200
    assert [f.region for f in shards.files] == ["north"] * 2 + ["south"] * 3  # the released code's order
    assert shards.place(39) == (0, 39) and shards.place(40) == (1, 0) and shards.place(-1) == (4, 29)
    with pytest.raises(IndexError, match="row 200"):
        shards[200]
    with h5py.File(shards.files[3].path) as f:
        expected = f["images"][5:8]
        names = target_ids(f["release"][5:8], f["brickid"][5:8], f["objid"][5:8])
    rows = [127, 125, 126]
    assert np.array_equal(shards.read("image", rows), expected[[2, 0, 1]])
    assert np.array_equal(shards.read("targetid", rows), names[[2, 0, 1]])
    assert np.array_equal(shards[125]["image"], expected[0])


def test_reading_across_files_equals_reading_each(folder):
    shards = Shards(folder)
    whole = np.concatenate([h5py.File(f.path)["images"][:] for f in shards.files])
    assert np.array_equal(shards.read("image", slice(35, 125)), whole[35:125])
    mask = np.zeros(200, bool)
    mask[[0, 39, 40, 41, 69, 70, 199]] = True
    assert np.array_equal(shards.read("image", mask), whole[mask])
    assert shards.read("image", np.zeros(200, bool)).shape == (0, 3, 16, 16)


def test_no_redshift_is_nan(folder):
    z = Shards(folder).read("redshift")
    assert np.isnan(z).any() and np.isfinite(z).any() and np.nanmin(z) > 0


def test_regions_and_the_files_of_the_released_code(folder):
    assert len(Shards(folder, "south")) == 130 and len(Shards(folder, "south-train")) == 20
    names = [Path("images/south") / shard_name(i * 10**6, (i + 1) * 10**6) for i in range(63)]
    names += [Path("images/north") / shard_name(i * 10**6, (i + 1) * 10**6) for i in range(15)]
    pretraining, zoo = (used_files(find_shards(names), use) for use in ("pretraining", "galaxy_zoo"))
    assert len(pretraining) == 75 and len(zoo) == 76
    assert [p.parent.name for p in pretraining] == ["north"] * 14 + ["south"] * 61
    assert gaps_between(pretraining, "pretraining") == []
    assert gaps_between(names[:60], "pretraining")[1] == "south: rows 60,000,000 to 61,000,000 are in no file"
    with pytest.raises(ValueError, match="expected one of"):
        Shards(folder, use="everything")
    with pytest.raises(ValueError, match="region 'east'"):
        Shards(folder, "east")


def test_the_released_split_is_the_end_of_a_permutation():
    order = np.random.default_rng(42).permutation(1000)
    split = paper_image_split(1000, validation=30, test=100)
    assert set(np.flatnonzero(split == TEST)) == set(order[-100:])
    assert set(np.flatnonzero(split == VALIDATION)) == set(order[870:900])
    assert (split == TRAIN).sum() == 870
    with pytest.raises(ValueError, match="held out"):
        paper_image_split(100)


def test_our_split_follows_the_name(folder):
    shards = Shards(folder)
    assert np.array_equal(shards.split(), split_of(shards.read("targetid")))


def test_an_epoch_holds_every_row_once_and_is_a_function_of_seed_and_epoch(folder):
    first, again = epoch(Shards(folder), seed=3, epoch=1), epoch(Shards(folder), seed=3, epoch=1)
    assert rows_of(first) == rows_of(again)
    assert sorted(sum(rows_of(first), [])) == list(range(200))
    assert rows_of(first) != rows_of(epoch(Shards(folder), seed=3, epoch=2))
    assert rows_of(first) != rows_of(epoch(Shards(folder), seed=4, epoch=1))
    names = Shards(folder).read("targetid")
    assert all(np.array_equal(b["targetid"], names[b["row"]]) for b in first)
    assert sum(rows_of(epoch(Shards(folder), shuffle=False)), []) == list(range(200))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_are_disjoint_and_complete(folder, world):
    shards = Shards(folder)
    by_rank = [sum(rows_of(epoch(shards, rank=r, world=world, epoch=5)), []) for r in range(world)]
    assert sorted(sum(by_rank, [])) == list(range(200))
    equal = [len(epoch(shards, rank=r, world=world, epoch=5, batch_size=4, drop_last=True)) for r in range(world)]
    assert len(set(equal)) == 1 and equal[0] > 0


@pytest.mark.parametrize("start", [0, 1, 4, 12, 13])
def test_resume_inside_an_epoch_is_exact(folder, start):
    use = Shards(folder).split() == TRAIN
    whole = epoch(Shards(folder), ["image"], rows=use, seed=9)
    rest = epoch(Shards(folder), ["image"], rows=use, seed=9, start=start)
    assert rows_of(rest) == rows_of(whole[start:])
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(rest, whole[start:]))
    assert sorted(sum(rows_of(whole), [])) == np.flatnonzero(use).tolist()


def test_a_resume_reads_no_window_before_its_own():
    starts, stops = row_blocks([64], 4)
    read = []

    def load(w):
        read.append(w)
        return {"row": np.arange(w * 16, w * 16 + 16)}, np.arange(16)

    assert len(starts) == 16 and stops[-1] == 64
    assert [k for k, _ in cut_batches(load, np.full(4, 16), 10, start=5)] == [5, 6]
    assert read == [3]


CHILD = """
import sys, hashlib
from astroclip.surveys.shards import Shards
state = eval(sys.argv[2])
how = dict(block=8, window=3, seed=2, rank=1, world=2)
for state, batch in Shards(sys.argv[1]).stream(["image"], 16, state, **how):
    print(state, hashlib.sha256(batch["image"].tobytes()).hexdigest(), flush=True)
"""


def lines_until(folder, state, n):
    "What a process says of its first n batches; then it is killed."
    words = [sys.executable, "-c", CHILD, str(folder), repr(state)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        lines = [child.stdout.readline().strip() for _ in range(n)]
        child.kill()
    return lines


def test_a_killed_stream_goes_on_where_it_was(folder):
    whole = lines_until(folder, None, 14)  # into the third epoch
    state = eval(whole[7].split("} ")[0] + "}")
    assert state["epoch"] == 1
    assert lines_until(folder, state, 6) == whole[8:14]


def test_what_is_damaged_is_refused_by_name_or_left_out(copy):
    copy[1].write_bytes(copy[1].read_bytes()[:30_000])
    with pytest.raises(UnreadableFile, match="000000050_000000100.*truncated"):
        Shards(copy)
    with pytest.warns(UserWarning, match="truncated"):
        shards = Shards(copy, on_bad="skip")
    assert len(shards) == 80 and len(shards.problems) == 1
    copy[1].unlink()
    with pytest.raises(FileNotFoundError, match="rows 50 to 100 are in no file"):
        Shards(copy[0].parent)
    with pytest.warns(UserWarning, match="in no file"):
        assert len(Shards(copy[0].parent, on_bad="skip")) == 80
    with pytest.raises(FileNotFoundError, match="write_shards"):
        Shards(copy[0].parent.parent / "empty")
    with pytest.raises(ValueError, match="expected 'refuse' or 'skip'"):
        Shards(copy, on_bad="ignore")


def test_a_region_begins_at_its_first_row(copy):
    "Rows 0 to 50 are missing as any others would be; whoever wants the rest names it."
    copy[0].unlink()
    folder = copy[0].parent.parent
    with pytest.raises(FileNotFoundError, match="south: rows 0 to 50 are in no file: fetch them, name the files"):
        Shards(folder)
    with pytest.warns(UserWarning, match="rows 0 to 50 are in no file"):
        rest = Shards(folder, on_bad="skip")
    assert len(rest) == 80 and rest.problems == ["south: rows 0 to 50 are in no file"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Shards(copy[1:])) == 80 and len(Shards(copy[2])) == 30


def test_a_file_that_is_there_twice_is_counted_once(copy):
    folder = copy[0].parent.parent
    again = folder / "old" / "south" / copy[1].name
    again.parent.mkdir(parents=True)
    again.write_bytes(copy[1].read_bytes())
    names = "|".join(f"{a} and {b}" for a, b in ((copy[1], again), (again, copy[1])))
    with pytest.raises(ValueError, match=rf"^rows 50 to 100 are in two files, ({names}): keep one of the two"):
        Shards(folder)
    with pytest.warns(UserWarning, match="rows 50 to 100 are in two files"):
        shards = Shards(folder, on_bad="skip")
    assert len(shards) == 130 and len(shards.problems) == 1
    assert len(np.unique(shards.read("targetid"))) == 130
    overlapping = [copy[0], copy[0].with_name(shard_name(20, 50, 16)), copy[1]]  # 20 to 50 lie in the first
    assert without_repeats(overlapping)[0] == copy[:2] and "rows 20 to 50" in without_repeats(overlapping)[1][0]


@pytest.mark.parametrize("start", [0, 2])
def test_a_stream_without_a_usable_image_ends(copy, start):
    for path in copy:
        with h5py.File(path, "a") as f:
            f["images"][...] = np.nan
    shards = Shards(copy, on_bad="skip")
    with pytest.raises(ValueError, match="no image of a whole epoch can be used.*not finite"):
        quietly(next, shards.stream(["image"], 16, dict(epoch=0, batch=start), prefetch=0))


def damage_rows(path, *rows):
    "Rewrite the images in compressed chunks of one row, and spoil the bytes of some of them."
    with h5py.File(path, "a") as f:
        x = f["images"][:]
        del f["images"]
        images = f.create_dataset("images", data=x, chunks=(1, *x.shape[1:]), compression="gzip")
        places = [images.id.get_chunk_info_by_coord((row, 0, 0, 0)).byte_offset for row in rows]
    with open(path, "r+b") as f:
        for place in places:
            f.seek(place)
            f.write(b"\xff" * 64)


def test_a_block_that_cannot_be_read_costs_its_rows_only(copy):
    whole = epoch(Shards(copy), ["image", "targetid"], seed=1)
    damage_rows(copy[1], 7)  # row 57, in the block of rows 50 to 57
    with pytest.raises(UnreadableFile, match="000000050_000000100"):
        epoch(Shards(copy), ["image"], seed=1, prefetch=0)
    shards = Shards(copy, on_bad="skip")
    with pytest.warns(UserWarning, match="8 rows from 50 on left out"):
        found = epoch(shards, ["image", "targetid"], seed=1, prefetch=0)
    assert len(found) == len(whole)
    for a, b in zip(found, whole):  # all other rows of a batch stay where they are
        kept = ~np.isin(b["row"], np.arange(50, 58))
        assert np.array_equal(a["row"], b["row"][kept]) and np.array_equal(a["image"], b["image"][kept])
        assert np.array_equal(a["targetid"], b["targetid"][kept]) and a["targetid"].dtype == np.int64
    resumed = quietly(epoch, Shards(copy, on_bad="skip"), ["image"], seed=1, start=3)
    assert rows_of(resumed) == rows_of(found[3:])
    assert shards.bad[0][0].tolist() == list(range(50, 58))


def test_a_window_without_a_readable_row_keeps_its_types(copy):
    damage_rows(copy[0], *range(0, 50, 8))  # one in each block
    shards = Shards(copy, on_bad="skip")
    found = quietly(epoch, shards, ["image", "targetid"], shuffle=False, window=1)
    assert sum(rows_of(found), []) == list(range(50, 130))
    assert np.array_equal(np.concatenate([b["targetid"] for b in found]), Shards(copy).read("targetid")[50:])


def test_a_value_that_is_no_number(copy):
    with h5py.File(copy[2], "a") as f:
        f["images"][3, 1, 2, 2] = np.inf
    with pytest.raises(NotASurvey, match="row 103 of all: image is not finite"):
        epoch(Shards(copy), ["image"], prefetch=0)
    found = quietly(epoch, Shards(copy, on_bad="skip"), ["image"])
    assert sorted(sum(rows_of(found), [])) == [r for r in range(130) if r != 103]


def test_a_field_of_another_length_is_left_out_with_a_warning(copy):
    with h5py.File(copy[0], "a") as f:
        del f["ra"], f["inds"]
        f["ra"] = np.zeros(49)
        f["inds"] = np.r_[np.arange(49), 0]  # repeated: nobody trusts it
    assert "has 49 rows for 50 images" in examine_shard(copy[0]).warnings[0]
    with pytest.warns(UserWarning, match="ra has 49 rows"):
        shards = Shards(copy)
    assert shards.has("dec") and not shards.has("ra")
    with pytest.raises(NoSuchColumn, match="has no ra for 'ra'"):
        shards.read("ra")
    assert len(np.unique(shards.read("targetid"))) == 130


def test_files_that_do_not_belong_together(copy, tmp_path):
    other = write_shards(tmp_path / "other", 5, per_file=5, region="north", size=20)
    with pytest.raises(NotASurvey, match=r"images of \[16, 20\] pixels"):
        Shards(copy + other)
    with h5py.File(tmp_path / "flat.h5", "w") as f:
        f["images"] = np.zeros((4, 3, 16))
    with pytest.raises(NotASurvey, match=r"images of shape \(4, 3, 16\)"):
        Shards([tmp_path / "flat.h5"])


@pytest.mark.parametrize(
    "how, why",
    [
        (dict(rank=2, world=2), "rank 2 of 2"),
        (dict(batch_size=0), "batch_size 0"),
        (dict(block=0), "block 0"),
        (dict(window=0), "window 0"),
        (dict(rows=np.ones(3, bool)), "expected 200 booleans"),
    ],
)
def test_bad_arguments(folder, how, why):
    with pytest.raises(ValueError, match=why):
        epoch(Shards(folder), prefetch=0, **how)


def test_a_stream_without_a_batch_ends(folder):
    with pytest.raises(ValueError, match="no batch of 500"):
        next(Shards(folder).stream(["image"], 500, prefetch=0))


def test_blocks_end_with_their_file():
    starts, stops = row_blocks([5, 1, 4], 4)
    assert starts.tolist() == [0, 4, 5, 6] and stops.tolist() == [4, 5, 6, 10]
    assert sorted(block_order(4, 7, 1).tolist()) == [0, 1, 2, 3]


def test_few_files_are_open(tmp_path):
    paths = write_shards(tmp_path, 60, per_file=3, size=16)
    shards = Shards(paths)
    assert len(sum(rows_of(epoch(shards, ["image"])), [])) == 60
    assert len(shards.handles) <= 16


def test_the_generator_writes_what_it_says(folder, tmp_path):
    again = write_shards(tmp_path, 130, per_file=50, region="south", size=16, seed=1)
    with h5py.File(again[1]) as a, h5py.File(find_shards(folder, "south")[1]) as b:
        assert all(np.array_equal(a[name][:], b[name][:]) for name in b)
        assert a["images"].dtype == np.float32 and a["images"].shape == (50, 3, 16, 16)
    flux = Shards(again).read("flux")[:, 2]
    assert (np.diff(flux) <= 0).all(), "decreasing z flux, through all files"
    with pytest.raises(ValueError, match="ask for fewer"):
        write_shards(tmp_path, 5, size=200)


def test_training_goes_through_the_same_door(folder, tmp_path):
    from astroclip.training.self_distillation import ImageConfig, image_stream

    write_shards(tmp_path, 60, per_file=25, size=48)
    small = ImageConfig(image_size=48, cutout=48, local_size=24, batch_size=8, steps=14)
    whole = list(image_stream(tmp_path, small))
    assert [step for step, _ in whole] == list(range(14))
    rest = list(image_stream(Shards(tmp_path), small, start=9))
    assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(rest, whole[9:]))


def test_a_training_on_files_that_ended_early_goes_on_to_the_same_weights(tmp_path):
    import torch
    from astroclip.training.self_distillation import ImageConfig, pretrain_image

    write_shards(tmp_path / "images", 60, per_file=25, size=48)
    size = dict(image_size=24, cutout=36, local_size=12, embed_dim=16, depth=1, num_heads=1)
    head = dict(n_prototypes=16, hidden_dim=16, bottleneck_dim=8)
    c = ImageConfig(**size, **head, batch_size=8, steps=9, warmup=2, checkpoint_every=2)
    whole = list(pretrain_image(tmp_path / "images", c, tmp_path / "whole", "cpu", every=1e9))
    early = pretrain_image(tmp_path / "images", c, tmp_path / "killed", "cpu", every=1e9)
    for _ in range(7):  # in the second epoch; the last checkpoint is that of step 6
        next(early)
    early.close()
    rest = list(pretrain_image(tmp_path / "images", c, tmp_path / "killed", "cpu", every=1e9))
    assert [r["step"] for r in rest] == [6, 7, 8] and rest[-1]["loss"] == whole[-1]["loss"]
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(x, b["parts"]["model"][k]) for k, x in a["parts"]["model"].items())


def test_the_command_trains_on_a_folder_of_files(tmp_path, capsys):
    from astroclip.cli.main import main

    files = write_shards(tmp_path / "images", 90, per_file=30, size=112)
    files[1].write_bytes(files[1].read_bytes()[:50_000])
    words = ["train-image", str(tmp_path / "images"), str(tmp_path / "run"), "--profile", "smoke", "--steps", "2"]
    assert main([*words, "--device", "cpu"]) == 1
    assert "truncated" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="truncated"):
        assert main([*words, "--device", "cpu", "--skip-bad"]) == 0
    assert (tmp_path / "run" / "vit" / "config.json").is_file()
