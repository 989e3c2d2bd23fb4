"Few labels: the heads of both protocols, scores of several properties, and label budgets."

import numpy as np
import pytest
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from astroclip.probes.few_shot import crossings, few_labels, label_budget, property_scores
from astroclip.probes.heads import ReleasedMLP, head_of

rng = np.random.default_rng(0)
X = rng.normal(0, 1, (400, 6)) * 10.0 ** np.arange(6)
Y = np.stack([X[:, 0], X[:, 1] / 10 + rng.normal(0, 0.3, 400)], 1)
SPLIT = np.repeat([0, 1, 2], [280, 40, 80])


@pytest.mark.parametrize("protocol, k", [("released", 64), ("corrected", 16)])
def test_neighbours_are_those_of_scikit_learn(protocol, k):
    scale = StandardScaler().fit(X[SPLIT == 0])
    theirs = (
        KNeighborsRegressor(k, weights="distance")
        .fit(scale.transform(X[SPLIT == 0]), Y[SPLIT == 0])
        .predict(scale.transform(X[SPLIT == 2]))
    )
    ours = head_of(protocol, "knn").fit(X[SPLIT == 0], Y[SPLIT == 0]).predict(X[SPLIT == 2])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_released_network_ignores_validation_and_repeats():
    x, y = X[SPLIT == 0], Y[SPLIT == 0]
    a, b, c = (
        ReleasedMLP(seed).fit(x, y, *validation).predict(X[:5])
        for seed, validation in ((0, ()), (0, (X[:3], Y[:3] * np.nan)), (1, ()))
    )
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_scores_are_those_of_scikit_learn():
    p = Y + rng.normal(0, 0.5, Y.shape)
    scores = property_scores(p, Y, ["a", "b"], ("a", "b"), draws=50)
    for i, name in enumerate("ab"):
        assert np.isclose(scores[name][0], r2_score(Y[:, i], p[:, i]))
    assert scores["mean"][1] < scores["mean"][0] < scores["mean"][2]
    with pytest.raises(ValueError, match="finite"):
        property_scores(p * np.nan, Y, ["a", "b"])


@pytest.mark.parametrize("n", [4, 10, 100, 320])
def test_budgets_spend_no_more_than_they_have(n):
    s = label_budget(SPLIT, n, 3)
    assert ((s == 0) | (s == 1)).sum() == n and (s == 1).sum() >= 2
    assert ((s == 2) == (SPLIT == 2)).all()
    assert not (label_budget(SPLIT, n, 4) == s).all() or n == 320
    assert (label_budget(SPLIT, None) == SPLIT).all()


def test_rows_without_a_label_are_never_used():
    y, split = Y.copy(), SPLIT.copy()
    y[::7], split[::7] = np.nan, -1
    for head in ("knn", "mlp"):
        rows = few_labels(X, y, split, (20, None), head, repeats=2)
        assert [r["n"] for r in rows] == [20, 20, ((split == 0) | (split == 1)).sum()]
        assert all(np.isfinite(r["r2"]).all() for r in rows)


@pytest.mark.parametrize("head", ["knn", "mlp"])
@pytest.mark.parametrize("protocol", ["corrected", "released"])
def test_one_label_may_come_as_a_vector(protocol, head):
    def fit(y):
        return (
            head_of(protocol, head)
            .fit(X[SPLIT == 0], y[SPLIT == 0], X[SPLIT == 1], y[SPLIT == 1])
            .predict(X[SPLIT == 2])
        )

    np.testing.assert_allclose(fit(Y[:, 0]), fit(Y[:, :1])[:, 0], rtol=1e-4, atol=1e-4)


def test_crossings_are_read_off_in_log_n():
    first = {10: [0.5, 0.5], 100: [0.5, 0.5], 1000: [0.5]}
    second = {100: [0.4], 1000: [0.8], 5000: [1.0]}
    np.testing.assert_allclose(crossings(first, second), [10**2.25] * 2)
    np.testing.assert_allclose(crossings(second, first), [10**2.25] * 2)
    one, other = crossings(first | {100: [0.45, 0.6]}, second)
    assert 100 < one < other < 1000


def test_curves_that_do_not_cross_or_do_not_meet_have_no_crossing():
    flat = {n: [0.5] for n in (10, 100, 1000)}
    assert np.isnan(crossings(flat, {n: [0.4] for n in flat})).all()
    assert np.isnan(crossings(flat, {100: [0.9]})).all() and np.isnan(crossings(flat, {})).all()
    assert list(np.isnan(crossings(flat, {10: [0.6, 0.4, 0.4], 100: [0.4, 0.4, 0.4]}))) == [False, True, True]
