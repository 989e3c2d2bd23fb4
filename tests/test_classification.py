"Scores of votes: right answers, accuracy and weighted F1 with intervals, calibrated fractions."

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from astroclip.metrics.bootstrap import draw_counts
from astroclip.metrics.classification import (
    accuracy,
    confusion,
    interval,
    mean_score,
    sample_scores,
    vote_calibration_error,
    vote_reliability,
    vote_scores,
    weighted_f1,
    winners,
)

rng = np.random.default_rng(0)
X = rng.normal(0, 1, (700, 5))
P = np.exp(1.5 * np.stack([X[:, 0], -X[:, 0], X[:, 1]], 1))
P /= P.sum(1, keepdims=True)


def test_few_votes_and_ties_have_no_right_answer():
    votes = np.array([[3, 1, 1], [3, 3, 0], [4, 0, 0], [0, 0, 36], [0, 0, 0]])
    assert winners(votes, 5).tolist() == [0, -2, -1, 2, -1]
    assert winners(votes, 35).tolist() == [-1, -1, -1, 2, -1]
    found = vote_scores(votes, [0, 0, 0, 1, 0], draw_counts(5, 20), 4, rows=np.array([1, 1, 1, 1, 0], bool))
    assert (found["n"], found["ties"]) == (3, 1) and np.isclose(found["accuracy"][0], 2 / 3)


def test_scores_are_those_of_scikit_learn_for_every_draw():
    true, said = rng.integers(0, 4, 200), rng.integers(0, 3, 200)  # the last answer is never predicted
    weights = draw_counts(200, 5, seed=3)
    C = confusion(true, said, 4, weights)
    for w, a, f in zip(weights, accuracy(C), weighted_f1(C)):
        rows = np.repeat(np.arange(200), w.astype(int))
        assert np.isclose(a, accuracy_score(true[rows], said[rows]))
        assert np.isclose(f, f1_score(true[rows], said[rows], average="weighted", zero_division=0))
    assert (weights.sum(1) == 200).all() and (weights[0] == 1).all()
    assert np.isnan(accuracy(C * 0)).all() and np.isnan(interval(np.full(5, np.nan))).all()


def test_perfect_fractions_are_calibrated():
    k = np.stack([rng.multinomial(1000, p) for p in P])
    assert (
        vote_calibration_error(k, P)
        < 0.01
        < 0.1
        < vote_calibration_error(k, np.full_like(P, 1 / 3) + np.array([0.3, -0.15, -0.15]))
    )
    predicted, observed, weight = vote_reliability([k, k], [P, P])
    assert weight.sum() == 2 * k.size * 1000 and np.nanmax(np.abs(predicted - observed)) < 0.02


def test_a_mean_is_over_the_questions_asked_for():
    votes = {q: np.eye(3, dtype=int)[rng.integers(0, 3, 100)] * 9 for q in "abc"}
    found = sample_scores({q: P[:100] for q in votes}, votes, draw_counts(100, 20))
    mean = mean_score(found, "ab", "f1")
    np.testing.assert_allclose(mean, (found["a"]["f1"] + found["b"]["f1"]) / 2)
    value, low, high = interval(mean)
    assert low < value < high


def test_an_answer_needs_a_vote():
    with pytest.raises(ValueError, match="at least one vote"):
        winners(np.ones((2, 3)), 0)
    assert np.isnan(vote_calibration_error(np.zeros((2, 3)), np.full((2, 3), 1 / 3)))
