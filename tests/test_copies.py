"""Every copy of the pairs that circulates, read into one schema; and catalogues in HATS, written and read."""

import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from astroclip.formats.hats_writer import INDEX, ORDER, HatsWriter, partitions, write_hats


def rows_on_the_sky(n, seed=0, width=8):
    "A table of n rows all over the sphere, the poles and ra = 0 among them."
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    if seed == 0:
        ra[:3], dec[:3] = [0.0, 359.99999999, 12.0], [90.0, -90.0, 0.0]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=n * width).astype("f4")), width)
    names = pa.array(2**62 + np.arange(n) + n * seed)
    return pa.table(dict(targetid=names, ra=ra, dec=dec, vector=vectors))


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
    with pytest.raises(ValueError, match="row 0 lies at ra nan"):
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
