"The index: ids, conditions, saving, refusals."

from time import perf_counter

import numpy as np
import pytest
from astropy import units
from astropy.table import Table
from astropy.time import Time

from astroclip import SimilarityIndex
from astroclip.metrics.sphere import chord_of, unit_sphere
from astroclip.search.queries import apart_from

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 8)).astype("f4")
IDS = 2**62 + np.arange(60).repeat(2)  # do not fit into a float
MODALITY = np.tile(["image", "spectrum"], 60)
TABLE = Table(dict(redshift=rng.uniform(0, 0.5, 120), name=[f"g{i}" for i in range(120)]))


@pytest.fixture(scope="module")
def index():
    return SimilarityIndex.build(X, IDS, MODALITY, TABLE)


def test_against_plain_numpy(index):
    q = rng.normal(size=8)
    s = (X / np.linalg.norm(X, axis=1, keepdims=True)) @ (q / np.linalg.norm(q))
    hits = index.search(q, k=15)
    assert isinstance(hits, Table) and hits.colnames == [
        "rank",
        "id",
        "modality",
        "similarity",
        "redshift",
        "name",
    ]
    order = np.argsort(-s)[:15]
    assert list(hits["name"]) == [f"g{i}" for i in order] and list(hits["rank"]) == list(range(1, 16))
    np.testing.assert_allclose(hits["similarity"], s[order], atol=1e-5)


def test_conditions(index):
    q = X[0]
    hits = index.search(q, 120, where={"redshift": (0.1, 0.2), "modality": "image"})
    assert (
        len(hits)
        and ((hits["redshift"] >= 0.1) & (hits["redshift"] <= 0.2) & (hits["modality"] == "image")).all()
    )
    mask = np.arange(120) < 7
    assert set(index.search(q, 50, where=mask)["name"]) == {f"g{i}" for i in range(7)}
    assert IDS[0] not in index.search(q, 120, exclude=IDS[0])["id"]
    assert not {IDS[0], IDS[4]} & set(index.search(q, 120, exclude=[IDS[0], IDS[4]])["id"])
    assert len(index.search(q, 5, where={"redshift": (2, 3)})) == 0
    assert len(index.search(q, 5, where={"name": ["g3", "g4"]})) == 2
    assert len(index.search(q, 120, where={"redshift": (None, 0.1)})) == (TABLE["redshift"] <= 0.1).sum()


def test_queries_by_id_and_many_at_once(index):
    hits = index.search(IDS[10], k=3)
    assert IDS[10] not in hits["id"]
    both = index.search(X[:2], k=4)
    assert len(both) == 2 and list(both[1]["id"]) == list(index.search(X[1], k=4)["id"])
    np.testing.assert_allclose(np.linalg.norm(index.vector(IDS[10], "spectrum")), 1, atol=1e-6)


def test_saved_and_loaded_is_the_same(index, tmp_path):
    again = SimilarityIndex.load(index.save(tmp_path / "i.h5"))
    a, b = index.search(X[5], 9), again.search(X[5], 9)
    assert a.colnames == b.colnames and all((a[c] == b[c]).all() for c in a.colnames)
    assert again.ids.dtype == np.int64 and (again.ids == IDS).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(embeddings=X[0]), "expected"),
        (dict(embeddings=X * np.nan), "finite"),
        (dict(embeddings=X * 0), "all zero"),
        (dict(ids=IDS[:5]), "5 values"),
        (dict(table={"redshift": [1.0]}), "1 values"),
        *((dict(table={name: X[:, 0]}), "names of the result") for name in ("rank", "id", "modality", "similarity", "chance")),
        (dict(embeddings=X[:0], ids=IDS[:0]), "at least one"),
    ],
)
def test_build_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        SimilarityIndex.build(**(dict(embeddings=X, ids=IDS) | change))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda i: i.search(X[0, :3]), "expected"),
        (lambda i: i.search(np.zeros(8)), "null vector"),
        (lambda i: i.search(X[0] * np.nan), "finite"),
        (lambda i: i.search(X[0], k=0), "at least 1"),
        (lambda i: i.search(X[0], where={"mass": 1}), "no column"),
        (lambda i: i.search(X[0], where=[1, 2]), "boolean mask"),
        (lambda i: i.search(X[0], where={"redshift": (1, 2, 3)}), "range"),
    ],
)
def test_search_refuses(index, call, message):
    with pytest.raises(ValueError, match=message):
        call(index)


