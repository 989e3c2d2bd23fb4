"""Pairs: the split, block-shuffled batches, both file formats, broken files, leakage."""

import threading

import h5py
import numpy as np
import pytest
import torch

from astroclip.surveys.pairs import (
    TEST,
    TRAIN,
    VALIDATION,
    Survey,
    batches,
    prefetched,
    split_of,
    splitmix64,
    tensors,
)


def test_split_by_hand():
    # splitmix64(0) = e220a8397b1dcdaf (Vigna's reference output): u = 0.8833108 -> test
    assert int(splitmix64(0)[0]) == 0xE220A8397B1DCDAF and split_of(0) == TEST
    for targetid in (1, 39633345008634465, 2**62, 2**62 + 12345, -2713437):
        mask, x = 2**64 - 1, (targetid + 0x9E3779B97F4A7C15) % 2**64  # the same rule in plain Python integers
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        u = ((x ^ (x >> 31)) >> 11) / 2**53
        assert split_of(np.int64(targetid)) == (TRAIN if u < 0.8 else VALIDATION if u < 0.85 else TEST)
    assert split_of(np.arange(5)).tolist() == [int(split_of(i)) for i in range(5)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng, n = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0), 333
    data = {
        "image": rng.normal(size=(n, 3, 6, 8)).astype(np.float16),
        "flux": rng.normal(size=(n, 20)).astype(np.float16),
        "ivar": np.ones((n, 20), np.float16),
        "targetid": 2**62 + np.arange(n),
        "redshift": np.arange(n, dtype=np.float32),
        "ra": rng.random(n) * 10,
        "dec": rng.random(n) * 10,
    }
    with h5py.File(folder / "survey.h5", "w") as f:
        for k, v in data.items():
            f[k] = v
        f["label/log_mstar"], f["votes/bar"] = np.arange(n, dtype=np.float32), np.ones((n, 3), np.int16)
        f.attrs["data_card"], f.attrs["simulated"] = "what it is", True
    with h5py.File(folder / "paper.h5", "w") as f:
        for g, rows in enumerate(np.array_split(np.arange(n), 10)):
            f[f"{g}/images"] = np.stack([i.T for i in data["image"][rows].astype(np.float32)])
            f[f"{g}/spectra"] = data["flux"][rows].astype(np.float32)[..., None]
            f[f"{g}/redshifts"], f[f"{g}/targetids"] = (
                data["redshift"][rows].astype(float),
                data["targetid"][rows],
            )
    return folder, data


def test_both_formats_read_alike(files):
    folder, data = files
    ours, paper = Survey(folder / "survey.h5"), Survey(folder / "paper.h5")
    assert (
        len(ours) == len(paper) == 333
        and ours.simulated
        and ours.data_card == "what it is"
        and not paper.simulated
    )
    for rows in (slice(30, 70), [5, 0, 332, 5], ours.split == TEST, slice(0, 0)):
        assert np.array_equal(ours.images(rows), paper.images(rows)) and np.array_equal(
            ours.flux(rows), paper.flux(rows)
        )
    assert paper.images(slice(0, 2)).shape == (2, 3, 6, 8) and ours.images().dtype == np.float32
    assert np.array_equal(paper.redshift, data["redshift"]) and np.array_equal(paper.split, ours.split)
    assert ours.label("log_mstar")[7] == 7 and ours.votes("bar").shape == (333, 3)
    with pytest.raises(AttributeError, match="no column 'magnitude'"):
        ours.magnitude


def test_paper_split(files):
    folder, _ = files
    split = Survey(folder / "paper.h5", split="paper").split
    expected = np.concatenate(
        [np.arange(len(g)) >= int(0.8 * len(g)) for g in np.array_split(np.arange(333), 10)]
    )
    assert np.array_equal(split == TEST, expected) and not (split == VALIDATION).any()
    with pytest.raises(ValueError, match="original pairs file"):
        Survey(folder / "survey.h5", split="paper")


