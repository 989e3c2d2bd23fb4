"""Where to trust a prediction: scores in bins, distance to training, risk and coverage, two samples."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from astroclip.metrics.bootstrap import redshift_scores
from astroclip.metrics.selective import (
    binned_scores,
    gain_difference,
    quantile_edges,
    risk_coverage,
    risk_curve,
    roc_area,
)
from astroclip.probes.novelty import (
    distance_to_training,
    neighbour_scatter,
    percentile_among,
    training_distances,
    two_sample_area,
    two_sample_test,
)

RNG = np.random.default_rng(0)
Z = RNG.uniform(0, 0.5, 300)
GUESS = Z + 0.02 * RNG.normal(size=300)


def test_one_bin_is_the_score_of_the_page_redshift():
    "The same numbers and the same intervals: one definition, two speeds."
    (row,) = binned_scores(GUESS, Z, Z, [0, 1], "spectrum", draws=50, seed=3)
    whole = redshift_scores(GUESS, Z, "spectrum", 50, 3)
    for name, score in whole.items():
        assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == pytest.approx([*score], abs=1e-12), (
            name
        )
    assert row["n"] == 300


def test_bins_hold_equal_numbers_and_leave_out_what_is_unknown():
    x = np.where(np.arange(300) < 20, np.nan, Z)
    edges = quantile_edges(x, 4)
    rows = binned_scores(GUESS, Z, x, edges, draws=5)
    assert [r["n"] for r in rows] == [70] * 4
    assert rows[0]["low_edge"] == np.nanmin(x) and rows[-1]["high_edge"] == np.nanmax(x)
    assert len(quantile_edges(np.repeat([1.0, 2.0], 50), 5)) == 2  # repeated values: fewer bins
    assert binned_scores(GUESS, Z, x, edges, draws=5, least=71) == []
    with pytest.raises(ValueError, match="no finite value"):
        quantile_edges([np.nan, np.nan])


def test_distance_grows_outside_and_ignores_units():
    train = RNG.normal(size=(200, 6))
    x = np.stack([np.zeros(6), np.full(6, 3.0), np.full(6, 9.0)])
    d = distance_to_training(train, x, 8)
    assert d[0] < d[1] < d[2]
    units = 10.0 ** np.arange(-2, 4)
    np.testing.assert_allclose(distance_to_training(train * units, x * units, 8), d, rtol=1e-4)
    cosine = distance_to_training(train, train[:5], 3, "cosine")
    np.testing.assert_allclose(distance_to_training(train, 7 * train[:5], 3, "cosine"), cosine, atol=1e-5)
    assert (np.diff(training_distances(train, x, 8)) >= 0).all()
    with pytest.raises(ValueError, match="euclidean or cosine"):
        distance_to_training(train, x, 3, "taxi")


def test_neighbour_scatter_is_zero_where_neighbours_agree():
    train = np.concatenate([np.zeros((5, 2)), np.ones((5, 2))]) + 0.01 * RNG.normal(size=(10, 2))
    y = [1, 1, 1, 1, 1, 0, 2, 0, 2, 1]
    scatter = neighbour_scatter(train, y, np.array([[0.0, 0], [1, 1]]), 5)
    assert scatter[0] == 0 and scatter[1] == pytest.approx(np.std([0, 2, 0, 2, 1]))


def test_percentile_by_hand():
    assert percentile_among([0, 1, 1.5, 3], [1, 1, 2, 2]).tolist() == [0, 0.25, 0.5, 1]


def test_risk_curve_by_hand():
    assert risk_curve([3, 1, 2], [9, 0, 3]).tolist() == [0, 1.5, 4]
    np.testing.assert_allclose(risk_curve([1, 1, 2], [0, 1, 5]), [0.5, 0.5, 2])  # a tie shares its mean loss


def test_ties_cannot_be_won_by_the_order_of_the_rows():
    loss = RNG.random(100)
    order = np.argsort(loss)
    flat = risk_coverage(np.ones(100), loss[order], 5)
    assert flat["gain"] == pytest.approx(0, abs=1e-12)
    score = RNG.integers(0, 5, 100)
    shuffle = RNG.permutation(100)
    np.testing.assert_allclose(risk_curve(score, loss), risk_curve(score[shuffle], loss[shuffle]))


def test_gain_runs_from_oracle_to_worse_than_chance():
    loss = RNG.exponential(size=400)
    one = risk_coverage(loss, loss, 50)
    assert (
        one["gain"] == pytest.approx(1)
        and one["spearman"] == pytest.approx(1)
        and one["gain_low"] == pytest.approx(1)
    )
    assert risk_coverage(-loss, loss, 5)["gain"] < -0.5
    nothing = risk_coverage(RNG.random(400), loss, 200)
    assert nothing["gain_low"] < 0 < nothing["gain_high"]
    noisy = loss + RNG.normal(size=400)
    r = risk_coverage(noisy, loss, 50)
    assert r["aurc_oracle"] < r["aurc"] < r["aurc_random"] == pytest.approx(loss.mean())
    assert r["spearman"] == pytest.approx(spearmanr(noisy, loss).statistic)
    assert risk_coverage(np.exp(noisy), loss, 5)["gain"] == pytest.approx(r["gain"])  # only the order counts
    assert (
        r["coverage"][-1] == 1
        and r["risk"][-1] == pytest.approx(loss.mean())
        and len(r["risk_low"]) == len(r["coverage"])
    )


def test_nothing_to_rank_is_no_number():
    r = risk_coverage(RNG.random(30), np.zeros(30), 5)
    assert np.isnan(r["gain"]) and np.isnan(r["gain_low"]) and r["aurc"] == 0
    with pytest.raises(ValueError, match="finite"):
        risk_coverage([1, np.inf], [0, 1], 5)


def test_gain_difference_is_paired():
    loss = RNG.exponential(size=200)
    good, poor = loss + 0.3 * RNG.normal(size=200), RNG.random(200)
    d = gain_difference(good, poor, loss, 100)
    assert d.low > 0 and d.value == pytest.approx(
        risk_coverage(good, loss, 1)["gain"] - risk_coverage(poor, loss, 1)["gain"]
    )
    assert tuple(gain_difference(good, 2 * good, loss, 20)) == (0, 0, 0)


def test_roc_area_equals_scikit_learn():
    score, truth = RNG.integers(0, 9, 80), RNG.random(80) < 0.3
    assert roc_area(score, truth) == pytest.approx(roc_auc_score(truth, score))
    assert np.isnan(roc_area([1, 2], [True, True]))


def test_two_samples():
    pool = RNG.normal(size=(300, 12))
    same, shifted = (
        two_sample_test(RNG.normal(size=(40, 12)), pool, 8),
        two_sample_test(RNG.normal(size=(40, 12)) + 1, pool, 8),
    )
    assert shifted["area_low"] > same["control_high"] and 0.3 < same["area"] < 0.7 and same["n"] == 40
    with pytest.raises(ValueError, match="too few"):
        two_sample_area(pool[:6], pool[6:12])
    with pytest.raises(ValueError, match="twice"):
        two_sample_test(pool[:40], pool[:60])
