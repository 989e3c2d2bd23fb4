"The index: its engines agree, what it holds survives, cuts lose nothing, and a killed save leaves the old file."

import subprocess
import sys

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from astroclip import SimilarityIndex
from astroclip.core.outputs import TABLES, write_table
from astroclip.search.exact import SURE, candidates, dithers, encode, is_proven, ordered_candidates
from astroclip.search.exact import search_exact
from astroclip.search.matched import photometric_twins
from astroclip.search.queries import allowed, apart_from, sky_positions, viewer_links

rng = np.random.default_rng(0)
N, D = 3000, 48


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


X = unit(rng.normal(size=(20, D))[rng.integers(0, 20, N)] + 0.4 * rng.normal(size=(N, D)))
TABLE = Table(
    dict(
        redshift=rng.uniform(0, 1, N),
        flag=rng.random(N) < 0.3,
        kind=rng.choice(["disc", "merger", "spheroid"], N),
        ra=rng.uniform(0, 360, N),
        dec=np.degrees(np.arcsin(rng.uniform(-1, 1, N))),
    )
)
TABLE["mass"] = MaskedColumn(rng.normal(size=N), mask=rng.random(N) < 0.1)
IDS = 2**62 + np.arange(N)


@pytest.fixture(scope="module")
def index():
    return SimilarityIndex.build(X, IDS, "image", TABLE)


