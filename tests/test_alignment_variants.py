"""Ablations: what a variant changes and what it leaves alone, the grouped loss and the learnt scale, differences over seeds."""
import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path
from astroclip.surveys.pairs import Survey
from astroclip.metrics.bootstrap import draw_counts, mean_draws, over_seeds, r2_draws, verdict
from astroclip.search.ranks import contrast_scores
from astroclip.losses.contrastive import LogitScale, clip_loss
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer
from astroclip.training.alignment import Alignment, align, read_images, read_spectra
from astroclip.training.alignment_variants import Variant, embed_all, mean_statistics, variant_model, variant_pairs

BASE = Alignment(steps=4, batch_size=16, warmup=1, validate_every=2, checkpoint_every=2, place_weight=1.0)


@pytest.fixture(scope="module")
def survey():
    torch.manual_seed(0)
    rows, s = {"train": np.arange(40), "validation": np.arange(40, 56)}, Survey(sample_path())
    pixels, spectra = ({k: read(s, r) for k, r in rows.items()} for read in (lambda s, r: read_images(s, r, 56), read_spectra))
    vit = VisionTransformer(48, 12, 16, 1, 1, photometry=True, layer_scale=1.0)
    torch.nn.init.normal_(vit.pos_embed)   # at the start positions hardly matter
    return dict(vit=vit, specformer=SpecFormer(80, 40, 16, 1, 1, place=4), pixels=pixels, spectra=spectra, statistics=mean_statistics(spectra["train"]))


def build(s, seed=0, **change):
    return variant_model(Variant(**change), s["vit"], s["specformer"], s["statistics"], seed, embed_dim=8, num_heads=2)


def train(s, kept=None, seed=0, **change):
    variant = Variant(**change)
    model, config = build(s, seed, **change), variant.alignment(BASE)
    pairs = variant_pairs(model, variant, config, s["pixels"], s["spectra"], seed, kept)
    return model, pairs, list(align(model, pairs, config))


def test_groups_do_not_see_each_other():
    torch.manual_seed(1)
    u, v = torch.randn(12, 5), torch.randn(12, 5)
    parts = [clip_loss(u[i : i + 4], v[i : i + 4]) for i in (0, 4, 8)]
    assert torch.allclose(clip_loss(u, v, groups=3), sum(parts) / 3)
    assert clip_loss(u, v, groups=3) < clip_loss(u, v)
    with pytest.raises(ValueError, match="equal groups"):
        clip_loss(u, v, groups=5)