@pytest.mark.parametrize("name", ["survey.h5", "paper.h5"])
@pytest.mark.parametrize("kept", [0, 1, 31, 32, 200, 333])
@pytest.mark.parametrize("batch_size, drop_last", [(32, False), (32, True), (500, False), (7, False)])
def test_every_row_once(files, name, kept, batch_size, drop_last):
    keep = np.zeros(333, bool)
    keep[np.random.default_rng(kept).permutation(333)[:kept]] = True
    found = list(
        batches(
            files[0] / name,
            ("redshift", "image"),
            batch_size,
            rows=keep,
            block=16,
            window=3,
            drop_last=drop_last,
        )
    )
    rows = np.concatenate([b["row"] for b in found]) if found else np.array([], int)
    assert (
        len(rows) == (kept // batch_size * batch_size if drop_last else kept) == len(set(rows))
        and keep[rows].all()
    )
    assert all(len(b["row"]) == batch_size for b in found[:-1])
    for b in found:
        assert np.array_equal(b["redshift"], b["row"]) and b["image"].dtype == np.float32


def test_order(files):
    def order(**how):
        return np.concatenate(
            [b["row"] for b in batches(files[0] / "survey.h5", ("redshift",), 32, block=16, window=4, **how)]
        )

    assert np.array_equal(order(shuffle=False), np.arange(333))
    assert np.array_equal(order(seed=1), order(seed=1)) and not np.array_equal(order(seed=1), order(seed=2))
    assert not np.array_equal(order(epoch=0), order(epoch=1))
    assert np.array_equal(
        order(rows=np.arange(333) < 50, shuffle=False), order(rows=[*range(50)], shuffle=False)
    )
    first = order(seed=1)[:32]  # a batch comes from several places of the file
    assert len(set(first // 16)) >= 3


@pytest.mark.parametrize(
    "rows, said",
    [
        (np.ones(332, bool), r"a mask of shape \(332,\): expected one value for each of 333"),
        (np.ones(400, bool), r"a mask of shape \(400,\)"),
        ([0, 333], "rows reach from 0 to 333: expected 0 to 332"),
        ([-1, 5], "rows reach from -1 to 5"),
        ([0.0, 1.0], "rows are float64"),
    ],
    ids=["short", "long", "beyond", "negative", "floats"],
)
def test_rows_that_are_not_there_are_refused_before_anything_is_read(files, rows, said):
    for prefetch in (0, 2):
        with pytest.raises(ValueError, match=said):
            next(batches(files[0] / "survey.h5", ["redshift"], 32, rows=rows, prefetch=prefetch))


def test_rows_by_number_are_a_set(files):
    for rows in ([7, 3, 7], np.array([3, 7], np.uint8), np.isin(np.arange(333), [3, 7])):
        found = list(batches(files[0] / "survey.h5", ["redshift"], 32, rows=rows, shuffle=False))
        assert np.concatenate([b["redshift"] for b in found]).tolist() == [3, 7]
    assert list(batches(files[0] / "survey.h5", ["redshift"], 32, rows=[])) == []


def test_torch_batches(files):
    batch = next(tensors(files[0] / "survey.h5", ("image", "flux"), 16))
    assert isinstance(batch["image"], torch.Tensor) and batch["flux"].dtype == torch.float32


def test_prefetch_errors_and_early_exit():
    def broken():
        yield 1
        raise RuntimeError("disk gone")

    items = prefetched(broken(), 2)
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="disk gone"):
        next(items)
    before = threading.active_count()
    endless = prefetched(iter(int, 1), 2)
    next(endless)
    endless.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(files, tmp_path, share):
    data = (files[0] / "survey.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: int(share * len(data))])
    with pytest.raises(OSError, match="cut.h5 cannot be read: truncated or not HDF5"):
        Survey(tmp_path / "cut.h5")
    with pytest.raises(OSError, match="cut.h5"):
        next(batches(tmp_path / "cut.h5", ("image",), 8))


def test_other_broken_files(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="papermill"):
        Survey(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(ValueError, match="is no survey"):
        Survey(tmp_path / "other.h5")
    with h5py.File(tmp_path / "uneven.h5", "w") as f:
        f["targetid"], f["image"] = np.arange(5), np.zeros((4, 3, 2, 2))
    with pytest.raises(ValueError, match="differ in length"):
        Survey(tmp_path / "uneven.h5")
    with pytest.raises(KeyError, match="no dataset 'sed'"):
        next(batches(files[0] / "survey.h5", ("sed",), 8))
