"""Augmentations: statistics of the original, blur golden, compiled loop against torch."""

import numpy as np
import pytest
import torch

from astroclip.data.image_augment import (
    SEEING,
    SKY_NOISE,
    Multicrop,
    augment_images,
    blur_matrices,
    crops_numba,
    crops_torch,
    draw_plan,
    extra_sigma,
    lognormal,
    multicrop,
)
from astroclip.data.images import to_rgb
from astroclip.data.image_kernels import blur


@pytest.mark.parametrize("kind, parameters", [("blur", SEEING), ("noise", SKY_NOISE)])
def test_sigma_statistics(goldens, kind, parameters):
    g, n = np.load(goldens / "augmentation_stats.npz"), 100_000
    true = lognormal(np.random.default_rng(1), (n,), parameters)
    np.testing.assert_allclose(true.mean(0), g[f"{kind}_true_mean"], rtol=0.02)
    np.testing.assert_allclose(true.std(0), g[f"{kind}_true_std"], rtol=0.02)
    sigma = extra_sigma(np.random.default_rng(2), (n,), parameters).astype(np.float64)
    # both samples have 100,000 draws: combined standard error sqrt(2)
    error = np.sqrt(2) * sigma.std(0) / np.sqrt(n)
    assert (np.abs(sigma.mean(0) - g[f"{kind}_mean"]) < 5 * error).all()
    assert (np.abs((sigma == 0).mean(0) - g[f"{kind}_fraction_zero"]) < 0.01).all()
    high = g["quantile_levels"] >= 0.6
    quantiles, error = (
        np.quantile(sigma, g["quantile_levels"], axis=0),
        np.sqrt(2) * g[f"{kind}_quantiles_stderr"],
    )
    assert (np.abs(quantiles - g[f"{kind}_quantiles"])[high] < 5 * error[high]).all()
    positive = np.array([s[s > 0].mean() for s in sigma.T])
    np.testing.assert_allclose(positive, g[f"{kind}_mean_nonzero"], rtol=0.02)


def test_applied_probabilities(goldens):
    g = np.load(goldens / "augmentation_stats.npz")
    released, ours = Multicrop(released=True), Multicrop()
    for kind, i in (("blur", 0), ("noise", 1)):
        expected = [g["applied_probability_global1"][i], g["applied_probability_global2"][i]] + [
            g["applied_probability_local"][i]
        ] * 8
        np.testing.assert_allclose(released.probabilities(kind), expected)
        np.testing.assert_allclose(ours.probabilities(kind), 1 - np.array(expected))


def test_plan_applies_with_its_probability():
    plan = draw_plan(np.random.default_rng(0), 20_000, (152, 152), 60, [0, 0.9, 0.5], [1, 0.1, 0.5])
    some = 1 - 0.5**3  # three bands, each zero half of the time
    np.testing.assert_allclose((plan.blur > 0).any(-1).mean(0), np.array([0, 0.9, 0.5]) * some, atol=0.015)
    np.testing.assert_allclose((plan.noise > 0).any(-1).mean(0), np.array([1, 0.1, 0.5]) * some, atol=0.015)
    assert (
        plan.top.min() == 0
        and plan.top.max() == 92
        and abs(plan.flip_x.mean() - 0.5) < 0.02
        and not plan.swap.any()
    )


@pytest.mark.parametrize("how", ["kernel", "matrix"])
def test_blur_golden(goldens, how):
    g = np.load(goldens / "preprocessing_io.npz")
    out = g["blur_input"].copy()
    if how == "kernel":
        for band, sigma in zip(out, g["blur_sigma"].astype(np.float32)):
            blur(band, sigma, np.empty((60, 180), np.float32))
    else:
        b = blur_matrices(torch.tensor(g["blur_sigma"], dtype=torch.float32), 60)
        out = (b @ torch.tensor(out) @ b.transpose(-1, -2)).numpy()
    np.testing.assert_allclose(out, g["blur_output"], atol=1e-5)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0.02, 0.05, (3, 3, 152, 152)).astype(np.float32)


