"Masked spectra: what is hidden stays hidden, baselines and scores against values by hand."

import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path
from astroclip.surveys.pairs import Survey
from astroclip.data.spectrum_grid import WAVELENGTH
from astroclip.evaluation.inpainting import Components, LINES, chi_squared, interpolate, line_strength, noise_free
from astroclip.evaluation.inpainting import per_galaxy
from astroclip.metrics.bootstrap import mean_interval, rank_correlation
from astroclip.losses.masked import chunk_mask
from astroclip.models.specformer import SpecFormer
from astroclip.panels.masked import running_quantiles
from astroclip.training.masked_modelling import fill_masked
from astroclip.training.masked_regions import blind, hidden_pixels, mask_region, reconstruct


def tower(**changes):
    torch.manual_seed(0)
    return SpecFormer(**dict(window=80, stride=40, embed_dim=16, depth=1, num_heads=2) | changes).eval()


def spectra(n=4):
    rng = np.random.default_rng(0)
    return (5 + np.sin(WAVELENGTH / 500) + rng.normal(size=(n, WAVELENGTH.size))).astype(np.float32)


def mask(model, n, chunks=6, width=13):
    return chunk_mask(n, model.num_tokens, chunks, width, generator=torch.Generator().manual_seed(1)).numpy()


@pytest.mark.parametrize("window, stride", [(80, 40), (20, 10), (60, 20), (50, 50)])
def test_hidden_pixels_against_a_count_pixel_by_pixel(window, stride):
    model = tower(window=window, stride=stride)
    masked = mask(model, 2)
    expected = np.zeros((2, model.n_pixels), bool)
    for b in range(2):
        for pixel in range(0, model.n_pixels, 7):
            holders = [
                t for t in range(1, model.num_tokens) if (t - 1) * stride <= pixel < (t - 1) * stride + window
            ]
            expected[b, pixel] = bool(holders) and all(masked[b, t] for t in holders)
    np.testing.assert_array_equal(hidden_pixels(model, masked)[:, ::7], expected[:, ::7])
    assert not hidden_pixels(model, np.zeros_like(masked)).any()


@pytest.mark.parametrize("place", [0, 3])
def test_corrected_answer_does_not_know_hidden_pixels(place):
    model, flux = tower(place=place), spectra()
    masked = mask(model, len(flux))
    answer, hidden = reconstruct(model, flux, masked, batch_size=3)
    changed = np.where(hidden, -1e4, flux)
    np.testing.assert_allclose(reconstruct(model, changed, masked)[0][hidden], answer[hidden], rtol=1e-5)
    assert (np.isfinite(answer) == hidden).all() and hidden.any(1).all()
    assert not np.allclose(reconstruct(model, changed, masked, "released")[0][hidden], answer[hidden])


def test_released_is_the_training_answer_and_covers_more():
    model, flux = tower(), spectra()
    masked = mask(model, len(flux))
    answer, where = reconstruct(model, flux, masked, "released")
    expected = fill_masked(model, torch.from_numpy(flux), torch.from_numpy(masked)).numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-5)
    hidden = hidden_pixels(model, masked)
    assert (where | hidden == where).all() and where.sum() > hidden.sum()


def test_batches_do_not_change_the_answer():
    model, flux = tower(), spectra(5)
    masked = mask(model, 5)
    np.testing.assert_allclose(
        *(reconstruct(model, flux, masked, batch_size=b)[0] for b in (2, 5)), rtol=1e-4
    )


def test_blind_keeps_mean_and_spread_of_what_is_visible():
    flux, hidden = spectra(), np.zeros((4, WAVELENGTH.size), bool)
    hidden[:, 1000:2000] = hidden[:, 4000:4400] = True
    given = blind(flux, hidden)
    for f, g, h in zip(flux, given, hidden):
        np.testing.assert_allclose([g.mean(), g.std()], [f[~h].mean(), f[~h].std()], rtol=1e-4)
        np.testing.assert_array_equal(g[~h], f[~h])
        assert len(np.unique(g[h])) == 2


def test_bad_input_is_refused():
    model, flux = tower(), spectra(2)
    with pytest.raises(ValueError, match="expected \\(B, 194\\)"):
        hidden_pixels(model, np.zeros((2, 7), bool))
    with pytest.raises(ValueError, match="corrected or released"):
        reconstruct(model, flux, mask(model, 2), "both")
    with pytest.raises(ValueError, match="without any visible"):
        blind(flux, np.ones(flux.shape, bool))
    with pytest.raises(ValueError, match="one of"):
        line_strength(flux, [0.1, 0.1], "Paschen α")


def test_masked_tokens_hide_the_whole_stretch_and_little_more():
    model = tower()
    low, high = np.array([5000.0, 3600.0]), np.array([5100.0, 3700.0])
    hidden = hidden_pixels(model, mask_region(model, low, high))
    for h, a, b in zip(hidden, low, high):
        assert h[(WAVELENGTH >= a) & (WAVELENGTH <= b)].all()
        found = WAVELENGTH[h]
        assert found.min() >= a - 0.8 * 80 and found.max() <= b + 0.8 * 80


