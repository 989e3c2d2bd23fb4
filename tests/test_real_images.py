"""Pictures of the sky and real pairs: the stretch and back, hand-made ranks, and what the real folder holds."""

import io

import numpy as np
import pytest
from PIL import Image

from astroclip.core.config import sample_path
from astroclip.data.images import center_crop, stretch, to_rgb
from astroclip.data.photometry import aperture_fluxes
from astroclip.core.config import Params
from astroclip.metrics.bootstrap import Score
from astroclip.sky import picture_training, pictures, real_pairs
from astroclip.surveys.pairs import Survey
from astroclip.surveys.viewer import (
    AsPictures,
    as_pictures,
    clipped_fraction,
    degrade_some,
    from_pictures,
    from_rgb,
)
from astroclip.surveys.viewer import through_picture

PAIRS, ZOO = (real_pairs.real_folder(name) for name in ("pairs_legacy_sdss", "images_gz_decals"))


@pytest.fixture(scope="module")
def images():
    return Survey(sample_path()).images(range(24))


def test_the_stretch_of_one_pixel_by_hand():
    flux = np.float32([0.1, 0.3, 0.5])[:, None, None]
    v = np.array([0.1 * 6.0, 0.3 * 3.4, 0.5 * 2.2]) + 0.03
    drawn = v * np.arcsinh(20 * v.mean()) / (np.sqrt(20) * v.mean())
    assert np.allclose(to_rgb(flux).ravel(), drawn[::-1].clip(0, 1), atol=1e-6)
    assert np.allclose(from_rgb(drawn[::-1, None, None]).ravel(), flux.ravel(), atol=1e-6)


def test_the_stretch_has_an_inverse_where_nothing_is_clipped(images):
    rgb = to_rgb(images)
    inside = ((rgb > 0) & (rgb < 1)).all(1, keepdims=True).repeat(3, 1)
    assert np.abs(from_rgb(rgb) - images)[inside].max() < 1e-4
    assert (from_rgb(rgb) <= images + 1e-4)[
        (rgb[:, ::-1] >= 1) & (rgb > 0).all(1, keepdims=True)
    ].all()  # a lower limit


def test_eight_bits_and_a_jpeg_cost_less_than_the_noise(images):
    clean, back = center_crop(images, 96), from_pictures(as_pictures(images), 96)
    noise = 1.4826 * np.median(np.abs(clean - np.median(clean, (2, 3), keepdims=True)), (0, 2, 3))
    assert (np.median(np.abs(back - clean), (0, 2, 3)) < 0.5 * noise).all()
    faint = aperture_fluxes(clean, 3)[:, 1] < 10
    kept = aperture_fluxes(back, 3) / aperture_fluxes(clean, 3)
    assert np.abs(np.median(kept[faint], 0) - 1).max() < 0.05


def test_a_worse_jpeg_is_worse(images):
    clean = center_crop(images, 96)
    errors = [np.abs(from_pictures(as_pictures(images, quality=q), 96) - clean).mean() for q in (95, 85, 30)]
    assert errors[0] < errors[1] < errors[2]


def test_a_picture_knows_the_ceiling():
    rgb = np.zeros((3, 4, 4), np.float32)
    rgb[0, 0] = 1  # channel 0 is z
    assert clipped_fraction(rgb).tolist() == [0, 0, 0.25]


def test_the_augmentation_is_off_and_repeats_itself(images):
    rng = np.random.default_rng(0)
    assert (
        degrade_some(images, AsPictures(), rng) is images and rng.random() == np.random.default_rng(0).random()
    )
    one, two = (degrade_some(images, AsPictures(fraction=0.5), np.random.default_rng(3)) for _ in range(2))
    assert (one == two).all() and 0 < (one != images).any((1, 2, 3)).sum() < len(images)
    assert one.shape == images.shape and (one is not images)


def test_a_stretch_that_is_off_changes_the_flux_by_as_much():
    gray = np.full((3, 48, 48), 0.1, np.float32)
    plain, off = (
        np.median(through_picture(gray, scale_errors=s), (1, 2)) for s in ((1, 1, 1), (0.9, 1, 1.1))
    )
    assert np.allclose(plain, 0.1, rtol=0.03) and np.allclose(off, [0.09, 0.1, 0.11], rtol=0.03)
    v = 0.1 * np.array([6.0, 3.4, 2.2]) + 0.03  # of g, r, z; a softer q dims all three alike
    i = v.mean()
    gain = np.arcsinh(22 * i) / np.sqrt(22) * np.sqrt(20) / np.arcsinh(20 * i)
    dimmer = np.median(through_picture(gray, q_error=1.1), (1, 2))
    mean = gain * np.arcsinh(20 * i) / np.sqrt(20)
    by_hand = (v / i * np.sinh(np.sqrt(20) * mean) / 20 - 0.03) / [6.0, 3.4, 2.2]
    assert np.allclose(dimmer, by_hand, rtol=0.03) and (by_hand < 0.099).all()


