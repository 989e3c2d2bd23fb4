"""Dialects of spectrum files: whatever the case of its names, its suffix, its units or its separators, a file gives one answer."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip.files.desi_files import coadd_exposures
from astroclip.data.spectra import read_spectrum
from astroclip.data.spectrum_grid import NotAnObservedSpectrum, WAVELENGTH
from astroclip.files.column_units import named_unit

few = settings(max_examples=25, deadline=None, derandomize=True)
W = np.linspace(3700, 9700, 400)
F = 3 + np.sin(W / 300)


def only(path):
    (spectrum,) = read_spectrum(path)
    return spectrum


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@few
@given(
    name=st.sampled_from(["wavelength", "WAVE", "Lambda", "lam", "wl"]),
    flux=st.sampled_from(["flux", "FLUX", "Flam", "spec"]),
    error=st.sampled_from(["ivar", "ERR", "sigma", "Uncertainty", "variance"]),
    separator=st.sampled_from([",", ";", "\t", " ", "|"]),
    unit=st.sampled_from([("Angstrom", 1), ("nm", 0.1), ("um", 1e-4)]),
    down=st.booleans(),
)
def test_text_in_any_words(folder, name, flux, error, separator, unit, down):
    value = {"ivar": 4, "variance": 0.25}.get(error.lower(), 0.5)
    order = slice(None, None, -1) if down else slice(None)
    rows = [f"{w * unit[1]:.8g}{separator}{f:.6g}{separator}{value}" for w, f in zip(W[order], F[order])]
    path = folder / "own.csv"
    path.write_text(f"# z = 0.2\n{name}[{unit[0]}]{separator}{flux}{separator}{error}\n" + "\n".join(rows))
    s = only(path)
    np.testing.assert_allclose(s.wavelength, W, rtol=1e-6)
    np.testing.assert_allclose(s.flux, F, rtol=1e-4)
    assert (s.id, s.redshift) == ("own", 0.2) and np.allclose(s.ivar, 4) and "no unit for flux" in s.flags[0]


@few
@given(
    unit=st.sampled_from(
        ["erg/s/cm2/A", "W/m2/um", "W m-2 nm-1", "mJy", "Jy", "1e-16 erg/s/cm2/Angstrom", "nanomaggies"]
    ),
    scale=st.floats(0.1, 10),
    kind=st.sampled_from(["ivar", "err"]),
)
def test_units_come_back(folder, unit, scale, kind):
    import astropy.units as u

    plain = named_unit("3631e-9 Jy" if unit == "nanomaggies" else unit)
    ours = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    back = (scale * F * ours).to_value(plain, u.spectral_density(W * u.AA))
    error = 0.1 * np.abs(back)
    path = folder / "unit.ecsv"
    t = Table({"wave": W, f"flux [{unit}]": back, kind: error if kind == "err" else error**-2.0})
    t.write(path, format="ascii.ecsv", overwrite=True)
    s = only(path)
    np.testing.assert_allclose(s.flux, scale * F, rtol=1e-4)
    np.testing.assert_allclose(s.flux * np.sqrt(s.ivar), 10, rtol=1e-4)
    assert not s.flags


@pytest.mark.parametrize("suffix", [".fits", ".FITS", ".fit", ".fts", ".fits.gz", ".fit.bz2", ".FITS.XZ"])
def test_suffixes_and_packings(folder, suffix):
    t = Table({"wave": W[None], "flux": F[None], "ivar": np.ones((1, 400))}, units={"wave": "Angstrom"})
    t.write(folder / "plain.fits", overwrite=True)
    pack = {"gz": gzip.compress, "z2": bz2.compress, "XZ": lzma.compress}.get(suffix[-2:], lambda x: x)
    path = folder / f"own{suffix}"
    path.write_bytes(pack((folder / "plain.fits").read_bytes()))
    s = only(path)
    assert s.id == "own" and np.allclose(s.flux, F)


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("mask", ["and_mask", "ANDMASK", None])
def test_sdss_names(folder, case, mask):
    n = 500
    columns = {
        case(k): v
        for k, v in dict(
            flux=np.ones(n, "f4"), loglam=(3.6 + 1e-4 * np.arange(n)).astype("f4"), ivar=np.ones(n, "f4")
        ).items()
    }
    if mask:
        columns[case(mask)] = np.where(np.arange(n) < 3, 1 << 20, 0).astype("i4")
    path = folder / "spec-1-2-3.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(Table(columns), name="COADD")]).writeto(
        path, overwrite=True
    )
    s = only(path)
    assert s.id == "1-2-3" and s.redshift is None and (s.ivar == 0).sum() == (3 if mask else 0)
    assert bool(s.flags) == (mask is None)


def desi(path, arms, rows, **fibres):
    hdus = [fits.PrimaryHDU()]
    for arm, (a, b, value) in arms.items():
        x = np.full((rows, b - a), value, "f4")
        hdus += [
            fits.ImageHDU(v, name=f"{arm}_{k}")
            for k, v in dict(FLUX=x, WAVELENGTH=WAVELENGTH[a:b], IVAR=np.ones_like(x)).items()
        ]
    if fibres:
        hdus.append(fits.BinTableHDU(Table(fibres), name="FIBERMAP"))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return read_spectrum(path)


@pytest.mark.parametrize(
    "arms, missing",
    [
        ({"B": (0, 2751, 5), "R": (2700, 5026, 5), "Z": (4900, 7781, 5)}, ""),
        ({"BRZ": (0, 7781, 5)}, ""),
        ({"BR": (0, 5026, 5), "Z": (4900, 7781, 5)}, ""),
        ({"R": (2700, 5026, 5)}, "BZ"),
        ({"BRZ": (0, 7781, 9), "B": (0, 2751, 5), "R": (2700, 5026, 5), "Z": (4900, 7781, 5)}, ""),
    ],
)
def test_desi_cameras(folder, arms, missing):
    ids = np.array([39627785483846390, 39627785483846391])
    rows = desi(
        folder / "coadd-a.fits",
        arms,
        2,
        TARGETID=ids,
        TARGET_RA=[1.0, 2],
        TARGET_DEC=[1.0, 2],
        COADD_FIBERSTATUS=[0, 512],
    )
    assert [s.id for s in rows] == [str(i) for i in ids] and all(
        np.all(s.flux[s.ivar > 0] == 5) for s in rows
    )
    assert [f[7] for f in rows[0].flags] == list(missing) and rows[1].flags[0] == "fibre status 512"


def test_desi_exposures_and_nothing_else(folder):
    rows = desi(
        folder / "spectra-a.fits",
        {"B": (0, 2751, 5), "R": (2700, 5026, 5), "Z": (4900, 7781, 5)},
        3,
        targetid=[7, 8, 7],
        fiberstatus=[0, 0, 4],
        target_ra=[1.0] * 3,
        target_dec=[1.0] * 3,
    )
    assert [s.flags for s in rows] == [
        ["exposure 1 of 2 of this target"],
        [],
        ["fibre status 4", "exposure 2 of 2 of this target"],
    ]
    assert [(s.id, s.flags) for s in coadd_exposures(rows)] == [
        ("7", ["coadded from 1 of 2 exposures"]),
        ("8", []),
    ]
    (bare,) = desi(folder / "bare.fits", {"BRZ": (0, 7781, 5)}, 1)
    assert bare.id == "bare[0]" and "no FIBERMAP" in bare.flags[0]


@pytest.mark.parametrize(
    "columns, word",
    [
        ({"wave": W / 10, "flux": F}, "nanometres"),
        ({"wave": np.log10(W), "flux": F}, "microns or log10"),
        ({"wave": W, "flux": F * 1e-17}, "no unit"),
        ({"wave": W, "flux [ct]": F}, "no flux density"),
        ({"x": W, "y": F}, "known name"),
        ({"wave": np.tile(W[:200], 2), "flux": F}, "merge overlapping"),
    ],
)
def test_refusals_name_the_call_that_takes_arrays(folder, columns, word):
    path = folder / "no.csv"
    Table(columns).write(path, format="ascii.csv", overwrite=True)
    with pytest.raises(NotAnObservedSpectrum, match="embed_spectra") as error:
        read_spectrum(path)
    assert word in str(error.value) and "no.csv" in str(error.value)


def test_real_dialects(shared):
    folder = shared / "real_2" / "spectra"
    if not folder.exists():
        pytest.skip("no second set of real galaxies")
    counts = {p.name: len(read_spectrum(p)) for p in folder.iterdir()}
    assert counts == {
        "desi_clagn_01.npz": 6,
        "desi_clagn_02.npz": 10,
        "desi_clagn_03.npz": 8,
        "desi_quasarnp_25_nolabel.npz": 25,
        "gama_G09_Y1_GS1_080.fits": 1,
        "sdss_agn_lowz.npz": 25,
        "sdss_galaxies.npz": 10,
        "sdss_qso_highz_01.npz": 32,
        "sdss_qso_highz_02.npz": 17,
    }
    gama = only(folder / "gama_G09_Y1_GS1_080.fits")
    assert gama.redshift == 0.05488 and abs(gama.wavelength[2475] - 6291.743) < 1e-3
