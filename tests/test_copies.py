"""Every copy of the pairs that circulates, read into one schema; and catalogues in HATS, written and read."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip.bulk.conversion import convert_pairs, pixel_hash
from astroclip.bulk.hub_builder import PAIR_FEATURES
from astroclip.data.spectrum_grid import N_PIXELS, WAVELENGTH
from astroclip.files.fits_files import UnreadableFile
from astroclip.formats.column_parts import Picked, rows_in_file
from astroclip.formats.hats_files import HatsCatalog, nested_lists, nested_table
from astroclip.formats.hats_writer import INDEX, ORDER, HatsWriter, partitions, write_hats
from astroclip.formats.hdf5_columns import NotASurvey
from astroclip.formats.mmu_files import mmu_images, mmu_spectra, write_mmu
from astroclip.formats.original_file import write_original
from astroclip.formats.parquet_rows import ParquetFiles
from astroclip.formats.sources import check_numbered, joined_parts
from astroclip.surveys.pairs import batches, open_pairs


def rows_on_the_sky(n, seed=0, width=8):
    "A table of n rows all over the sphere, the poles and ra = 0 among them."
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    if seed == 0:
        ra[:3], dec[:3] = [0.0, 359.99999999, 12.0], [90.0, -90.0, 0.0]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=n * width).astype("f4")), width)
    names = pa.array(2**62 + np.arange(n) + n * seed)
    return pa.table(dict(targetid=names, ra=ra, dec=dec, vector=vectors))


def assert_same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def files_of(catalog):
    return sorted(catalog.glob("dataset/Norder=*/Dir=*/*.parquet"))


def test_partitions_cover_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, 12 * 4**4)
    found = partitions(counts, 20)
    rows = [counts[p << 2 * (4 - k) : (p + 1) << 2 * (4 - k)].sum() for k, p in found]
    assert sum(rows) == counts.sum() and max(rows) <= 20 and min(rows) > 0
    starts = [p << 2 * (4 - k) for k, p in found]
    assert starts == sorted(starts)


def test_a_catalog_holds_every_row_once_and_in_its_place(tmp_path):
    tables = [rows_on_the_sky(200, seed) for seed in range(5)]
    made = write_hats(tmp_path / "sky", tables, part_bytes=3_000, group_rows=16)
    seen = []
    for path in files_of(made):
        table = pq.read_table(path, partitioning=None)
        order, pixel = int(path.parts[-3].removeprefix("Norder=")), int(path.stem.removeprefix("Npix="))
        index = table[INDEX].to_numpy()
        assert (index >> 2 * (ORDER - order) == pixel).all() and (np.diff(index) >= 0).all()
        seen.append(table)
    seen = pa.concat_tables(seen).sort_by("targetid")
    given = pa.concat_tables(tables).sort_by("targetid")
    assert len(files_of(made)) > 20
    assert seen.drop_columns([INDEX]).equals(given.cast(seen.drop_columns([INDEX]).schema))


def test_order_of_appending_does_not_change_the_files(tmp_path):
    tables = [rows_on_the_sky(100, seed) for seed in range(4)]
    first = write_hats(tmp_path / "a" / "sky", tables, part_bytes=8_000)
    second = write_hats(tmp_path / "b" / "sky", tables[::-1], part_bytes=8_000)
    assert [p.name for p in files_of(first)] == [p.name for p in files_of(second)]
    for a, b in zip(files_of(first), files_of(second)):
        assert a.read_bytes() == b.read_bytes()


def test_a_catalog_is_whole_or_not_there(tmp_path):
    def broken():
        yield rows_on_the_sky(100)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_hats(tmp_path / "sky", broken(), part_bytes=1000)
    assert list(tmp_path.iterdir()) == []
    HatsWriter(tmp_path / "sky").append(rows_on_the_sky(10))  # and then the process ends
    write_hats(tmp_path / "sky", [rows_on_the_sky(10)])
    assert [p.name for p in tmp_path.iterdir()] == ["sky"]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_hats(tmp_path / "sky", [rows_on_the_sky(10)])


def test_rows_without_a_place_are_named(tmp_path):
    table = rows_on_the_sky(10).set_column(1, "ra", pa.array([np.nan, *range(9)]))
    with pytest.raises(ValueError, match="position 0 is ra nan"):
        write_hats(tmp_path / "sky", [table])
    with pytest.raises(ValueError, match="types of their columns"):
        write_hats(tmp_path / "sky", [rows_on_the_sky(10, width=8), rows_on_the_sky(10, width=4)])


def test_lsdb_opens_what_was_written(tmp_path):
    lsdb = pytest.importorskip("lsdb", reason="lsdb is an extra: pip install 'astroclip[scale]'")
    given = rows_on_the_sky(500)
    made = write_hats(tmp_path / "sky", [given], part_bytes=10_000, facts=dict(licence="MIT"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        catalog = lsdb.open_catalog(made)
        frame = catalog.compute().sort_values("targetid")
        assert len(catalog.get_healpix_pixels()) == len(files_of(made))
        assert frame.targetid.tolist() == given["targetid"].to_pylist()
        np.testing.assert_array_equal(np.stack(frame.vector), np.stack(given["vector"].to_pylist()).astype("f4"))
        near = catalog.cone_search(12.0, 0.0, 1.0).compute()
        assert near.targetid.tolist() == [2**62 + 2]
        both = catalog.crossmatch(catalog, radius_arcsec=1, suffixes=("_a", "_b")).compute()
    assert len(both) == 500 and (both.targetid_a == both.targetid_b).all()


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from astroclip.formats.hats_writer import write_hats
def piece(seed, n=2000, width=256):
    rng = np.random.default_rng(seed)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=n * width).astype("f4")), width)
    return pa.table(dict(ra=rng.uniform(0, 60, n), dec=rng.uniform(-30, 30, n), vector=vectors))
write_hats(sys.argv[1], map(piece, range(int(sys.argv[2]))), part_bytes=2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_of_the_writer_does_not_grow_with_the_catalog(tmp_path):
    used = []
    for pieces in (6, 30):  # 12 MB and 60 MB of vectors
        command = [sys.executable, "-c", MEMORY, str(tmp_path / f"c{pieces}"), str(pieces)]
        used.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert used[1] - used[0] < 20, f"{used} MiB for 12 and 60 MB"


# ---- every copy of the pairs

N, SEED = 40, 5


@pytest.fixture(scope="module")
def galaxies():
    "Forty galaxies with images of the true size, lopsided so that no axis can be taken for another."
    rng = np.random.default_rng(SEED)
    image = rng.normal(size=(N, 3, 152, 152)).astype("f4")
    image[:, :, :76, :40] += 3
    flux = rng.normal(size=(N, N_PIXELS)).astype("f4")
    ivar = (rng.random((N, N_PIXELS)) > 0.02).astype("f4")
    ra, dec = 150 + rng.uniform(0, 6, N), rng.uniform(-3, 3, N)
    targetid = 39627652591521181 + rng.permutation(N)
    z = rng.random(N)
    z[0] = -1e-4  # a star stays
    return dict(image=image, flux=flux, ivar=ivar, ra=ra, dec=dec, targetid=targetid, redshift=z.astype("f4"))


def write_ours(path, g):
    with h5py.File(path, "w") as f:
        for name, x in g.items():
            f.create_dataset(name, data=x, chunks=(1, *x.shape[1:]) if x.ndim > 1 else None)
        f.attrs.update(schema="astroclip-survey-1", simulated=True, data_card="made for a test")


def write_mmu_parts(folder, g, write):
    "Spectra of all galaxies, images in two catalogues: DR9 in the north, DR10 with four bands in the south."
    wide = np.zeros((N, 4, 160, 160), "f4") - 7
    wide[:, [0, 1, 3], 4:156, 4:156] = g["image"]
    spectra = mmu_spectra(g["flux"], g["ivar"], WAVELENGTH, g["redshift"], g["targetid"])
    spectra["ZWARN"] = np.arange(N) % 10 > 0
    for band in "GRZ":
        spectra[f"FLUX_{band}"] = np.full(N, 10.0, "f4")
    north, south = g["dec"] > -0.5, g["dec"] < 0.5
    write(folder / "desi", g["ra"], g["dec"], spectra)
    near = g["ra"] + 0.4 / 3600
    dr9 = mmu_images(g["image"][north], ["DES-G", "DES-R", "DES-Z"], np.arange(north.sum()))
    dr10 = mmu_images(wide[south], ["DES-G", "DES-R", "DES-I", "DES-Z"], np.arange(south.sum()))
    write(folder / "north", near[north], g["dec"][north], dr9)
    write(folder / "south", near[south], g["dec"][south], dr10)
    return folder


def as_hats(folder, ra, dec, columns):
    write_hats(folder, [nested_table({"ra": ra, "dec": dec} | columns)], part_bytes=2**23, group_rows=8)


@pytest.fixture(scope="module")
def copies(tmp_path_factory, galaxies):
    "The same galaxies in every form that circulates."
    import datasets

    place, g = tmp_path_factory.mktemp("copies"), galaxies
    write_ours(place / "survey.h5", g)
    write_original(place / "paper.h5", g["image"], g["flux"], g["redshift"], g["targetid"])
    convert_pairs(place / "survey.h5", place / "hub", file_bytes=2**23)
    pairs = datasets.Dataset.from_dict(
        dict(
            image=list(g["image"].transpose(0, 3, 2, 1)),
            spectrum=list(g["flux"][..., None]),
            redshift=g["redshift"],
            targetid=g["targetid"],
        ),
        features=datasets.Features(PAIR_FEATURES),
    )
    split = datasets.DatasetDict(train=pairs.select(range(32)), test=pairs.select(range(32, N)))
    split.save_to_disk(place / "arrow")
    (place / "plain" / "data").mkdir(parents=True)
    for name, rows in dict(train=slice(0, 28), val=slice(28, 34), test=slice(34, N)).items():
        columns = dict(image=g["image"].transpose(0, 3, 2, 1), spectrum=g["flux"][..., None])
        columns |= {k: g[k] for k in ("redshift", "targetid")}
        table = pa.table({k: nested_lists(v[rows]) for k, v in columns.items()})
        pq.write_table(table, place / "plain" / "data" / f"{name}-00000-of-00001.parquet", row_group_size=9)
    return dict(
        ours=place / "survey.h5",
        original=place / "paper.h5",
        hub_folder=place / "hub",
        save_to_disk=place / "arrow",
        plain_parquet=place / "plain",
        one_file=place / "plain" / "data" / "train-00000-of-00001.parquet",
        mmu_hats=write_mmu_parts(place / "hats", g, as_hats),
        mmu_hdf5=write_mmu_parts(place / "hdf5", g, write_mmu),
        mmu_address=f"hats://{place}/hats/desi+{place}/hats/north+{place}/hats/south",
    )


WHOLE = ("ours", "original", "hub_folder", "save_to_disk", "plain_parquet", "mmu_hats", "mmu_hdf5", "mmu_address")


def test_pixels_are_identical_through_every_path(copies):
    hashes = {name: pixel_hash(copies[name]) for name in WHOLE}
    assert len(set(hashes.values())) == 1, hashes


@pytest.mark.parametrize("name", WHOLE)
def test_every_copy_has_one_schema(copies, galaxies, name):
    survey = open_pairs(copies[name])
    order = np.argsort(survey.targetid)
    truth = np.argsort(galaxies["targetid"])
    assert survey.targetid.dtype == np.int64 and survey.redshift.dtype == np.float32
    np.testing.assert_array_equal(survey.targetid[order], galaxies["targetid"][truth])
    np.testing.assert_array_equal(survey.redshift[order], galaxies["redshift"][truth])
    assert survey.redshift.min() < 0, "the star was lost"
    assert survey.images([7, 3]).shape == (2, 3, 152, 152) and survey.flux([1]).shape == (1, 7781)
    with_errors = name in ("ours", "hub_folder") or name.startswith("mmu")
    ivar = survey.ivar()[order]
    np.testing.assert_array_equal(ivar, galaxies["ivar"][truth] if with_errors else np.ones_like(ivar))
    said = survey.provenance
    assert str(copies[name]) in str(said["source"]) or name == "hub_folder"
    assert said["format"]


def test_what_was_found_is_written_down(copies):
    said = open_pairs(copies["mmu_hats"]).provenance
    assert (said["zwarn"], said["zwarn_true_fraction"]) == ("true means good", 0.9)
    assert said["bands"] == ["DES-G", "DES-R", "DES-Z"] and said["pairs"] == N and said["release"] == "desi"
    assert open_pairs(copies["original"]).provenance["licence"] == "MIT"
    assert open_pairs(copies["plain_parquet"]).provenance["splits"] == dict(train=28, validation=6, test=6)
    assert "x, y, band" in open_pairs(copies["save_to_disk"]).provenance["axes"]


def test_extra_columns_of_the_multimodal_universe(copies):
    survey = open_pairs(copies["mmu_hdf5"])
    good = survey.read("good_redshift")
    assert good.sum() == N - 4
    np.testing.assert_allclose(survey.magnitude, 20.0)
    np.testing.assert_allclose(survey.read("arcsec"), 0.4 * np.cos(np.radians(survey.dec)), rtol=1e-4)
    with pytest.raises(KeyError, match="no column 'nothing'"):
        survey.read("nothing")


def test_splits_of_copies(copies, galaxies):
    assert np.bincount(open_pairs(copies["save_to_disk"], split="own").split).tolist() == [32, 0, 8]
    assert np.bincount(open_pairs(copies["plain_parquet"], split="own").split).tolist() == [28, 6, 6]
    assert np.bincount(open_pairs(copies["original"], split="paper").split).tolist() == [30, 0, 10]
    by_name = {int(t): int(s) for t, s in zip(galaxies["targetid"], open_pairs(copies["ours"]).split)}
    for name in WHOLE:
        survey = open_pairs(copies[name])
        assert {int(t): int(s) for t, s in zip(survey.targetid, survey.split)} == by_name
    with pytest.raises(ValueError, match="split='own'"):
        open_pairs(copies["ours"], split="own")
    with pytest.raises(ValueError, match="original pairs file"):
        open_pairs(copies["plain_parquet"], split="paper")


@pytest.mark.parametrize("name", ("hub_folder", "save_to_disk", "plain_parquet", "mmu_hats"))
def test_shuffled_batches_of_a_copy(copies, name):
    survey = open_pairs(copies[name])
    how = dict(batch_size=8, block=8, window=2)
    seen = list(batches(copies[name], ("image", "redshift", "targetid"), epoch=1, **how))
    rows = np.concatenate([b["row"] for b in seen])
    assert sorted(rows) == list(range(N)) and rows.tolist() != list(range(N))
    for b in seen:
        np.testing.assert_array_equal(b["targetid"], survey.targetid[b["row"]])
        np.testing.assert_array_equal(b["image"], survey.images(b["row"]))
    again = list(batches(copies[name], ("image", "redshift", "targetid"), epoch=1, **how))
    assert all((a["row"] == b["row"]).all() for a, b in zip(seen, again))


def test_a_row_group_is_decoded_once_an_epoch(copies, monkeypatch):
    read, original = [], ParquetFiles.read
    monkeypatch.setattr(ParquetFiles, "plain", lambda *a: None)
    monkeypatch.setattr(ParquetFiles, "read", lambda self, g, path: read.append((g, path)) or original(self, g, path))
    for _ in batches(copies["plain_parquet"], ("image",), 8, block=4, window=2, prefetch=0):
        pass
    images = [g for g, path in read if path == "image"]
    assert sorted(set(images)) == list(range(6)) and len(images) <= 7  # and one for the shape


def test_names_longer_than_those_of_the_first_group_stay_whole(tmp_path):
    "Text that is gathered from several parts, in batches and in any order."
    names = [f"{10 ** (i // 8)}-{i}" for i in range(40)]
    table = pa.table(dict(targetid=np.arange(40), name=names))
    pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=8)
    column = ParquetFiles([tmp_path / "train-0.parquet"]).column("name")
    rows = np.array([39, 0, 17, 38])
    assert Picked(column, rows)[0:4].tolist() == [names[i] for i in rows]
    assert Picked(column, np.arange(3, 39))[0:36].tolist() == names[3:39]


# ---- what is wrong with a copy is one sentence


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.parent


def test_wrong_columns_and_shapes(tmp_path):
    from astroclip.formats.hdf5_columns import NotASurvey

    ids = pa.array([1, 2])
    with pytest.raises(NotASurvey, match="no column 'targetid'"):
        open_pairs(parquet(tmp_path / "a" / "x.parquet", z=ids))
    flat = parquet(tmp_path / "b" / "x.parquet", targetid=ids, image=nested_lists(np.zeros((2, 4, 4))))
    with pytest.raises(NotASurvey, match=r"holds \(4, 4\): expected \(152, 152, 3\)"):
        open_pairs(flat).images()
    uneven = parquet(tmp_path / "c" / "x.parquet", targetid=ids, spectrum=pa.array([[1.0], [1.0, 2.0]]))
    with pytest.raises(NotASurvey, match="row 1 has 2 values where row 0 has 1"):
        open_pairs(uneven).flux()
    empty = parquet(tmp_path / "d" / "x.parquet", targetid=ids, spectrum=pa.array([[1.0], None]))
    with pytest.raises(NotASurvey, match="no value in row 1"):
        open_pairs(empty).flux()
    lossy = parquet(tmp_path / "e" / "x.parquet", targetid=pa.array([3.9e16, 3.9e16 + 8]))
    with pytest.raises(ValueError, match="digits are lost"):
        open_pairs(lossy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotASurvey, match="holds no copy of the pairs"):
        open_pairs(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no survey file"):
        open_pairs(tmp_path / "nothing")


def test_a_truncated_file_is_named(copies, tmp_path):
    whole = copies["one_file"].read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="cut.parquet cannot be read: truncated"):
        open_pairs(tmp_path)
    arrow = sorted(copies["save_to_disk"].rglob("*.arrow"))[0]
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "data-train.arrow").write_bytes(arrow.read_bytes()[:1000])
    with pytest.raises(OSError, match="data-train.arrow cannot be read: truncated"):
        open_pairs(folder)


def test_mmu_that_does_not_fit(copies, tmp_path, galaxies):
    from astroclip.formats.hdf5_columns import NotASurvey

    with pytest.raises(NotASurvey, match="expected one and at least one"):
        open_pairs(f"{copies['mmu_hats']}/north+{copies['mmu_hats']}/south")
    far = mmu_images(galaxies["image"][:2], ["DES-G", "DES-R", "DES-Z"], np.arange(2))
    write_mmu(tmp_path / "far", np.zeros(2), np.array([80.0, 81.0]), far)
    with pytest.raises(NotASurvey, match="no spectrum with an image within 1.0 arcsec"):
        open_pairs(copies["mmu_hdf5"] / "desi", images=tmp_path / "far")
    one_band = mmu_images(galaxies["image"][:, :1], ["DES-G"], np.arange(N))
    write_mmu(tmp_path / "g", galaxies["ra"], galaxies["dec"], one_band)
    with pytest.raises(NotASurvey, match="expected g, r and z"):
        open_pairs(copies["mmu_hdf5"] / "desi", images=tmp_path / "g").images([0])


def test_padded_spectra_end_where_their_wavelength_ends(tmp_path, galaxies):
    "Two rows of one length, one of them padded with zeros, and a mask: on DESI's grid, padding is missing."
    n, g = 6, {k: v[:6] for k, v in galaxies.items()}
    spectra = mmu_spectra(g["flux"], g["ivar"], WAVELENGTH, g["redshift"], g["targetid"])
    for field, fill in (("lambda", 0), ("flux", 99), ("ivar", 99)):
        spectra[f"spectrum.{field}"][:3, 5000:] = fill
    write_mmu(tmp_path / "desi", g["ra"], g["dec"], spectra)
    write_mmu(tmp_path / "n", g["ra"], g["dec"], mmu_images(g["image"], ["g", "r", "z"], np.arange(n)))
    survey = open_pairs(tmp_path)
    padded = np.isin(survey.targetid, g["targetid"][:3])
    assert (survey.ivar()[padded, 5000:] == 0).all() and (survey.flux()[padded, 5000:] == 0).all()
    assert (survey.ivar()[~padded, 5000:] > 0).mean() > 0.9


def test_repeated_targets_are_counted_and_kept(tmp_path, galaxies):
    g = {k: v[:6] for k, v in galaxies.items()}
    twice = {k: np.concatenate([v, v[:2]]) for k, v in g.items()}
    spectra = mmu_spectra(twice["flux"], twice["ivar"], WAVELENGTH, twice["redshift"], twice["targetid"])
    write_mmu(tmp_path / "desi", twice["ra"], twice["dec"], spectra)
    write_mmu(tmp_path / "n", g["ra"], g["dec"], mmu_images(g["image"], ["g", "r", "z"], np.arange(6)))
    survey = open_pairs(tmp_path)
    assert len(survey) == 8 and survey.provenance["repeated_targets"] == 2


@pytest.mark.parametrize("write", [write_mmu, as_hats])
def test_catalogues_written_again_in_the_same_process_are_joined_again(tmp_path, galaxies, write):
    g, n, rng = {k: v[:20] for k, v in galaxies.items()}, 20, np.random.default_rng(3)
    for _ in range(2):  # the second time into the same files, in other orders
        for name in ("desi", "north"):
            order = rng.permutation(n)
            columns = mmu_images(g["image"], ["g", "r", "z"], np.arange(n))
            if name == "desi":
                columns = mmu_spectra(g["flux"], g["ivar"], WAVELENGTH, g["redshift"], g["targetid"])
            columns = {k: np.asarray(v)[order] for k, v in columns.items()}
            if write is as_hats:
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            write(tmp_path / name, g["ra"][order], g["dec"][order], columns)
        survey = open_pairs(tmp_path)
        of = [g["targetid"].tolist().index(t) for t in survey.targetid]
        np.testing.assert_array_equal(survey.images(), g["image"][of])
        np.testing.assert_array_equal(survey.flux(), g["flux"][of])


@pytest.mark.parametrize("form", ["parquet", "mmu", "text"])
def test_a_name_beyond_the_signed_integers_is_refused_not_negative(tmp_path, form):
    ids = np.array([5, 2**63 + 4], np.uint64)
    pixels, flux = np.zeros((2, 3, 152, 152), "f4"), np.ones((2, N_PIXELS), "f4")
    if form == "parquet":
        columns = dict(image=pixels.transpose(0, 3, 2, 1), spectrum=flux[..., None], redshift=np.ones(2), targetid=ids)
        pq.write_table(pa.table({k: nested_lists(v) for k, v in columns.items()}), tmp_path / "a.parquet")
    else:
        spectra = mmu_spectra(flux, flux, WAVELENGTH, np.ones(2), ids)
        spectra["object_id"] = ids if form == "mmu" else ids.astype(str)
        write_mmu(tmp_path / "desi", np.arange(2.0), np.ones(2), spectra)
        write_mmu(tmp_path / "n", np.arange(2.0), np.ones(2), mmu_images(pixels, ["g", "r", "z"], np.arange(2)))
    with pytest.raises(ValueError, match=r"\(9223372036854775812\) is beyond 2\^63 - 1"):
        open_pairs(tmp_path)


def test_names_without_a_sign_go_into_a_file_and_into_no_folder(tmp_path, galaxies):
    ids = np.uint64(2**63) + np.arange(4, dtype=np.uint64)
    write_ours(tmp_path / "a.h5", {k: v[:4] for k, v in galaxies.items()} | dict(targetid=ids))
    made = convert_pairs(tmp_path / "a.h5", tmp_path / "b.h5")
    assert_same(open_pairs(made).targetid, ids)
    with pytest.raises(ValueError, match="beyond 2\\^63 - 1"):
        convert_pairs(tmp_path / "a.h5", tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_folder_with_a_file_missing_says_so_and_the_files_of_it_open(copies, tmp_path):
    (tmp_path / "data").mkdir()
    files = [tmp_path / "data" / f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    for path in files:
        shutil.copy(copies["one_file"], path)
    assert len(open_pairs(tmp_path)) == 3 * 28
    files[1].unlink()
    with pytest.warns(UserWarning, match="data lacks 1 of 3 files, the first is train-00001-of-00003: fetch"):
        assert len(open_pairs(tmp_path)) == 2 * 28
    assert len(open_pairs(files[0])) == 28  # on purpose
    with pytest.warns(UserWarning, match="lacks 2 of 3 files, the first is x-train-00000-of-00003"):
        check_numbered(["a/x-train-00001-of-00003.arrow", "a/test-00000-of-00001.arrow", "b/part-7.arrow"])
    check_numbered(["a/train-00000-of-00002-ab.parquet", "a/train-00001-of-00002-cd.parquet"])


@pytest.mark.parametrize("gone", ["4", "8"])
def test_an_original_without_one_of_its_groups_is_refused(copies, tmp_path, gone):
    path = tmp_path / "paper.h5"
    path.write_bytes(Path(copies["original"]).read_bytes())
    with h5py.File(path, "a") as file:
        del file[gone]
    with pytest.raises(ValueError, match=f"paper.h5 has no group '{gone}'.*fetch it again"):
        open_pairs(path)
    assert open_pairs(copies["original"]).provenance["groups"] == 10


@pytest.mark.parametrize("name, split", [("my-test", 0), ("a_valid", 0), ("test", 2), ("validation", 1)])
def test_a_folder_is_a_split_by_its_whole_name_only(copies, tmp_path, name, split):
    (tmp_path / name).mkdir()
    shutil.copy(copies["one_file"], tmp_path / name / "pairs.parquet")
    assert set(open_pairs(tmp_path / name, split="own").split) == {split}


def test_a_plus_in_the_name_of_a_folder(copies, tmp_path):
    place = tmp_path / "a+b"
    for name in ("mmu_hats", "mmu_hdf5"):
        shutil.copytree(copies[name], place / name)
        spectra, north, south = (f"{place}/{name}/{part}" for part in ("desi", "north", "south"))
        expected = open_pairs(copies[name])
        for given in ((place / name,), (spectra, [north, south]), (f"hats://{spectra}+{north}+{south}",)):
            survey = open_pairs(*given)
            np.testing.assert_array_equal(survey.targetid, expected.targetid)
            np.testing.assert_array_equal(survey.read("arcsec"), expected.read("arcsec"))
    shutil.copy(copies["ours"], place / "s.h5")
    assert len(open_pairs(place / "s.h5")) == N
    assert joined_parts("x" * 5000 + "+y") == ["x" * 5000, "y"]  # no name of a file, and no error of the system
    (tmp_path / "a").mkdir()  # a shorter name that is there too changes nothing
    assert len(open_pairs(f"{place}/mmu_hdf5/desi", f"{place}/mmu_hdf5/north")) < N


def test_one_wrong_bit_in_a_page_is_found(copies, tmp_path):
    path = sorted((copies["hub_folder"] / "data").glob("train*.parquet"))[0]
    damaged = bytearray(path.read_bytes())
    damaged[400_000] ^= 4
    (tmp_path / "train-0.parquet").write_bytes(damaged)
    survey = open_pairs(tmp_path)
    with pytest.raises(OSError, match="checksum"):
        survey.flux(), survey.images()
    for _ in range(2):  # nothing of it is remembered as whole
        with pytest.raises(UnreadableFile, match="train-0.parquet cannot be read.*checksum"):
            list(batches(tmp_path, ("image", "spectrum"), 8))


@pytest.mark.parametrize("name", ["ours", "hub_folder", "mmu_hats", "original", "save_to_disk"])
@pytest.mark.parametrize("how", [dict(), dict(shuffle=False), dict(rows=np.arange(N) % 3 > 0)], ids=str)
def test_rows_from_where_they_lie_are_those_that_are_decoded(copies, monkeypatch, name, how):
    "The same batches, bit by bit, whether rows are laid open in their file or read by the library."
    fields, laid = ("image", "flux", "redshift"), []

    def told(column, start, stop):
        found = rows_in_file(column, start, stop)
        laid.append(found is not None)
        return found

    def epoch(way):
        monkeypatch.setattr("astroclip.surveys.pairs.rows_in_file", way)
        return list(batches(copies[name], fields, 16, seed=3, prefetch=0, block=8, **how))

    direct, decoded = epoch(told), epoch(lambda column, start, stop: None)
    assert any(laid) == (name in ("ours", "hub_folder", "mmu_hats"))
    assert sum(laid) <= len(laid) * 2 / 3  # a redshift is no row that is fetched alone
    assert len(direct) == len(decoded) > 1
    for a, b in zip(direct, decoded):
        for field in (*fields, "row"):
            assert_same(a[field], b[field])


def test_a_file_cut_short_while_it_is_open_is_named(copies, tmp_path):
    path = tmp_path / "survey.h5"
    path.write_bytes(Path(copies["ours"]).read_bytes())
    reader = batches(path, ("image",), 4, prefetch=0)
    next(reader)
    os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(UnreadableFile, match="survey.h5 cannot be read"):
        list(reader)


def test_a_file_that_was_written_again_is_looked_at_again(tmp_path):
    "What is remembered of a file holds for that file."
    x = np.random.default_rng(0).normal(size=(2, 40, 3, 20, 20)).astype("f4")
    for form in ("parquet", "hdf5"):
        path = tmp_path / f"a.{form}"
        for chunk, image in zip((1, 8), x):
            if form == "hdf5":
                with h5py.File(path, "w") as file:
                    file["targetid"] = np.arange(40)
                    file.create_dataset("image", data=image, chunks=(chunk, 3, 20, 20))
            else:
                table = pa.table(dict(targetid=np.arange(40), image=nested_lists(image)))
                pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=5 * chunk)
            got = np.concatenate([b["image"] for b in batches(path, ("image",), 7, shuffle=False, prefetch=0)])
            assert_same(got, image)


def test_pages_and_the_ordinary_reader_agree(copies, monkeypatch):
    quick = open_pairs(copies["hub_folder"])
    images, flux = quick.images(), quick.flux()
    asked = []
    monkeypatch.setattr(ParquetFiles, "plain", lambda *a: asked.append(a))
    slow = open_pairs(copies["hub_folder"])
    np.testing.assert_array_equal(slow.images(), images)
    np.testing.assert_array_equal(slow.flux(), flux)
    assert asked


# ---- memory


FLAT = """
import sys
from astroclip.surveys.pairs import batches
for b in batches(sys.argv[1], ("image", "flux"), 32, block=16, window=2): pass
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"): print(int(line.split()[1]) / 1024)
"""


@pytest.mark.parametrize("form", ("parquet", "hats"))
def test_memory_does_not_grow_with_the_copy(tmp_path, galaxies, form):
    "Peak memory of an epoch over 4 and over 12 files of forty galaxies: 12 MB of pixels each."
    used = []
    for files in (4, 12):
        place = tmp_path / f"{form}{files}"
        ids = np.arange(N * files)
        if form == "parquet":
            place.mkdir()
            for i in range(files):
                columns = dict(image=galaxies["image"].transpose(0, 3, 2, 1), spectrum=galaxies["flux"][..., None])
                columns["targetid"] = ids[i * N : (i + 1) * N]
                table = pa.table({k: nested_lists(v) for k, v in columns.items()})
                pq.write_table(table, place / f"train-{i:05d}.parquet", row_group_size=16)
        else:
            tables = {"desi": [], "north": []}
            for i in range(files):
                g = galaxies | dict(targetid=ids[i * N : (i + 1) * N])
                place_of = {"ra": g["ra"] + 20 * i, "dec": g["dec"]}
                spectra = mmu_spectra(g["flux"], g["ivar"], WAVELENGTH, g["redshift"], g["targetid"])
                tables["desi"].append(nested_table(place_of | spectra))
                tables["north"].append(nested_table(place_of | mmu_images(g["image"], ["g", "r", "z"], g["targetid"])))
            for name, parts in tables.items():
                write_hats(place / name, parts, part_bytes=2**23, group_rows=16)
        done = subprocess.run([sys.executable, "-c", FLAT, str(place)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        used.append(float(done.stdout))
    assert used[1] - used[0] < 60, f"{used} MiB for 49 and 148 MB of pixels"


@pytest.mark.parametrize("name", ("mmu_hats", "save_to_disk"))
@pytest.mark.parametrize("output", ("survey.h5", "folder"))
def test_any_copy_converts_into_ours(copies, tmp_path, name, output):
    made = convert_pairs(copies[name], tmp_path / output)
    survey = open_pairs(made)
    assert pixel_hash(made) == pixel_hash(copies[name])
    assert survey.provenance["format"] == open_pairs(copies[name]).provenance["format"]
    if name == "mmu_hats":
        order = np.argsort(survey.targetid)
        first = open_pairs(copies[name])
        np.testing.assert_array_equal(survey.ra[order], first.ra[np.argsort(first.targetid)])
        assert survey.read("good_redshift").sum() == N - 4 and survey.provenance["zwarn"] == "true means good"
    if output == "folder" and name == "save_to_disk":
        assert np.bincount(open_pairs(made, split="own").split).tolist() == [32, 0, 8]


@pytest.fixture(scope="module")
def with_others(copies, tmp_path_factory):
    "The galaxies of one Parquet file with columns of somebody else's beside them."
    table, n = pq.read_table(copies["one_file"]), 28
    others = dict(
        name=["x" * (60 + i) for i in range(n)],  # longer in the second row group than in the first
        place=["Ångström galaxié"] * n,
        snr=np.arange(n) / 7,
        vector=[[1.0, float(i)] for i in range(n)],
        ragged=[[1.0] * (1 + i // 9) for i in range(n)],  # one length in each row group of nine
        lists=[[1.0] * (i % 3) for i in range(n)],
        structure=[dict(a=1, b="x")] * n,
        nothing=pa.nulls(n),
        when=pa.array(range(n), pa.timestamp("us")),
        flag=[None if i == 20 else 2**60 + 1 for i in range(n)],
    )
    for name, values in others.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    path = tmp_path_factory.mktemp("others") / "train-00000-of-00001.parquet"
    pq.write_table(table, path, row_group_size=9)
    return path


@pytest.mark.parametrize("output", ("survey.h5", "folder"))
def test_columns_that_cannot_be_copied_are_named_and_all_else_is_whole(with_others, tmp_path, output):
    with pytest.warns(UserWarning) as said:
        made = convert_pairs(with_others, tmp_path / output)
    said = [str(w.message) for w in said if "left out" in str(w.message)]
    assert [text.split()[1] for text in said] == ["ragged", "lists", "structure", "nothing", "when", "flag"]
    assert "shapes [(1,), (2,), (3,), (4,)]" in said[0] and "datetime64" in said[4]
    assert open_pairs(made).provenance["left_out"] == said
    assert pixel_hash(made) == pixel_hash(with_others)
    back = convert_pairs(made, tmp_path / "back.h5") if output == "folder" else convert_pairs(made, tmp_path / "back")
    for copy in (made, back):
        order = np.argsort(open_pairs(copy).targetid)
        first = np.argsort(open_pairs(with_others).targetid)
        for name in ("name", "place", "snr", "vector"):
            got, given = (open_pairs(x).read(name) for x in (copy, with_others))
            got = np.char.decode(got, "utf-8") if got.dtype.kind == "S" else got
            np.testing.assert_array_equal(got[order], given[first])
    with pytest.raises(NotASurvey, match="has no column 'when'|has no dataset 'when'"):
        open_pairs(made).read("when")


def test_a_collection_leads_to_its_catalog(tmp_path):
    made = write_hats(tmp_path / "sky" / "sky_v2", [rows_on_the_sky(50)])
    lines = "#HATS Collection\nobs_collection=sky\nhats_primary_table_url=sky_v2\n"
    (tmp_path / "sky" / "collection.properties").write_text(lines)
    catalog = HatsCatalog(tmp_path / "sky")
    assert catalog.path == str(made) and len(catalog) == 50
    (made / "dataset" / "_metadata").unlink()  # then the footers are asked
    assert len(HatsCatalog(f"hats://{tmp_path}/sky")) == 50
