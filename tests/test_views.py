"""Views of a spectrum keep its lines, the place is carried into the vector as it is, and what is off changes nothing."""

import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path
from astroclip.data.spectrum_augment import Degrade, degrade, random_curves
from astroclip.data.spectrum_grid import WAVELENGTH, fill_missing
from astroclip.evaluation.embeddings import towers
from astroclip.models.astroclip import PERIOD, AstroCLIP, PlacedHead, told
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer
from astroclip.sky.remedy_study import one_remedy, recentred, remedies
from astroclip.surveys.pairs import Survey
from astroclip.training.alignment import Alignment, Pairs, align, load_pairs, spectrum_tokens
from astroclip.training.pair_views import VIEW, one_of, some_views, spectrum_view


def small(carry=2.0, place=8):
    torch.manual_seed(0)
    vit = VisionTransformer(48, 12, 32, 1, 2)
    return AstroCLIP(
        vit, SpecFormer(80, 40, 32, 1, 2, place=place), embed_dim=16, num_heads=2, carry=carry
    ).eval()


@pytest.fixture(scope="module")
def flux():
    survey, rows = Survey(sample_path()), np.arange(6)
    return torch.from_numpy(fill_missing(survey.flux(rows), survey.ivar(rows))[0])


def test_curves_have_the_spread_that_is_asked_for_and_are_smooth():
    c = random_curves(3000, 400, 0.2, torch.Generator().manual_seed(0)).log()
    assert abs(c.std(1).square().mean().sqrt() - 0.2) < 0.005
    assert c.diff(dim=1).abs().max() < 0.06  # twelve pixels of 400 are the least distance of two turns


def test_without_curves_no_random_number_is_drawn_for_them():
    x, good = torch.rand(4, 900) + 1, torch.ones(4, 900, dtype=torch.bool)
    one, other = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    a, _ = degrade(x, good, one, Degrade())
    b, _ = degrade(x, good, other, Degrade(curve=0.3))
    assert not torch.equal(a, b)
    assert not torch.equal(one.get_state(), other.get_state())
    fewer = torch.Generator().manual_seed(5)
    for draw in ("randn", "randn", "rand", "rand"):
        getattr(torch, draw)(4, 1, generator=fewer)
    torch.randn(4, 900, generator=fewer)
    for _ in range(2):
        torch.rand(4, 1, generator=fewer)
    assert torch.equal(one.get_state(), fewer.get_state())


def test_a_view_keeps_a_line_where_it_is():
    flux = 5 + 80 * torch.exp(-0.5 * ((torch.from_numpy(WAVELENGTH) - 6000) / 3) ** 2).float()
    flux = flux + 0.01 * torch.randn(7781, generator=torch.Generator().manual_seed(2))
    views = spectrum_view(flux.repeat(200, 1), torch.Generator().manual_seed(0))
    assert (views.argmax(1) - flux.argmax()).abs().max() <= 3
    levels = views[:, 1500:2500].mean(1) / views[:, 4500:5500].mean(1)
    assert levels.log().std() > 0.05  # and the continuum has another shape in each
    ends = [(v[:300] == v[0]).all() for v in views]
    assert 0.1 < np.mean(ends) < 0.95  # some begin later
    assert VIEW.cut * 7781 > 1000


def test_a_view_of_a_bad_spectrum_is_finite():
    assert torch.isfinite(spectrum_view(torch.zeros(2, 7781), torch.Generator().manual_seed(0))).all()
    assert some_views(torch.ones(2, 7781), 0.0, None) is not None


def test_the_place_is_added_as_it_is(flux):
    model = small()
    encoder = model.spectrum_encoder
    kept = int(told(encoder.backbone).sum())
    assert kept == 2 * int((encoder.backbone.finder.periods > PERIOD).sum()) and 0 < kept < 16
    with torch.inference_mode():
        tokens = encoder.tokens(flux)
        assert tokens.shape == (6, encoder.backbone.num_tokens + 1, 32)
        place = tokens[:, -1, :kept]
        assert torch.allclose(
            place[:, : kept // 2] ** 2 + place[:, kept // 2 :] ** 2 <= 1.001, torch.tensor(True)
        )
        nowhere = torch.cat([tokens[:, :-1], torch.zeros_like(tokens[:, -1:])], 1)
        moved = encoder.head(tokens) - encoder.head(nowhere)
        assert torch.allclose(moved, place @ encoder.head.carry.weight.T, atol=1e-5)


def test_a_model_with_the_place_is_saved_and_read(flux, tmp_path):
    model = small()
    model.save_pretrained(tmp_path / "model")
    again = AstroCLIP.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(again.spectrum_encoder.head, PlacedHead) and again.config["carry"] == 2.0
    assert np.allclose(again.embed_spectra(flux), model.embed_spectra(flux), atol=1e-6)
    assert "carry" not in small(carry=0.0).config


def test_all_ways_to_an_embedding_agree(flux):
    model = small()
    direct = model.embed_spectra(flux)
    survey = Survey(sample_path())
    batch = dict(flux=flux, image=survey.images(np.arange(6)))
    with torch.inference_mode():
        assert np.allclose(towers(model)(batch)["spectrum"], direct, atol=1e-5)
        tokens, _ = spectrum_tokens(model.spectrum_encoder, flux, 0.1)
        kept = model.spectrum_encoder.head(tokens.float()).numpy()
    assert np.abs(kept - direct).max() < 0.1 * np.abs(direct).max()  # kept in bfloat16
    assert np.allclose(model.spectrum_attention(flux).sum(-1), 1, atol=1e-5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="needs a spectrum tower with a finder"):
        small(place=0)
    with pytest.raises(ValueError, match="does not fit into a token"):
        PlacedHead(8, 16, 2, True, 0.0, place=12, gain=1.0)
    with pytest.raises(ValueError, match="asks for views"):
        load_pairs(sample_path(), small(), Alignment(consistency=1.0))


def test_a_batch_shows_each_view_equally_often():
    first, views = torch.zeros(900, 1), [torch.ones(900, 1), torch.full((900, 1), 2.0)]
    taken = one_of(first, views, torch.arange(900), 0, "view", 3)
    assert all(abs((taken == k).float().mean() - 1 / 3) < 0.06 for k in range(3))
    assert torch.equal(one_of(first, [], torch.arange(900), 0), first)


def test_without_views_a_step_is_as_before(flux):
    "One alignment with views that are the spectra themselves loses as much as one without."
    losses = []
    for views in (0, 1):
        model, config = small(), Alignment(steps=3, batch_size=8, warmup=1, validate_every=3)
        pairs = load_pairs(sample_path(), model, config)
        if views:
            pairs["train"].spectrum_views.append(pairs["train"].spectra)
        losses.append([record["loss"] for record in align(model, pairs, config)])
    assert losses[0] == losses[1]


def test_a_remedy_sees_what_its_settings_say():
    pairs = Pairs(torch.zeros(3, 2), torch.zeros(3, 6, 4), None, [], [torch.ones(3, 6, 4)] * 3)
    for remedy in remedies().values():
        seen = one_remedy(pairs, remedy)
        assert seen.spectra.shape[1] == (6 if remedy["carry"] else 5)
        assert len(seen.spectrum_views) == remedy["views"]
        assert all(x.shape == seen.spectra.shape for x in seen.spectrum_views)


def test_recentring_undoes_another_survey_of_the_same_galaxies():
    bank = np.random.default_rng(0).normal(2, 3, (400, 5))
    assert np.allclose(recentred(4 * bank - 7, bank), bank)
