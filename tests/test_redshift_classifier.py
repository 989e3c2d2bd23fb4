"""The redshift classifier: any grid, bad input, shifts, calibration, saving, resuming; real spectra once trained (slow tests elsewhere)."""

import numpy as np
import pytest
import torch

from astroclip.data.log_grid import LOG_STEP, N_LOG, line_channels
from astroclip.data.spectrum_grid import KINDS
from astroclip.models.redshift import (
    OUTSIDE,
    RIGHT,
    RedshiftClassifier,
    allowed_shifts,
    correlate,
    estimate,
    shares,
)
from astroclip.training.redshift_classifier import (
    Classification,
    calibrate,
    classification_loss,
    fit_calibration,
    draw_rows,
    hard_copies,
    kind_target,
    one_view,
    predictions,
    reliability_table,
    soft_target,
    train_classifier,
)
from astroclip.training.loop import NonFiniteLoss
from astroclip.surveys.log_spectra import LogSpectra

LINES = [(3728.5, 1.5), (3934.8, -1.0), (3969.6, -1.0), (4862.7, 1.0), (5008.2, 2.0), (6564.6, 3.0)]


def small(seed=0):
    torch.manual_seed(seed)
    return RedshiftClassifier(features=4, templates=4, hidden=8)


def galaxy(wavelength, z, noise=0.1, seed=0):
    rest = wavelength / (1 + z)
    lines = sum(a * np.exp(-0.5 * ((rest - w) / 2.5) ** 2) for w, a in LINES)
    return (
        1
        + 0.3 * np.tanh((rest - 4000) / 200)
        + lines
        + noise * np.random.default_rng(seed).normal(size=len(wavelength))
    )


@pytest.fixture(scope="module")
def spectra():
    generator, x = torch.Generator().manual_seed(0), torch.linspace(np.log(3600), np.log(9824), N_LOG)
    y = 0.05 + 0.35 * torch.rand(64, generator=generator)
    lines = sum(a * torch.exp(-0.5 * ((x - np.log(w) - y[:, None]) / 6e-4) ** 2) for w, a in LINES)
    return LogSpectra(
        (1 + lines + 0.1 * torch.randn(64, N_LOG, generator=generator)).half(),
        torch.ones(64, N_LOG, dtype=torch.bool),
        y,
    )


@pytest.fixture(scope="module")
def trained(spectra):
    torch.set_num_threads(1)
    model = small()
    list(
        train_classifier(
            model,
            spectra,
            spectra[:8],
            Classification(
                steps=40, batch_size=16, warmup=5, lr=1e-2, noise=0.5, validate_every=99, checkpoint_every=99
            ),
        )
    )
    calibrate(model, spectra[:32], copies=1)
    return model


def test_learns_and_reads_every_grid(trained):
    desi, sdss, manga = (
        3600 + 0.8 * np.arange(7781),
        10 ** np.arange(3.58, 3.9638, 1e-4),
        10 ** np.linspace(np.log10(3622), np.log10(10354), 4563),
    )
    for z in (0.12, 0.3):
        for wavelength in (desi, sdss, manga):
            found, probability = trained.predict(
                galaxy(wavelength, z), None if wavelength is desi else wavelength
            )
            assert found.shape == probability.shape == (1,) and found.dtype == probability.dtype == np.float32
            assert abs(found[0] - z) / (1 + z) < RIGHT, (z, len(wavelength))
            assert 0 < probability[0] < 1


def test_units_zero_point_and_bad_pixels_do_not_matter(trained):
    wavelength = 3600 + 0.8 * np.arange(7781)
    flux, ivar = galaxy(wavelength, 0.2), np.ones(7781)
    bad, where = flux.copy(), slice(3000, 3400)
    bad[where] = 1e6
    ivar[where] = 0
    z = [
        trained.predict(flux)[0],
        trained.predict(50 * flux + 9)[0],
        trained.predict(bad, ivar=ivar)[0],
        trained.predict(np.where(ivar > 0, flux, np.nan))[0],
    ]
    assert np.ptp(z) < 1e-3


def test_batches_and_order_do_not_matter(trained):
    wavelength = 3600 + 0.8 * np.arange(7781)
    flux = np.stack([galaxy(wavelength, z, seed=i) for i, z in enumerate((0.1, 0.2, 0.3))])
    together = np.stack(trained.predict(flux), 1)
    alone = np.concatenate([np.stack(trained.predict(f), 1) for f in flux[::-1]])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    "flux, kwargs, message",
    [
        (np.full(7781, np.nan), {}, "all NaN"),
        (np.ones(7781), dict(ivar=np.zeros(7781)), "all masked"),
        (np.ones(4000), {}, "give wavelength="),
        (np.ones(500), dict(wavelength=np.linspace(5000, 6000, 500)), "too little"),
        (np.ones((2, 3, 4, 5)), {}, "shape"),
        (np.ones(7781), dict(ivar=np.ones(7780)), "ivar"),
        (np.ones(900), dict(wavelength=np.linspace(9800, 3600, 900)), "increas|rising|ascend"),
    ],
)
def test_bad_input_is_one_clear_error(flux, kwargs, message):
    with pytest.raises(ValueError, match=message):
        small().predict(flux, **kwargs)


