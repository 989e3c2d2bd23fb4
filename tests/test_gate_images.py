"""The gate for images: units, containers, masks, pictures, dialects of cutout files. Values by hand, kinds by hypothesis."""

import bz2
import gzip
import io
import itertools
import lzma
import struct
import zlib

import h5py
import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from astroclip.files.fits_files import (
    FITS_SUFFIXES,
    IMAGE_SUFFIXES,
    UnreadableFile,
    bare_name,
    is_readable,
    open_fits,
    reading,
    unpack,
)
from astroclip.data.image_gate import gate, image_faults, image_statistics
from astroclip.data.image_units import nanomaggies_per
from astroclip.data.images import PIXEL_SCALE, Cutout, NotAnImage, check_images, read_cutout, to_rgb
from astroclip.models.astroclip import AstroCLIP
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer

few = settings(derandomize=True, deadline=None, max_examples=15)
SIGMA = np.float32([0.003, 0.004, 0.011])[:, None, None]


def galaxies(n=2, size=64, seed=0, peak=(0.1, 0.2, 0.4), noise=1.0):
    "Discs off the centre, different in each band, on the noise of the Legacy Survey."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    out = [np.float32(peak)[:, None, None] * np.exp(-np.hypot(x - 5 - k, y + 3) / 6) for k in range(n)]
    return (np.stack(out) + noise * SIGMA * rng.normal(size=(n, 3, size, size))).astype(np.float32)


IMAGES = galaxies()


# units

KNOWN = {
    "nanomaggy": 1,
    "nanomaggies": 1,
    "nMgy": 1,
    "NANOMAGGY/PIXEL": 1,
    "nmgy pix-1": 1,
    "maggy": 1e-9,
    "micromaggies": 1e-3,
    "Jy": 3.631e-6,
    "mJy": 3.631e-3,
    "uJy": 3.631,
    "microJy": 3.631,
    "µJy": 3.631,
    "nJy": 3631,
    "nanojansky": 3631,
    "UJY": 3.631,
    "erg/s/cm2/Hz": 3.631e-29,
    "erg s-1 cm-2 Hz-1": 3.631e-29,
    "ERG/S/CM^2/HZ": 3.631e-29,
    "W/m2/Hz": 3.631e-32,
}


@pytest.mark.parametrize("unit", KNOWN)
def test_one_nanomaggy_in_every_unit(unit):
    assert nanomaggies_per(unit) * KNOWN[unit] == pytest.approx(1, rel=1e-9)


@few
@given(st.sampled_from(sorted(KNOWN)), st.floats(0.1, 10), st.booleans())
def test_units_round_trip(unit, scale, quantity):
    want = IMAGES * np.float32(scale)
    value = want.astype(float) * KNOWN[unit]
    if quantity and unit not in ("NANOMAGGY/PIXEL", "nmgy pix-1", "UJY", "ERG/S/CM^2/HZ"):
        try:
            value, unit = value * u.Unit(unit), None
        except ValueError:  # a spelling that only we know
            pass
    np.testing.assert_allclose(check_images(value, 64, unit=unit), want, rtol=1e-5, atol=1e-9)


