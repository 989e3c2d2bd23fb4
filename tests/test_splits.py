"""Splits: the rule by name, the paper's ten groups, cells of the sky with a buffer, frozen files."""

import hashlib
import json
import struct
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip.core.provenance import file_hash
from astroclip.evaluation.runs import check_leaks
from astroclip.formats.sky_pairs import match_positions
from astroclip.metrics.sphere import separation
from astroclip.surveys.leakage import (
    fingerprint,
    freeze_split,
    image_hashes,
    image_prints,
    leakage_report,
    repeated,
    same_images,
)
from astroclip.surveys.pairs import Survey
from astroclip.surveys.splits import (
    NONE,
    TEST,
    TRAIN,
    VALIDATION,
    circle_around,
    listed_parts,
    paper_split,
    read_groups,
    read_split,

    sky_cells,
    sky_split,
    split_of,
    split_rows,
    write_groups,
    write_split,
)

@pytest.fixture()
def survey_file(tmp_path):
    rng, n = np.random.default_rng(0), 400
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        file["targetid"], file["redshift"] = 2**62 + np.arange(n), np.zeros(n, "f4")
        file["ra"], file["dec"] = rng.uniform(0, 10, n), rng.uniform(-5, 5, n)
    return tmp_path / "survey.h5"

def groups_by_hand():
    "Two groups of five and one of three ids: int(0.8 n) = 4, 4, 2 of them train."
    return {"0": [11, 12, 13, 14, 15], "1": [21, 22, 23, 24, 25], "10": [31, 32, 33]}

def test_the_papers_rule_by_hand(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(groups_by_hand()))
    groups = read_groups(path)
    asked = [15, 11, 25, 24, 33, 32, 31]
    assert paper_split(asked, groups).tolist() == [TEST, TRAIN, TEST, TRAIN, TEST, TRAIN, TRAIN]
    assert split_rows(asked, "paper", groups=path).tolist() == paper_split(asked, groups).tolist()
    with pytest.raises(ValueError, match="2 of 3 target ids are not in it, the first is 1"):
        paper_split([1, 2, 11], groups)
    assert paper_split([1, 11, 2**63 - 1], groups, unknown=True).tolist() == [NONE, TRAIN, NONE]
    assert read_groups(write_groups(groups, tmp_path / "again.json"))["10"].tolist() == [31, 32, 33]

def test_the_papers_rule_is_the_one_of_the_original_file(tmp_path):
    rng = np.random.default_rng(1)
    ids = rng.permutation(39_000_000_000_000_001 + np.arange(1234))
    with h5py.File(tmp_path / "original.h5", "w") as file:
        for g, part in enumerate(np.array_split(ids, 11)):  # 11: group "10" comes after "9", not after "1"
            file[f"{g}/targetids"], file[f"{g}/redshifts"] = part, np.zeros(len(part))
            file[f"{g}/images"], file[f"{g}/spectra"] = np.zeros((len(part), 2, 2, 3)), np.zeros((len(part), 4, 1))
    survey = Survey(tmp_path / "original.h5", split="paper")
    groups = read_groups(tmp_path / "original.h5")
    assert np.array_equal(np.concatenate(list(groups.values())), survey.targetid)
    assert np.array_equal(paper_split(survey.targetid, groups), survey.split)

def test_an_id_in_two_parts_has_none():
    with pytest.raises(ValueError, match="1 target ids stand in two parts, the first is 5"):
        listed_parts([1], [5, 1, 5], [TRAIN, TRAIN, TEST], "a list")
    assert listed_parts([5, 1], [5, 1, 5], [TEST, TRAIN, TEST], "a list").tolist() == [TEST, TRAIN]
    assert listed_parts([], [5], [TEST], "a list").tolist() == []
    with pytest.raises(ValueError, match="not in it"):
        listed_parts([5], [], [], "an empty list")