def test_correlation_is_the_sum_it_says():
    f, T = torch.randn(2, 3, 20), torch.randn(4, 3, 29)
    slow = torch.nn.functional.conv1d(T, f).flip(-1).transpose(0, 1)
    assert torch.allclose(correlate(f, T), slow, atol=1e-4)


def test_line_channels_ignore_scale_and_zero_point():
    x, good = torch.randn(2, N_LOG), torch.rand(2, N_LOG) > 0.1
    assert torch.allclose(line_channels(x, good), line_channels(30 * x - 4, good), atol=2e-3)


def test_estimate_takes_one_peak():
    centers = LOG_STEP * torch.arange(1000)
    p = torch.full((1000,), 1e-9)
    p[200], p[800] = 0.6, 0.4
    y, raw = estimate(p.log()[None], centers)
    assert abs(float(y) - 200 * LOG_STEP) < LOG_STEP and abs(float(raw) - 0.6) < 0.01


def test_soft_target_and_loss():
    centers = torch.arange(50) * 0.1
    target = soft_target(torch.tensor([2.0]), centers)
    assert abs(float(target.sum()) - 1) < 1e-5 and int(target.argmax()) == 20
    assert (
        abs(float(classification_loss(torch.zeros(1, 50), torch.tensor([2.0]), centers)) - np.log(50)) < 1e-4
    )


def test_calibration_makes_stated_equal_observed():
    rng = np.random.default_rng(1)
    odds = rng.normal(0.5, 2, 40_000)
    right, claimed = rng.random(40_000) < 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-1.7 * odds - 0.4))
    model = small()
    model.calibration.copy_(torch.as_tensor(fit_calibration(claimed[:20_000], right[:20_000])))
    rows = reliability_table(model.stated(claimed[20_000:]), right[20_000:])
    assert all(abs(r["observed"] - r["stated"]) < 0.04 for r in rows) and sum(r["n"] for r in rows) == 20_000


def test_degraded_copies_are_the_same_for_a_seed(spectra):
    a, b, c = hard_copies(spectra, 1), hard_copies(spectra, 1), hard_copies(spectra, 2)
    assert torch.equal(a.flux, b.flux) and not torch.equal(a.flux, c.flux)
    pixels = (a.y - spectra.y) / LOG_STEP
    assert torch.allclose(pixels, pixels.round(), atol=2e-2)


def test_resume_equals_uninterrupted(spectra, tmp_path):
    torch.set_num_threads(1)
    config = Classification(steps=4, batch_size=4, warmup=1, validate_every=9, checkpoint_every=2)
    whole, killed, resumed = small(), small(), small()
    list(train_classifier(whole, spectra, spectra[:4], config))
    for record in train_classifier(killed, spectra, spectra[:4], config, tmp_path / "c.pt"):
        if record["step"] == 2:
            break
    assert [
        r["step"] for r in train_classifier(resumed, spectra, spectra[:4], config, tmp_path / "c.pt")
    ] == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_non_finite_loss_stops(spectra):
    model = small()
    with torch.no_grad():
        model.vote[2].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="step 0"):
        next(train_classifier(model, spectra, spectra[:4], Classification(steps=2)))


def test_saving_keeps_answers_and_calibration(trained, tmp_path):
    trained.save_pretrained(tmp_path / "m")
    again = RedshiftClassifier.from_pretrained(tmp_path / "m", device="cpu")
    flux = galaxy(3600 + 0.8 * np.arange(7781), 0.25)
    np.testing.assert_array_equal(np.stack(again.predict(flux)), np.stack(trained.predict(flux)))


def toy_kinds(n=160, seed=0):
    "Galaxies with narrow lines, quasars with broad ones, stars with absorption at rest, and noise."
    generator, x = torch.Generator().manual_seed(seed), torch.linspace(np.log(3600), np.log(9824), N_LOG)
    kind = torch.arange(n) % 4
    u = torch.rand(n, generator=generator)
    y = torch.tensor([0.05, 0.3, 0.0, 0.0])[kind] + torch.tensor([0.4, 0.8, 0.0, 0.0])[kind] * u
    lists = (
        LINES,
        [(1549, 3), (1909, 2), (2799, 2), (4862, 1)],
        [(3934, -0.9), (4102, -0.9), (4862, -0.9)],
        [],
    )
    flux = torch.ones(n, N_LOG)
    for k, (lines, width) in enumerate(zip(lists, (6e-4, 8e-3, 1.5e-3, 1e-3))):
        for rest, a in lines:
            flux += (
                (kind == k)[:, None] * a * torch.exp(-0.5 * ((x - np.log(rest) - y[:, None]) / width) ** 2)
            )
    flux = flux + 0.1 * torch.randn(n, N_LOG, generator=generator)
    return LogSpectra(flux.half(), torch.ones(n, N_LOG, dtype=torch.bool), y, kind)