@few
@given(st.floats(15, 35))
def test_zero_points(zp):
    counts = IMAGES * 10 ** (0.4 * (zp - 22.5))
    np.testing.assert_allclose(check_images(counts, 64, zeropoint=zp), IMAGES, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        check_images(counts, 64, unit="adu", zeropoint=(zp,) * 3), IMAGES, rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize(
    "said, message",
    [
        (dict(unit="furlong"), "'furlong': unknown unit"),
        (dict(unit="erg/s/cm2/Angstrom"), "per wavelength"),
        (dict(unit="mag"), "magnitudes"),
        (dict(unit="adu"), "zeropoint="),
        (dict(unit="Jy/beam"), "cannot be converted"),
        (dict(unit="Jy", zeropoint=25), "already"),
        (dict(zeropoint=(1, 2)), "three for g, r, z"),
        (dict(zeropoint=np.inf), "AB magnitude"),
        (dict(pixel_scale=-1), "one number"),
        (dict(kind="RGB"), "'flux' or 'rgb'"),
        (dict(kind="rgb", unit="Jy"), "are for flux"),
        (dict(unit="maggy"), "is the unit right"),
        (dict(mask=np.zeros((3, 64), bool)), "mask has shape"),
    ],
)
def test_wrong_arguments_name_the_fix(said, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check_images(IMAGES, 64, **said)


def test_two_units_that_contradict():
    assert np.allclose(check_images(IMAGES * u.nmgy, 64, unit="nanomaggy"), IMAGES)
    with pytest.raises(ValueError, match="leave one of them out"):
        check_images(IMAGES * u.nmgy, 64, unit="Jy")


# numbers that nobody explained


def clothes():
    x = galaxies(6)
    rgb = to_rgb(x)
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    mean, std = (
        np.float32([0.485, 0.456, 0.406])[:, None, None],
        np.float32([0.229, 0.224, 0.225])[:, None, None],
    )
    own = (x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True))
    return {
        "maggies": x * 1e-9,
        "Jy": x * 3.631e-6,
        "mJy": x * 3.631e-3,
        "nJy": x * 3631,
        "cgs": x * 3.631e-29,
        "counts": x * 1000,
        "[0, 1]": rgb,
        "[0, 1] resampled": 0.98 * rgb + 0.01,
        "0-255": 254.3 * rgb + 0.1,
        "0-255 whole": np.round(255 * rgb),
        "[-1, 1]": 2 * rgb - 1,
        "ImageNet": (rgb - mean) / std,
        "minimum to maximum": (x - low) / (high - low),
        "standardised": (x - own[0]) / own[1],
        "zeros": x * 0,
        "constant": x * 0 + 0.3,
        "NaN": x * np.nan,
        "1e30": np.where(x > 0.05, 1e30, x),
        "-9999": np.where(x > 0.05, -9999, x),
        "-99": np.where(x > 0.05, -99, x),
        "all -99": x * 0 - 99,
        "nearly empty": np.where(np.arange(64) < 62, 0, x),
        "beyond float32": x.astype(float) * 1e40,
    }


@pytest.mark.parametrize("name", clothes())
def test_other_numbers_are_refused_one_by_one(name):
    given = clothes()[name]
    assert all(
        image_faults(
            np.where(np.isfinite(given), given, np.nan).astype(np.float32)
            if name != "beyond float32"
            else given
        )
    )
    for image in given[:2]:
        with pytest.raises(ValueError, match=r"images \[0\]"):
            check_images(image, 64)
    mixed = np.concatenate([galaxies(3), given[:1]])
    with pytest.raises(ValueError, match=r"images \[3\]"):
        check_images(mixed, 64)


@few
@given(
    st.floats(0.02, 30),
    st.floats(0.05, 4),
    st.floats(2, 60),
    st.sampled_from([(0.3, 0.6, 1), (1, 1, 1), (0.1, 0.4, 1)]),
)
def test_galaxies_pass(peak, noise, scale, colour):
    "Faint or bright, compact or filling the frame, deep or shallow, red or blue."
    y, x = np.mgrid[:96, :96] - 47.5
    disc = np.float32(colour)[:, None, None] * peak * np.exp(-np.hypot(x, y) / scale)
    image = disc + noise * SIGMA * np.random.default_rng(0).normal(size=(3, 96, 96))
    assert image_faults(image[None].astype(np.float32)) == [""]


def test_the_sample_and_its_margins(sample):
    with h5py.File(sample) as f:
        x = f["image"][:].astype(np.float32)
    assert set(image_faults(x)) == {""}
    s = image_statistics(x)
    assert (
        (s["noise"].max(0) < np.float32([0.15, 0.2, 0.5]) / 15).all()
        and s["below"].max() < 0.5
        and s["high"].max(1).min() > 0.1
    )
    for factor in (0.2, 5):  # fainter, brighter, deeper, shallower
        assert set(image_faults(x * factor)) == {""}


def test_real_cutouts_pass(shared):
    files = [
        *(shared / "real").glob("images_legacysurvey/**/*.fits"),
        *(shared / "real").glob("pair*/[te]*.fits"),
        *(shared / "real_2").glob("images_legacysurvey/*.fits"),
    ]
    read = []
    for path in files:
        try:
            read.append(read_cutout(path))
        except NotAnImage as no:
            assert "point-spread" in no.reason
    assert len(read) >= 9 and image_faults(np.stack([c.image for c in read])) == [""] * len(read)


# containers and masks


@few
@given(
    st.sampled_from([">f4", "<f8", "f2", ">f8"]),
    st.sampled_from(
        [
            "array",
            "list",
            "nested",
            "tensor",
            "float16",
            "fortran",
            "negative",
            "memmap",
            "quantity",
            "masked",
            "single",
        ]
    ),
)
def test_containers(dtype, container):
    x = IMAGES.astype(dtype)
    boxes = {
        "array": lambda: x,
        "list": lambda: list(x),
        "nested": lambda: x[:1, :, :, :].tolist(),
        "fortran": lambda: np.asfortranarray(x),
        "tensor": lambda: torch.tensor(x.astype("f4")),
        "float16": lambda: torch.tensor(IMAGES).half(),
        "negative": lambda: x[..., ::-1][..., ::-1],
        "memmap": lambda: x.view(np.memmap),
        "quantity": lambda: x.astype("f8") * u.nmgy,
        "masked": lambda: np.ma.array(x),
        "single": lambda: x[0],
    }
    out = check_images(boxes[container](), 64)
    assert out.dtype == np.float32 and out.dtype.isnative
    np.testing.assert_allclose(out, IMAGES[: len(out)], rtol=2e-3, atol=1e-4)


@few
@given(st.integers(0, 55), st.integers(0, 55), st.sampled_from([1e30, -9999.0, np.nan, 1e4]))
def test_masks_mean_missing(i, j, value):
    hole = np.zeros(IMAGES.shape, bool)
    hole[:, :, i : i + 8, j : j + 8] = True
    want, dirty = np.where(hole, 0, IMAGES), np.where(hole, value, IMAGES).astype(float)
    for given_ in (
        dict(images=np.ma.array(dirty, mask=hole)),
        dict(images=Masked(dirty * u.nmgy, mask=hole)),
        dict(images=Masked(dirty, mask=hole)),
        dict(images=dirty, mask=hole),
        dict(images=dirty, mask=hole[:, 0]),
        dict(images=dirty[0], mask=hole[0, 0]),
    ):
        np.testing.assert_allclose(gate(size=64, **given_), want[:1] if given_["images"].ndim == 3 else want)


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "i8", "bool", "u1"])
def test_whole_numbers_need_a_word(dtype):
    x = (np.clip(IMAGES, 0, 1) * 100).astype(dtype)
    with pytest.raises(ValueError, match="picture"):
        check_images(x, 64)