def test_an_id_that_the_list_cannot_hold_is_not_in_it():
    "No row is dropped: the parts of the others stay theirs."
    for asked, ids in (
        (np.array([-5, 1, 2, 3]), np.array([1, 2, 3], "u8")),
        (np.array([2**63 + 5, 1, 2, 3], "u8"), np.array([1, 2, 3])),
    ):
        assert listed_parts(asked, ids, [0, 2, 1], "a list", unknown=True).tolist() == [NONE, TRAIN, TEST, VALIDATION]
        with pytest.raises(ValueError, match=f"1 of 4 target ids are not in it, the first is {asked[0]}"):
            listed_parts(asked, ids, [0, 2, 1], "a list")

def test_a_cell_is_never_divided_and_its_number_alone_decides():
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 50_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 50_000)))
    split, cells = sky_split(ra, dec, nside=16), sky_cells(ra, dec, 16)
    assert np.array_equal(cells, HEALPix(16, order="nested").lonlat_to_healpix(ra * units.deg, dec * units.deg))
    assert np.array_equal(split, split_of(cells))
    assert np.allclose(np.bincount(split) / 50_000, [0.8, 0.05, 0.15], atol=0.03)  # of 3,072 cells
    rows = rng.permutation(50_000)[:1000]
    assert np.array_equal(sky_split(ra[rows] + 360, dec[rows], nside=16), split[rows])

@settings(max_examples=60, deadline=None)
@given(st.floats(0, 360), st.floats(-90, 90), st.floats(1, 7200))
def test_a_circle_lies_at_one_distance(ra, dec, arcsec):
    around = circle_around([ra], [dec], arcsec)
    assert np.allclose(separation(ra, dec, around[0][0], around[1][0]), arcsec, rtol=1e-6, atol=1e-6)

@pytest.mark.parametrize("nside, buffer", [(64, 20.0), (64, 300.0), (256, 30.0)])
@pytest.mark.parametrize("place", ["equator", "pole"])
def test_nobody_is_tested_near_a_training_cell(nside, buffer, place):
    "Borders drawn as points 1 arcsec apart or closer; who is kept is farther from each than the buffer."
    rng, n = np.random.default_rng(3), 20_000
    ra, dec = rng.uniform(40, 46, n), rng.uniform(-3, 3, n)
    if place == "pole":
        ra, dec = rng.uniform(0, 360, n), 90 - 4 * np.sqrt(rng.uniform(0, 1, n))
    plain, split = sky_split(ra, dec, nside), sky_split(ra, dec, nside, buffer)
    assert np.array_equal(split[plain == TRAIN], plain[plain == TRAIN])
    assert set(np.unique(split[plain != TRAIN] - plain[plain != TRAIN])) <= {0, NONE - 1, NONE - 2}
    grid = HEALPix(nside, order="nested")
    cells = np.unique(np.concatenate([np.unique(sky_cells(ra, dec, nside)), grid.neighbours(np.unique(sky_cells(ra, dec, nside))).ravel()]))
    cells = cells[(cells >= 0) & (split_of(cells) == TRAIN)]
    step = int(np.ceil(3600 * 60 / nside / (buffer / 10)))
    lon, lat = grid.boundaries_lonlat(cells, step)
    border = lon.to_value("deg").ravel(), lat.to_value("deg").ravel()
    kept, lost = (split == VALIDATION) | (split == TEST), split == NONE
    assert len(match_positions(ra[kept], dec[kept], *border, 0.99 * buffer)[0]) == 0
    near = match_positions(ra[lost], dec[lost], *border, 1.2 * buffer)[0]
    assert lost.sum() > 20 and len(near) == lost.sum()  # and nobody is lost who is far from all of them

def test_buffers_and_grids_that_make_no_sense():
    for nside in (0, 3, 100, -2):
        with pytest.raises(ValueError, match="expected a power of two"):
            sky_split([0.0], [0.0], nside)
    for buffer in (-1, 3600, np.nan):
        with pytest.raises(ValueError, match="an eighth of a cell"):
            sky_split([0.0], [0.0], 64, buffer)