def test_files_that_are_none(tmp_path, index):
    with pytest.raises(FileNotFoundError):
        SimilarityIndex.load(tmp_path / "none.h5")
    path = index.save(tmp_path / "i.h5")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated"):
        SimilarityIndex.load(path)


def grown(old, new):
    "The last column of an index of two rows after a third is added."
    table = (dict(x=column) for column in (old, new))
    small = SimilarityIndex.build(np.eye(2), [1, 2], table=next(table))
    return small.add([[1.0, 1.0]], [3], table=next(table)).table["x"]


def test_a_column_that_grows_keeps_its_unit_and_its_digits():
    size = grown([1.0, 2.0] * units.arcsec, [3.0] * units.arcmin)
    assert size.unit == units.arcsec and size.tolist() == [1, 2, 180]
    assert grown([1, 2] * units.arcsec, [3.0]).tolist() == [1, 2, 3]  # a bare number is in the column's unit
    whole = grown(np.array([2**62 + 1, -1 + 2]), np.array([2**63 + 5], np.uint64))
    assert whole.dtype == np.uint64 and whole.tolist() == [2**62 + 1, 1, 2**63 + 5]
    assert grown(np.array([5, 6], np.uint64), np.array([-7])).tolist() == [5, 6, -7]
    assert grown(np.array([1, 2], np.int32), [0.5]).tolist() == [1, 2, 0.5]
    gap = grown(np.array([2**62 + 1, 5]), [None])
    assert gap.dtype == np.int64 and gap.tolist() == [2**62 + 1, 5, None]
    assert grown([None, None], ["disc"]).tolist() == [None, None, "disc"]
    assert grown(["a", "b"], ["longer"]).tolist() == ["a", "b", "longer"]
    days = grown(np.array(["2020-01-01", "2020-01-02"], "M8[D]"), np.array(["2020-01-01T12:34"], "M8[m]"))
    assert days.astype(str).tolist()[-1] == "2020-01-01T12:34"


@pytest.mark.parametrize(
    "old, new, message",
    [
        (np.array([2**62 + 1, 5]), [0.5], "mixes floats with 4611686018427387905"),
        (np.array([0.5, 1.5]), np.array([2**62 + 1]), "mixes floats with 4611686018427387905"),
        (np.array([-1, 5]), np.array([2**63 + 5], np.uint64), "no 64-bit integer holds them all"),
        ([1, 2], ["a"], "column x holds integers, and the new rows text"),
        ([True, False], [3], "column x holds truth values, and the new rows integers"),
        ([1.0, 2.0] * units.arcsec, [3.0] * units.mag, "column x is in arcsec, which mag"),
        ([1.0, 2.0], [3.0] * units.arcsec, "column x has no unit, and the new rows are in arcsec"),
        ([[1.0, 2.0], [3.0, 4.0]], [1.0], r"column x has \(2,\) values a row"),
        (Time(["2020-01-01", "2021-01-01"]), ["2022-01-01"], "column x is a Time, the new rows a Column"),
    ],
)
def test_rows_that_no_column_holds_are_refused(old, new, message):
    with pytest.raises(ValueError, match=message):
        grown(old, new)


@pytest.mark.parametrize("unit", ["rad", "hourangle", "arcmin"])
def test_positions_are_read_by_their_unit(unit):
    place = dict(ra=[10.0, 150.0, 350.0] * units.deg, dec=[-30.0, 2.0, 60.0] * units.deg)
    i = SimilarityIndex.build(np.eye(3), [1, 2, 3], table={name: x.to(unit) for name, x in place.items()})
    for k, (ra, dec) in enumerate(zip([10, 150, 350], [-30, 2, 60])):
        hits = i.search([1.0, 1, 1], where={"cone": (ra, dec, 1e-6)})
        assert hits["id"].tolist() == [k + 1]
        assert f"ra={ra}.000000&dec={dec}.000000" in i.links(hits)[0]
    plain = SimilarityIndex.build(np.eye(3), [1, 2, 3], table={name: x.value for name, x in place.items()})
    assert plain.search([1.0, 1, 1], where={"cone": (150, 2, 1e-6)})["id"].tolist() == [2]
    wrong = dict(ra=[1.0, 2, 3] * units.mag, dec=place["dec"])
    with pytest.raises(ValueError, match="column ra is in mag, which is no angle"):
        SimilarityIndex.build(np.eye(3), [1, 2, 3], table=wrong).search(1, apart=1)