def test_counts_in_integers():
    counts = np.round(IMAGES * 1000).astype(np.int16)
    np.testing.assert_allclose(check_images(counts, 64, zeropoint=30), IMAGES, atol=6e-4)


# pixel scales and pictures


@few
@given(st.floats(0.1, 0.9), st.booleans())
def test_pixel_scale_conserves_flux(scale, surface):
    n = int(np.ceil(64 * PIXEL_SCALE / scale)) + 4
    d = (np.arange(n) - n / 2 + 0.5) * scale
    disc = np.exp(-0.5 * (d / 2) ** 2)
    density = 50 * np.outer(disc, disc) / (2 * np.pi * 4)  # nanomaggies per square arcsec
    image = np.stack([density * k for k in (1, 2, 3)])
    out = (
        check_images(image, 64, unit="nmgy/arcsec2", pixel_scale=scale)
        if surface
        else check_images(image * scale**2, 64, pixel_scale=scale)
    )
    assert out.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(out.sum((2, 3))[0], (50, 100, 150), rtol=5e-3)


@few
@given(st.sampled_from(["u1", "f4", "f8", "255"]), st.booleans(), st.booleans())
def test_pictures(dtype, last, single):
    want = to_rgb(IMAGES)
    x = (
        np.round(want * 255).astype(np.uint8)
        if dtype == "u1"
        else want * 255.0
        if dtype == "255"
        else want.astype(dtype)
    )
    x = np.moveaxis(x, 1, -1) if last else x
    out = check_images(x[0] if single else x, 64, kind="rgb")
    np.testing.assert_allclose(out, want[: len(out)], atol=0.5 / 255 + 1e-6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AstroCLIP(
        VisionTransformer(48, 12, 32, 2, 2, layer_scale=0.5), SpecFormer(80, 40, 32, 2, 2), embed_dim=16
    ).eval()


def test_the_model_sees_the_same_galaxy(model):
    want = model.embed_images(IMAGES)
    same = dict(atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(model.embed_images(IMAGES * 1e-9, unit="maggies"), want, **same)
    np.testing.assert_allclose(model.embed_images(IMAGES * 3.631e-6 * u.Jy), want, **same)
    np.testing.assert_allclose(model.embed_images(list(IMAGES)), want, **same)
    np.testing.assert_allclose(model.embed_images(to_rgb(IMAGES), kind="rgb"), want, **same)
    np.testing.assert_allclose(
        model.embed_images(to_rgb(IMAGES).transpose(0, 2, 3, 1), kind="rgb"), want, **same
    )
    np.testing.assert_allclose(
        model.image_encoder.backbone.embed_images(IMAGES * 1000, zeropoint=30),
        model.image_encoder.backbone.embed_images(IMAGES),
        **same,
    )
    cutouts = [
        Cutout(IMAGES[0], 0.0, 0.0, unit="nanomaggy"),
        Cutout(to_rgb(IMAGES[1]), np.nan, np.nan, kind="rgb"),
    ]
    np.testing.assert_allclose(model.embed_cutouts(cutouts), want, **same)
    assert model.embed_cutouts([]).shape == (0, 16)
    hole = np.zeros((2, 64, 64), bool)
    hole[:, 30:40] = True
    np.testing.assert_allclose(
        model.embed_images(np.where(hole[:, None], np.nan, IMAGES), mask=hole),
        model.embed_images(np.where(hole[:, None], 0, IMAGES)),
    )


def test_row_numbers_count_through_the_batches(model):
    many = np.concatenate([IMAGES] * 70)
    many[135] *= 1e-9
    with pytest.raises(ValueError, match=r"images \[135\] are too faint"):
        model.embed_images(many)


# files


def cards(scale=PIXEL_SCALE, angle=0.0, mirror=1, ra=150.0, dec=2.0, style="CD", n=64):
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    m = np.array([[-c * mirror, s], [s * mirror, c]])
    h = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": (n + 1) / 2,
        "CRPIX2": (n + 1) / 2,
    }
    pairs = list(itertools.product((1, 2), (1, 2)))
    if style == "CD":
        h |= {f"CD{i}_{j}": m[i - 1, j - 1] * scale / 3600 for i, j in pairs}
    if style == "arcsec":
        h |= {f"CD{i}_{j}": m[i - 1, j - 1] * scale for i, j in pairs} | {
            "CUNIT1": "arcsec",
            "CUNIT2": "arcsec",
            "CRVAL1": 3600 * ra,  # in the unit of its axis, as the step
            "CRVAL2": 3600 * dec,
        }
    if style == "PC":
        h |= {f"PC{i}_{j}": m[i - 1, j - 1] for i, j in pairs} | {
            "CDELT1": scale / 3600,
            "CDELT2": scale / 3600,
        }
    if style == "CROTA":
        h |= {"CDELT1": -mirror * scale / 3600, "CDELT2": scale / 3600, "CROTA2": -angle}
    return h


def primary(data, **more):
    return fits.HDUList([fits.PrimaryHDU(data, fits.Header(more))])


def read(tmp, hdus, name="x.fits", **how):
    hdus.writeto(tmp / name, overwrite=True)
    return read_cutout(tmp / name, 48, **how)


WANT = IMAGES[0, :, 8:56, 8:56]


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("cutouts")


@few
@given(
    st.permutations("grzi"),
    st.sampled_from(
        ["BANDS", "BANDS,", "BAND0", "BAND1", "FILTER1", "FILTER", "hdus", "EXTNAME", "FILTERS of hdus"]
    ),
)
def test_bands_in_any_order_and_dialect(tmp, order, dialect):
    data = {b: IMAGES[0, "grz".find(b)] for b in order}
    cube = np.stack(list(data.values()))
    named = {
        "BANDS": {"BANDS": "".join(order)},
        "BANDS,": {"BANDS": ",".join(order)},
        "BAND0": {f"BAND{k}": b for k, b in enumerate(order)},
        "BAND1": {f"BAND{k + 1}": b.upper() for k, b in enumerate(order)},
        "FILTER1": {f"FILTER{k + 1}": f"DECam {b}" for k, b in enumerate(order)},
        "FILTER": {"FILTER": " ".join(order)},
    }
    key = {
        "hdus": ("BAND", "{}"),
        "EXTNAME": ("EXTNAME", "DECALS {}"),
        "FILTERS of hdus": ("FILTER", "{} DECam SDSS c0001 4720.0 1520.0"),
    }
    if dialect in named:
        hdus = primary(cube, **cards(), **named[dialect])
    else:
        k, text = key[dialect]
        hdus = fits.HDUList(
            [
                fits.PrimaryHDU(),
                *(fits.ImageHDU(data[b], fits.Header(cards() | {k: text.format(b)})) for b in order),
            ]
        )
    cutout = read(tmp, hdus)
    np.testing.assert_array_equal(cutout.image, WANT)
    assert "bands left out: i" in cutout.flags


@few
@given(
    st.sampled_from(["CD", "arcsec", "PC", "CROTA"]),
    st.sampled_from([0, 90, 180, 270, 20]),
    st.sampled_from([1, -1]),
    st.sampled_from([(150.0, 2.0), (0.0, 0.0), (359.99999, -45.0), (12.0, 89.99), (200.0, -90.0)]),
)
def test_the_same_sky_in_every_dialect(tmp, style, angle, mirror, place):
    if place[1] in (89.99, -90.0):
        angle, mirror = 0, 1
    quarter = angle // 90 if angle % 90 == 0 else 0
    data = np.rot90(
        IMAGES[0, :, :, ::mirror], quarter * mirror, axes=(1, 2)
    )  # north of 90 degrees is to the right
    cutout = read(
        tmp,
        primary(
            data.copy(),
            **cards(angle=angle, mirror=mirror, ra=place[0], dec=place[1], style=style),
            BANDS="grz",
        ),
    )
    assert cutout.dec == pytest.approx(place[1], abs=1e-6) and (
        abs(place[1]) == 90 or abs((cutout.ra - place[0] + 180) % 360 - 180) < 1e-4
    )
    assert cutout.pixel_scale == pytest.approx(PIXEL_SCALE)
    if angle == 20:
        assert any("20 degrees" in f for f in cutout.flags)
    else:
        np.testing.assert_array_equal(cutout.image, WANT)


@few
@given(
    st.sampled_from([0.131, 0.396, 0.524, 0.6]),
    st.sampled_from(["CD", "PC", "CROTA"]),
    st.sampled_from([None, "Jy", "nanomaggy", "adu"]),
)
def test_foreign_pixels_conserve_flux(tmp, scale, style, bunit):
    n = int(48 * PIXEL_SCALE / scale) + 6
    d = (np.arange(n) - n / 2 + 0.5) * scale
    disc = np.exp(-0.5 * (d / 1.5) ** 2)
    image = np.stack([k * np.outer(disc, disc) / (2 * np.pi * 2.25) * scale**2 for k in (10, 20, 30)])
    factor = {None: 1, "Jy": 3.631e-6, "nanomaggy": 1, "adu": 1000}[bunit]
    more = {"BUNIT": bunit, "MAGZERO": 30.0} if bunit == "adu" else {"BUNIT": bunit} if bunit else {}
    cutout = read(tmp, primary(image * factor, **cards(scale, style=style, n=n), BANDS="grz", **more))
    np.testing.assert_allclose(cutout.image.sum((1, 2)), (10, 20, 30), rtol=2e-3)
    assert any("resampled" in f for f in cutout.flags) and cutout.unit == ("nanomaggy" if bunit else None)
    served = read(
        tmp,
        primary(
            image * (PIXEL_SCALE / scale) ** 2,
            **cards(scale, style=style, n=n),
            BANDS="grz",
            SURVEY="DECaLS",
            VERSION="DR9",
            IMAGETYP="image",
        ),
    )
    np.testing.assert_allclose(served.image, cutout.image, rtol=1e-4, atol=1e-7)


def test_what_a_file_does_not_say_is_said(tmp):
    bare = read(tmp, primary(IMAGES[0]))
    np.testing.assert_array_equal(bare.image, WANT)
    assert (
        np.isnan(bare.ra)
        and any("0.262 arcsec assumed" in f for f in bare.flags)
        and any("g, r, z assumed" in f for f in bare.flags)
    )
    known = read(tmp, primary(np.tile(IMAGES[0], (1, 2, 2)), BANDS="grz", PIXSCALE=0.131, RA=10.5, DEC=-3.0))
    assert known.pixel_scale == 0.131 and (known.ra, known.dec) == (10.5, -3.0)
    oblong = read(
        tmp,
        primary(
            IMAGES[0].reshape(3, 64, 32, 2).sum(-1),
            **(cards() | {"CD1_1": -2 * PIXEL_SCALE / 3600, "CRPIX1": 16.5}),
            BANDS="grz",
        ),
    )
    np.testing.assert_allclose(oblong.image.sum(), WANT.sum(), rtol=1e-5)
    assert any("not square" in f for f in oblong.flags)


def test_holes_weights_and_other_arrays(tmp):
    image, weight = IMAGES[0].copy(), np.ones_like(IMAGES[0])
    image[0, 30:34, 30:34], weight[1, 20:30, 20:30] = np.nan, 0
    hdus = fits.HDUList(
        [
            *primary(image, **cards(), BANDS="grz"),
            fits.ImageHDU(weight, name="IVAR"),
            fits.ImageHDU(np.ones((64, 64), np.int16), name="MASKBITS"),
        ]
    )
    cutout = read(tmp, hdus)
    assert (
        (cutout.image[0, 22:26, 22:26] == 0).all()
        and (cutout.image[1, 12:22, 12:22] == 0).all()
        and np.isfinite(cutout.image).all()
    )
    np.testing.assert_allclose(cutout.missing, (16 / 48**2, 100 / 48**2, 0))
    assert [f[:2] for f in cutout.flags] == ["g:", "r:"]
    scaled = fits.PrimaryHDU(IMAGES[0].copy(), fits.Header(cards() | {"BANDS": "grz"}))
    scaled.scale("int16", "minmax")
    np.testing.assert_allclose(read(tmp, fits.HDUList([scaled])).image, WANT, atol=1e-4)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"BUNIT": "furlong"}, "'furlong': unknown unit"),
        ({"BUNIT": "adu"}, "zeropoint="),
        ({"BUNIT": "erg/s/cm2/Angstrom"}, "per wavelength"),
        ({"BANDS": "gr"}, "planes but BANDS"),
        ({"BAND0": "r", "BAND1": "g", "BAND2": "z"}, "contradicts itself"),
        ({"CD1_1": -0.01, "CD2_2": 0.01}, "too coarse"),
    ],
)
def test_headers_that_are_refused(tmp, said, message):
    with pytest.raises(NotAnImage, match=message.replace("(", r"\(")):
        read(tmp, primary(IMAGES[0], **(cards() | {"BANDS": "grz"} | said)))


