"""Images: golden stretch, the checks before the network, cutouts of every pixel scale."""

import numpy as np
import pytest
import torch
from astropy.io import fits

from astroclip.data.images import (
    PIXEL_SCALE,
    NotAnImage,
    center_crop,
    check_images,
    image_flags,
    missing_pixels,
    read_cutout,
    resample_cutout,
    stretch,
    to_rgb,
)


@pytest.fixture(scope="module")
def golden(goldens):
    return np.load(goldens / "preprocessing_io.npz")


@pytest.mark.parametrize("how", ["kernel", "torch"])
def test_stretch_golden(golden, how):
    raw = golden["raw_hwc"].transpose(0, 3, 1, 2)
    rgb = to_rgb(raw) if how == "kernel" else stretch(torch.tensor(raw)).numpy()
    np.testing.assert_allclose(rgb.transpose(0, 2, 3, 1), golden["rgb_hwc"], atol=1e-5)
    # the original pair loader hands over transposed crops
    crop = golden["collator_output"]
    np.testing.assert_allclose(center_crop(rgb.transpose(0, 1, 3, 2), crop.shape[-1]), crop, atol=1e-5)


def test_stretch_other_constants(golden):
    # the original ignores the Q it is given and uses 20; ours does what it is told
    raw = golden["raw_hwc"][0].transpose(2, 0, 1)
    np.testing.assert_allclose(
        to_rgb(raw, (5, 3.4, 2.2), m=0.05).transpose(1, 2, 0), golden["rgb_hwc_g5_m005_Q10"], atol=1e-5
    )
    assert (
        np.abs(
            to_rgb(raw, (5, 3.4, 2.2), m=0.05, q=10).transpose(1, 2, 0) - golden["rgb_hwc_g5_m005_Q10"]
        ).max()
        > 0.01
    )


def test_stretch_edge_values():
    image = np.zeros((3, 2, 2), np.float32)
    image[:, 0, 0] = -1  # I = 0: black
    image[:, 0, 1] = 1e4  # saturated
    rgb = to_rgb(image)
    assert rgb[:, 0, 0].max() == 0 and rgb[:, 0, 1].max() == 1 and np.isfinite(rgb).all()
    tensor = torch.tensor(image, requires_grad=True)
    to_rgb(tensor).sum().backward()
    assert torch.isfinite(tensor.grad).all()
    assert to_rgb(np.float16(image)).dtype == np.float32
    with pytest.raises(ValueError, match="bands g, r, z"):
        to_rgb(np.zeros((2, 2)))


def test_center_crop():
    x = np.arange(25).reshape(5, 5)
    assert center_crop(x, 3)[0, 0] == 6 and center_crop(x, 2)[0, 0] == 6
    with pytest.raises(ValueError, match="cannot crop"):
        center_crop(x, 6)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x[:, :2], "2 bands"),
        (lambda x: np.moveaxis(x, 1, -1), "transpose"),
        (lambda x: x[0, 0], "expected \\(N, 3, H, W\\)"),
        (lambda x: x[..., :20], "smaller than the crop"),
        (lambda x: to_rgb(x), "display-scaled"),
        (lambda x: np.round(to_rgb(x) * 255).astype(np.uint8), "picture"),
        (lambda x: np.round(to_rgb(x) * 255), "display-scaled"),
        (lambda x: np.where(x > 0.02, np.nan, x), "NaN"),
        (lambda x: np.where(x > 0.02, np.inf, x), "NaN or infinity"),
        (lambda x: x * np.float32([1, 1, 0])[:, None, None], "without any data"),
    ],
)
def test_check_images_says_what_is_wrong(spoil, message):
    x = np.random.default_rng(0).normal(0, 0.01, (2, 3, 32, 32)).astype(np.float32)
    assert check_images(x, 32).dtype == np.float32 and check_images(torch.tensor(x[0]), 32).shape == (
        1,
        3,
        32,
        32,
    )
    with pytest.raises(ValueError, match=message):
        check_images(spoil(x), 32)


