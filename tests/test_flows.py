"""Posteriors: the likelihood is a density, labels change units by their slopes, and checks of calibration see what is wrong."""

import sys

import numpy as np
import pytest
import torch

from astroclip.metrics import calibration
from astroclip.probes.coordinates import Coordinates
from astroclip.probes.flows import (
    ConditionalFlow,
    FlowConfig,
    FlowEnsemble,
    make_posterior,
    mixture,
    released_configs,
)

pytest.importorskip("zuko", reason="flows need the [evaluation] extra")
QUICK = FlowConfig(members=2, epochs=3, bottleneck=(16,), noise=0.0)


def made_up(n=300, seed=0):
    "x (n, 3) and positive redshift-like labels (n, 1) that depend on it."
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, 3)).astype(np.float32)
    return x, np.exp(0.3 * x[:, :1] + 0.2 * rng.normal(0, 1, (n, 1)))


@pytest.fixture(scope="module")
def ensemble():
    x, z = made_up()
    return FlowEnsemble([QUICK], positive=[0]).fit(x, z)


def test_density_of_a_redshift_integrates_to_one(ensemble):
    "Over z itself: the Jacobians of the logarithm and of the standard deviation are right."
    x, _ = made_up(4, seed=1)
    grid = np.geomspace(1e-3, 50, 4000)
    for galaxy in x:
        p = np.exp(ensemble.log_prob(np.repeat(galaxy[None], len(grid), 0), grid[:, None]))
        total = np.trapezoid(p, grid, axis=1) / ensemble.coordinates.std[0]
        assert np.allclose(total, 1, atol=5e-3)
    assert np.isfinite(ensemble.log_prob(x, np.full((4, 1), 1e-4))).all()


def test_likelihood_of_a_known_conditional_is_reached():
    "y = 2 x + noise of width 0.5: no NLL lies below the entropy, and a short training comes near it."
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (1500, 2)).astype(np.float32)
    y = 2 * x[:, :1] + 0.5 * rng.normal(0, 1, (1500, 1))
    config = FlowConfig(members=2, epochs=25, bottleneck=(), noise=0.0, hidden=16)
    found = FlowEnsemble([config]).fit(x[:1000], y[:1000])
    exact = (0.5 * ((y - 2 * x[:, :1]) / 0.5) ** 2 + np.log(0.5 * np.sqrt(2 * np.pi)))[1000:].mean()
    nll = -(mixture(found.log_prob(x[1000:], y[1000:])) - np.log(y[:1000].std())).mean()
    assert exact - 0.03 < nll < exact + 0.15


def test_units_of_the_labels_do_not_matter():
    "Magnitudes instead of dex: the same likelihood per standard deviation."
    x, y = made_up()
    one, other = (FlowEnsemble([QUICK]).fit(x, v) for v in (y, 2.5 * y + 7))
    assert np.allclose(one.log_prob(x, y), other.log_prob(x, 2.5 * y + 7), atol=2e-3)


def test_coordinates_by_hand():
    c = Coordinates([[np.e], [np.e**3]], positive=[0])  # logarithms 1 and 3: mean 2, width 1
    assert np.allclose(c([[np.e**2], [np.e**4]]), [[0], [2]])
    width = (np.e**3 - np.e) / 2
    assert np.allclose(c.log_slope(np.array([[2.0]])), np.log(width) - np.log(2.0))
    with pytest.raises(ValueError, match="positive"):
        Coordinates([[0.0], [1.0]], positive=[0])
    with pytest.raises(ValueError, match="finite"):
        Coordinates([[np.nan], [1.0]])


def test_bounded_labels_by_hand():
    c = Coordinates([[6.0], [9.0]], upper=[[12.0], [12.0]])  # logits 0 and ln 3
    assert np.allclose(c.scale.mean, np.log(3) / 2) and np.allclose(c([[6.0]], 12.0), [[-1]])
    assert np.allclose(c([[3.0]], [[6.0]]), [[-1]])  # half of its own bound
    assert np.allclose(c.log_slope([[6.0]], 12.0), np.log(1.5) - np.log(np.log(3) / 2) + np.log(12 / 36))
    assert np.allclose(c.back([[[-1.0], [40.0]]], np.array([[12.0]])), [[[6.0], [12.0]]])
    two = Coordinates([[1.0, 2.0], [3.0, 4.0]], positive=[0, 1], upper=[np.inf, 5.0])
    assert two.positive == [0] and two.bounded == [1]
    for upper, message in (([[np.inf], [12.0]], "some galaxies only"), (8.0, "not below")):
        with pytest.raises(ValueError, match=message):
            Coordinates([[6.0], [9.0]], upper=upper)
    with pytest.raises(ValueError, match="give `upper`"):
        c([[6.0]])