def test_suffixes_and_packings(tmp):
    content = io.BytesIO()
    primary(IMAGES[0], **cards(), BANDS="grz").writeto(content)
    content = content.getvalue()
    packed = {
        "": content,
        ".gz": gzip.compress(content),
        ".bz2": bz2.compress(content),
        ".xz": lzma.compress(content),
    }
    for suffix, data in packed.items():
        for stem in (".fits", ".FIT", ".fts"):
            path = tmp / f"galaxy{stem}{suffix}"
            path.write_bytes(data)
            assert is_readable(path) and bare_name(path) == "galaxy"
            np.testing.assert_array_equal(read_cutout(path, 48).image, WANT)
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.CompImageHDU(
                IMAGES[0],
                fits.Header(cards() | {"BANDS": "grz"}),
                compression_type="RICE_1",
                quantize_level=64,
            ),
        ]
    ).writeto(tmp / "c.fits.fz")
    np.testing.assert_allclose(read_cutout(tmp / "c.fits.fz", 48).image, WANT, atol=1e-3)
    assert {".fits", ".fit.gz", ".fits.fz", ".jpeg"} <= set(IMAGE_SUFFIXES) and len(FITS_SUFFIXES) == 15
    assert not any(is_readable(n) for n in ("a.txt", "fits", "a.fits.png.txt", "b.h5"))


