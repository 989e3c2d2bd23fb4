"Exact search: equality with scikit-learn whatever the chunking, ties, memory."

import threading
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from astroclip.evaluation.leakage import leaks
from astroclip.evaluation.neighbours import Scale, inverse_distance, knn_regress, nearest
from astroclip.evaluation.partners import found_rows, neighbour_contrast, partner_ranks, retrieval_scores

rng = np.random.default_rng(0)
BANK, QUERY = rng.normal(size=(900, 24)).astype("f4"), rng.normal(size=(37, 24)).astype("f4")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk, block", [(4096, 256), (100, 8), (7, 1)])
def test_equals_scikit_learn(metric, chunk, block):
    distance, expected = NearestNeighbors(n_neighbors=12, metric=metric, algorithm="brute").fit(BANK).kneighbors(QUERY)
    rows, value = nearest(QUERY, BANK, 12, metric, chunk=chunk, block=block)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(1 - value if metric == "cosine" else value, distance, atol=1e-5)


def test_half_precision_candidates_and_unit_vectors_give_the_same():
    rows, _ = nearest(QUERY, BANK, 10)
    np.testing.assert_array_equal(nearest(QUERY, BANK, 10, precision="bfloat16")[0], rows)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(nearest(unit(QUERY), unit(BANK), 10, "dot")[0], rows)


def test_skip_ties_and_edges():
    rows, _ = nearest(BANK[:50], BANK, 5, skip=np.arange(50))
    assert not (rows == np.arange(50)[:, None]).any()
    same = np.ones((6, 3), np.float32)
    np.testing.assert_array_equal(nearest(same[:1], same, 6)[0], [[0, 1, 2, 3, 4, 5]])  # the earlier row first
    assert nearest(QUERY[:1], BANK[:1], 1)[0].tolist() == [[0]]
    short = np.float32([[1e-6, 0], [0, 1]])
    assert nearest(np.float32([[1, 0]]), short, 2)[1][0, 0] == pytest.approx(1e-3)  # max(norm, 1e-3), as the loss


@pytest.mark.parametrize("query, bank, k, message", [
    (QUERY[:, :3], BANK, 5, "expected"), (QUERY, BANK, 901, "only 900"), (QUERY, BANK, 0, "k = 0"), (QUERY * np.nan, BANK, 5, "finite"), (QUERY[0], BANK, 5, "shape")])
def test_refuses(query, bank, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(query, bank, k)


def test_memory_does_not_grow_with_the_bank():
    bank = rng.normal(size=(60_000, 24)).astype("f4")
    nearest(QUERY, bank[:5000], 5)
    tracemalloc.start()
    nearest(QUERY, bank, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.0f} MB beside a bank of {bank.nbytes / 1e6:.0f} MB"


def test_several_threads_at_once():
    expected, answers = nearest(QUERY, BANK, 8)[0], []
    threads = [threading.Thread(target=lambda: answers.append(nearest(QUERY, BANK, 8)[0])) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(answers) == 4 and all((a == expected).all() for a in answers)


@pytest.mark.parametrize("weights", ["distance", "uniform"])
def test_regression_equals_scikit_learn(weights):
    x = rng.normal(size=(700, 9)) * np.geomspace(1e-3, 1e3, 9) + 5
    x[:, 4] = 3.0  # a feature that does not vary
    y = np.stack([x[:, 0], x[:, 8] / 1e3], 1)
    x[650] = x[3]  # an exact match
    scaler = StandardScaler().fit(x[:600])
    theirs = KNeighborsRegressor(16, weights=weights).fit(scaler.transform(x[:600]), y[:600]).predict(scaler.transform(x[600:]))
    np.testing.assert_allclose(knn_regress(x[:600], y[:600], x[600:], weights=weights), theirs, atol=2e-4)
    np.testing.assert_allclose(inverse_distance(np.array([[0.0, 1.0], [2.0, 4.0]])), [[1, 0], [0.5, 0.25]])


def test_scale_returns():
    x = rng.normal(3, 5, (50, 4))
    np.testing.assert_allclose(Scale(x).back(Scale(x)(x)), x, rtol=1e-5, atol=1e-5)


def test_partner_ranks_against_sorting():
    q, g = rng.normal(size=(2, 80, 6))
    s = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    expected = (np.argsort(-s, axis=1) == np.arange(80)[:, None]).argmax(1) + 1
    np.testing.assert_array_equal(partner_ranks(q, g, block=7), expected)
    scores = retrieval_scores(expected, draws=50)
    assert scores["recall_at_10"] == (expected <= 10).mean() and scores["n"] == 80 and scores["chance_at_10"] == 10 / 80
    assert partner_ranks(np.ones((9, 2)), np.ones((9, 2))).tolist() == [5] * 9  # a collapsed encoder gains nothing


def test_neighbour_contrast_orders_itself():
    y = rng.normal(size=200)
    x = np.stack([np.cos(y), np.sin(y)], 1)
    found = neighbour_contrast(found_rows(x, x, 8), y)
    assert found["best"] <= found["neighbours"] < 0.2 * found["random"]


def test_leaks_are_found():
    n = 100
    ids, split = np.arange(n), np.repeat([0, 1, 2], [70, 10, 20])
    ra, dec, prints = rng.uniform(0, 10, n), rng.uniform(-5, 5, n), rng.normal(size=(n, 6)).astype("f4")
    assert not any(rows.any() for rows in leaks(ids, split, ra, dec, prints).values())
    ids[95], prints[96], ra[97], dec[97] = 3, prints[4], ra[5], dec[5] + 0.5 / 3600
    assert [list(np.flatnonzero(rows)) for rows in leaks(ids, split, ra, dec, prints).values()] == [[95], [97], [96]]
