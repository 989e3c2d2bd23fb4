"""Cross-match: on the sphere, equal to astropy, one to one, and the same rows in memory and cell by cell."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.io import fits
from astropy.table import QTable, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astroclip
from astroclip.core.config import shared_root
from astroclip.formats import sky_pairs
from astroclip.formats.sky_pairs import match_positions, one_to_one_pairs
from astroclip.metrics.sphere import separation
from astroclip.surveys.crossmatch import add_margin, crossmatch


def sky(rng, n):
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


def near(rng, ra, dec, arcsec):
    "Each position moved by up to `arcsec` in a random direction."
    moved = SkyCoord(ra, dec, unit="deg").directional_offset_by(
        rng.uniform(0, 360, len(ra)) * units.deg, rng.uniform(0, arcsec, len(ra)) * units.arcsec
    )
    return moved.ra.deg, moved.dec.deg


@pytest.fixture(params=["tree", "zones"])
def search(request, monkeypatch):
    "Few rows, too, through each of the two searches."
    monkeypatch.setattr(sky_pairs, "MANY", 10**9 if request.param == "tree" else 0)
    monkeypatch.setattr(sky_pairs, "WITHIN", 648000.0)


def assert_equals_astropy(ra, dec, other_ra, other_dec, radius):
    left, right = SkyCoord(ra, dec, unit="deg"), SkyCoord(other_ra, other_dec, unit="deg")
    index, distance, _ = left.match_to_catalog_sky(right)
    rows, others, arcsec = match_positions(ra, dec, other_ra, other_dec, radius)
    inside = distance.arcsec <= radius
    edge = np.abs(distance.arcsec - radius) < 1e-6  # rounding may put it on either side
    assert set(rows) - set(np.flatnonzero(edge)) == set(np.flatnonzero(inside & ~edge))
    assert np.allclose(arcsec, distance.arcsec[rows], atol=1e-8, rtol=1e-12)  # ties may name another row
    i, j, distance, _ = search_around_sky(left, right, radius * units.arcsec)
    theirs = {(a, b) for a, b, d in zip(i, j, distance.arcsec) if abs(d - radius) > 1e-6}
    rows, others, arcsec = match_positions(ra, dec, other_ra, other_dec, radius, all_within=True)
    ours = {(a, b) for a, b, d in zip(rows, others, arcsec) if abs(d - radius) > 1e-6}
    assert ours == theirs and len(rows) == len(set(zip(rows, others)))
    assert np.array_equal(np.lexsort((others, arcsec, rows)), np.arange(len(rows)))


@pytest.mark.parametrize("radius", [0.1, 1.0, 3600.0])
@pytest.mark.parametrize("place", ["sky", "north", "south", "zero"])
def test_equal_to_astropy(search, place, radius):
    rng = np.random.default_rng(3)
    ra, dec = sky(rng, 400)
    if place in ("north", "south"):
        dec = (90 - rng.uniform(0, 3 * radius / 3600, 400)) * (1 if place == "north" else -1)
    if place == "zero":
        ra, dec = rng.normal(0, radius / 3600, 400) % 360, rng.normal(0, radius / 3600, 400)
    other_ra, other_dec = near(rng, ra, dec, 2 * radius)
    assert_equals_astropy(ra, dec, other_ra, other_dec, radius)


places = st.tuples(
    st.one_of(st.sampled_from([0.0, 1e-5, 180.0, 359.99999, 360.0]), st.floats(0, 360)),
    st.one_of(st.sampled_from([-90.0, -89.99999, 0.0, 1e-5, 89.99999, 90.0]), st.floats(-90, 90)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(places, min_size=1, max_size=12),
    st.lists(places, min_size=1, max_size=12),
    st.sampled_from([0.5, 30.0, 3600.0, 180000.0]),
)
def test_equal_to_astropy_at_poles_seams_and_duplicates(search, left, right, radius):
    "Points are drawn from a few awkward places, so that duplicates and antipodes are common."
    assert_equals_astropy(*np.array(left + right[:2]).T, *np.array(right + left[:2]).T, radius)


def test_by_hand(search):
    assert separation(0, 0, 180, 0) == pytest.approx(648000)  # antipodes
    assert separation(10, 90, 200, 90) == pytest.approx(0, abs=1e-9)  # the pole has every right ascension
    rows, others, arcsec = match_positions([0.0], [0.0], [180.0, 179.0], [0.0, 0.0], 648000)
    assert (rows, others) == ([0], [1]) and arcsec == pytest.approx(179 * 3600)
    assert match_positions([0], [0], [180], [0], 648000, all_within=True)[2] == pytest.approx(648000)
    rows, others, arcsec = match_positions([5, 5], [5, 5], [5, 5, 5], [5, 5, 5], 1)
    assert list(zip(rows, others)) == [(0, 0), (1, 0)]  # of equal places the first
    rows, others, _ = match_positions([5, 5], [5, 5], [5, 5, 5], [5, 5, 5], 1, one_to_one=True)
    assert list(zip(rows, others)) == [(0, 0), (1, 1)]


def test_swapping_the_tables_swaps_the_pairs(search):
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 0.02, 300), rng.uniform(0, 0.02, 300)
    two = near(rng, ra, dec, 3)
    for how in (dict(all_within=True), dict(one_to_one=True)):
        there = match_positions(ra, dec, *two, 5, **how)
        back = match_positions(*two, ra, dec, 5, **how)
        assert set(zip(there[0], there[1])) == set(zip(back[1], back[0]))
    assert len(set(there[0])) == len(there[0]) and len(set(there[1])) == len(there[1])
    every = match_positions(ra, dec, *two, 5, all_within=True)
    left, right = set(there[0]), set(there[1])
    assert all(a in left or b in right for a, b in zip(*every[:2]))  # no pair is left that could be had


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 9)), max_size=40))
def test_one_to_one_is_the_greedy_walk(pairs):
    pairs = list(dict.fromkeys(pairs))
    taken, kept = set(), []
    for distance, row, other in sorted((d, r, o) for r, o, d in pairs):
        if ("left", row) not in taken and ("right", other) not in taken:
            taken |= {("left", row), ("right", other)}
            kept.append((row, other, distance))
    rows, others, arcsec = np.array(pairs, int).reshape(-1, 3).T
    found = one_to_one_pairs(rows, others, arcsec)
    assert sorted(kept) == sorted(pairs[i] for i in found)


@pytest.mark.parametrize(
    "ra, dec, words",
    [
        ([1, np.nan], [0, 0], "1 rows have no position"),
        ([0, 1], [0, 91], "are ra and dec swapped"),
        ([0, 1], [0], "2 right ascensions and 1 declinations"),
        ([np.inf], [0], "no position"),
        (["10:00:00"], [0], "a position is text .*10:00:00.*, expected degrees: convert it"),
        (np.ma.masked_invalid([np.nan]), [0], "no position"),
        (pd.Series([None, 1.0], dtype="Float64"), [0, 0], "1 rows have no position"),
    ],
)
def test_positions_that_are_none_are_refused(ra, dec, words):
    with pytest.raises(ValueError, match=words):
        match_positions(ra, dec, [0], [0], 1)
    with pytest.raises(ValueError, match=words):
        match_positions([0], [0], ra, dec, 1)


@pytest.mark.parametrize("engine", ["kdtree", "lsdb"])
def test_positions_in_other_units_are_converted(request, engine):
    if engine == "lsdb":
        request.getfixturevalue("cluster")
    ra, dec = np.array([10.0, 200.0]), np.array([-5.0, 30.0])
    right = Table(dict(ra=ra + 1e-5, dec=dec, m=[1, 2]))
    expected = crossmatch(Table(dict(ra=ra, dec=dec)), right, 1.0)["arcsec"]
    pairs = (("rad", "rad"), ("hourangle", "deg"), ("arcmin", "deg"), ("deg", "deg"))
    for cls in (Table, QTable) if engine == "kdtree" else (Table,):
        for unit, other in pairs if engine == "kdtree" else pairs[:1]:
            left = cls(dict(ra=(ra * units.deg).to(unit), dec=(dec * units.deg).to(other)))
            found = crossmatch(left, right, 1.0, engine)
            assert found["m"].tolist() == [1, 2] and np.allclose(found["arcsec"], expected, atol=1e-7)
            assert str(found["ra_left"].unit) == unit  # the column itself stays as it was
    with pytest.raises(ValueError, match="left: a position in the unit m, expected an angle"):
        crossmatch(Table(dict(ra=ra * units.m, dec=dec)), right, 1.0, engine)


@pytest.mark.filterwarnings("ignore:.*did not parse as fits unit")
def test_a_unit_that_astropy_does_not_know_is_degrees_or_refused(tmp_path):
    table = Table(dict(ra=[10.0], dec=[2.0]))
    for unit in ("degrees", "furlong"):
        hdu = fits.BinTableHDU(table)
        hdu.header["TUNIT1"], hdu.header["TUNIT2"] = unit, unit
        hdu.writeto(tmp_path / f"{unit}.fits")
    assert len(crossmatch(tmp_path / "degrees.fits", table, 1.0)) == 1
    with pytest.raises(ValueError, match="a position in the unit furlong"):
        crossmatch(tmp_path / "furlong.fits", table, 1.0)


def test_a_radius_may_say_its_unit():
    left, right = Table(dict(ra=[10.0], dec=[0.0])), Table(dict(ra=[10.0 + 1.5 / 3600], dec=[0.0]))
    for radius, n in ((1 * units.arcsec, 0), (2 * units.arcsec, 1), (0.03 * units.arcmin, 1), (1e-5 * units.rad, 1)):
        assert len(crossmatch(left, right, radius)) == n
    for radius in (1 * units.m, None, "wide", [1, 2]):
        with pytest.raises(ValueError, match="a radius of .* expected arcsec as a number, or an angle"):
            crossmatch(left, right, radius)


def test_files_by_their_names(tmp_path):
    table = pd.DataFrame(dict(targetid=[2**62 + 1, None], ra=[1.0, 2.0], dec=[3.0, 4.0]), dtype="Int64")
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    assert crossmatch(tmp_path / "a.csv.gz", table, 1.0)["targetid_left"].tolist()[0] == 2**62 + 1
    table.to_csv(tmp_path / "a.txt", index=False)
    with pytest.raises(ValueError, match="a.txt: its name tells no format of a table, expected .csv") as found:
        crossmatch(tmp_path / "a.txt", table, 1.0)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("radius", [0, -1, np.nan, np.inf, 648001])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(ValueError, match="a radius of"):
        match_positions([0], [0], [0], [0], radius)


def test_empty_tables():
    for ra, other in (([], [1.0]), ([1.0], []), ([], [])):
        assert [len(x) for x in match_positions(ra, ra, other, other, 1, one_to_one=True)] == [0, 0, 0]


@pytest.fixture()
def tables():
    rng = np.random.default_rng(8)
    ra, dec = rng.uniform(-0.05, 0.05, 200) % 360, rng.uniform(-0.05, 0.05, 200)
    left = Table(dict(targetid=2**62 + np.arange(200), ra=ra, dec=dec, image=np.ones((200, 2))))
    other_ra, other_dec = near(rng, ra, dec, 3)
    right = pd.DataFrame(dict(TARGETID=-np.arange(200), RA=other_ra, DEC=other_dec, dec_err=0.1))
    return left, right


def test_tables_and_files(tables, tmp_path):
    left, right = tables
    joined = crossmatch(left, right, 2.0)
    assert joined.colnames == "targetid ra dec image TARGETID RA DEC dec_err arcsec".split()
    assert joined["image"].shape == (len(joined), 2) and joined["arcsec"].unit == "arcsec"
    assert np.all(joined["targetid"] >= 2**62) and joined["targetid"].dtype == np.int64
    right.to_parquet(tmp_path / "right.parquet")
    right.to_csv(tmp_path / "right.csv", index=False)
    left.write(tmp_path / "left.fits")
    for name in ("right.parquet", "right.csv"):
        again = crossmatch(tmp_path / "left.fits", tmp_path / name, 2.0)
        assert np.array_equal(again["TARGETID"], joined["TARGETID"])
        assert np.allclose(again["arcsec"], joined["arcsec"], atol=1e-8)
    path = crossmatch(left, right, 2.0, output=tmp_path / "joined.ecsv")
    assert np.array_equal(Table.read(path)["targetid"], joined["targetid"])
    with pytest.raises(FileExistsError):
        crossmatch(left, right, 2.0, output=tmp_path / "joined.ecsv")
    both = crossmatch(right, right, 0.5, suffixes=("_a", "_b"))
    assert list(both.columns)[:2] == ["TARGETID_a", "RA_a"] and (both.TARGETID_a == both.TARGETID_b).all()
    with pytest.raises(ValueError, match="name them"):
        crossmatch(left, right.rename(columns={"RA": "alpha"}), 1)
    named = crossmatch(left, right.rename(columns={"RA": "alpha"}), 2.0, columns=(None, ("alpha", "DEC")))
    assert len(named) == len(joined)
    with pytest.raises(FileNotFoundError, match="no catalogue"):
        crossmatch(left, tmp_path / "none.csv", 1)
    with pytest.raises(ValueError, match="a catalogue of type list"):
        crossmatch([1], right, 1)


def test_the_package_offers_the_function():
    assert astroclip.crossmatch is crossmatch and "crossmatch" in dir(astroclip)


def test_without_lsdb_the_error_says_what_to_install(tables):
    code = "import sys; sys.modules['lsdb'] = None\nimport pandas as pd, astroclip\n"
    code += "t = pd.DataFrame(dict(ra=[1.0], dec=[1.0]))\nassert len(astroclip.crossmatch(t, t, 1)) == 1\n"
    code += "astroclip.crossmatch(t, t, 1, engine='lsdb')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'astroclip[scale]', or use engine='kdtree'" in done.stderr


# The same rows from both engines, on a cluster of two workers (within this process: they start at once).


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("lsdb")
    from dask.distributed import Client, LocalCluster

    how = dict(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with LocalCluster(**how) as workers, Client(workers) as client:
        yield client


def crowded(seed, n=3000):
    "Two tables around the seam, a pole and many borders of cells, some rows twice."
    rng = np.random.default_rng(seed)
    ra, dec = sky(rng, n)
    ra[: n // 3] = rng.normal(0, 0.01, n // 3) % 360
    dec[: n // 3] = rng.normal(0, 0.01, n // 3)
    dec[n // 3 : n // 2] = 90 - rng.uniform(0, 0.01, n // 2 - n // 3)
    other_ra, other_dec = near(rng, ra, dec, 15)
    left = pd.DataFrame(dict(name=np.arange(n), ra=ra, dec=dec))
    right = pd.DataFrame(dict(name=np.arange(n), ra=other_ra, dec=other_dec))
    return left, pd.concat([right, right[:50].assign(name=-np.arange(1, 51))], ignore_index=True)


RULES = [dict(), dict(how="all"), dict(one_to_one=True)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_both_engines_give_the_same_rows(cluster, rule):
    left, right = crowded(1)
    one, two = (crossmatch(left, right, 10.0, engine=engine, **rule) for engine in ("kdtree", "lsdb"))
    assert len(one) > 1000
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_two_processes_that_the_call_starts_itself():
    pytest.importorskip("lsdb")
    left, right = crowded(1, 300)
    code = "import sys, pandas as pd, astroclip\nif __name__ == '__main__':\n"
    code += "    left, right = pd.read_pickle(sys.argv[1]), pd.read_pickle(sys.argv[2])\n"
    code += "    astroclip.crossmatch(left, right, 10.0, 'lsdb', workers=2).to_pickle(sys.argv[3])\n"
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.pkl" for name in ("left", "right", "out")]
        left.to_pickle(paths[0])
        right.to_pickle(paths[1])
        Path(folder, "run.py").write_text(code)
        subprocess.run([sys.executable, f"{folder}/run.py", *paths], check=True)
        two = pd.read_pickle(paths[2])
    pd.testing.assert_frame_equal(crossmatch(left, right, 10.0), two, rtol=0, atol=1e-8)


FAR = [
    (slice(0, 40), slice(2500, 2540)),  # far apart: no cell of the sky in common
    (slice(0, 0), slice(0, 40)),
    (slice(0, 40), slice(0, 0)),
    (slice(0, 0), slice(0, 0)),
]


@pytest.mark.parametrize("rows, others", FAR, ids=["far", "no left", "no right", "neither"])
@pytest.mark.parametrize("kind", [pd.DataFrame, Table.from_pandas], ids=["pandas", "astropy"])
def test_tables_that_share_nothing_give_the_columns_and_no_row(cluster, rows, others, kind):
    left, right = crowded(1)
    left, right = kind(left[rows]), kind(right[others])
    for rule in RULES[::2]:
        one, two = (crossmatch(left, right, 0.01, engine=engine, **rule) for engine in ("kdtree", "lsdb"))
        assert len(one) == len(two) == 0 and type(one) is type(two)
        assert list(getattr(one, "colnames", one.columns)) == list(getattr(two, "colnames", two.columns))
    with pytest.raises(ValueError, match="the left table has no columns ra and dec"):
        crossmatch(pd.DataFrame(dict(alpha=[], delta=[])), right, 1.0, "lsdb")


def awkward(seed=1):
    "Tables whose names collide with what a join adds."
    left, right = crowded(seed)
    return left.assign(arcsec=7.0, ra_left=5.0, keep=left.name), right.assign(arcsec=8.0)


@pytest.mark.parametrize("engine", ["kdtree", "lsdb"])
@pytest.mark.parametrize("kind", [pd.DataFrame, Table.from_pandas], ids=["pandas", "astropy"])
def test_no_column_is_lost_whatever_its_name(request, engine, kind):
    if engine == "lsdb":
        request.getfixturevalue("cluster")
    left, right = (kind(x) for x in awkward())
    found = crossmatch(left, right, 10.0, engine)
    names = list(getattr(found, "colnames", found.columns))
    assert len(set(names)) == len(names) == 4 + 2 + 1 + 3 + 1 and names[-1] == "arcsec"
    assert set(found["arcsec_left"]) == {7.0} and set(found["arcsec_right"]) == {8.0}
    assert set(found["ra_left"]) == {5.0} and np.array_equal(found["name_left"], found["keep"])
    plain = crossmatch(*crowded(1), 10.0)
    assert np.allclose(found["ra_left_left"], plain["ra_left"]) and np.allclose(found["arcsec"], plain["arcsec"])
    chained = crossmatch(found, right, 10.0, columns=(("ra_left_left", "dec_left"), None))
    assert np.array_equal(chained["arcsec_left_left"], found["arcsec"][: len(chained)])
    with pytest.raises(ValueError, match="give two suffixes"):
        crossmatch(left, right, 10.0, engine, suffixes=("", ""))


def test_a_table_with_two_columns_of_one_name_is_refused():
    twice = pd.DataFrame([[1.0, 1.0, 2, 3]], columns=["ra", "dec", "z", "z"])
    with pytest.raises(ValueError, match="the right table has two columns of one name"):
        crossmatch(pd.DataFrame(dict(ra=[1.0], dec=[1.0])), twice, 1.0)


@pytest.fixture(scope="module")
def hats(cluster, tmp_path_factory):
    import lsdb

    folder, (left, right) = tmp_path_factory.mktemp("hats"), crowded(2)
    how = dict(ra_column="ra", dec_column="dec", partition_rows=500)
    lsdb.from_dataframe(left, margin_threshold=None, **how).write_catalog(folder / "left", progress_bar=False)
    lsdb.from_dataframe(right, margin_threshold=None, **how).write_catalog(folder / "bare", progress_bar=False)
    lsdb.from_dataframe(right, margin_threshold=20, **how).write_catalog(folder / "right", progress_bar=False)
    return folder, left, right


def named(frame):
    "The pairs of a join as a sorted table of plain numbers; twins (-1 is 0 once more) count as one."
    columns = {n: np.asarray(frame[n], float) for n in ("name_left", "name_right", "arcsec")}
    columns["name_right"] = np.where(columns["name_right"] < 0, -1 - columns["name_right"], columns["name_right"])
    return pd.DataFrame(columns).sort_values(["name_left", "name_right"], ignore_index=True)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_folders_of_hats_match_like_tables(hats, rule, tmp_path):
    import lsdb

    folder, left, right = hats
    assert len(list((folder / "right").rglob("Npix=*.parquet"))) > 4
    expected = named(crossmatch(left, right, 10.0, **rule))
    output = crossmatch(folder / "left", folder / "right", 10.0, "lsdb", output=tmp_path / "out", **rule)
    written = lsdb.open_catalog(output).compute()
    assert not [name for name in written.columns if name.startswith("_")]
    both = (folder / "left", folder / "right", 10.0)
    answers = [written, crossmatch(f"hats://{both[0]}", *both[1:], "lsdb", **rule), crossmatch(*both, **rule)]
    if not rule:
        answers.append(crossmatch(left, folder / "right", 10.0, "lsdb"))
    for found in answers:
        pd.testing.assert_frame_equal(named(found), expected, rtol=0, atol=1e-8)


def test_folders_keep_every_column_and_say_what_is_not_written(hats, tmp_path):
    import lsdb

    folder, left, right = hats
    strange, far = right.assign(arcsec=8.0, name_left=5.0), pd.DataFrame(dict(name=[1], ra=[40.0], dec=[-70.0]))
    columns = list(crossmatch(left, strange, 10.0).columns)
    found = crossmatch(folder / "left", strange, 10.0, "lsdb")
    assert list(found.columns) == columns and set(found["arcsec_right"]) == set([8.0])
    assert set(found["name_left"]) == {5.0} and "name_left_left" in columns
    output = crossmatch(folder / "left", strange, 10.0, "lsdb", output=tmp_path / "out")
    assert len(lsdb.open_catalog(output).compute()) == len(found)
    with pytest.raises(FileExistsError, match="out is there already: give another folder as output"):
        crossmatch(folder / "left", strange, 10.0, "lsdb", output=tmp_path / "out")
    for table in (far, far[:0], left[:1].assign(ra=left.ra[:1] + 0.01)):
        nothing = crossmatch(folder / "left", table, 0.01, "lsdb")
        assert len(nothing) == 0 and list(nothing.columns) == list(crossmatch(left, table, 0.01).columns)
        with pytest.raises(ValueError, match="none was not written, no rows match"):
            crossmatch(folder / "left", table, 0.01, "lsdb", output=tmp_path / "none")


def test_a_margin_that_is_too_narrow_is_refused_and_can_be_made(hats, tmp_path):
    folder, left, right = hats
    with pytest.raises(ValueError, match="margin of 20 arcsec, 30 are needed: write one with add_margin"):
        crossmatch(left, folder / "right", 30.0, "lsdb")
    with pytest.raises(ValueError, match="margin of 0 arcsec"):
        crossmatch(left, folder / "bare", 10.0, "lsdb")
    pytest.importorskip("hats_import")
    margin = add_margin(folder / "bare", tmp_path / "margin", 12.0)
    found = crossmatch(left, folder / "bare", 10.0, "lsdb", right_margin=margin)
    pd.testing.assert_frame_equal(named(found), named(crossmatch(left, right, 10.0)), rtol=0, atol=1e-8)


def test_at_a_real_density(search):
    "120,606 real galaxies against themselves, moved: neighbours as astropy finds them."
    path = shared_root() / "real_2" / "catalogues" / "sdss_dr7_vollim_z.npz" if shared_root() else None
    if path is None or not path.is_file():
        pytest.skip("needs the catalogues of $ASTROCLIP_SHARED")
    with np.load(path) as data:
        ra, dec = data["ra"].astype(float), data["dec"].astype(float)
    assert len(ra) == 120606
    other_ra, other_dec = near(np.random.default_rng(0), ra, dec, 1.5)
    assert_equals_astropy(ra, dec, other_ra, other_dec, 1.0)
    kept = match_positions(ra, dec, other_ra, other_dec, 60.0, one_to_one=True)
    assert len(np.unique(kept[0])) == len(np.unique(kept[1])) == len(kept[0]) > 120_000