def test_picture_files(tmp):
    drawn = (
        np.round(255 * to_rgb(IMAGES[0])[:, ::-1]).astype(np.uint8).transpose(1, 2, 0)
    )  # north on the first row
    Image.fromarray(drawn).save(tmp / "a.PNG")
    cutout = read_cutout(tmp / "a.PNG", 48)
    np.testing.assert_allclose(cutout.image, to_rgb(WANT), atol=0.5 / 255 + 1e-6)
    assert (
        cutout.kind == "rgb"
        and np.isnan(cutout.ra)
        and "not flux" in cutout.flags[0]
        and "0.262 arcsec assumed" in cutout.flags[1]
    )
    Image.fromarray(drawn).convert("RGBA").save(tmp / "opaque.png")
    np.testing.assert_array_equal(read_cutout(tmp / "opaque.png", 48).image, cutout.image)
    Image.fromarray(drawn).save(tmp / "misnamed.fits", format="JPEG")  # the first bytes decide
    assert read_cutout(tmp / "misnamed.fits", 48).kind == "rgb"
    large = Image.fromarray(drawn).resize((128, 128), Image.NEAREST)
    large.save(tmp / "large.png")
    np.testing.assert_allclose(
        read_cutout(tmp / "large.png", 48, pixel_scale=PIXEL_SCALE * 0.5).image, cutout.image, atol=0.02
    )
    for name, mode in (("grey.png", "L"), ("cmyk.jpg", "CMYK"), ("bits.png", "1"), ("deep.png", "I;16")):
        (
            Image.fromarray(drawn).convert(mode)
            if mode != "I;16"
            else Image.fromarray(drawn[..., 0].astype(np.uint16))
        ).save(tmp / name)
        with pytest.raises(NotAnImage, match="grey|CMYK"):
            read_cutout(tmp / name)
    with pytest.raises(ValueError, match="are for flux"):
        read_cutout(tmp / "a.PNG", unit="Jy")