def test_kinds_and_their_redshifts_are_learnt_together():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = RedshiftClassifier(features=8, templates=8, hidden=12, z_max=4.3, kinds=True)
    config = Classification(
        steps=120, batch_size=24, warmup=5, lr=1e-2, noise=0.3, validate_every=999, checkpoint_every=999
    )
    records = list(train_classifier(model, toy_kinds(), toy_kinds(8), config))
    assert records[-1]["val_kind"] is not None
    test = toy_kinds(80, seed=1)
    z, raw, error, kinds = predictions(model, test)
    right_kind = kinds.argmax(1) == test.kind
    assert right_kind.float().mean() > 0.8
    assert (error[test.kind < 3] < RIGHT).float().mean() > 0.6
    assert torch.isinf(error[test.kind == 3]).all()
    assert raw[test.kind < 3].mean() > raw[test.kind == 3].mean() + 0.3  # nothing claims no redshift


def test_what_cannot_be_has_no_probability():
    torch.manual_seed(0)
    model = RedshiftClassifier(features=4, templates=4, hidden=8, z_max=4.3, kinds=True)
    spectra = toy_kinds(8)
    logits = model(spectra.flux.float(), spectra.good)
    allowed = allowed_shifts(model.centres)
    assert logits.shape == (8, 4, len(model.centres)) and (logits[:, ~allowed] == OUTSIDE).all()
    z = model.centres.expm1()
    assert z[allowed[2]].abs().max() < 0.003 and z[allowed[1]].min() > 0.02 and z[allowed[0]].max() < 1.751
    p, kinds = shares(logits)
    assert torch.allclose(p.sum(1) + kinds[:, 3], torch.ones(8), atol=1e-5)


def test_target_of_a_kind_stands_in_its_row_and_where_the_kind_can_be():
    centers = torch.arange(-6, 3000) * 2 * LOG_STEP
    y = torch.tensor([0.4, 0.4, 0.0, 0.0025])  # a galaxy, a quasar, nothing, a star at 750 km/s
    kind = torch.tensor([0, 1, 3, 2])
    target = kind_target(y, kind, centers)
    assert torch.allclose(target.sum((1, 2)), torch.ones(4), atol=1e-5) and target[0, 1:].abs().sum() == 0
    assert torch.allclose(target[0, 0], target[1, 1], atol=1e-6) and target[2, 3, 0] == 1
    assert target[:, ~allowed_shifts(centers)].abs().sum() == 0
    logits = torch.zeros(4, 4, len(centers)).masked_fill(~allowed_shifts(centers), OUTSIDE)
    assert classification_loss(logits, y, centers, kind) < 10  # what cannot be is never asked for


def test_views_do_not_give_the_kind_away():
    "Stars and empty fibres lose their ends as often as what is moved, and stay where they are."
    spectra = toy_kinds(400)
    seen = one_view(spectra, torch.Generator().manual_seed(3), 0.5, 1.6)
    lost = 1 - seen.good.float().mean(1)
    by_kind = [float(lost[spectra.kind == k].mean()) for k in range(4)]
    assert max(by_kind) < 2.5 * min(by_kind), by_kind
    fixed = spectra.kind > 1
    assert (
        torch.equal(seen.y[fixed], spectra.y[fixed])
        and (seen.y[~fixed] != spectra.y[~fixed]).float().mean() > 0.9
    )
    assert seen.y[spectra.kind == 0].max() <= np.log(2.7) and seen.y[spectra.kind == 1].min() >= 0.04


def test_batches_hold_the_kinds_in_fixed_shares():
    kind = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    rows = draw_rows(kind, 20_000, (0.4, 0.3, 0.3, 0.5), torch.Generator().manual_seed(0))
    assert np.allclose(torch.bincount(kind[rows]) / 20_000, [0.4, 0.3, 0.3], atol=0.02)  # of those there are


def test_classify_names_kinds_and_leaves_bad_rows_empty():
    torch.manual_seed(0)
    model = RedshiftClassifier(features=4, templates=4, hidden=8, z_max=4.3, kinds=True)
    flux = np.stack([galaxy(3600 + 0.8 * np.arange(7781), 0.2), np.full(7781, np.nan)])
    with pytest.raises(ValueError, match="all NaN"):
        model.classify(flux)
    found = model.classify(flux, on_bad="nan")
    assert len(found) == 2 and found.spectype[0] in KINDS and found.spectype[1] == ""
    assert abs(found.class_probability[0].sum() - 1) < 1e-5 and np.isnan(found.class_probability[1]).all()
    z, probability = model.predict(flux, on_bad="nan")
    np.testing.assert_array_equal(z, found.z)
    redshifts, p = model.distribution(flux[:1])
    assert abs(p.sum() + found.class_probability[0, 3] - 1) < 1e-5 and len(redshifts) == p.shape[1]
    assert small().classify(flux[:1]).spectype[0] == "galaxy"  # who knows galaxies only