@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_frozen_split(tmp_path, suffix):
    path = tmp_path / f"split.{suffix}"
    ids = np.array([2**62 + 1, -5, 2**53 + 1, 7])
    found = write_split(path, ids, [TRAIN, VALIDATION, TEST, NONE])
    assert found == file_hash(path) == (tmp_path / f"split.{suffix}.sha256").read_text().split()[0]
    again, split = read_split(path)
    assert again.tolist() == ids.tolist() and split.tolist() == [TRAIN, VALIDATION, TEST, NONE]
    assert split_rows([7, 2**53 + 1], path).tolist() == [NONE, TEST]
    with pytest.raises(FileExistsError):
        write_split(path, ids, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="is not the split that was frozen"):
        read_split(path, sha256="0" * 64)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not the split that was frozen"):
        read_split(path)
    (tmp_path / f"split.{suffix}.sha256").unlink()
    with pytest.raises(ValueError, match="give the SHA-256"):
        read_split(path)

def test_bad_frozen_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no split file"):
        read_split(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="written as .parquet or .csv"):
        write_split(tmp_path / "split.txt", [1], [0])
    with pytest.raises(ValueError, match="expected as many"):
        write_split(tmp_path / "split.csv", [1, 2], [0])
    with pytest.raises(ValueError, match="expected as many"):
        write_split(tmp_path / "split.csv", [1], [3])
    pd.DataFrame(dict(targetid=[1], split=["tset"])).to_csv(tmp_path / "typo.csv", index=False)
    with pytest.raises(ValueError, match="is no split"):
        read_split(tmp_path / "typo.csv", file_hash(tmp_path / "typo.csv"))

def test_a_survey_takes_every_rule(survey_file, tmp_path):
    plain = Survey(survey_file)
    assert np.array_equal(plain.split, split_of(plain.targetid))
    sky = Survey(survey_file, split="sky")
    assert np.array_equal(sky.split, sky_split(plain.ra, plain.dec)) and not np.array_equal(sky.split, plain.split)
    write_split(tmp_path / "frozen.parquet", plain.targetid[::-1], sky.split[::-1])
    assert np.array_equal(Survey(survey_file, split=tmp_path / "frozen.parquet").split, sky.split)
    assert np.array_equal(Survey(survey_file, split=str(tmp_path / "frozen.parquet")).split, sky.split)
    write_split(tmp_path / "half.parquet", plain.targetid[:200], sky.split[:200])
    with pytest.raises(ValueError, match="200 of 400 target ids are not in it"):
        Survey(survey_file, split=tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="original pairs file"):
        Survey(survey_file, split="paper")
    with pytest.raises(ValueError, match="expected hash, paper, sky, or a split file"):
        Survey(survey_file, split="rnadom")

def test_the_report_by_hand():
    "Ten galaxies; each kind of leak planted between two parts."
    split = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, -1])
    ids = np.array([1, 2, 3, 4, 5, 1, 5, 8, 9, 2])  # train-validation: 1; validation-test: 5; none does not count
    ra = np.array([0, 10, 20, 30, 40, 50, 10 + 0.5 / 3600, 70, 80, 0.0])  # train-test: row 6
    dec = np.zeros(10)
    prints = np.arange(60.0).reshape(10, 6)
    prints[8] = prints[3]  # train-test
    table = leakage_report(ids, split, ra, dec, prints)
    found = {(row["check"], row["part"], row["other"]): row["repeats"] for row in table if row["repeats"]}
    assert found == {
        ("same target id", "train", "validation"): 1,
        ("same target id", "validation", "test"): 1,
        ("same image", "train", "test"): 1,
        ("neighbour within 1 arcsec", "train", "test"): 1,
        ("same cell, nside 64", "train", "test"): 1,
    }
    assert table["of"].tolist() == [2] * 4 + [3] * 8 and len(table) == 12
    assert set(leakage_report(ids, split)["repeats"][2::4]) == {-1}

