"The index: ids, conditions, saving, refusals."

import numpy as np
import pytest
from astropy.table import Table

from astroclip import SimilarityIndex

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
        (dict(table={"similarity": X[:, 0]}), "names of the result"),
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