def test_learnt_scale_moves_resumes_and_is_capped(survey, tmp_path):
    assert LogitScale(1e6)().item() == 100 and LogitScale(15.5)().item() == pytest.approx(15.5)
    variant = Variant(learn_scale=True)
    config, whole, killed = variant.alignment(BASE), build(survey), build(survey)
    pairs = variant_pairs(whole, variant, config, survey["pixels"], survey["spectra"])
    list(align(whole, pairs, config))
    run = align(killed, pairs, config, tmp_path / "c.pt")
    for _ in range(3):
        next(run)
    run.close()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["parts"]["scale"]["log_scale"].exp().item() != pytest.approx(15.5, abs=1e-3)
    resumed = build(survey)
    list(align(resumed, pairs, config, tmp_path / "c.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def shuffled(x):
    "Patches of 12 pixels in another order."
    patches = x.unfold(2, 12, 12).unfold(3, 12, 12).flatten(2, 3)[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    return patches.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


def test_without_positions_and_class_token_an_image_is_a_bag_of_patches(survey):
    x = survey["pixels"]["validation"][:4, :, 4:52, 4:52].float()
    for change, same in ((dict(positions=False, class_token=False), True), (dict(), False)):
        encoder = build(survey, **change).image_encoder.eval()
        with torch.no_grad():
            difference = (encoder(x) - encoder(shuffled(x))).abs().max().item()
        assert (difference < 1e-4) == same, (change, difference)


def test_a_variant_leaves_the_towers_of_the_others_alone(survey):
    before = {k: v.clone() for k, v in (survey["vit"].state_dict() | survey["specformer"].state_dict()).items()}
    for change in (dict(photometry=False), dict(brightness=False), dict(train_tower=True), dict(image_tower="random")):
        train(survey, **change)
    after = survey["vit"].state_dict() | survey["specformer"].state_dict()
    assert survey["vit"].photometry is not None and all(torch.equal(before[k], after[k]) for k in before)


def test_tokens_are_shared_between_variants_that_see_the_same(survey):
    kept = {}
    _, first, _ = train(survey, kept)
    _, second, _ = train(survey, kept, seed=1, logit_scale=5.0)
    assert first["train"].images is second["train"].images and first["train"].spectra is second["train"].spectra
    _, third, _ = train(survey, kept, image_tower="random")
    _, fourth, _ = train(survey, kept, seed=1, image_tower="random")
    assert not torch.equal(third["train"].images, fourth["train"].images) and third["train"].spectra is first["train"].spectra


def test_fewer_pairs_are_part_of_more_pairs(survey):
    few, more = (train(survey, n_pairs=n)[1]["train"].spectra for n in (10, 20))
    assert len(few) == 10 and torch.equal(few, more[:10])
    with pytest.raises(ValueError, match="there are 40 training pairs"):
        train(survey, n_pairs=41)


@pytest.mark.parametrize("heads", ["shared", "image", "spectrum", "none"])
def test_heads_train_and_embed(survey, heads):
    model, pairs, records = train(survey, heads=heads)
    image, spectrum = embed_all(model, pairs["validation"], False)
    assert image.shape == spectrum.shape == (16, 8) and np.isfinite(image).all() and np.isfinite(records[-1]["loss"])
    assert (model.image_encoder.head is model.spectrum_encoder.head) == (heads == "shared")


def test_a_shared_head_needs_towers_of_one_width(survey):
    with pytest.raises(ValueError, match="one width"):
        build(survey | dict(specformer=SpecFormer(80, 40, 32, 1, 1)), heads="shared")


@pytest.mark.parametrize("change", [dict(heads="three"), dict(image_tower="mine"), dict(class_token=False, photometry=False)])
def test_variants_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError):
        Variant(**change)


def test_equal_runs_differ_by_nothing_and_seeds_widen():
    counts = draw_counts(50, 200)
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    runs = np.stack([r2_draws(y + rng.normal(size=50), y, counts) for _ in range(3)])
    nothing = over_seeds(runs - runs)
    assert nothing["value"] == nothing["low"] == nothing["high"] == 0 and verdict(nothing["low"], nothing["high"]) == "level"
    one, three = over_seeds(runs[:1]), over_seeds(runs)
    assert np.isnan(one["spread"]) and three["spread"] == pytest.approx(runs[:, 0].std(ddof=1))
    still = over_seeds(np.repeat([[0.0], [1.0], [2.0]], 5001, 1))   # seeds scatter, galaxies do not: Student's interval
    half = 4.303 * 1 / 3**0.5
    assert still["value"] == 1 and still["high"] - still["low"] == pytest.approx(2 * half, rel=0.15)


def test_draws_of_a_mean_and_of_r2_by_hand():
    counts = np.array([[1, 1, 1], [2, 0, 1]], np.float32)
    assert mean_draws([3.0, 6.0, 0.0], counts) == pytest.approx([3.0, 2.0])
    y, guess = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0])
    assert r2_draws(guess, y, counts) == pytest.approx([1 - 1 / 2, 1 - 1 / (8 / 3)])


def test_contrast_scores_do_not_depend_on_lengths_and_know_chance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    a, b = contrast_scores(x, x + 0.5 * rng.normal(size=x.shape)), contrast_scores(3 * x, x)
    assert b["found_image"].all() and b["found_spectrum"].all() and b["loss"].mean() < a["loss"].mean() < np.log(100)
    assert contrast_scores(x, rng.normal(size=x.shape))["found_spectrum"].mean() < 0.3