def test_missing_pixels():
    image = np.ones((3, 10, 10), np.float32)
    image[0, :5] = 0
    image[1] = np.nan
    assert missing_pixels(image).tolist() == [0.5, 1, 0]
    assert image_flags(missing_pixels(image)) == ["g: 50.00% of the pixels unobserved", "r: no data"]


@pytest.mark.parametrize("scale, n", [(0.1, 424), (0.1302, 424), (0.262, 225), (0.524, 80)])
def test_resampling_conserves_flux(scale, n):
    d = (np.arange(n) - n / 2 + 0.5) * scale
    profile = np.exp(-0.5 * (d / 1.5) ** 2)
    image = 100 * np.outer(profile, profile) / (2 * np.pi * 1.5**2) * PIXEL_SCALE**2  # as the server gives it
    out = resample_cutout(np.stack([image] * 3), scale)
    assert out.shape == (3, 152, 152)
    np.testing.assert_allclose(out.sum((1, 2)), 100, rtol=1e-3)
    true = image * (scale / PIXEL_SCALE) ** 2  # flux per own pixel
    np.testing.assert_allclose(resample_cutout(true, scale, per_pixel=True), out[0], rtol=1e-5)


def test_native_cutouts_pass_unchanged(real):
    raw = fits.getdata(real / "pair_J094651.40-010228.5/temp_small.fits")
    cutout = read_cutout(real / "pair_J094651.40-010228.5/temp_small.fits")
    assert np.array_equal(cutout.image, raw[:, 36:188, 36:188]) and cutout.image.dtype.isnative
    np.testing.assert_allclose((cutout.ra, cutout.dec), (146.71421, -1.04128), atol=1e-4)


def test_same_galaxy_at_two_scales(real):
    coarse, fine = (
        read_cutout(real / "pair_J094651.40-010228.5" / f) for f in ("temp_small.fits", "example_a.fits")
    )
    np.testing.assert_allclose(fine.image.sum((1, 2)), coarse.image.sum((1, 2)), rtol=0.01)
    y, x = np.mgrid[:152, :152] - 75.5
    aperture = np.hypot(x, y) * PIXEL_SCALE < 1.5
    for cutout in (coarse, fine):  # the README's 3 arcsec fluxes of this galaxy
        np.testing.assert_allclose((cutout.image * aperture).sum((1, 2)), (133, 322, 681), rtol=0.06)


def test_every_real_cutout(real):
    folder, read = real / "images_legacysurvey", {}
    for path in sorted(folder.rglob("*.fits")):
        try:
            read[path.name if path.parent == folder else f"dr3_{path.name}"] = read_cutout(path)
        except NotAnImage as error:
            assert path.name.startswith("copsf") and "point-spread" in error.reason
    assert len(read) == 7 and all(c.image.shape == (3, 152, 152) for c in read.values())
    assert len(read["example_bad_pix.fits"].flags) == 2 and not read["example_d.fits"].flags
    subimage = read["cutout_59.1067_-30.4848.fits"]
    np.testing.assert_allclose((subimage.ra, subimage.dec), (59.1067, -30.4848), atol=2e-4)
    for name, cutout in read.items():
        check_images(cutout.image, 144)


def test_files_that_are_no_cutout(real, tmp_path):
    with pytest.raises(NotAnImage, match="table or spectrum"):
        read_cutout(real / "spectra_desi/tractor-1054p567.fits")
    source = real / "images_legacysurvey/example_b.fits"
    (tmp_path / "half.fits").write_bytes(source.read_bytes()[:1_000_000])
    with pytest.raises(OSError, match="half.fits cannot be read: truncated"):
        read_cutout(tmp_path / "half.fits")
    data, header = fits.getdata(source, header=True)
    header["BANDS"] = "gr"
    fits.writeto(tmp_path / "two.fits", data[:2], header)
    with pytest.raises(NotAnImage, match="z missing"):
        read_cutout(tmp_path / "two.fits")
    header["BANDS"] = "griz"  # DR10: the i band is left out
    fits.writeto(tmp_path / "four.fits", data[[0, 1, 1, 2]], header)
    np.testing.assert_allclose(read_cutout(tmp_path / "four.fits").image, read_cutout(source).image)
