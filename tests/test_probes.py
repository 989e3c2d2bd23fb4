"Heads: they learn, stop on validation, keep the best weights, repeat themselves, and never see a test row."

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from astroclip.metrics.regression import r2
from astroclip.data.photometry import (
    aperture_fluxes,
    aperture_magnitudes,
    aperture_weights,
    colors,
    magnitudes,
)
from astroclip.probes.heads import HEADS, MLP, Linear, few_threads, fit_head

rng = np.random.default_rng(0)
X = rng.normal(size=(1500, 5))
Y = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + rng.normal(0, 0.1, 1500)
SPLIT = np.repeat([0, 1, 2], [1000, 150, 350])


@pytest.mark.parametrize("head, floor", [("knn", 0.75), ("mlp", 0.95), ("trees", 0.9), ("linear", 0.3)])
def test_heads_learn(head, floor):
    assert r2(fit_head(head, X, Y, SPLIT).predict(X[SPLIT == 2]), Y[SPLIT == 2]) > floor


@pytest.mark.parametrize("head", HEADS)
def test_test_rows_are_never_seen(head):
    "Nonsense in the test rows changes nothing."
    x, y = X.copy(), Y.copy()
    x[SPLIT == 2], y[SPLIT == 2] = 1e3, -1e3
    np.testing.assert_array_equal(
        fit_head(head, X, Y, SPLIT).predict(X[:20]), fit_head(head, x, y, SPLIT).predict(X[:20])
    )


def test_best_weights_are_copied_not_referenced():
    noise = np.random.default_rng(7).normal(size=1500)  # nothing to learn: every later epoch is worse
    m = MLP(epochs=40, patience=40, lr=0.01).fit(X[:200], noise[:200], X[1000:1150], noise[1000:1150])
    now = np.square((m.predict(X[1000:1150]) - noise[1000:1150]) / noise[:200].std()).mean()
    assert now == pytest.approx(min(m.errors), rel=1e-4) and min(m.errors) < 0.9 * m.errors[-1]


def test_seed_fixes_the_network_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a = MLP(epochs=2, seed=1).fit(X[:500], Y[:500], X[500:600], Y[500:600]).predict(X[:5])
    assert torch.rand(1) == expected
    b = MLP(epochs=2, seed=1).fit(X[:500], Y[:500], X[500:600], Y[500:600]).predict(X[:5])
    c = MLP(epochs=2, seed=2).fit(X[:500], Y[:500], X[500:600], Y[500:600]).predict(X[:5])
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_linear_is_ridge_and_several_targets_work():
    two = np.stack([Y, X[:, 2]], 1)
    line = Linear(alphas=(3.0,)).fit(X[:1000], Y[:1000], X[1000:1150], Y[1000:1150])
    mean, std = X[:1000].mean(0), X[:1000].std(0)
    theirs = Ridge(3.0).fit((X[:1000] - mean) / std, Y[:1000]).predict((X - mean) / std)
    np.testing.assert_allclose(line.predict(X), theirs, atol=1e-4)
    for head in ("knn", "mlp", "linear"):
        assert HEADS[head]().fit(X[:1000], two[:1000], X[1000:1150], two[1000:1150]).predict(X[:7]).shape == (
            7,
            2,
        )


def test_threads_are_given_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), few_threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == before and (torch.tensor([1e-40]) + 0).item() > 0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(head="forest"), "one of"),
        (dict(split=SPLIT * 0), "need galaxies"),
        (dict(y=Y * np.nan), "not finite"),
        (dict(x=X[:, 0]), "expected"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        fit_head(**(dict(head="knn", x=X, y=Y, split=SPLIT) | change))


def test_aperture_of_a_flat_image_is_its_area():
    for size in (151, 152):
        flat = np.ones((2, 3, size, size), np.float32)
        for diameter in (3.0, 5.0):
            np.testing.assert_allclose(
                aperture_fluxes(flat, diameter) * 0.262**2, np.pi * diameter**2 / 4, rtol=2e-3
            )
            np.testing.assert_allclose(
                aperture_weights(size, diameter).sum(), aperture_fluxes(flat, diameter)[0, 0], rtol=1e-5
            )


def test_magnitudes_and_colors():
    np.testing.assert_allclose(magnitudes([1.0, 10.0, 100.0]), [22.5, 20.0, 17.5], atol=3e-3)
    assert (
        np.isfinite(magnitudes([-1.0, 0.0])).all() and (np.diff(magnitudes(np.linspace(-1, 5, 50))) < 0).all()
    )
    np.testing.assert_allclose(colors(np.array([[19.0, 18.0, 17.5]])), [[18, 1, 0.5]])
    assert set(aperture_magnitudes(dict(image=np.ones((2, 3, 64, 64))))) == {"aperture_3", "aperture_5"}