@pytest.mark.parametrize("size", [24, 60, 144])
def test_kernel_equals_torch(images, size):
    plan = draw_plan(
        np.random.default_rng(size), 3, (152, 152), size, np.ones(4), np.zeros(4), transpose=True
    )
    np.testing.assert_allclose(
        crops_numba(images, plan), crops_torch(torch.tensor(images), plan).numpy(), atol=1e-5
    )


def test_plain_crops_are_crops(images):
    plan = draw_plan(np.random.default_rng(0), 3, (152, 152), 60, np.zeros(2), np.zeros(2))
    out = crops_numba(images, plan)
    cut = images[1, :, plan.top[1, 0] : plan.top[1, 0] + 60, plan.left[1, 0] : plan.left[1, 0] + 60]
    cut = cut[:, ::-1] if plan.flip_y[1, 0] else cut
    cut = cut[:, :, ::-1] if plan.flip_x[1, 0] else cut
    np.testing.assert_allclose(out[0, 1], to_rgb(np.ascontiguousarray(cut)), atol=1e-6)


def test_multicrop_is_a_function_of_its_seed(images):
    settings = Multicrop(96, 36, 3)
    large, small = multicrop(images, (0, 5), settings)
    assert (
        large.shape == (2, 3, 3, 96, 96) and small.shape == (3, 3, 3, 36, 36) and large.dtype == torch.float32
    )
    again = multicrop(torch.tensor(images), (0, 5), settings)
    assert (
        torch.equal(large, again[0])
        and torch.equal(small, again[1])
        and not torch.equal(large, multicrop(images, (0, 6), settings)[0])
    )
    assert multicrop(images, 0, Multicrop(96, 36, 0))[1].shape[0] == 0
    with pytest.raises(ValueError, match="do not fit"):
        multicrop(images[..., :64, :64], 0, settings)


def test_noise_has_its_sigma_and_no_memory():
    flat = np.full((1, 3, 152, 152), 0.02, np.float32)  # in the linear part of the stretch
    plan = draw_plan(np.random.default_rng(0), 1, (152, 152), 144, np.zeros(2), np.ones(2))
    plan.noise[:] = 0.001
    gradient = (to_rgb(flat + 5e-4) - to_rgb(flat - 5e-4))[0, :, 0, 0] / 0.001
    out, other = crops_numba(flat, plan, seed=1), crops_numba(flat, plan, seed=2)
    assert not np.array_equal(out, other) and np.array_equal(out, crops_numba(flat, plan, seed=1))
    assert abs(np.corrcoef(out[0, 0, 0].ravel(), out[1, 0, 0].ravel())[0, 1]) < 0.03  # crops differ in noise
    assert (
        abs(np.corrcoef(out[0, 0, 0, 1:].ravel(), out[0, 0, 0, :-1].ravel())[0, 1]) < 0.2
    )  # bands mix through I only
    assert 0.3 < out[0, 0, 0].std() / (0.001 * gradient[0]) < 3


def test_augment_images_symmetries():
    x = torch.arange(3 * 25.0).reshape(1, 3, 5, 5).expand(300, -1, -1, -1)
    out = augment_images(x, 5, torch.Generator().manual_seed(0))
    assert len({tuple(o.flatten().tolist()) for o in out}) == 8
    assert torch.equal(augment_images(x, 5, symmetries=False), x)
    moved = augment_images(x, 3, torch.Generator().manual_seed(0), shift=1, symmetries=False)
    assert len({int(o[0, 0, 0]) for o in moved}) == 9


@pytest.mark.cuda
def test_device_path_matches(images):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA")
    plan = draw_plan(np.random.default_rng(0), 3, (152, 152), 60, np.ones(4), np.zeros(4))
    out = crops_torch(torch.tensor(images, device="cuda"), plan).cpu().numpy()
    np.testing.assert_allclose(out, crops_numba(images, plan), atol=1e-4)
    assert multicrop(torch.tensor(images, device="cuda"), 0, Multicrop(96, 36, 2))[0].is_cuda
