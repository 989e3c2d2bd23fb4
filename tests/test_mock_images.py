"""Simulated images: against GalSim, and what must not change when nothing that matters changes."""

import numpy as np
import pytest

from astroclip.mock import galaxy_images as images
from astroclip.mock import light_profiles as light
from astroclip.mock import population as kinds
from astroclip.mock.components import templates
from astroclip.mock.structure import draw_structure

SPIRAL = dict(
    morph_type=kinds.SPIRAL, z=0.05, cos_i=0.8, r_e_arcsec=2.5, disc_scale=1.5, sersic_n=1.0, axis_ratio=0.82, position_angle=40.0, bulge_n=2.0,
    bulge_r_e=0.6, bulge_axis_ratio=0.9, disc_height=0.2, edge_on=0, arm_count=2, arm_pitch=20.0, arm_amplitude=1.0, arm_phase=0.0, arm_sense=1,
    bar_fraction=0.0, bar_length=1.1, bar_angle=0.6, merger=0, companion_ratio=0.0, companion_distance=2.0, companion_angle=0.9, tail_fraction=0.0,
)  # fmt: skip
KINDS = {
    "elliptical": dict(morph_type=kinds.ELLIPTICAL, sersic_n=4.0),
    "lenticular": dict(morph_type=kinds.S0, bar_fraction=0.3),
    "spiral": {},
    "barred": dict(bar_fraction=0.3),
    "edge-on": dict(edge_on=1, cos_i=0.05, axis_ratio=0.2),
    "boxy edge-on": dict(edge_on=1, cos_i=0.05, axis_ratio=0.2, bar_fraction=0.3),
    "irregular": dict(morph_type=kinds.IRREGULAR),
}
FLUX = np.array([[8.0, 18.0, 32.0], [15.0, 28.0, 46.0], [30.0, 33.0, 35.0]])


def render(galaxy=SPIRAL, seed=3, **switches):
    return images.render(np.random.default_rng(seed), galaxy, FLUX, **switches)


def population(n, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n).astype(np.int8)
    return dict(z=rng.uniform(0.02, 0.4, n), log_mstar=rng.uniform(8.5, 11.5, n), quiescent=kind < 2, morph_type=kind,
                bulge_to_total=np.where(kind == 0, 1.0, rng.uniform(0, 0.6, n)), cos_i=rng.random(n))  # fmt: skip


@pytest.mark.mock
@pytest.mark.parametrize("n", [1, 1.5, 2.5, 4, 5.5])
def test_sersic_images_agree_with_galsim(n):
    galsim = pytest.importorskip("galsim")
    accurate = galsim.GSParams(
        folding_threshold=1e-4, kvalue_accuracy=1e-6, maxk_threshold=1e-4, maximum_fft_size=16384
    )
    for r_e, q, angle, fwhm in ((0.5, 0.7, 100, 1.3), (2.0, 0.6, 30, 1.3), (1.0, 1.0, 0, 1.05)):
        profile = galsim.Sersic(n=n, half_light_radius=r_e * q**0.5, gsparams=accurate).shear(
            q=q, beta=(90 + angle) * galsim.degrees
        )
        seen = galsim.Convolve(profile, galsim.Moffat(beta=light.BETA, fwhm=fwhm), gsparams=accurate)
        theirs = seen.drawImage(nx=light.SIZE, ny=light.SIZE, scale=light.PIXEL).array
        scene = np.zeros((light.GRID, light.GRID), np.float32)
        light.paste(scene, light.sersic(r_e, n, q, angle))
        ours = light.convolve(scene, light.moffat_transform(fwhm))
        assert np.abs(ours - theirs).max() < 0.005 * theirs.max()
        assert abs(ours.sum() / theirs.sum() - 1) < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_light_in_is_light_out(kind):
    image, _ = render(SPIRAL | KINDS[kind], noise=False, neighbours=False)
    assert image.shape == (3, 152, 152) and image.dtype == np.float32
    lost = 0.05 if kind == "elliptical" else 0.01  # the wings of n = 4 leave the stamp
    np.testing.assert_allclose(image.sum((1, 2)), FLUX.sum(0), rtol=lost)


