"Exact search: equality with scikit-learn whatever the chunking, ties, memory."

import threading
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from astroclip.core.config import sample_path
from astroclip.surveys.pairs import Survey
from astroclip.surveys.leakage import leaks
from astroclip.search.neighbours import Scale, inverse_distance, knn_regress, nearest
from astroclip.search.ranks import (
    above_null,
    class_retrieval,
    found_rows,
    ndcg,
    neighbour_contrast,
    pair_ranks,
    rare_classes,
    recall_curve,
    retrieval_scores,
    shuffled_ranks,
)
from astroclip.data.photometry import matched, spectrum_colors

rng = np.random.default_rng(0)
BANK, QUERY = rng.normal(size=(900, 24)).astype("f4"), rng.normal(size=(37, 24)).astype("f4")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk, block", [(4096, 256), (100, 8), (7, 1)])
def test_equals_scikit_learn(metric, chunk, block):
    distance, expected = (
        NearestNeighbors(n_neighbors=12, metric=metric, algorithm="brute").fit(BANK).kneighbors(QUERY)
    )
    rows, value = nearest(QUERY, BANK, 12, metric, chunk=chunk, block=block)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(1 - value if metric == "cosine" else value, distance, atol=1e-5)


def test_half_precision_candidates_and_unit_vectors_give_the_same():
    rows, _ = nearest(QUERY, BANK, 10)
    np.testing.assert_array_equal(nearest(QUERY, BANK, 10, precision="bfloat16")[0], rows)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    np.testing.assert_array_equal(nearest(unit(QUERY), unit(BANK), 10, "dot")[0], rows)


def test_skip_ties_and_edges():
    rows, _ = nearest(BANK[:50], BANK, 5, skip=np.arange(50))
    assert not (rows == np.arange(50)[:, None]).any()
    same = np.ones((6, 3), np.float32)
    np.testing.assert_array_equal(
        nearest(same[:1], same, 6)[0], [[0, 1, 2, 3, 4, 5]]
    )  # the earlier row first
    assert nearest(QUERY[:1], BANK[:1], 1)[0].tolist() == [[0]]
    short = np.float32([[1e-6, 0], [0, 1]])
    assert nearest(np.float32([[1, 0]]), short, 2)[1][0, 0] == pytest.approx(
        1e-3
    )  # max(norm, 1e-3), as the loss


@pytest.mark.parametrize(
    "query, bank, k, message",
    [
        (QUERY[:, :3], BANK, 5, "expected"),
        (QUERY, BANK, 901, "only 900"),
        (QUERY, BANK, 0, "k = 0"),
        (QUERY * np.nan, BANK, 5, "finite"),
        (QUERY[0], BANK, 5, "shape"),
    ],
)
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
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) == 4 and all((a == expected).all() for a in answers)


@pytest.mark.parametrize("weights", ["distance", "uniform"])
def test_regression_equals_scikit_learn(weights):
    x = rng.normal(size=(700, 9)) * np.geomspace(1e-3, 1e3, 9) + 5
    x[:, 4] = 3.0  # a feature that does not vary
    y = np.stack([x[:, 0], x[:, 8] / 1e3], 1)
    x[650] = x[3]  # an exact match
    scaler = StandardScaler().fit(x[:600])
    theirs = (
        KNeighborsRegressor(16, weights=weights)
        .fit(scaler.transform(x[:600]), y[:600])
        .predict(scaler.transform(x[600:]))
    )
    np.testing.assert_allclose(knn_regress(x[:600], y[:600], x[600:], weights=weights), theirs, atol=2e-4)
    np.testing.assert_allclose(inverse_distance(np.array([[0.0, 1.0], [2.0, 4.0]])), [[1, 0], [0.5, 0.25]])


def test_scale_returns():
    x = rng.normal(3, 5, (50, 4))
    np.testing.assert_allclose(Scale(x).back(Scale(x)(x)), x, rtol=1e-5, atol=1e-5)


def test_pair_ranks_against_sorting():
    q, g = rng.normal(size=(2, 80, 6))
    s = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (g / np.linalg.norm(g, axis=1, keepdims=True)).T
    expected = (np.argsort(-s, axis=1) == np.arange(80)[:, None]).argmax(1) + 1
    np.testing.assert_array_equal(pair_ranks(q, g, block=7), expected)
    scores = retrieval_scores(expected, draws=50)
    assert (
        scores["recall_at_10"] == (expected <= 10).mean()
        and scores["n"] == 80
        and scores["chance_at_10"] == 10 / 80
    )
    assert (
        pair_ranks(np.ones((9, 2)), np.ones((9, 2))).tolist() == [5] * 9
    )  # a collapsed encoder gains nothing


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
    assert [list(np.flatnonzero(rows)) for rows in leaks(ids, split, ra, dec, prints).values()] == [
        [95],
        [97],
        [96],
    ]