def test_a_bounded_density_integrates_to_one_below_every_bound(tmp_path):
    x, z = made_up()
    limit = np.random.default_rng(3).uniform(1.0, 2.0, (300, 1))
    y = np.concatenate([z, limit * z / (1 + z)], 1)
    upper = np.concatenate([np.full((300, 1), np.inf), limit], 1)
    only = FlowEnsemble([QUICK]).fit(x, y[:, 1:], limit)
    for i in range(3):
        grid = np.linspace(1e-4, 1 - 1e-4, 4000)[:, None] * limit[i]
        p = np.exp(only.log_prob(np.repeat(x[i][None], 4000, 0), grid, limit[i]))
        assert np.allclose(np.trapezoid(p, grid[:, 0], axis=1) / only.coordinates.std[0], 1, atol=1e-2)
    both = FlowEnsemble([QUICK], positive=[0]).fit(x, y, upper)
    samples = both.sample(x, 20, upper=upper)
    assert (samples > 0).all() and (samples[..., 1] < limit).all() and (samples[..., 0] > limit).any()
    both.save(tmp_path / "flow.pt")
    again = FlowEnsemble.load(tmp_path / "flow.pt")
    assert np.array_equal(again.log_prob(x, y, upper), both.log_prob(x, y, upper))
    with pytest.raises(ValueError, match="give `upper`"):
        again.sample(x, 20)
    split = np.repeat([0, 1, 2], [200, 50, 50])
    make_posterior(tmp_path / "a", x, y, split, [0], [QUICK], draws=6, upper=upper)
    kept = np.load(tmp_path / "a.npz")
    assert (kept["samples"][..., 1] < limit[kept["rows"]]).all()


def test_flows_saved_before_there_were_bounds_are_read(ensemble, tmp_path):
    x, z = made_up()
    ensemble.save(tmp_path / "flow.pt")
    content = torch.load(tmp_path / "flow.pt", weights_only=True)
    del content["bounded"]
    torch.save(content, tmp_path / "flow.pt")
    assert np.array_equal(FlowEnsemble.load(tmp_path / "flow.pt").log_prob(x, z), ensemble.log_prob(x, z))


def test_stacked_members_are_what_they_are_alone(ensemble):
    x, z = made_up(20, seed=2)
    X, u = torch.as_tensor(ensemble.scale(x)), torch.as_tensor(ensemble.coordinates(z))
    with torch.no_grad():
        alone = np.stack([net(X, u).numpy() for net in ensemble.nets]) + ensemble.coordinates.log_slope(z)
    assert np.allclose(ensemble.log_prob(x, z), alone, atol=1e-5)
    assert not np.allclose(alone[0], alone[1])
    assert len(ensemble.history) == 1 and ensemble.history[0].shape[1] == 2


def test_same_seed_same_flow_and_samples(ensemble):
    x, z = made_up()
    again = FlowEnsemble([QUICK], positive=[0]).fit(x, z)
    assert np.array_equal(again.log_prob(x, z), ensemble.log_prob(x, z))
    samples = ensemble.sample(x[:5], 10, seed=3)
    assert samples.shape == (5, 10, 1) and (samples > 0).all()
    assert np.array_equal(samples, again.sample(x[:5], 10, seed=3))
    assert not np.array_equal(samples, ensemble.sample(x[:5], 10, seed=4))


def test_saved_flows_and_posteriors_resume(ensemble, tmp_path):
    x, z = made_up()
    ensemble.save(tmp_path / "flow.pt")
    assert np.array_equal(FlowEnsemble.load(tmp_path / "flow.pt").log_prob(x, z), ensemble.log_prob(x, z))
    split = np.repeat([0, 1, 2, -1], [200, 40, 50, 10])
    assert make_posterior(tmp_path / "a", x, z, split, [0], [QUICK], draws=6) > 0
    kept = np.load(tmp_path / "a.npz")
    assert kept["rows"].tolist() == list(range(200, 290))
    assert kept["log_prob"].shape == (2, 90) and kept["samples"].shape == (90, 6, 1)
    assert make_posterior(tmp_path / "a", x, z, split, [0], [QUICK], draws=6) == 0
    assert not list(tmp_path.glob(".*"))