def test_real_pictures(shared):
    viewer, zoo = (
        sorted((shared / "real_2").glob("pairs_legacy_sdss/*.jpeg")),
        sorted((shared / "real_2").glob("images_gz_decals/*.jpg"))[:12],
    )
    read = [read_cutout(p, pixel_scale=0.1) for p in viewer] + [read_cutout(p) for p in zoo]
    assert {c.image.shape for c in read} == {(3, 97, 97), (3, 152, 152)}
    dark = [any("another stretch" in f for f in c.flags) for c in read]
    assert not any(dark[: len(viewer)]) and all(dark[len(viewer) :])


# damage


@pytest.mark.parametrize(
    "error",
    [
        zlib.error("x"),
        struct.error("x"),
        KeyError("x"),
        IndexError(1),
        TypeError("x"),
        AttributeError("x"),
        RuntimeError("HDF5"),
        OverflowError("x"),
        MemoryError(),
        EOFError(),
        AssertionError(),
        UnicodeDecodeError("ascii", b"x", 0, 1, "bad"),
        fits.VerifyError("x"),
        ValueError("x"),
        OSError("x"),
        RecursionError(),
    ],
)
def test_damage_has_one_type(error):
    with pytest.raises(UnreadableFile, match="x.fits cannot be read"):
        with reading("x.fits"):
            raise error