def test_a_split_is_frozen_with_its_leaks(survey_file, tmp_path):
    survey, out = Survey(survey_file), tmp_path / "out"
    found, table = freeze_split(survey_file, out / "s.csv", "sky", out / "r.csv", nside=128, buffer_arcsec=30)
    ids, split = read_split(out / "s.csv", found)
    assert np.array_equal(split, sky_split(survey.ra, survey.dec, 128, 30))
    shared = table["repeats"][table["check"] == "same cell, nside 128"]
    assert shared.tolist() == [0, 0, 0] and -1 in table["repeats"]  # no images in this file
    assert pd.read_csv(out / "r.csv")["repeats"].tolist() == table["repeats"].tolist()
    groups = {str(g): part.tolist() for g, part in enumerate(np.array_split(survey.targetid, 10))}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    freeze_split(survey_file, out / "p.parquet", "paper", groups=tmp_path / "groups.json")
    assert np.bincount(read_split(out / "p.parquet")[1]).tolist() == [320, 0, 80]
    with pytest.raises(FileExistsError):
        freeze_split(survey_file, out / "s.csv")
    with pytest.raises(ValueError, match="original pairs file"):
        freeze_split(survey_file, out / "q.csv", "paper")
    assert not (out / "q.csv").exists()


def test_a_split_and_its_report_never_replace_what_was_read(survey_file, tmp_path):
    "Source, groups and the frozen split of a rule are inputs: --overwrite does not reach them."
    pairs = tmp_path / "pairs.parquet"
    names = dict(targetid=np.arange(30), redshift=np.zeros(30), ra=np.arange(30.0), dec=np.zeros(30))
    pd.DataFrame(names).to_parquet(pairs)
    write_split(tmp_path / "frozen.csv", Survey(survey_file).targetid, np.zeros(400, int))
    frozen = tmp_path / "frozen.csv"
    before = pairs.read_bytes(), frozen.read_bytes()
    with pytest.raises(ValueError, match="is also an input.* give another with --report"):
        freeze_split(pairs, tmp_path / "q.csv", report=pairs, overwrite=True)
    with pytest.raises(ValueError, match="is also an input"):
        freeze_split(f"{pairs}+{pairs}", tmp_path / "q.csv", report=pairs, overwrite=True)
    with pytest.raises(ValueError, match="is also an input"):
        freeze_split(survey_file, pairs, "paper", groups=pairs, overwrite=True)
    with pytest.raises(ValueError, match="is also an input"):
        freeze_split(survey_file, frozen, frozen, overwrite=True)
    with pytest.raises(ValueError, match="is also an input.* give another with --report"):
        freeze_split(survey_file, tmp_path / "q.csv", report=tmp_path / "q.csv")
    assert (pairs.read_bytes(), frozen.read_bytes()) == before and not (tmp_path / "q.csv").exists()
    (tmp_path / "copy").mkdir()
    with pytest.raises(ValueError, match="would be read as a part"):  # a folder of Parquet is read whole
        freeze_split(tmp_path / "copy", tmp_path / "copy" / "split.parquet")