def test_pair_ranks_in_euclidean_distance():
    q, g = rng.normal(size=(2, 30, 3)) * 5
    distance = np.linalg.norm(q[:, None] - g, axis=-1)
    expected = 1 + (distance < np.diag(distance)[:, None]).sum(1)
    np.testing.assert_array_equal(pair_ranks(q, g, "euclidean", block=4), expected)
    with pytest.raises(ValueError, match="cosine or euclidean"):
        pair_ranks(q, g, "manhattan")


def test_shuffled_pairs_are_permutations_of_the_rank_table():
    q, g = rng.normal(size=(2, 40, 4))
    null = shuffled_ranks(q, g, draws=50, seed=3)
    assert null.shape == (50, 40) and null.min() >= 1 and null.max() <= 40
    np.testing.assert_array_equal(null, shuffled_ranks(q, g, draws=50, seed=3))
    assert abs(null.mean() - 20.5) < 0.7 and abs((null <= 10).mean() - 0.25) < 0.03
    np.testing.assert_allclose(recall_curve(null, [1, 10, 40])[:, 2], 1)
    np.testing.assert_allclose(recall_curve(null, [10])[:, 0], (null <= 10).mean(1))


def test_ndcg_by_hand():
    third, log3 = 1 / 2, 1 / np.log2(3)
    np.testing.assert_allclose(ndcg([[1, 0, 1]], [2]), [(1 + third) / (1 + log3)])
    np.testing.assert_allclose(ndcg([[0, 1, 0]], [1]), [log3])
    np.testing.assert_allclose(ndcg([[0, 1, 1], [1, 1, 1]], [5, 5]), [(log3 + third) / (1 + log3 + third), 1])
    assert np.isnan(ndcg([[0, 0]], [0])).all()
    with pytest.raises(ValueError, match="expected"):
        ndcg([[1, 0]], [1, 2])


def test_rare_class_against_its_null():
    own = np.random.default_rng(5)
    x = own.normal(size=(400, 6))
    member = x[:, 0] > 1.2
    blind = found_rows(own.normal(size=x.shape), x, 10)
    good, chance = (
        class_retrieval(found_rows(x[:, :1], x[:, :1], 10, metric="euclidean"), member, 200),
        class_retrieval(blind, member, 200),
    )
    assert good["ndcg"] > 0.8 and good["p"] == 1 / 201 and good["low"] > good["null_high"]
    assert 0.01 < chance["p"] and chance["ndcg"] < 0.3 and abs(chance["null"] - member.mean()) < 0.02
    assert good["n_query"] == member.sum() and good["n"] == 400
    assert class_retrieval(blind, np.arange(400) == 3, 10) is None
    assert above_null(2.0, np.zeros(9))["p"] == 0.1 and above_null(0.0, np.zeros(9))["p"] == 1


def test_rare_classes_come_from_truth_or_from_votes():
    class Real:
        simulated = False
        votes = staticmethod(
            lambda question: {
                "merging": np.array([[0, 0, 4, 2], [9, 0, 0, 1]]),
                "bar": np.array([[2, 1, 0], [3, 3, 1]]),
                "disk-edge-on": np.array([[1, 5], [5, 1]]),
            }[question]
        )

    found = {name: member.tolist() for name, (member, _) in rare_classes(Real(), np.arange(2)).items()}
    assert found == {
        "mergers": [True, False],
        "bars": [False, True],
        "edge-on discs": [False, True],
    }  # three voters are too few
    survey = Survey(sample_path())
    classes = rare_classes(survey, np.arange(64))
    np.testing.assert_array_equal(classes["mergers"][0], survey.truth("merger") == 1)
    assert all("truth" in words for _, words in classes.values())

    class Neither(Real):
        def votes(self, question):
            raise KeyError(question)

    assert rare_classes(Neither(), np.arange(2)) == {}


def test_matched_colours_whiten_what_is_left_over():
    first = rng.normal(size=(3000, 4))
    second = 1 + first[:, :3] * [1, 2, 3] + rng.normal(size=(3000, 3)) * [0.1, 0.5, 2]
    train = np.arange(3000) < 2000
    x, y = matched(first, second, train)
    np.testing.assert_allclose(np.cov((y - x)[~train].T), np.eye(3), atol=0.12)
    wavelength = np.arange(3600.0, 9825, 0.8)
    red = spectrum_colors(wavelength, np.stack([wavelength, np.full_like(wavelength, 50)]))
    assert (red[0, 1:] > red[1, 1:]).all() and abs(red[1, 1:]).max() < 1e-6