@pytest.mark.parametrize(
    "error",
    [NotAnImage("x.fits", "a table"), FileNotFoundError("x"), ModuleNotFoundError("x"), UnreadableFile("x")],
)
def test_refusals_pass(error):
    with pytest.raises(type(error)) as caught:
        with reading("x.fits"):
            raise error
    assert caught.value is error


def test_nothing_is_allocated_on_a_claim(tmp):
    h = b"".join(
        c.ljust(80).encode()
        for c in (
            "SIMPLE  =                    T",
            "BITPIX  =                  -64",
            "NAXIS   =                    2",
            "NAXIS1  =               120000",
            "NAXIS2  =               120000",
            "END",
        )
    )
    (tmp / "claim.fits").write_bytes(h.ljust(2880) + bytes(2880))
    with pytest.raises(UnreadableFile, match="truncated"):
        read_cutout(tmp / "claim.fits")
    with pytest.raises(OverflowError):
        unpack(bz2.compress(bytes(2**28 + 1)))
    for content in (b"", b"<html>", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", h[:100]):
        (tmp / "odd.fits").write_bytes(content)
        with pytest.raises(UnreadableFile):
            read_cutout(tmp / "odd.fits")
    with pytest.raises(UnreadableFile):
        with open_fits(tmp):
            pass


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp, data):
    if not (tmp / "seed.fits").exists():
        primary(IMAGES[0, :, :40, :40], **cards(n=40), BANDS="grz", BUNIT="nanomaggy").writeto(
            tmp / "seed.fits"
        )
        fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(IMAGES[0, :, :40, :40], fits.Header({"BANDS": "grz"}))]
        ).writeto(tmp / "seed.fz")
        Image.fromarray(np.round(255 * to_rgb(IMAGES[0])).astype(np.uint8).transpose(1, 2, 0)).save(
            tmp / "seed.jpg"
        )
    content = bytearray((tmp / data.draw(st.sampled_from(["seed.fits", "seed.fz", "seed.jpg"]))).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(content), 6000) - 1))
        content[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b"0123456789-.'T ")))
    content = content[: data.draw(st.sampled_from([None, None, 3000, 5760]))]
    (tmp / "mutated").write_bytes(content)
    try:
        assert np.isfinite(read_cutout(tmp / "mutated").image).all()
    except (NotAnImage, UnreadableFile):
        pass