def test_straight_line_by_hand():
    flux = np.array([[0.0, 2, 99, 99, 99, 8, 10, 99, 99]])
    hidden = flux == 99
    np.testing.assert_allclose(
        interpolate(flux, hidden, edge=1)[0], [np.nan, np.nan, 3.5, 5, 6.5, np.nan, np.nan, 10, 10]
    )
    first = interpolate(flux, hidden, edge=2)[0]
    np.testing.assert_allclose(first[2:5], np.interp([2, 3, 4], [0.5, 5.5], [1, 9]))


def test_components_recover_their_own_family_and_use_the_weights():
    rng = np.random.default_rng(1)
    shapes = np.stack([np.sin(np.arange(400) / 30), np.cos(np.arange(400) / 17)])
    train, flux = (3 + rng.normal(size=(n, 2)) @ shapes for n in (100, 6))
    hidden = np.zeros(flux.shape, bool)
    hidden[:, 100:200] = True
    ivar = np.full(flux.shape, 1e4)
    model = Components(train, 2)
    np.testing.assert_allclose(model.fill(flux, ivar, hidden)[hidden], flux[hidden], atol=0.02)
    spoiled, weights = flux.copy(), ivar.copy()
    spoiled[:, 300:320], weights[:, 300:320] = 1e3, 0
    np.testing.assert_allclose(model.fill(spoiled, weights, hidden)[hidden], flux[hidden], atol=0.02)
    np.testing.assert_allclose(
        Components(train, 0).fill(7 + 4 * train.mean(0, keepdims=True), ivar[:1], hidden[:1])[0, 100:200],
        (7 + 4 * train.mean(0))[100:200],
        rtol=0.05,
    )


def test_scores_by_hand():
    answer, flux = np.array([[1.0, 2, 3], [0, 0, 0]]), np.array([[0.0, 2, 5], [7, 7, 7]])
    ivar, where = np.array([[4.0, 1, 0.5], [1, 0, 0]]), np.array([[True, True, True], [False, True, True]])
    np.testing.assert_allclose(chi_squared(answer, flux, ivar, where), [(4 + 0 + 2) / 3, np.nan])
    np.testing.assert_allclose(per_galaxy(flux, where), [7 / 3, 7])
    mean, low, high = mean_interval([1, 2, 3, np.nan], draws=200)
    assert mean == 2 and 1 <= low < 2 < high <= 3
    assert np.isnan(list(mean_interval([np.nan]))).all()
    q = running_quantiles(np.array([0.5] * 30 + [1.5] * 3), np.arange(33.0), [0, 1, 2])
    assert q[0, 0] == 14.5 and np.isnan(q[1]).all()
    assert (
        rank_correlation([1, 2, 3], [3, 2, 1]) == -1
        and rank_correlation([1, 1, 2], [5, 5, 9]) == 1
        and rank_correlation([1, 2], [4, 4]) == 0
    )


def test_a_perfect_answer_has_the_noise_alone():
    rng = np.random.default_rng(2)
    truth = np.linspace(1, 3, 5000)[None].repeat(20, 0)
    ivar = rng.uniform(0.5, 20, truth.shape)
    flux = truth + rng.normal(size=truth.shape) / np.sqrt(ivar)
    where = np.ones(truth.shape, bool)
    assert abs(chi_squared(truth, flux, ivar, where).mean() - 1) < 0.02
    wrong = truth + 0.3
    own = ((wrong - truth) ** 2 * ivar).mean(1)
    np.testing.assert_allclose(chi_squared(wrong, flux, ivar, where).mean() - 1, own.mean(), rtol=0.05)


@pytest.mark.parametrize("line", LINES)
def test_line_strength_returns_what_was_put_in(line):
    z, width = np.array([0.05, 0.3]), 2.0
    centre = np.mean(LINES[line][1]) * (1 + z[:, None])
    flux = 4 + 25 * np.exp(-0.5 * ((WAVELENGTH - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    found, equivalent = line_strength(flux, z, line)
    np.testing.assert_allclose(found, 25, rtol=0.01)
    np.testing.assert_allclose(equivalent, 25 / 4 / (1 + z), rtol=0.01)
    slanted = flux + 1e-3 * (WAVELENGTH - centre)
    np.testing.assert_allclose(line_strength(slanted, z, line)[0], 25, rtol=0.01)
    hole = flux.copy()
    hole[:, np.argmin(np.abs(WAVELENGTH - centre[0]))] = np.nan
    assert np.isnan(line_strength(hole, z, line)[0][0])


def test_noise_free_spectra_differ_from_the_observed_ones_by_the_noise():
    pytest.importorskip("speclite", reason="needs the [mock] extra")
    survey = Survey(sample_path())
    rows = np.argsort(survey.magnitude[:, 1])[:6]
    truth = noise_free(survey, rows)
    chi2 = chi_squared(truth, survey.flux(rows), survey.ivar(rows), np.ones(truth.shape, bool))
    assert truth.shape == (6, WAVELENGTH.size) and (0.9 < chi2).all() and (chi2 < 2).all()
    # products of two rows and of six may be summed in another order (seen with AVX2): the last bit of float32 is free
    np.testing.assert_allclose(noise_free(survey, rows[:2]), truth[:2], rtol=1e-6)
    survey._attrs = {}
    assert noise_free(survey, rows) is None