@pytest.mark.parametrize("kind", KINDS)
def test_templates_hold_unit_light_and_are_not_negative(kind):
    for part in templates(np.random.default_rng(0), SPIRAL | KINDS[kind]):
        assert part.min() >= 0 and 0.95 < part.sum() < 1.005


def test_companion_adds_its_share_of_the_light():
    merging = SPIRAL | dict(merger=1, companion_ratio=0.5, tail_fraction=0.2)
    image, _ = render(merging, noise=False, neighbours=False)
    assert image[1].sum() == pytest.approx(1.5 * FLUX[:, 1].sum(), rel=0.02)


@pytest.mark.parametrize("fwhm", [1.05, 1.3, 1.8])
def test_seeing_is_measured_back(fwhm):
    star = np.zeros((light.GRID, light.GRID), np.float32)
    light.paste(star, np.full((2, 2), 0.25, np.float32))
    image = light.convolve(star, light.moffat_transform(fwhm))
    x = (np.arange(light.SIZE) - light.SIZE / 2 + 0.5) * light.PIXEL
    r = np.hypot(x[None], x[:, None])
    # widths in quadrature are not exact for a Moffat profile: the pixel's effect is known from its variance to first order
    widths = np.linspace(0.8 * fwhm, 1.2 * fwhm, 401)
    shapes = [(1 + r**2 / light.moffat_radius(w) ** 2) ** -light.BETA for w in widths]
    misfit = [((image - s * (image * s).sum() / (s * s).sum()) ** 2).sum() for s in shapes]
    assert fwhm <= widths[np.argmin(misfit)] < fwhm + 0.05
    assert image.sum() == pytest.approx(1, abs=1e-3)


def test_noise_is_measured_back():
    clean, _ = render(noise=False)
    noisy, info = render()
    residual = (noisy - clean)[:, :40, :40]
    faint = clean[:, :40, :40] < 0.3 * info["noise"][:, None, None]
    for band in range(3):
        measured = residual[band][faint[band]].std()
        assert measured == pytest.approx(info["noise"][band], rel=0.08)
    middle = (noisy - clean)[1, 70:82, 70:82].std()
    assert middle > 1.2 * info["noise"][1], "bright pixels have photon noise as well"


def test_noise_is_white():
    residual = render()[0] - render(noise=False)[0]
    corner = residual[1, :60, :60]
    assert abs((corner[:, 1:] * corner[:, :-1]).mean() / corner.var()) < 0.05


@pytest.mark.parametrize("angle", [0.0, 25.0, 90.0, 140.0])
def test_position_angle_runs_from_north_through_east(angle):
    image, _ = render(
        SPIRAL | dict(morph_type=kinds.ELLIPTICAL, sersic_n=1.5, axis_ratio=0.5, position_angle=angle),
        noise=False,
        neighbours=False,
    )
    y, x = np.mgrid[:152, :152] - 75.5
    weight = image[1] * np.exp(-(x**2 + y**2) / (2 * 12**2))
    xx, yy, xy = (weight * x * x).sum(), (weight * y * y).sum(), (weight * x * y).sum()
    measured = 0.5 * np.degrees(np.arctan2(-2 * xy, yy - xx)) % 180  # east is -x
    assert min(abs(measured - angle), 180 - abs(measured - angle)) < 2


def test_the_galaxy_sits_in_the_middle():
    image, _ = render(SPIRAL | dict(arm_amplitude=0.0), noise=False, neighbours=False)
    y, x = np.mgrid[:152, :152] - 75.5
    weight = image[1] * (np.hypot(x, y) < 8)
    assert abs((weight * x).sum() / weight.sum()) < 0.2 and abs((weight * y).sum() / weight.sum()) < 0.2


def test_same_seed_same_image_and_parts_draw_apart():
    np.testing.assert_array_equal(render()[0], render()[0])
    assert not np.array_equal(render()[0], render(seed=4)[0])
    alone, full = render(neighbours=False), render()
    for name in ("psf_fwhm", "noise", "fibre_fraction"):
        np.testing.assert_array_equal(alone[1][name], full[1][name])
    assert alone[1]["n_neighbours"] == 0