def test_released_protocol_is_the_originals():
    configs = released_configs()
    assert len(configs) == 10 and all(
        16 <= c.hidden <= 32 and c.transforms in (2, 3) and c.bins == 8 for c in configs
    )
    assert all(
        (c.lr, c.final_lr, c.epochs, c.batch_size, c.patience, c.bottleneck) == (5e-4, 1e-6, 25, 128, 0, ())
        for c in configs
    )
    assert configs == released_configs() and configs != released_configs(seed=1)


def test_bad_input(ensemble, monkeypatch):
    x, z = made_up()
    with pytest.raises(ValueError, match="at least 20"):
        FlowEnsemble().fit(x[:5], z[:5])
    with pytest.raises(ValueError, match="finite"):
        FlowEnsemble().fit(np.full_like(x, np.nan), z)
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'astroclip\[evaluation\]'"):
        ConditionalFlow(1, 3, QUICK)


def gaussian(n=800, width=1.0, shift=0.0, seed=0):
    "Truths (n, 2) and samples (n, 100, 2) of posteriors of a wrong width or place."
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, 2))
    return x + rng.normal(0, 1, (n, 2)), x[:, None] + shift + width * rng.normal(0, 1, (n, 100, 2)), x


@pytest.mark.parametrize(
    "width, shift, calibrated", [(1, 0, True), (0.6, 0, False), (1.6, 0, False), (1, 0.4, False)]
)
def test_pit_and_tarp_see_a_wrong_posterior(width, shift, calibrated):
    truth, samples, _ = gaussian(width=width, shift=shift)
    band = calibration.band(len(truth))
    u = calibration.pit(samples, truth)
    assert all((calibration.deviation(u[:, j]) < band) == calibrated for j in (0, 1))
    assert (calibration.deviation(calibration.tarp(samples, truth)) < band) == calibrated


def test_tarp_with_following_references_sees_the_prior():
    truth, _, x = gaussian(2000)
    prior = np.sqrt(2) * np.random.default_rng(1).normal(0, 1, (2000, 100, 2))
    band = calibration.band(2000)
    assert calibration.deviation(calibration.tarp(prior, truth)) < band
    assert calibration.deviation(calibration.tarp(prior, truth, 2 * x)) > band


def test_bands_hold_what_they_promise():
    rng, limit = np.random.default_rng(0), calibration.band(60)
    inside = [calibration.deviation(rng.uniform(size=60)) < limit for _ in range(800)]
    assert abs(np.mean(inside) - 0.95) < 0.025
    low, high = calibration.histogram_band(1200, 20)
    assert low < 60 < high
    assert calibration.deviation([0.25, 0.75]) == 0.25


def test_crps_by_hand():
    assert np.allclose(calibration.crps(np.full((2, 3), 1.0), np.array([1.0, 4.0])), [0, 3])
    samples, y = np.random.default_rng(0).normal(0, 1, (3, 7)), np.array([0.1, -1.0, 2.0])
    pairs = np.abs(samples[:, :, None] - samples[:, None]).sum((1, 2)) / (7 * 6)
    assert np.allclose(calibration.crps(samples, y), np.abs(samples - y[:, None]).mean(1) - pairs / 2)


def test_conformal_margin_and_guarantee():
    assert calibration.conformal_margin(np.zeros(9), np.zeros(9), np.arange(1.0, 10), 0.8) == 8
    assert calibration.conformal_margin(-np.full(9, 5.0), np.full(9, 5.0), np.arange(9.0) / 9, 0.5) < 0
    assert calibration.conformal_margin(np.zeros(3), np.zeros(3), np.zeros(3), 0.9) == np.inf
    held = []
    for seed in range(40):
        truth, samples, _ = gaussian(300, width=0.5, seed=seed)
        found = calibration.conformal(
            samples[:100, :, 0], truth[:100, 0], samples[100:, :, 0], truth[100:, 0], 0.9
        )
        held.append(found["low"] <= found["covered"] <= found["high"])
        assert found["raw"] < 0.8 < found["covered"] and found["width"] > found["raw_width"]
    assert np.mean(held) >= 0.85


def test_bad_samples():
    with pytest.raises(ValueError, match="expected"):
        calibration.pit(np.zeros((5, 10)), np.zeros(4))
    with pytest.raises(ValueError, match="expected"):
        calibration.tarp(np.zeros((5, 10)), np.zeros(5))
    with pytest.raises(ValueError, match="samples"):
        calibration.crps(np.zeros((5, 1)), np.zeros(5))
