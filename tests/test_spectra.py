"""Spectra: resampling against an oracle, joining, filling, every real file, and the errors."""

import numpy as np
import pytest
from astropy.io import fits

from astroclip.data.spectra import check_spectra, read_spectrum
from astroclip.data.spectrum_grid import (
    N_PIXELS,
    NotAnObservedSpectrum,
    WAVELENGTH,
    fill_missing,
    join_cameras,
    resample,
)

LOG_GRID = 10 ** np.arange(3.55, 4.0, 1e-4)
WAVES = 2 + np.sin(WAVELENGTH / 100)


def test_grid():
    assert (
        N_PIXELS == 7781
        and WAVELENGTH[0] == 3600
        and WAVELENGTH[-1] == pytest.approx(9824)
        and np.allclose(np.diff(WAVELENGTH), 0.8)
    )


@pytest.mark.parametrize(
    "grid", [np.arange(4000, 9000, 0.8), np.arange(4000, 9000, 7.3), 10 ** np.arange(3.61, 3.9, 3e-5)]
)
def test_resample_equals_spectres(grid):
    spectres = pytest.importorskip("spectres")
    rng = np.random.default_rng(0)
    flux, ivar = rng.normal(size=len(LOG_GRID)), rng.uniform(0.5, 2, len(LOG_GRID))
    expected, error = spectres.spectres(grid, LOG_GRID, flux, spec_errs=ivar**-0.5, verbose=False)
    ours, weight = resample(LOG_GRID, flux, ivar, grid=grid)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(weight**-0.5, error, rtol=1e-5)


def test_resample_by_hand():
    flux, ivar = resample([1000.0, 1002.0, 1004.0], [2.0, 4.0, 8.0], [1.0, 1.0, 4.0], grid=[1001.0, 1003.0])
    np.testing.assert_allclose(flux, [3, 6])  # half of two bins each
    np.testing.assert_allclose(ivar, [1 / (0.25 + 0.25), 1 / (0.25 + 0.25 / 4)])


def test_resample_masks():
    flux = np.ones(len(LOG_GRID))
    mask = (LOG_GRID > 5000) & (LOG_GRID < 5100)
    flux[mask] = 1e6
    new, ivar = resample(LOG_GRID, flux, np.ones_like(flux), mask)
    assert (ivar[(WAVELENGTH > 5001) & (WAVELENGTH < 5099)] == 0).all() and new.max() < 1.01
    several, _ = resample(LOG_GRID, np.stack([flux, 2 * flux]), mask=np.stack([mask, mask]))
    np.testing.assert_allclose(several[1], 2 * several[0])


def test_resample_outside():
    new, ivar = resample(LOG_GRID[:100], np.ones(100))
    assert (ivar > 0).sum() == 0 or WAVELENGTH[ivar > 0].max() < LOG_GRID[101]


@pytest.mark.parametrize(
    "wavelength, message",
    [
        ([3, 2, 1], "increasing"),
        ([1, 2, np.nan], "finite"),
        ([0.4, 0.5, 0.6], "microns"),
        ([4000, 5000], "expected \\(3,\\)"),
    ],
)
def test_bad_wavelengths(wavelength, message):
    with pytest.raises(ValueError, match=message):
        resample(wavelength, np.ones(3))


def test_join_cameras_weights_by_ivar():
    flux, ivar = join_cameras(
        [
            (WAVELENGTH[:10], np.ones((2, 10)), np.full((2, 10), 3.0), None),
            (WAVELENGTH[5:20], np.full((2, 15), 5.0), np.ones((2, 15)), np.arange(15) == 0),
        ]
    )
    assert (
        flux.shape == (2, N_PIXELS)
        and flux[0, 5] == 1
        and flux[0, 6] == 2
        and ivar[0, 6] == 4
        and ivar[0, 30] == 0
    )


def test_fill_missing():
    flux = np.array([[1, np.nan, 3], [np.nan] * 3], np.float32)
    filled, missing = fill_missing(flux)
    assert (
        filled.tolist() == [[1, 2, 3], [0, 0, 0]] and missing[1] == 1 and missing[0] == pytest.approx(1 / 3)
    )


@pytest.mark.parametrize(
    "flux, wavelength, ivar, message",
    [
        (np.ones(4000), None, None, "give wavelength="),
        (np.ones((2, 3, 7781)), None, None, "expected \\(N, L\\)"),
        (np.full(7781, np.nan), None, None, "all NaN"),
        (WAVES, None, np.zeros(7781), "all masked"),
        (WAVES, None, np.arange(7781) < 1500, "too few usable pixels"),
        (np.ones(7781), None, np.ones(7780), "ivar has shape"),
        (np.ones(300), np.linspace(3600, 5000, 300), None, "too little"),
        (np.ones(300), np.linspace(11000, 15000, 300), None, "too little"),
    ],
)
def test_check_spectra_says_what_is_wrong(flux, wavelength, ivar, message):
    with pytest.raises(ValueError, match=message):
        check_spectra(flux, wavelength, ivar)


def test_check_spectra_names_the_rows():
    flux = np.tile(WAVES, (4, 1))
    flux[2] = np.nan
    with pytest.raises(ValueError, match=r"\[2\]"):
        check_spectra(flux)
    assert check_spectra(flux[:2, :, None])[0].shape == (2, 7781)


# ---- files