def test_pictures_of_every_scale_keep_the_flux_and_correlate_the_noise(images):
    sky = 0.01 * np.random.default_rng(0).standard_normal((6, 3, 72, 72)).astype(np.float32) + 0.05
    for scale in (0.1, 0.17, 0.3):
        seen = np.stack([through_picture(x, scale, 95) for x in sky])
        assert seen.shape == sky.shape and np.allclose(seen.mean((0, 2, 3)), 0.05, rtol=0.05)
        r = seen[:, 1] - seen[:, 1].mean()
        assert (r[:, 1:] * r[:, :-1]).mean() / (r**2).mean() > 0.15


def test_every_draw_of_the_augmentation_is_of_the_generator(images):
    one = AsPictures(fraction=1.0)
    cut = center_crop(images[:3], 60)
    alone = degrade_some(cut[:1], one, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    rng.random(1)
    scale, quality = rng.uniform(0.1, 0.3), rng.integers(85, 96)
    *factors, q = np.exp(rng.uniform(-0.05, 0.05, 4))
    assert (alone[0] == through_picture(cut[0], scale, quality, tuple(factors), q)).all()
    assert (cut == center_crop(images[:3], 60)).all()  # the batch that was given is as it was
    with pytest.raises(ValueError, match="expected 0"):
        AsPictures(fraction=1.5)


def test_bad_pictures_are_refused_with_a_reason(images):
    with pytest.raises(ValueError, match="channels first"):
        from_rgb(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="cannot fill 600 pixels"):
        as_pictures(images, 600)
    with pytest.raises(ValueError, match="no outskirts"):
        pictures.noise_frequency(np.zeros((3, 100, 100)))


def test_the_stretch_of_galaxy_zoo_and_back(images):
    core = center_crop(images, 40)
    drawn = pictures.zoo_stretch(core)
    inside = (drawn > 0).all(1, keepdims=True).repeat(3, 1) & (drawn < 1)
    error = np.abs(pictures.from_zoo(drawn) - core)[inside]
    assert (
        np.median(error) < 1e-6 and np.percentile(error, 90) < 2e-3
    )  # pixels of one colour are beyond repair
    kept = aperture_fluxes(pictures.from_zoo(drawn), 3) / aperture_fluxes(core, 3)
    assert np.abs(np.median(kept, 0) - 1).max() < 0.02
    gray = np.float32([0.008, 0.014, 0.019])[:, None, None]  # x = asinh(1), the same in all bands
    x = (np.arcsinh(1) - np.arcsinh(-0.5)) / (np.arcsinh(300) - np.arcsinh(-0.5))
    w = np.sin(np.pi / 2 * 0.6)
    assert np.allclose(pictures.zoo_stretch(gray), x + (1 - w) ** 2 * x**2, atol=1e-6)


def test_the_scale_from_the_noise_does_not_mind_the_stretch_or_the_brightness(images):
    found = []
    for draw, factor in ((to_rgb, 1), (to_rgb, 0.7), (pictures.zoo_stretch, 1)):
        shown = as_pictures(factor * images[:8], 256, 0.13, draw=draw)
        found.append(np.median([pictures.noise_frequency(x) for x in shown]))
    assert np.ptp(found) < 0.1 * np.mean(found)
    low, high = (
        np.median([pictures.noise_frequency(x) for x in as_pictures(images[:8], 256, s)]) for s in (0.1, 0.15)
    )
    assert 1.35 < high / low < 1.6


def test_a_picture_is_read_with_north_up(tmp_path):
    colors = np.zeros((40, 40, 3), np.uint8)
    colors[:10] = 200, 100, 50  # the first rows of a file are its top
    Image.fromarray(colors).save(tmp_path / "a.png")
    pixels = pictures.read_pixels(tmp_path / "a.png")
    assert np.allclose(pixels[:, -1, 0] * 255, [200, 100, 50], atol=0.01) and pixels[:, 0].max() == 0


def test_ranks_by_hand():
    images = np.float64([[1, 0], [0, 1], [1, 1]])
    spectra = np.float64([[2, 0], [1, 0], [3, 3]])  # of the second the true one is the furthest
    background = np.float64([[1, 0.1], [0.1, 1]])
    found = real_pairs.Found("toy", images, spectra, background, background)
    ranks = found.ranks()
    assert ranks["image to spectrum"].tolist() == [1.5, 2.5, 1]  # ties count half
    assert ranks["simulated spectra closer"].tolist() == [0, 2, 0]
    scores = real_pairs.rank_scores(ranks)
    score = scores["first or second, image to spectrum"]
    assert score.value == pytest.approx(2 / 3) and 0.1 < score.low < score.high < 1
    assert scores["median simulated spectra closer"].value == 0
    assert (
        real_pairs.rank_scores(ranks, kept=np.array([False, True, False]))[
            "median simulated spectra closer"
        ].value
        == 2
    )


def test_nobody_is_closer_than_itself():
    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    for metric in ("cosine", "euclidean"):
        assert (real_pairs.closer_than_own(x, x, x, metric) == 0).all()
        turned = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
        y = x + 0.5 * np.random.default_rng(2).normal(size=x.shape)
        counts = real_pairs.closer_than_own(x, y, y[::-1], metric)
        assert (counts == real_pairs.closer_than_own(x @ turned, y @ turned, y[::-1] @ turned, metric)).all()


def test_the_control_does_not_mind_units_and_forgives_an_offset():
    rng = np.random.default_rng(0)
    circles = rng.normal(size=(80, 2, 3))
    windows = circles.mean(1) + 0.1 * rng.normal(size=(80, 3))
    parts = slice(0, 40), slice(40, 70), slice(70, 80)

    def found(windows, shift=0.0):
        real = windows[parts[2]] + shift
        return real_pairs.controls(*((circles[s], windows[s]) for s in parts[:2]), (circles[parts[2]], real))

    for one, two in zip(found(windows), found(3 * windows + 7)):  # another zero point on both sides
        assert all((one.ranks()[k] == two.ranks()[k]).all() for k in one.ranks())
    plain, shifted = found(windows), found(windows, np.array([5.0, 0, 0]))
    assert (shifted[3].ranks()["image to spectrum"] == plain[3].ranks()["image to spectrum"]).all()
    assert (
        shifted[2].ranks()["simulated spectra closer"].mean()
        > plain[2].ranks()["simulated spectra closer"].mean()
    )


def test_simulated_sets_are_like_the_real_one():
    rng = np.random.default_rng(0)
    z, r = rng.uniform(0, 0.4, 2000), rng.uniform(17, 20, 2000)
    asked = np.float64([0.05, 0.1, 0.12]), np.float64([18.0, 18.5, 19.0])
    tens = real_pairs.simulated_tens(z, r, *asked, draws=50)
    assert all(len(set(ten)) == 3 for ten in tens)
    assert np.abs(z[tens] - asked[0]).max() < 0.04 and np.abs(r[tens] - asked[1]).max() < 0.6


class Toy:
    "As much of a run, its networks and an artifact as the comparison looks at."

    name, inputs = "astroclip", ()

    def __init__(self, **given):
        vars(self).update(given)

    def embedding(self, name, kind):
        return np.zeros((2, 3))


def toy_model():
    from astroclip import AstroCLIP
    from astroclip.models.specformer import SpecFormer
    from astroclip.models.vit import VisionTransformer

    return AstroCLIP(VisionTransformer(48, 12, 32, 1, 2), SpecFormer(80, 40, 32, 1, 2), embed_dim=16).eval()


def test_a_second_network_comes_where_it_is_made_or_asked_for(tmp_path, monkeypatch):
    model, asked = toy_model(), []
    model.save_pretrained(tmp_path / "astroclip")

    def resolve(stage, params):
        made = "degrade=0.5" in params.set and ready
        survey = Toy(key="other" if "mock_survey" in params.set else "same")
        return Toy(key="same", ready=made, path=tmp_path, inputs={"mock_survey": survey})

    def ensure(stage, params):
        asked.append((stage, params.set))
        return resolve(stage, params)

    monkeypatch.setattr(picture_training, "resolve", resolve)
    monkeypatch.setattr(picture_training, "ensure", ensure)
    survey = Survey(sample_path())

    def spaces(compare="", set=""):
        run = Toy(params=Params(profile="smoke", device="cpu", set=set), survey=survey, inputs=[])
        return picture_training.spaces_to_compare(run, Toy(model=model), compare), run.inputs

    ready = False
    assert [s.way for s in spaces()[0]] == ["network"] and not asked
    two, inputs = spaces("pretrain_image.degrade=0.25", "align.embed_dim=64")
    assert asked == [("align", "align.embed_dim=64 pretrain_image.degrade=0.25")] and len(inputs) == 1
    assert [s.name for s in two] == ["astroclip", "astroclip_pictures"]
    assert np.allclose(two[1].image[3:5], model.embed_images(survey.images([3, 4])), atol=1e-5)
    assert two[1].spectrum.shape == (len(survey), 16)
    ready = True
    assert [s.way for s in spaces()[0]] == ["network", "network on pictures too"]
    assert len(spaces(set="pretrain_image.degrade=0.1")[0]) == 1  # this run is the one with pictures
    with pytest.raises(ValueError, match="changes the survey"):
        spaces("mock_survey.n_pairs=100")


def test_the_words_follow_the_numbers():
    one, two = Score(0.5, 0.4, 0.6), Score(0.7, 0.6, 0.8)
    assert "OUTSIDE" in picture_training.change_in_words(one, two)
    assert "inside" in picture_training.change_in_words(one, Score(0.6, 0.5, 0.7))
    space = picture_training.Space(picture_training.FLUX, "a", None, None, None)
    scores = {(s, x, "a", "knn"): Score(0.004, 0.001, 0.006) for s in ("sigma_nmad", "bias") for x in "xy"}
    scores |= {("sigma_nmad", x, "a", "knn"): one for x in picture_training.SIMULATED}
    scores["bias", "y", "a", "knn"] = Score(-0.02, -0.03, -0.01)
    scores |= {("sigma_nmad", x, "constant", ""): one for x in "xy"}
    _, good, bad = picture_training.redshifts_in_words([space], scores, "xy")
    assert "NOT" not in good and bad.count("NOT reached") == 1  # the bias alone
    ranks = {
        (n, x, w, ""): one
        for n in (picture_training.FIRST, picture_training.CLOSER)
        for x in picture_training.ALIKE
        for w in ("network", "photometry")
    }
    assert (
        "fewer than by photometry alone: NOT reached"
        in picture_training.ranks_in_words(ranks, ["network"])[1]
    )


@pytest.mark.skipif(PAIRS is None, reason="needs the real pairs of ../shared/real_2")
def test_the_real_pairs_are_whole():
    pairs = real_pairs.read_pairs(PAIRS)
    assert len(pairs) == 10 and pairs.pictures.flux.shape == (10, 3, 96, 96)
    assert (
        len(set(pairs.pictures.names)) == 10
        and (pairs.pictures.z > 0.02).all()
        and (pairs.pictures.z < 0.15).all()
    )
    assert real_pairs.window_colors(pairs.flux, pairs.ivar).shape == (10, 3)
    magnitude = 22.5 - 2.5 * np.log10(aperture_fluxes(pairs.pictures.flux, 3)[:, 1])
    assert (magnitude > 17).all() and (magnitude < 19.5).all()
    with Image.open(
        PAIRS / f"{pairs.pictures.names[0]}.jpeg"
    ) as image:  # the quality that `as_pictures` takes
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=90)
        assert list(Image.open(io.BytesIO(file.getvalue())).quantization[0]) == list(image.quantization[0])


@pytest.mark.skipif(PAIRS is None, reason="needs the real pairs of ../shared/real_2")
def test_the_noise_of_the_viewer_is_what_the_slope_says():
    slopes = [
        pictures.noise_frequency(pictures.read_pixels(path)) / 0.1 for path in sorted(PAIRS.glob("*.jpeg"))
    ]
    assert np.median(slopes) == pytest.approx(pictures.NOISE_SLOPE, abs=0.01) and np.ptp(slopes) < 0.25


@pytest.mark.skipif(ZOO is None, reason="needs the pictures of ../shared/real_2")
def test_the_pictures_of_galaxy_zoo_have_redshifts_and_a_scale():
    found = real_pairs.read_zoo_with_redshifts(ZOO)
    assert len(found) == 74 and found.flux.shape == (74, 3, 64, 64) and np.isfinite(found.flux).all()
    assert (found.scale >= 0.1).all() and 0.13 < np.median(found.scale) < 0.2
    assert (found.z > 0.01).all() and (found.z < 0.15).all()


def test_torch_and_numpy_stretch_alike(images):
    import torch

    assert np.allclose(stretch(torch.from_numpy(images[:2])).numpy(), to_rgb(images[:2]), atol=1e-5)
