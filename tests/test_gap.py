"""Changes that make simulated spectra look like another instrument's do what they say."""

import numpy as np
import pytest

from astroclip.data.spectrum_grid import WAVELENGTH
from astroclip.sky import gap
from astroclip.sky import gap_rulers as rulers

Z = np.array([0.1, 0.3])


def emission(width=2.0, height=5.0, line=5008.2):
    center = line * (1 + Z)[:, None]
    return 2 + height * np.exp(-0.5 * ((WAVELENGTH - center) / width) ** 2)


def weights(flux, value=25.0):
    return np.full(flux.shape, value)


def test_cover_and_mask_take_pixels_and_nothing_else():
    flux = emission()
    f, w = gap.cover(flux, weights(flux), 3800, 9200)
    assert (f == flux).all()
    assert ((w > 0) == ((WAVELENGTH >= 3800) & (WAVELENGTH <= 9200))).all()
    f, w = gap.mask(flux, weights(flux), np.random.default_rng(0), fraction=0.1, gap=50)
    assert (f == flux).all() and 0.08 < (w == 0).mean() < 0.13
    assert all("1" * 50 in "".join(map(str, row)) for row in (w == 0).astype(int))


def test_resolve_conserves_light_and_reaches_its_resolution():
    flux = emission(width=1.0) - 2
    f, _ = gap.resolve(flux, weights(flux), power=1900, own=0.75)
    np.testing.assert_allclose(f.sum(1), flux.sum(1), rtol=1e-9)
    for spectrum, center in zip(f, 5008.2 * (1 + Z)):
        sigma = np.sqrt((spectrum * (WAVELENGTH - center) ** 2).sum() / spectrum.sum())
        added = (center / 1900 / 2.355) ** 2 - 0.75**2
        assert sigma == pytest.approx(np.sqrt(1 + added), rel=0.02)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_weaken_scales_an_equivalent_width(factor):
    flux = emission()
    f, _ = gap.weaken(flux, weights(flux), Z, factor)
    np.testing.assert_allclose((f / 2 - 1).sum(1) / (flux / 2 - 1).sum(1), factor, rtol=1e-3)
    dark = emission(height=-1.0)
    np.testing.assert_allclose(gap.weaken(dark, weights(dark), Z, factor)[0], dark, atol=1e-6)


def test_brightness_calibration_and_noise_keep_their_word():
    flux = emission()
    w = weights(flux)
    f, v = gap.brighten(flux, w, [10.0, 20.0])
    np.testing.assert_allclose(gap.mean_flux(f, v), [10, 20])
    np.testing.assert_allclose(f * np.sqrt(v), flux * np.sqrt(w))
    f, v = gap.calibrate(flux, w, np.random.default_rng(0), error=0.05)
    np.testing.assert_allclose(f * np.sqrt(v), flux * np.sqrt(w))
    ratio = f / flux
    assert abs(np.diff(ratio, axis=1)).max(1).argmax() >= 0 and 0.005 < ratio.std() < 0.2
    step = abs(np.diff(ratio, axis=1)).argmax(1)
    assert (abs(WAVELENGTH[step] - 6000) < 1).all()
    f, v = gap.noisier(flux, w, np.random.default_rng(0), signal=[4.0, 1000.0])
    assert np.median(flux[0] * np.sqrt(v[0])) / np.sqrt(0.8) == pytest.approx(4.0)
    assert (f[1] == flux[1]).all() and (v[1] == w[1]).all()  # noise cannot be taken away


def test_sky_residuals_stand_at_lines_of_the_sky():
    flux = emission()
    f, _ = gap.subtract(flux, weights(flux), np.random.default_rng(0), shift=0.0)
    assert abs(WAVELENGTH[abs(f - flux)[:, :3000].argmax(1)] - 5578.9).max() < 1.0
    assert abs((f - flux)[:, WAVELENGTH < 3990]).max() < 1e-6


def test_the_same_seed_gives_the_same_spectra_and_unknown_names_are_refused():
    flux = emission()
    targets = (Z, [10.0, 20.0], [5.0, 5.0])
    one, two, other = (gap.apply("as_sdss", flux, weights(flux), *targets, seed=s) for s in (0, 0, 1))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all() and (one[0] != other[0]).any()
    assert gap.apply("none", flux, weights(flux), *targets)[0] is flux
    seen = gap.apply("as_sdss", flux, weights(flux), *targets, without=("cover", "mask"))[1]
    assert (seen > 0).all()
    with pytest.raises(ValueError, match="expected as_sdss"):
        gap.apply("redden", flux, weights(flux), *targets)


def test_the_continuum_is_held_where_nothing_was_seen():
    flux = 2 + 0.5 * (WAVELENGTH - 6700)[None] / 3100
    w = gap.cover(flux, weights(flux), 4500, 9000)[1]
    s = rulers.smooth(np.where(w > 0, flux, 1e9), w)[0]
    assert s[0] == s[500] and s.max() < 3 and s.min() > 1
    middle = (WAVELENGTH > 5000) & (WAVELENGTH < 8500)
    np.testing.assert_allclose(s[middle], flux[0, middle], rtol=1e-2)
    sample = rulers.Spectra(np.where(w > 0, flux, 0), w, np.array([0.1]), np.array([9.0]))
    whole = rulers.Spectra(3 * flux, weights(flux), np.array([0.1]), np.array([9.0]))
    np.testing.assert_allclose(rulers.shape_ratio(sample, whole), 1, rtol=1e-6)


def test_towards_the_simulation():
    flux = emission()
    real = rulers.Spectra(10 * flux, weights(flux), Z, np.array([50.0, 50.0]))
    twins = rulers.Spectra(flux[::-1], weights(flux, 4.0), Z[::-1], np.array([4.0, 4.0]))
    real.ivar[:, :1000] = 0
    f, w, _ = rulers.towards("fill", real, twins)
    assert (w > 0).all() and (f[:, 1000:] == real.flux[:, 1000:]).all()
    np.testing.assert_allclose(f[:, 50], 20, rtol=0.1)
    assert rulers.choose_twins(real, twins).tolist() in ([1, 0], [0, 0], [1, 1], [0, 1])
    assert rulers.towards("place", real, twins)[2] is not None
    with pytest.raises(ValueError, match="expected one of"):
        rulers.towards("dust", real, twins)


def test_energy_distance_by_hand_and_under_shifts():
    x, y = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [3.0]])
    across = np.mean([1, 3, 1, 1, 3, 1])
    inside = np.mean([2, 4, 2]) + 2.0
    assert rulers.energy_distance(x, y, draws=2)[0].value == pytest.approx(2 * across - inside)
    assert rulers.energy_distance(x + 7, y + 7, draws=2)[0].value == pytest.approx(2 * across - inside)