def test_no_neighbour_near_the_galaxy_and_counts_rise():
    fields = [images.draw_neighbours(np.random.default_rng(i)) for i in range(300)]
    near = np.concatenate([np.hypot(f["row"], f["column"]) for f in fields]) * light.SUBPIXEL
    r = np.concatenate([f["r"] for f in fields])
    assert near.min() > 3 and r.max() <= 23.3
    assert 3.5 < len(r) / 300 * (304 / 360) ** 2 < 5
    assert np.log10(((r > 22) & (r < 23)).sum() / ((r > 20) & (r < 21)).sum()) / 2 == pytest.approx(
        0.33, abs=0.06
    )


def test_arms_are_blue_and_bulges_are_red():
    g, r, _ = render(noise=False, neighbours=False)[0]
    y, x = np.mgrid[:152, :152] - 75.5
    radius = np.hypot(x, y) * light.PIXEL

    def color(where):
        return -2.5 * np.log10(g[where].sum() / r[where].sum())

    assert color(radius < 0.6) > color((radius > 3) & (radius < 5)) + 0.1


def test_fibre_catches_the_middle():
    _, info = render(noise=False)
    bulge, old, young = info["fibre_fraction"]
    assert 0 < young < old < bulge < info["point_source_fraction"] < 1
    point = light.fibre_fraction(light.sersic(0.05, 1))
    assert point == pytest.approx(light.point_source_fraction(), rel=0.05)  # spread over four subpixels
    wide = light.fibre_fraction(
        light.sersic(8, 1)
    )  # nearly constant over the fibre: surface brightness times its area
    assert wide == pytest.approx(
        light.sersic_value(np.float32(0.5), np.float32(0), 8, 1, 1) * np.pi * 0.75**2, rel=0.1
    )


def test_structure_has_one_value_per_galaxy_and_physical_ranges():
    pop = population(500)
    drawn = draw_structure(np.random.default_rng(1), pop, np.zeros((500, 3)))
    assert all(v.shape == (500,) and np.isfinite(v).all() for v in drawn.values())
    assert (drawn["axis_ratio"] > 0.15).all() and (drawn["axis_ratio"] <= 1).all()
    assert (drawn["arm_amplitude"][pop["morph_type"] != kinds.SPIRAL] == 0).all()
    again = draw_structure(np.random.default_rng(1), pop, np.zeros((500, 3)))
    assert all(np.array_equal(drawn[k], again[k]) for k in drawn)


@pytest.mark.parametrize("size", [0.05, 0.3, 30.0])
def test_every_kind_renders_at_extreme_sizes(size):
    for changes in KINDS.values():
        galaxy = SPIRAL | changes | dict(r_e_arcsec=size, disc_scale=size / 1.678, bulge_r_e=0.3 * size)
        for merger in (0, 1):
            image, info = render(
                galaxy | dict(merger=merger, companion_ratio=0.3 * merger, tail_fraction=0.1 * merger)
            )
            assert np.isfinite(image).all() and np.isfinite(info["fibre_fraction"]).all()


def test_broken_input_is_refused():
    with pytest.raises(ValueError, match="render needs .*disc_scale"):
        images.render(np.random.default_rng(0), dict(morph_type=2), FLUX)
    for flux in (FLUX[0], -FLUX, FLUX * np.nan):
        with pytest.raises(ValueError, match="component_flux"):
            images.render(np.random.default_rng(0), SPIRAL, flux)
    with pytest.raises(ValueError, match="Sérsic"):
        light.sersic(1.0, 0.1)


def test_the_data_card_says_the_same_in_the_file_and_on_the_page(root, sample):
    survey = pytest.importorskip("astroclip.mock.survey")
    from astroclip.surveys.pairs import Survey

    def words(text):
        return " ".join(text.replace("*", "").lower().split())

    gaps = words(survey.DATA_CARD).split("what it is not")[1].strip(" :.")
    assert gaps in words((root / "data" / "README.md").read_text())
    assert gaps in words(Survey(sample).data_card)