def test_a_cone_takes_angles(index):
    i = SimilarityIndex.build(np.eye(3), [1, 2, 3], table=dict(ra=[180.0, 181, 200], dec=[0.0, 0, 0]))
    for cone in (
        (180, 0, 60 * units.arcmin),
        (12 * units.hourangle, 0 * units.rad, 3600 * units.arcsec),
        np.array([180, 0, 1]),
    ):
        assert sorted(i.search([1.0, 1, 1], where={"cone": cone})["id"]) == [1, 2]
    with pytest.raises(ValueError, match="in degrees"):
        i.search(1, where={"cone": (180, 0, 60 * units.s)})


def test_what_is_no_magnitude_has_no_chance():
    n, noise = 300, np.random.default_rng(2)
    table = {f"magnitude_{band}": noise.normal(18, 1, n) for band in "grz"}
    vectors = noise.normal(size=(n, 8))
    for sentinel in (99.0, -99.0, -999.0, 0.0, np.inf):
        none = {name: np.where(np.arange(n) % 3 == 0, sentinel, m) for name, m in table.items()}
        hits = SimilarityIndex.build(vectors, np.arange(n), table=none).search(1, n, chance=True)
        np.testing.assert_array_equal(np.isnan(hits["chance"]), hits["id"] % 3 == 0)
        gaps = {name: np.where(m == sentinel, np.nan, m) for name, m in none.items()}
        same = SimilarityIndex.build(vectors, np.arange(n), table=gaps).search(1, n, chance=True)
        np.testing.assert_array_equal(hits["chance"], same["chance"])
    text = table | dict(magnitude_r=["faint"] * n)
    with pytest.raises(ValueError, match="magnitudes as numbers, which magnitude_r"):
        SimilarityIndex.build(vectors, np.arange(n), table=text).search(1, chance=True)


def pairwise_apart(ids, xyz, chord, k, near):
    "Every answer against every one before: what `apart_from` has to find."
    kept, taken = [], list(near)
    for i, id in enumerate(ids.tolist()):
        close = any(np.linalg.norm(xyz[i] - other) <= chord for other in taken)
        if id in ids[kept] or close:
            continue
        kept.append(i)
        taken.append(xyz[i])
        if len(kept) == k:
            break
    return kept


def test_a_tree_keeps_the_answers_that_pairs_keep():
    noise = np.random.default_rng(3)
    for apart in (0.0, 5.0, 60.0, 3600.0):
        ra, dec = noise.uniform(10, 10.2, 400), noise.uniform(60, 60.1, 400)
        ra[::17], dec[::17] = ra[1::17][: len(ra[::17])], dec[1::17][: len(ra[::17])]
        xyz, ids = unit_sphere(ra, dec), noise.integers(0, 300, 400)
        xyz[::11] = np.nan
        for k, near in ((400, xyz[:0]), (30, xyz[[0, 5]])):
            found = apart_from(ids, xyz, apart, k, near)
            assert found.tolist() == pairwise_apart(ids, xyz, chord_of(apart), k, near)
    n = 20_000
    xyz = unit_sphere(noise.uniform(0, 360, n), noise.uniform(-60, 60, n))
    begin = perf_counter()
    assert len(apart_from(np.arange(n), xyz, 1, n)) == n
    assert perf_counter() - begin < 5  # all pairs take minutes


@pytest.mark.parametrize("apart", [np.nan, -1, 1.3e6, "near", 1 * units.s])
def test_no_distance_is_refused(index, apart):
    with pytest.raises(ValueError, match="expected an angle in arcsec, from 0 to 648000"):
        index.search(IDS[0], apart=apart)