def plain(query, keep, k):
    "Numpy's answer."
    s = np.where(keep[None], query.astype(np.float64) @ X.T.astype(np.float64), -9)
    return np.argsort(-s, 1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("coded", [False, True])
def test_exact_search_is_numpys(dtype, coded):
    bank = X.astype(dtype)
    codes = encode(bank) if coded else None
    query = unit(X[:70] + 0.1 * rng.normal(size=(70, D)))
    true = np.argsort(-(query.astype(np.float64) @ bank.T.astype(np.float64)), 1, kind="stable")
    for part in (slice(0, 1), slice(0, 70)):
        rows, value = search_exact(query[part], bank, 9, codes=codes, block=32)
        np.testing.assert_array_equal(rows, true[part, :9])
        assert (np.diff(value, axis=1) <= 0).all()
    some = np.sort(rng.permutation(N)[:400])
    rows, _ = search_exact(query, bank, 9, some, codes)
    inside = true[np.isin(true, some)].reshape(70, 400)
    np.testing.assert_array_equal(rows, inside[:, :9])


def test_what_is_called_proven_is():
    "Whatever the bank: if a query is proven, its answer is the true one."
    checked = 0
    for spread in (1.0, 0.1, 0.01, 0.001):
        bank = unit(X[0] + spread * rng.normal(size=(2000, D)))
        codes, query = encode(bank), unit(X[0] + spread * rng.normal(size=(40, D)))
        rows, _, good = ordered_candidates(query, bank, 10, codes=codes)
        true = np.argsort(-(query.astype(np.float64) @ bank.T.astype(np.float64)), 1, kind="stable")[:, :10]
        np.testing.assert_array_equal(rows[good], true[good])
        np.testing.assert_array_equal(search_exact(query, bank, 10, codes=codes)[0], true)
        checked += good.sum()
    assert checked > 20


def test_the_bound_holds_for_every_score():
    codes, query = encode(X), X[:30]
    score, rows = candidates(query, X, N, codes=codes)
    true = np.take_along_axis(query.astype(np.float64) @ X.T.astype(np.float64), rows, 1)
    asked = encode(query, asked=True)
    most = SURE * np.hypot(codes.scale.max(), asked.scale * (1 + codes.lost))
    assert (np.abs(score - true).max(1) < np.minimum(most, codes.lost + asked.lost * (1 + codes.lost))).all()
    assert not is_proven(query, codes, true[:, 9], true[:, 9]).any()


def test_rounding_does_not_conspire():
    "All numbers a little above zero beside a large one: rounded to the nearest, all would be lost alike."
    some = np.random.default_rng(5)
    bank, query = some.random((6000, 512)), some.random((60, 512))
    bank[:, 0] += 300
    bank, query = unit(bank), unit(np.concatenate([np.zeros((60, 1)), query[:, 1:]], 1))
    true = np.argsort(-(query.astype(np.float64) @ bank.T.astype(np.float64)), 1, kind="stable")[:, :10]
    rows, _, good = ordered_candidates(query, bank, 10, codes=encode(bank))
    np.testing.assert_array_equal(rows[good], true[good])
    np.testing.assert_array_equal(search_exact(query, bank, 10, codes=encode(bank))[0], true)
    codes = encode(bank)
    lost = bank.astype(np.float64) / codes.scale[:, None] - (codes.codes - dithers(512, False)[0])  # steps
    error = query.astype(np.float64) @ lost.T
    assert np.abs(error).max() < SURE and abs(error.mean()) < 1  # rounded to the nearest: 4.7, and 4.1


def products_without_vnni(query, codes):
    "What a processor without instructions for whole numbers makes of bytes: pairs of products are cut off at 16 bits."
    pairs = np.einsum("qpi,cpi->qcp", (query.astype(int) + 128).reshape(len(query), -1, 2), codes.astype(int).reshape(len(codes), -1, 2))
    shifted = np.clip(pairs, -(2**15), 2**15 - 1).sum(2)
    return (shifted - 128 * codes.astype(int).sum(1)).astype(np.int32)


def test_processors_that_cut_sums_off_get_smaller_codes(monkeypatch):
    "Of 127 a sum of two products with 255 does not fit into 16 bits, of 64 it does; the answer stays the true one."
    from astroclip.search import exact

    monkeypatch.setattr(exact, "byte_products", products_without_vnni)
    exact.largest_code.cache_clear()
    try:
        assert exact.largest_code() == 64
        bank = unit(np.random.default_rng(6).choice([-1.0, 1.0], (300, 64)) + 0.1 * rng.normal(size=(300, 64)))
        codes, query = encode(bank), unit(bank[:30] + 0.05 * rng.normal(size=(30, 64)))
        assert 60 < np.abs(codes.codes.astype(int)).max() <= 64
        rows, _ = search_exact(query, bank, 10, codes=codes)
        true = np.argsort(-(query.astype(np.float64) @ bank.T.astype(np.float64)), 1, kind="stable")[:, :10]
        np.testing.assert_array_equal(rows, true)
        score, found = candidates(query, bank, 300, codes=codes)
        error = score - np.take_along_axis(query.astype(np.float64) @ bank.T.astype(np.float64), found, 1)
        assert np.abs(error).max() < codes.lost + encode(query, asked=True).lost * (1 + codes.lost)
    finally:
        exact.largest_code.cache_clear()


def test_equal_rows_come_in_the_order_of_the_index():
    bank = np.concatenate([X, X[5:6], X[5:6]])
    for codes in (None, encode(bank)):
        assert search_exact(X[5:6], bank, 3, codes=codes)[0].tolist() == [[5, N, N + 1]]


CUTS = [
    {"redshift": (0.2, 0.3)},
    {"redshift": (None, 0.9), "flag": True},
    {"kind": ["disc", "merger"], "flag": False},
    {"mass": (0, None)},
    {"cone": (10, 80, 15)},
    {"cone": (0, 0, 30), "kind": "disc"},
    {"id": [int(i) for i in IDS[:40]]},
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    pytest.importorskip("faiss")
    from astroclip.search import engines as module

    made = dict(approximate=SimilarityIndex.build(X, IDS, "image", TABLE).use(lists=16, probes=8, sample=0))
    if sys.platform != "win32":
        pytest.importorskip("milvus_lite")
        path = tmp_path_factory.mktemp("milvus") / "index.db"
        milvus = SimilarityIndex.build(X, IDS, "image", TABLE)
        made["milvus"] = milvus.use("milvus", uri=path, kind="FLAT", sample=0)
    yield made
    module.EXACT_ROWS = 100_000


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("where", [None, *CUTS])
def test_no_engine_loses_anything_by_a_cut(index, engines, where, limit, monkeypatch):
    monkeypatch.setattr("astroclip.search.engines.EXACT_ROWS", limit)
    query = X[:10]
    keep = allowed(index, where)
    true = plain(query, keep, 8)
    exact = index.search(query, 8, where=where)
    for i, hits in enumerate(exact):
        assert hits["id"].tolist() == IDS[true[i]][: keep.sum()].tolist()
    for name, other in engines.items():
        found = other.search(query, 8, where=where)
        recall = np.mean([np.isin(a["id"], b["id"]).mean() for a, b in zip(found, exact)])
        assert all(np.isin(hits["id"], IDS[keep]).all() and len(hits) == min(8, keep.sum()) for hits in found)
        if name == "milvus" or limit and where and keep.sum() <= limit:
            assert recall == 1.0, (name, where)
        assert recall > 0.97, (name, where)
        for a, b in zip(found, exact):
            assert a.colnames == b.colnames
            if recall == 1:
                np.testing.assert_array_equal(a["similarity"], b["similarity"])


def test_a_cut_that_empties_the_lists_near_a_query(monkeypatch):
    "Redshift is the place along an arc: the near end asks, and the far half may answer."
    pytest.importorskip("faiss")
    from astroclip.search.engines import engine_recall

    monkeypatch.setattr("astroclip.search.engines.EXACT_ROWS", 0)
    draw = np.random.default_rng(1)
    z = draw.uniform(0, 1, 6000)
    x = np.stack([np.cos(1.5 * z), np.sin(1.5 * z)], 1)
    x = unit(np.concatenate([x, np.zeros((6000, 30))], 1) + 0.04 * draw.normal(size=(6000, 32)))
    made = SimilarityIndex.build(x, np.arange(6000), table=dict(redshift=z))
    made.use("approximate", lists=64, probes=16, sample=0)
    query = x[np.flatnonzero(z < 0.1)[:60]]
    for where in ({"redshift": (0.5, None)}, {"redshift": (0.9, None)}, draw.random(6000) < 0.5):
        found, true = (made.search(query, 10, where=where, exact=exact) for exact in (False, True))
        recall = np.mean([np.isin(a["id"], b["id"]).mean() for a, b in zip(found, true)])
        assert recall >= 0.99, (recall, where)
        assert engine_recall(made, made.engine, where=where)[0] >= 0.99
    note = "recall not measured under this condition"
    assert found[0].meta == {"engine": "approximate", "note": note} and true[0].meta == {"engine": "exact"}
    monkeypatch.setattr("astroclip.search.engines.EXACT_ROWS", 100_000)
    assert made.search(query[0], where={"redshift": (0.5, None)}).meta == {"engine": "exact"}


def test_a_galaxy_that_asks_is_passed_over_by_an_engine(index, engines, monkeypatch):
    monkeypatch.setattr("astroclip.search.engines.EXACT_ROWS", 0)
    for other in engines.values():
        assert other.search(IDS[7], 8)["id"].tolist() == index.search(IDS[7], 8)["id"].tolist()


ODD = dict(
    z=np.array([0.1, 0.5, 1e5, 0.10000001], np.float32),
    flag=np.array([True, False, True, False]),
    kind=np.array([0, 1, 2, -1]),
    ra=np.array([-170.0, 30, -1e-7, -180]),
    dec=np.array([0.0, 89.9, -90, 0]),
    name=["a", "b\n", "\u00e9", ""],
)


@pytest.mark.parametrize(
    "where",
    [
        {"z": (None, 0.1)},
        {"z": (0.1, np.inf)},
        {"z": (-np.inf, np.float16(0.5))},
        {"z": (np.float32(0.1), 1e30)},
        {"flag": 1},
        {"flag": [True, 0.0]},
        {"kind": True},
        {"kind": [1.0, 2.5]},
        {"kind": (0.5, 2**70)},
        {"kind": (-0.5, np.float32(1.5))},
        {"name": b"a"},
        {"name": ["a", "b\n"]},
        {"cone": (200, 0, 20), "flag": [0, 1]},
        {"cone": (530, 0, 10.001)},
        {"cone": (0, 89, 5)},
        {"cone": (360, 0, 91)},
    ],
)
def test_a_server_is_told_of_no_narrower_condition(where):
    from astroclip.search.queries import column_words, filter_words

    small = SimilarityIndex.build(np.eye(4), [1, 2, 3, 4], table=ODD)
    columns, keep = column_words(small), allowed(small, where)
    words = filter_words(where, columns) or "true"
    assert "inf" not in words and "nan" not in words
    for row in range(4):
        here = {word: values[row] for word, values in columns.values()} | dict(true=True, false=False)
        kinds = {word: values.dtype.kind for word, values in columns.values()}
        for part in words.replace("(", "").replace(")", "").replace(" or ", " and ").split(" and "):
            if part != "true":  # a server compares like with like
                assert (part.split()[2] in ("true", "false")) == (kinds[part.split()[0]] == "b"), part
        assert eval(words, here) or not keep[row], (words, row)
    assert keep.any()


def test_the_same_galaxies_with_other_columns_are_another_collection(tmp_path):
    pytest.importorskip("milvus_lite")
    draw, n = np.random.default_rng(3), 600
    table = dict(redshift=draw.uniform(0, 1, n), ra=draw.uniform(-180, 180, n), dec=draw.uniform(-5, 5, n))
    corrected = table | dict(redshift=1 - table["redshift"])
    more = dict(extra=draw.choice(["x", "y"], n)) | table
    for columns in (table, corrected, more):
        exact = SimilarityIndex.build(X[:n], IDS[:n], table=columns)
        server = SimilarityIndex.build(X[:n], IDS[:n], table=columns)
        server.use("milvus", uri=tmp_path / "one.db", kind="FLAT", sample=0)
        for where in ({"redshift": (0.3, np.inf)}, {"cone": (200, 0, 60)}, {"cone": (-10, 0, 30)}):
            assert allowed(exact, where).sum() > n // 20  # the server is asked
            for a, b in zip(server.search(X[:20], 8, where), exact.search(X[:20], 8, where)):
                assert a["id"].tolist() == b["id"].tolist()
    hits = server.search(X[0], 8, {"extra": "x"})
    assert (hits["extra"] == "x").all() and len(hits) == 8


@pytest.mark.parametrize("n", [1, 8, 11])
def test_an_engine_of_a_few_galaxies(n, capsys):
    pytest.importorskip("faiss")
    small = SimilarityIndex.build(X[:n], IDS[:n]).use("approximate")
    assert f"recall@10 not measured, for there are {n} vectors" in capsys.readouterr().out
    assert (
        small.search(X[0], 3)["id"].tolist()
        == SimilarityIndex.build(X[:n], IDS[:n]).search(X[0], 3)["id"].tolist()
    )
    assert "recall10" not in small.search(X[0], 3).meta


def test_another_index_says_that_it_has_no_engine(index, engines, capsys):
    made, new = engines["approximate"], Table(TABLE[:1])
    for word, other in (
        ("add", lambda: made.add(X[:1], [7], table=new)),
        ("delete", lambda: made.delete(IDS[0])),
    ):
        changed = other()
        assert capsys.readouterr().out.startswith(f"{word}: the new index is searched exactly until")
        assert changed.engine is None and changed.search(X[3], 4).meta == {"engine": "exact"}
    assert made.engine is not None
    index.add(X[:1], [7], table=new).delete(7)
    assert capsys.readouterr().out == ""


def test_an_engine_can_be_passed_over(index, engines):
    narrow = SimilarityIndex.build(X, IDS, "image", TABLE).use(lists=64, probes=1, sample=0)
    true = index.search(X[:50], 8)
    found = narrow.search(X[:50], 8, exact=True)
    assert all(a["id"].tolist() == b["id"].tolist() for a, b in zip(true, found))


def test_recall_is_printed(capsys):
    pytest.importorskip("faiss")
    SimilarityIndex.build(X, IDS).use("approximate", lists=16, probes=16)
    said = capsys.readouterr().out
    assert said.startswith("approximate: recall@10 ") and "among 3,000 vectors" in said


def test_auto_is_exact_below_a_size_and_says_what_it_is_above(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    path = SimilarityIndex.build(X, IDS, np.tile(["image", "spectrum"], N // 2)).save(tmp_path / "i.h5")
    small = SimilarityIndex.open(path, engine="auto")
    assert small.engine is None and capsys.readouterr().out == "" and not (tmp_path / "i.h5.faiss").exists()
    monkeypatch.setattr("astroclip.search.engines.AUTO_MAPPED", N * D - 1)
    large = SimilarityIndex.open(path, engine="auto", lists=16, probes=2)
    said = capsys.readouterr().out
    assert said.startswith("auto: approximate") and f"{N:,d} x {D}" in said
    assert "recall@10" in said and "across kinds" in said and len(said.splitlines()) == 2
    assert SimilarityIndex.load(path, engine="auto").engine is None  # in memory the limit is another
    again = SimilarityIndex.open(path, engine="auto", lists=16, probes=2)  # from i.h5.faiss
    assert again.engine.recall == large.engine.recall and "recall" not in capsys.readouterr().out
    hits, others = large.search(IDS[4], 5), large.search(X[:2], 5)
    assert hits.meta == {"engine": "approximate", "recall10": round(large.engine.recall[0], 4)}
    assert all(table.meta == hits.meta for table in others)
    assert large.search(IDS[4], 5, exact=True).meta == small.search(IDS[4], 5).meta == {"engine": "exact"}
    assert large.use("exact").engine is None


def test_auto_without_faiss_is_exact_and_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr("astroclip.search.engines.AUTO_NUMBERS", N * D - 1)
    assert SimilarityIndex.build(X, IDS, engine="auto").engine is None
    assert "pip install 'astroclip[search]'" in capsys.readouterr().out


def test_recall_across_kinds_by_hand():
    "An engine that never finds the nearest: 9 of 10; asked by images, it proposes spectra alone."
    from astroclip.search.engines import engine_recall
    from astroclip.search.parts import parts_of

    class Lame:
        def nearest(self, index, query, k, rows=None, where=None):
            assert rows is None or where == {"modality": ["spectrum"]}
            found, value = search_exact(query, index.vectors, k + 1, rows)
            return (found[:, 1:], value[:, 1:]) if rows is not None else (found[:, :k], value[:, :k])

    index = parts_of(X, IDS, np.tile(["image", "spectrum"], N // 2))
    assert engine_recall(index, Lame()) == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(engine_recall(index, Lame(), across=True), 0.9, atol=1e-12)


def test_centres_of_lists_cost_little_memory():
    pytest.importorskip("faiss")
    from astroclip.search.engines import build_sketches
    from astroclip.search.parts import parts_of

    wide = parts_of(rng.normal(size=(3000, 256)), IDS)
    made = build_sketches(wide)
    assert made.lists.nlist == 32 and made.lists.nlist * 256 * 4 / 3000 <= 12  # 3 N / D = 35
    assert (made.probes, made.refine) == (32, 64)
    assert made.bytes_per_vector < 256 / 8 + 32


@pytest.mark.parametrize("missing, call", [("faiss", {}), ("pymilvus", dict(engine="milvus", uri="x.db"))])
def test_a_missing_extra_is_one_sentence(index, missing, call, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'astroclip"):
        SimilarityIndex.build(X[:50], IDS[:50]).use(**call)


@pytest.mark.parametrize("read", [SimilarityIndex.load, SimilarityIndex.open])
def test_what_it_holds_survives(index, tmp_path, read):
    path = index.save(tmp_path / "i.h5")
    new = Table(TABLE[:2])
    new["redshift"] = [5.0, 6.0]
    grown = read(path).add(X[:2], [7, 8], "spectrum", new).delete(IDS[3:5])
    again = read(grown.save(tmp_path / "j.h5"))
    assert len(again) == N and not np.isin(IDS[3:5], again.ids).any()
    assert again.ids[-2:].tolist() == [7, 8] and again.modality[-2:].tolist() == ["spectrum"] * 2
    assert (
        again.table["redshift"][-1] == 6.0
        and again.table["mass"].mask.sum() == grown.table["mass"].mask.sum()
    )
    np.testing.assert_array_equal(again.vectors[:3], X[:3])
    np.testing.assert_array_equal(again.vectors[-2:], X[:2])
    a, b = grown.search(X[9], 6), again.search(X[9], 6)
    assert a.colnames == b.colnames and all((a[c] == b[c]).all() for c in a.colnames)
    assert again.simulated is False and len(index) == N


def test_an_open_index_stays_on_the_disk_and_can_replace_itself(index, tmp_path):
    path = index.save(tmp_path / "i.h5", "float16")
    opened = SimilarityIndex.open(path)
    assert isinstance(opened.vectors, np.memmap) and opened.vectors.dtype == np.float16
    opened.delete(IDS[0]).save(path)
    assert len(SimilarityIndex.open(path)) == N - 1
    assert len(opened.search(IDS[1], 3)) == 3  # the old one, still open


KILLED = """
import os, sys
import numpy as np
import h5py
from astroclip import SimilarityIndex
import astroclip.search.parts as parts
def die(*args, **options):
    os._exit(9)
parts.write_columns = die
SimilarityIndex.build(np.eye(4), [1, 2, 3, 4]).save(sys.argv[1])
"""


def test_a_killed_save_leaves_the_old_file(index, tmp_path):
    path = index.save(tmp_path / "i.h5")
    before = path.read_bytes()
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == 9
    assert path.read_bytes() == before and len(SimilarityIndex.load(path)) == N


def test_an_example_by_hand():
    "Two galaxies at right angles for, one against: (1, 1, 0) / 2 - (1, 0, 0) / 2 is the second axis."
    axes = SimilarityIndex.build(np.eye(3), [1, 2, 3])
    hits = axes.search(k=3, like=[1, 2], unlike=[np.array([1.0, 0, 0])], itself=True)
    assert hits["id"].tolist() == [2, 1, 3]
    np.testing.assert_allclose(hits["similarity"], [1, 0, 0], atol=1e-7)
    hits = axes.search(1, 2, like=[2], weights=[3, 4], itself=True)  # (3, 4) / 5
    np.testing.assert_allclose(hits["similarity"], [0.8, 0.6], atol=1e-7)
    assert axes.search(k=9, like=[1, 2])["id"].tolist() == [3]


def test_four_directions():
    pairs = np.concatenate([np.eye(4), np.roll(np.eye(4), 1, 0)])
    index = SimilarityIndex.build(pairs, np.tile([1, 2, 3, 4], 2), np.repeat(["image", "spectrum"], 4))
    first = {
        (side, among): index.search(1, 1, {"modality": among}, side=side, itself=True)["id"][0]
        for side in ("image", "spectrum")
        for among in ("image", "spectrum")
    }
    assert first == {
        ("image", "image"): 1,
        ("image", "spectrum"): 2,  # whose spectrum is the image of 1
        ("spectrum", "image"): 4,
        ("spectrum", "spectrum"): 1,
    }
    np.testing.assert_allclose(index.vector(1, "both"), [0.5**0.5, 0, 0, 0.5**0.5], atol=1e-6)


def test_second_entries_and_fragments():
    ra, dec = np.array([10, 10, 10, 200.0]), np.array([20, 20 + 0.5 / 3600, 20 + 10 / 3600, 20])
    x = unit(np.array([[1, 0], [1, 0.01], [1, 0.02], [1, 0.5]]))
    index = SimilarityIndex.build(x, [1, 2, 3, 4], table=dict(ra=ra, dec=dec))
    assert index.search(1, 3)["id"].tolist() == [2, 3, 4]
    assert index.search(1, 3, apart=1)["id"].tolist() == [3, 4]
    assert index.search(1, 3, apart=25)["id"].tolist() == [4]
    assert index.search(x[0], 3, apart=25)["id"].tolist() == [1, 4]
    assert apart_from(np.array([5, 6]), np.full((2, 3), np.nan), 25, 9).tolist() == [0, 1]  # no place known


def test_a_cone_against_astropy(index):
    from astropy.coordinates import SkyCoord

    sky = SkyCoord(TABLE["ra"], TABLE["dec"], unit="deg")
    for ra, dec, radius in ((0, 0, 20), (359.9, 89.9, 5), (123.4, -56.7, 0.5), (10, -90, 30), (50, 5, 180)):
        near = sky.separation(SkyCoord(ra, dec, unit="deg")).deg <= radius
        np.testing.assert_array_equal(allowed(index, {"cone": (ra, dec, radius)}), near)
    rich = SimilarityIndex.build(X[:5], IDS[:5], table={"place": sky[:5]})
    np.testing.assert_allclose(sky_positions(rich.table), sky_positions(index.table[:5]), atol=1e-12)
    assert "ra=10.500000&dec=-3.000000&layer=ls-dr9" in viewer_links(Table(dict(RA=[10.5], DEC=[-3.0])))[0]


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(), "needs something to look for"),
        (dict(query=IDS[0], apart=1, where={"cone": (1, 2)}), "in degrees"),
        (dict(query=IDS[0], where={"cone": (1, 99, 1)}), "in degrees"),
        (dict(query=X[:2], like=[IDS[0]]), "take no examples"),
        (dict(query=X[0], chance=True), "columns magnitude_g"),
        (dict(query=IDS[0], chance=True), "columns magnitude_g"),
        (dict(query=IDS[0], side="spectrum"), "with modality 'spectrum'"),
        (dict(like=[IDS[0]], weights=[-1]), "numbers above zero"),
        (dict(query=7), "no galaxy 7"),
    ],
)
def test_questions_that_have_no_answer(index, call, message):
    with pytest.raises((ValueError, KeyError), match=message):
        index.search(**call)


def test_twins_are_the_nearest_in_brightness_and_colour():
    magnitude = np.array([[20, 19, 18], [20, 19, 18.3], [20.02, 19.01, 18.0], [25, 19, 15]])
    assert photometric_twins(magnitude, magnitude[:1], 3).tolist() == [[0, 2, 1]]


@pytest.fixture(scope="module")
def bright_index():
    n, noise = 800, np.random.default_rng(5)
    bright = noise.normal(18, 1, n)
    table = dict(magnitude_g=bright + 0.7, magnitude_r=bright, magnitude_z=bright - 0.4)
    return SimilarityIndex.build(noise.normal(size=(n, 8)), np.arange(n), "image", table)


def test_chance_of_a_space_that_knows_no_photometry(bright_index):
    n = len(bright_index)
    last = [bright_index.search(i, 20, chance=True)["chance"][-1] for i in range(30)]
    assert np.max(last) < 0.2  # the twentieth of 800
    p = np.concatenate([bright_index.search(i, n, chance=True)["chance"] for i in range(40)])
    assert abs((p < 0.05).mean() - 0.05) < 0.01 and abs(p.mean() - 0.5) < 0.02  # all answers: any


def test_chance_needs_the_photometry_of_the_hit_alone(bright_index):
    table = bright_index.table.copy()
    table["magnitude_r"] = np.ma.masked_array(table["magnitude_r"].data, np.arange(800) == 3)
    gaps = SimilarityIndex.build(bright_index.vectors, bright_index.ids, "image", table)
    whole, own = (i.search(3, 30, chance=True) for i in (bright_index, gaps))
    assert own["id"].tolist() == whole["id"].tolist() and own["chance"].tolist() == whole["chance"].tolist()
    itself = gaps.search(3, 1, itself=True, chance=True)
    assert itself["id"].tolist() == [3] and np.isnan(itself["chance"]).all()
    few = SimilarityIndex.build(bright_index.vectors[:40], np.arange(40), "image", table[:40])
    assert np.isnan(few.search(5, 5, chance=True)["chance"]).all()  # 39 twins are too few


def test_stand_ins_of_a_large_index_are_thinned_evenly(bright_index):
    from astroclip.search.similarity import chance_of_hits

    hits = bright_index.search(11, 200)
    asked = (
        bright_index,
        bright_index.vector(11),
        hits["id"].data,
        hits["similarity"].data.astype(float),
        [11],
    )
    whole, thin = chance_of_hits(*asked), chance_of_hits(*asked, most=400)
    assert (
        np.corrcoef(whole, thin)[0, 1] > 0.7 and abs((whole - thin).mean()) < 0.03
    )  # other twins, half of them
    assert thin.tolist() == chance_of_hits(*asked, most=400).tolist()
    assert len(chance_of_hits(*asked[:2], np.empty(0, int), np.empty(0))) == 0


def test_chance_of_a_galaxy_from_outside_and_of_several_at_once(bright_index):
    vector = bright_index.vector(7)
    rest = bright_index.delete([7])
    named, outside = bright_index.search(7, 9, chance=True), rest.search(3 * vector, 9, chance=True)
    assert named["id"].tolist() == outside["id"].tolist()
    assert named["chance"].tolist() == outside["chance"].tolist()  # its own row stands in for nobody
    many = rest.search(np.stack([vector, bright_index.vector(8)]), 9, chance=True)
    assert many[0]["chance"].tolist() == outside["chance"].tolist() and len(many[1]) == 9
    mixed = bright_index.search(7, 9, like=[8], unlike=[9], chance=True)
    assert np.isfinite(mixed["chance"]).all()


@pytest.mark.parametrize("suffix", TABLES)
def test_hits_can_be_written(index, tmp_path, suffix):
    hits = index.search(IDS[0], 5)
    hits["viewer"] = index.links(hits)
    path = write_table(hits, tmp_path / f"hits{suffix}")
    assert path.stat().st_size > 100 and len(hits.to_pandas()) == 5
    back = Table.read(path, format=TABLES[suffix])
    assert [int(i) for i in back["id"]] == hits["id"].tolist()