def test_desi_coadd(real):
    (s,) = read_spectrum(real / "spectra_desi/coadd-4-80613-thru20210324.fits")
    assert (
        s.id == "39633345008634465"
        and s.redshift == pytest.approx(0.36874, abs=1e-4)
        and s.redshift_warning == 0
    )
    assert (s.ra, s.dec) == pytest.approx((105.48977, 56.66930), abs=1e-4) and not s.flags and s.usable
    assert s.flux.dtype == np.float32 and s.flux.dtype.isnative and np.array_equal(s.wavelength, WAVELENGTH)
    peak = WAVELENGTH[np.argmax(s.flux)] / 1.36874  # the brightest pixel is a rest-frame emission line
    assert min(abs(peak - line) for line in (3728.5, 4862.7, 5008.2, 6564.6)) < 5


def test_dead_fibres_are_flagged(real):
    rows = read_spectrum(real / "spectra_desi/coadd-sv3-dark-26065.fits")
    assert len(rows) == 5 and [s.usable for s in rows] == [False, False, True, False, True]
    assert all("dead fibre" in " ".join(s.flags) for s in rows if not s.usable) and all(
        s.redshift is None for s in rows
    )
    with pytest.raises(ValueError, match="dead fibre"):
        check_spectra(rows[0].flux, rows[0].wavelength, rows[0].ivar)


def test_sdss(real):
    (s,) = read_spectrum(real / "pair_J094651.40-010228.5/spec-0266-51602-0001.fits")
    assert (
        s.id == "0266-51602-0001"
        and s.spectype == "GALAXY"
        and s.redshift == pytest.approx(0.0212755, abs=1e-6)
    )
    assert (s.ra, s.dec) == pytest.approx((146.71421, -1.04130), abs=1e-4)  # PLUG_RA, not the plate's centre
    raw = fits.getdata(real / "pair_J094651.40-010228.5/spec-0266-51602-0001.fits", 1)
    assert np.array_equal(s.mask, (raw["ivar"] <= 0) | (raw["and_mask"] != 0))
    flux, ivar = s.on_grid()
    assert 0.8 < (ivar > 0).mean() < 0.9


def test_sdss_whole_fibre_warning(real):
    (s,) = read_spectrum(real / "spectra_sdss/spec-0266-51602-0013.fits")
    assert s.mask.mean() > 0.4 and (s.ivar == 0).mean() < 0.15 and "whole-fibre" in s.flags[0]
    flux, ivar = check_spectra(
        s.flux, s.wavelength, np.where(s.mask, 0, s.ivar)
    )  # the strict mask leaves enough to be embedded
    assert 0.3 < (ivar > 0).mean() < 0.4


def test_all_sdss_redshifts(real):
    spectra = [s for p in sorted((real / "spectra_sdss").glob("*.fits")) for s in read_spectrum(p)]
    assert len(spectra) == 12 and sum(s.spectype == "QSO" for s in spectra) == 1
    assert (
        sorted(round(s.redshift, 3) for s in spectra)[-2:] == [0.262, 0.589]
        and sum(s.redshift_warning > 0 for s in spectra) >= 1
    )


def test_manga(real):
    rows = read_spectrum(real / "spectra_manga/MaNGA_test_spectra.fits.gz")
    assert (
        len(rows) == 8
        and [i for i, s in enumerate(rows) if not s.usable] == [5]
        and rows[3].redshift == pytest.approx(0.027447)
    )
    assert "empty spaxel" in rows[5].flags[0]


def test_normalised(real):
    path = real / "spectra_desi/normalised_80k/reconstructions.npz"
    rows, raw = read_spectrum(path), np.load(path)
    z = np.array([s.redshift for s in rows])
    assert len(rows) == 50 and ((z > 0.002) & (z < 0.8)).sum() == 28
    np.testing.assert_allclose(rows[4].flux, np.sinh(raw["flux"][4]), rtol=1e-5)
    assert rows[4].wavelength[-1] == pytest.approx(9800) and all(s.flags for s in rows)


@pytest.mark.parametrize(
    "path, reason",
    [
        ("spectra_desi/stack-LRG.fits", "rest-frame stack"),
        ("spectra_desi/redrock-4-80613-thru20210324.fits", "redshift catalogue"),
        ("spectra_desi/tractor-1054p567.fits", "catalogue"),
        ("templates/calzetti/ngc1068.fits", "template"),
        ("images_legacysurvey/example_b.fits", "image"),
        ("catalogues/gst_tests_small.fits", "catalogue"),
    ],
)
def test_left_out_with_a_reason(real, path, reason):
    with pytest.raises(NotAnObservedSpectrum) as error:
        read_spectrum(real / path)
    assert reason in error.value.reason and path.split("/")[-1] in str(error.value)


def test_no_template_is_read(real):
    for path in (real / "templates").rglob("*.fits"):
        with pytest.raises(NotAnObservedSpectrum):
            read_spectrum(path)


@pytest.mark.parametrize(
    "name",
    [
        "spectra_sdss/spec-0266-51602-0013.fits",
        "spectra_desi/coadd-4-80613-thru20210324.fits",
        "spectra_manga/MaNGA_test_spectra.fits.gz",
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files(real, tmp_path, name, share):
    data = (real / name).read_bytes()
    path = tmp_path / name.split("/")[-1]
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(OSError, match="truncated or not a FITS file"):
        read_spectrum(path)


def test_broken_npz(tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(NotAnObservedSpectrum, match="without the arrays"):
        read_spectrum(tmp_path / "other.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    with pytest.raises(OSError, match="truncated"):
        read_spectrum(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError):
        read_spectrum(tmp_path / "none.npz")