def test_names_are_looked_at_before_anything_is_read(tmp_path):
    "The source is no survey, which nobody notices before the names are."
    (tmp_path / "source.h5").write_bytes(b"not read")
    with pytest.raises(ValueError, match="a split is written as .parquet or .csv, not as .txt"):
        freeze_split(tmp_path / "source.h5", tmp_path / "p.txt")
    with pytest.raises(ValueError, match="a table is written as .* not as .txt"):
        freeze_split(tmp_path / "source.h5", tmp_path / "p.csv", report=tmp_path / "r.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["source.h5"]


def test_an_option_that_the_rule_does_not_use_is_refused(survey_file, tmp_path):
    for rule in ("hash", "paper"):
        with pytest.raises(ValueError, match=f"--buffer belongs to rule sky, and the rule is {rule}"):
            freeze_split(survey_file, tmp_path / "s.csv", rule, buffer_arcsec=30)
    for rule in ("hash", "sky"):
        with pytest.raises(ValueError, match=f"--groups belongs to rule paper, and the rule is {rule}"):
            freeze_split(survey_file, tmp_path / "s.csv", rule, groups=tmp_path / "none.json")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("rule", ["hash", "sky"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_survey_too_small_to_hold_anybody_out(tmp_path, rule, n):
    "By their names, 1, 2 and 3 all train: nothing is held out, and nothing can leak."
    assert split_of(np.arange(1, 4)).tolist() == [TRAIN] * 3
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["targetid"], file["redshift"] = np.arange(1, n + 1), np.zeros(n, "f4")
        file["ra"], file["dec"], file["image"] = np.zeros(n), np.zeros(n), np.zeros((n, 3, 4, 4), "f2")
    _, table = freeze_split(tmp_path / "few.h5", tmp_path / "few.csv", rule)
    assert set(table["of"]) == {0} and set(table["repeats"]) == {0}


def lookalikes():
    "An image, then five with the same sums: mirrored, upside down, turned, transposed, shuffled; then a copy."
    rng = np.random.default_rng(4)
    x = rng.integers(-50, 50, (3, 8, 8)).astype(np.float32) / 64  # sums are exact in any order
    shuffled = x.reshape(3, -1)[:, rng.permutation(64)].reshape(x.shape)
    return np.stack([x, x[:, :, ::-1], x[:, ::-1], np.rot90(x, 1, (1, 2)), x.transpose(0, 2, 1), shuffled, x])


def test_the_same_image_is_the_same_pixels_in_the_same_places():
    images, train = lookalikes(), np.arange(7) < 1
    assert repeated(fingerprint(dict(image=images))["fingerprint"], train).tolist() == [False] + [True] * 6
    assert repeated(image_hashes(images), train).tolist() == [False] * 6 + [True]
    tiny = np.float32([[[[1.5]], [[-2.0]], [[0.0]]]])
    assert image_hashes(tiny)[0].tobytes() == hashlib.sha256(struct.pack("<3f", 1.5, -2, 0)).digest()
    again = tiny * np.float32([1, 1, -1]).reshape(3, 1, 1)  # -0
    other = np.frombuffer(struct.pack("<I", 0x7FC00001), "<f4")[0]  # a NaN with other bits
    for a, b in ((tiny, again), (tiny, tiny.astype(">f4")), (tiny, tiny.astype("f2")), (tiny * np.nan, tiny * other)):
        assert np.array_equal(image_hashes(a), image_hashes(b))
    assert not np.array_equal(image_hashes(tiny), image_hashes(np.nextafter(tiny, 9)))


def test_evaluation_reads_the_images_whose_fingerprints_are_alike(tmp_path):
    "Embeddings of any age keep the six sums; a mirror image is no leak, a copy is one."
    images, n = lookalikes(), 7
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        file["targetid"], file["redshift"], file["image"] = np.arange(n), np.zeros(n, "f4"), images
        file["ra"], file["dec"] = 10.0 * np.arange(n), np.zeros(n)
    survey, prints = Survey(tmp_path / "survey.h5"), fingerprint(dict(image=images))["fingerprint"]
    assert np.array_equal(image_prints(survey, block=2), image_hashes(images))
    assert image_prints(survey, np.array([6, 1])).tolist() == image_hashes(images[[6, 1]]).tolist()
    assert same_images(survey, prints, np.arange(n) < 1).tolist() == [False] * 6 + [True]
    kept = SimpleNamespace(models=["checks"], get=lambda *name: prints, split=np.array([0, 2, 2, 1, 2, 2, -1]))
    with pytest.raises(ValueError, match="'same image': 1"):
        check_leaks(survey, kept)
    kept.split[6] = 0
    assert check_leaks(survey, kept) == {"same object": 0, "same place within 1 arcsec": 0, "same image": 0}
