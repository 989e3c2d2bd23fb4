"""The gate where spectra come in: any container, any unit, any way to say "missing", and never a silent wrong answer."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astroclip.data.arrays import as_floats, as_mask

u = pytest.importorskip("astropy.units")
few = settings(derandomize=True, deadline=None, max_examples=25)
fewer = settings(few, max_examples=8)
REAL = ["f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
numbers = st.lists(st.integers(0, 100), min_size=2, max_size=9)


# ---- containers


def boxes(values, bad):
    "The same numbers, with `bad` of them missing, in every box that can hold them."
    import pandas as pd
    import pyarrow as pa
    from astropy.table import MaskedColumn
    from astropy.utils.masked import Masked

    floats = np.where(bad, np.nan, values)
    some = [None if b else float(v) for v, b in zip(values, bad)]
    whole = [None if b else int(v) for v, b in zip(values, bad)]
    return {
        "list": some,
        "tuple of scalars": tuple(np.ma.masked if b else np.float32(v) for v, b in zip(values, bad)),
        "float32": floats.astype("f4"),
        "masked": np.ma.array(values.astype(">i4"), mask=bad),
        "Masked": Masked(values.astype(float), mask=bad),
        "MaskedColumn": MaskedColumn(values, mask=bad),
        "Series": pd.Series(floats),
        "Int64": pd.Series(whole, dtype="Int64"),
        "Float32": pd.array(some, dtype="Float32"),
        "arrow Series": pd.Series(whole, dtype="int32[pyarrow]"),
        "arrow": pa.array(whole),
        "chunked": pa.chunked_array([whole[:1], whole[1:]], type=pa.int16()),
        "sparse Series": pd.Series(pd.arrays.SparseArray(floats)),
        "half": torch.tensor(floats).half(),
        "bfloat16": torch.tensor(floats).bfloat16(),
        "gradient": torch.tensor(floats, requires_grad=True),
        "tensors": [torch.tensor(v) for v in floats],
    }


@few
@given(numbers, st.data())
def test_every_container_gives_the_same_numbers(values, data):
    values = np.array(values)
    bad = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    for name, box in boxes(values, bad).items():
        got = as_floats(box)
        assert got.dtype.isnative and got.flags.c_contiguous and got.dtype in (np.float32, np.float64), name
        np.testing.assert_array_equal(got, np.where(bad, np.nan, values), err_msg=name)
        np.testing.assert_array_equal(as_mask(box), bad | (values != 0), err_msg=name)
    rows = [list(boxes(values, bad).values())[i] for i in (0, 3, 5, 10, 13)]
    np.testing.assert_array_equal(as_floats(rows), np.tile(np.where(bad, np.nan, values), (5, 1)))


@few
@given(st.sampled_from(REAL), st.sampled_from("<>"), st.sampled_from([1, -1, 3]), st.booleans())
def test_every_dtype_order_and_stride(dtype, order, step, fortran):
    table = np.arange(84, dtype=float).reshape(7, 12)
    array = table.astype(np.dtype(dtype).newbyteorder(order), order="F" if fortran else "C")[::step, ::step]
    got = as_floats(array)
    assert (
        got.dtype == (np.float32 if dtype == "f4" else np.float64)
        and got.dtype.isnative
        and got.flags.c_contiguous
    )
    np.testing.assert_array_equal(got, table[::step, ::step])


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_memory_maps_frames_and_lists_in_columns(tmp_path):
    import pandas as pd
    import pyarrow as pa

    x = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    frame = pd.DataFrame(x, columns=list("abc")).astype({"b": "Int32", "c": "float32"})
    for box in (
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        frame,
        pa.array(x.tolist()),
        pd.Series(list(x)),
        pa.table({c: x[:, i] for i, c in enumerate("abc")}),
        np.matrix(x),
        pa.array(x.tolist(), type=pa.list_(pa.float32(), 3)),
        torch.tensor(x).to_sparse(),
        [np.ma.array(r) for r in x],
    ):
        np.testing.assert_array_equal(as_floats(box), x)
    assert (
        type(as_floats(np.matrix(x))) is np.ndarray
        and as_floats(3.5).shape == ()
        and as_floats([]).shape == (0,)
    )


def refused():
    import pandas as pd
    import pyarrow as pa
    from astropy.table import Table
    from astropy.time import Time

    return {
        "booleans": [True, False],
        "complex": np.ones(2, complex),
        "text": ["1", "2"],
        "bytes": np.array([b"1"]),
        "dates": np.array(["2026-01-01"], "M8[D]"),
        "records": np.zeros(2, [("a", "f4")]),
        "Python objects": np.array([1.0, None], object),
        "dict": {"a": 1},
        "dtype str": pd.Series(["a"]),
        "category": pd.Series([1, 2], dtype="category"),
        "datetime64": pd.Series(pd.to_datetime(["2026-01-01"]).tz_localize("UTC")),
        "type string": pa.array(["a"]),
        "column 'b' of flux": pd.DataFrame({"a": [1.0], "b": ["x"]}),
        "whole table": Table({"a": [1.0]}),
        "Time": Time.now(),
        "different shapes": [[1.0], [1.0, 2.0]],
        "complex numbers": torch.ones(2, dtype=torch.complex64),
        "unit Jy": [1.0] * u.Jy,
        "without data": torch.ones(2, device="meta"),
    }


@pytest.mark.parametrize("message", refused())
def test_what_is_no_number_is_refused_by_name(message):
    with pytest.raises(ValueError, match="flux") as error:
        as_floats(refused()[message], "flux")
    assert message in str(error.value)


def test_opening_a_list_loads_no_library():
    code = "import sys; from astroclip.data.arrays import as_floats; as_floats([1, None]); print({'astropy', 'pandas', 'torch', 'pyarrow'} & set(sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


# ---- the gate


from astroclip import AstroCLIP, RedshiftClassifier, SpecFormer, VisionTransformer  # noqa: E402
from astroclip.data.spectra import check_spectra, spectrum_flags  # noqa: E402
from astroclip.data.spectrum_grid import N_PIXELS, WAVELENGTH, pixel_bounds, resample  # noqa: E402
from astroclip.data.spectrum_units import air_to_vacuum, flux_factor  # noqa: E402

LINES = [(3728.5, 1.5), (3934.8, -1.0), (4862.7, 1.0), (5008.2, 2.0), (6564.6, 3.0)]


def galaxies(n=2, wavelength=WAVELENGTH, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.05, 0.4, n)[:, None]
    lines = sum(a * np.exp(-0.5 * ((wavelength - w * (1 + z)) / 4) ** 2) for w, a in LINES)
    return 3 * (1 + 0.3 * np.tanh((wavelength / (1 + z) - 4000) / 200) + lines) + rng.normal(
        0, 0.3, (n, len(wavelength))
    )


FLUX = galaxies()
IVAR = np.random.default_rng(1).uniform(5, 15, FLUX.shape)


@pytest.fixture(scope="module")
def classifier():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return RedshiftClassifier(features=4, templates=4, hidden=8).eval()


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AstroCLIP(VisionTransformer(48, 12, 32, 1, 2), SpecFormer(80, 40, 32, 1, 2), embed_dim=16).eval()


@fewer
@given(st.floats(-280, 280), st.booleans())
def test_the_classifier_knows_no_scale(classifier, power, weighted):
    ivar = IVAR if weighted else None
    factor = 10.0**power
    with np.errstate(over="ignore", under="ignore"):
        scaled = None if ivar is None else ivar / factor / factor
        if scaled is not None and not (np.isfinite(scaled) & (scaled > 0)).all():
            scaled = ivar  # no float64 holds it; only ratios matter
    reasons = []
    z, p = classifier.predict(FLUX * factor, ivar=scaled, reasons=reasons)
    expected = classifier.predict(FLUX, ivar=ivar)
    np.testing.assert_allclose(z, expected[0], rtol=1e-4)
    np.testing.assert_allclose(p, expected[1], rtol=1e-3)
    assert reasons == ["", ""]


def test_line_channels_of_raw_tensors_know_no_scale(classifier):
    from astroclip.data.log_grid import line_channels, to_log_grid
    from astroclip.models.rest_frame import RestFrame

    flux = torch.from_numpy(FLUX).float()
    expected = line_channels(*to_log_grid(flux, WAVELENGTH))
    finder = RestFrame(80, 40, 194, 4)
    for factor in (1e-30, 1e-17, 1e-6, 1e20):
        assert torch.allclose(line_channels(*to_log_grid(flux * factor, WAVELENGTH)), expected, atol=1e-3)
        assert torch.allclose(finder(flux * factor), finder(flux), atol=1e-3)


@fewer
@given(st.floats(-40, 40))
def test_embeddings_are_of_the_right_scale_or_refused(model, power):
    factor = 10.0**power
    spread, median = FLUX.std(1).min() * factor, np.median(FLUX, 1).max() * factor
    if spread < 0.19 or median > 1010:
        with pytest.raises(ValueError, match="unit='erg/s/cm2/A'"):
            model.embed_spectra(FLUX * factor)
    elif spread > 0.21 and median < 990:
        assert np.isfinite(model.embed_spectra(FLUX * factor)).all()
    said = model.embed_spectra(FLUX * factor, unit=f"{1e-17 / factor!r} erg/s/cm2/Angstrom")
    np.testing.assert_allclose(said, model.embed_spectra(FLUX), atol=1e-4)


UNITS = [
    "erg/s/cm2/A",
    "1e-17 erg/s/cm2/A",
    "10**-20 erg/(s cm2 Angstrom)",
    "W/m2/um",
    "W m-2 nm-1",
    "Jy",
    "mJy",
    "uJy",
    "nanomaggies",
    "maggies",
    "erg/s/cm2/Hz",
    "1E-17 erg/cm^2/s/Ang",
    "W / (m2 Hz)",
    "ph / (s cm2 Angstrom)",
    "FLAM",
    "1e-16 erg/s/cm^2/Å",
    "µJy",
]


@pytest.mark.parametrize("unit", UNITS)
def test_units_round_trip(unit):
    factor = flux_factor(unit, WAVELENGTH)
    expected = check_spectra(FLUX, ivar=IVAR)
    got = check_spectra(FLUX / factor, ivar=IVAR * factor**2, unit=unit)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4)


@pytest.mark.parametrize("unit", ["erg/(s cm2 Angstrom)", "Jy", "W/(m2 um)", "nmgy", "mJy"])
def test_quantities_convert_themselves(unit, classifier):
    factor = flux_factor(u.Unit(unit), WAVELENGTH)
    flux, ivar = u.Quantity(FLUX / factor, unit), u.Quantity(IVAR * factor**2, u.Unit(unit) ** -2)
    expected = check_spectra(FLUX, ivar=IVAR)
    for w in (None, WAVELENGTH * u.AA, WAVELENGTH / 10 * u.nm, (WAVELENGTH / 1e4) << u.um):
        for i in (ivar, ivar.value):
            got = check_spectra(flux, w, i)
            np.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
            np.testing.assert_allclose(got[1], expected[1], rtol=1e-3)
    np.testing.assert_allclose(
        classifier.predict(list(flux), ivar=ivar)[0], classifier.predict(FLUX, ivar=IVAR)[0], rtol=1e-4
    )
    with pytest.raises(ValueError, match="ivar has the unit|no flux density"):
        check_spectra(FLUX, ivar=ivar)
    with pytest.raises(ValueError, match="no flux density|cannot be used"):
        check_spectra(flux, ivar=IVAR * u.K)


@pytest.mark.parametrize(
    "unit", ["ct", "adu", "mag", "K", "furlong", "erg/s/cm2", "1e-17 erg/s/cm2/A/arcsec2", "Angstrom"]
)
def test_what_is_no_flux_density_is_refused(unit):
    with pytest.raises(ValueError, match="unit"):
        check_spectra(FLUX, unit=unit)


AXES = {
    "nm": WAVELENGTH / 10,
    "um": WAVELENGTH / 1e4,
    "m": WAVELENGTH / 1e10,
    "log10(Angstrom)": np.log10(WAVELENGTH),
    "ln(Angstrom)": np.log(WAVELENGTH),
    "log10(nm)": np.log10(WAVELENGTH / 10),
    "log10(m)": np.log10(WAVELENGTH / 1e10),
    "Angstrom": WAVELENGTH,
    "cm": WAVELENGTH / 1e8,
}


@pytest.mark.parametrize("unit", AXES)
def test_wavelengths_are_known_by_their_unit_or_refused_by_their_numbers(unit):
    flux, ivar = check_spectra(FLUX, AXES[unit], wavelength_unit=unit)
    np.testing.assert_allclose(flux, FLUX, atol=1e-3)
    if unit != "Angstrom":
        with pytest.raises(ValueError, match="looks like") as error:
            check_spectra(FLUX, AXES[unit])
        assert f"wavelength_unit={unit!r}" in str(error.value)


def test_other_axes():
    for axis, word in (
        (np.arange(N_PIXELS), "pixel numbers"),
        (WAVELENGTH[::-1], "flip it"),
        (np.roll(WAVELENGTH, 5), "sort it"),
        (np.where(WAVELENGTH > 5000, np.nan, WAVELENGTH), "NaN"),
        (3e18 / WAVELENGTH[::-1], "frequencies"),
        (np.ma.array(WAVELENGTH, mask=WAVELENGTH > 9000), "masked"),
        (WAVELENGTH[:100], "expected \\(7781,\\)"),
    ):
        with pytest.raises(ValueError, match=word):
            check_spectra(FLUX, axis)
    each = np.stack([WAVELENGTH, WAVELENGTH + 0.3])
    flux, ivar = check_spectra(FLUX, each)
    np.testing.assert_array_equal(flux[1], check_spectra(FLUX[1], each[1])[0][0])
    assert air_to_vacuum(5006.843) == pytest.approx(5008.240, abs=2e-3)
    np.testing.assert_array_equal(
        check_spectra(FLUX, WAVELENGTH, air=True)[0], check_spectra(FLUX, air_to_vacuum(WAVELENGTH))[0]
    )


@few
@given(st.data())
def test_four_ways_to_say_missing_are_one(data):
    from astropy.utils.masked import Masked

    start = data.draw(st.integers(0, 7000))
    bad = np.zeros(FLUX.shape, bool)
    bad[data.draw(st.integers(0, 1)), start : start + data.draw(st.integers(1, 700))] = True
    junk = data.draw(st.sampled_from([1e4, -9999, 0.0, 1e30, np.inf, np.nan]))
    spoilt = np.where(bad, junk, FLUX)
    expected = check_spectra(np.where(bad, np.nan, FLUX), ivar=IVAR)
    ways = [
        dict(flux=np.ma.array(spoilt, mask=bad), ivar=IVAR),
        dict(flux=spoilt, ivar=IVAR, mask=bad),
        dict(flux=spoilt, ivar=IVAR, mask=bad * 4),
        dict(flux=Masked(spoilt, mask=bad), ivar=IVAR),
        dict(flux=spoilt, ivar=np.ma.array(IVAR, mask=bad)),
    ]
    ways += [dict(flux=spoilt, ivar=np.where(bad, value, IVAR)) for value in (0, -1, np.nan, np.inf)]
    for way in ways:
        got = check_spectra(**way)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(check_spectra(FLUX, ivar=~bad)[1] > 0, expected[1] > 0)


@few
@given(st.permutations(range(4)))
def test_rows_do_not_know_each_other(order):
    flux = galaxies(4)
    flux[2] = 0
    whole, reasons = check_spectra(flux, on_bad="nan")[0], spectrum_flags(flux)
    np.testing.assert_array_equal(check_spectra(flux[order], on_bad="nan")[0], whole[order])
    assert spectrum_flags(flux[order]) == [reasons[i] for i in order] and [bool(r) for r in reasons] == [
        False,
        False,
        True,
        False,
    ]


@few
@given(st.integers(300, 6000), st.integers(1, 800))
def test_a_hole_in_the_axis_is_missing(start, length):
    keep = np.ones(N_PIXELS, bool)
    keep[start : start + length] = False
    axis = WAVELENGTH[keep] + 0.05  # off the grid, so that it is resampled
    flux, ivar = resample(axis, FLUX[:, keep])
    inside = (WAVELENGTH > WAVELENGTH[start] + 1) & (WAVELENGTH < WAVELENGTH[start + length - 1] - 1)
    assert (
        not ivar[:, inside].any()
        and (ivar[:, 5 : start - 2] > 0).all()
        and (ivar[:, start + length + 2 : -5] > 0).all()
    )
    left, right = pixel_bounds(axis)
    assert (right >= left).all() and (right - left).max() < 1


EMPTY = {
    "all zero": 0 * WAVELENGTH,
    "constant: every pixel is 1": np.ones(N_PIXELS),
    "constant": np.full(N_PIXELS, -9999.0),
    "-9999": np.where(WAVELENGTH > 9000, -9999, FLUX[0]),
    "1e+30": np.where(WAVELENGTH > 9822, 1e30, FLUX[0]),
    "3.40282e+38": np.where(WAVELENGTH < 4000, np.finfo("f4").max, FLUX[0]),
    "-999": np.where(np.arange(N_PIXELS) == 7, -999, FLUX[0]),
    "far from the rest": np.where(WAVELENGTH < 5000, -55.5, FLUX[0]),
    "too few usable pixels": np.where(WAVELENGTH > 4000, 0, FLUX[0]),
    "values: a mask": 1.0 + (WAVELENGTH > 5000),
    "all NaN": np.full(N_PIXELS, np.nan),
    "dead fibre": np.full(N_PIXELS, np.inf),
    "1.79769e+308": np.where(WAVELENGTH > 9000, np.finfo("f8").max, FLUX[0]),
}


@pytest.mark.parametrize("word", EMPTY)
def test_what_says_nothing_gets_no_answer(word, classifier, model):
    flux = np.stack([FLUX[0], EMPTY[word]])
    for call in (check_spectra, model.embed_spectra, classifier.predict, classifier.distribution):
        with pytest.raises(ValueError, match=r"\[1\]") as error:
            call(flux)
        assert word in str(error.value)
    z, p = classifier.predict(flux, on_bad="nan")
    assert (
        np.isnan(z[1]) and np.isnan(p[1]) and (z[0], p[0]) == tuple(x[0] for x in classifier.predict(flux[0]))
    )
    reasons = []
    vectors = model.embed_spectra(flux, on_bad="nan", reasons=reasons, batch_size=1)
    assert np.isnan(vectors[1]).all() and reasons == spectrum_flags(flux)
    np.testing.assert_allclose(vectors[0], model.embed_spectra(flux[0])[0], atol=1e-5)


def test_zeros_in_a_row_are_missing():
    padded = np.where(WAVELENGTH > 8000, 0, FLUX)
    for a, b in zip(check_spectra(padded), check_spectra(np.where(WAVELENGTH > 8000, np.nan, FLUX))):
        np.testing.assert_array_equal(a, b)


@fewer
@given(
    st.sampled_from(["f2", "f4", "f8", ">f4", ">f8", "g"]),
    st.sampled_from(["array", "list", "torch", "masked", "memmap", "frame", "strided"]),
)
def test_the_gate_takes_every_container(dtype, kind):
    import pandas as pd

    flux = FLUX.astype("f2").astype(dtype)
    wide = np.repeat(flux, 2, axis=1)
    box = {
        "array": lambda: flux,
        "list": lambda: flux.astype(float).tolist(),
        "torch": lambda: torch.tensor(flux.astype("f4"), requires_grad=True),
        "masked": lambda: np.ma.array(flux),
        "memmap": lambda: np.asfortranarray(flux),
        "frame": lambda: pd.DataFrame(flux.astype("f8")),
        "strided": lambda: wide[:, ::2],
    }[kind]()
    expected = check_spectra(FLUX.astype("f2").astype("f8"))
    for a, b in zip(check_spectra(box), expected):
        np.testing.assert_array_equal(a, b)


def test_nothing_legitimate_is_refused(real):
    "Every spectrum of the readers that has a usable pixel, in the unit that its survey states."
    from astroclip.data.spectra import read_spectrum
    from astroclip.data.spectrum_units import FLUX_UNIT

    paths = [
        *sorted((real / "spectra_sdss").glob("*.fits")),
        *sorted((real / "spectra_desi").glob("coadd*.fits")),
        real / "spectra_manga/MaNGA_test_spectra.fits.gz",
    ]
    rows = [s for path in paths for s in read_spectrum(path) if s.usable]
    flags = [spectrum_flags(s.flux, s.wavelength, s.ivar, unit=FLUX_UNIT)[0] for s in rows]
    assert len(rows) >= 22 and not any(flags), flags
