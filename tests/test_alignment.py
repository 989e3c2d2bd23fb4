"""Alignment: what trains and what does not, views, selection, resumption, several processes."""

import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path
from astroclip.losses.contrastive import clip_loss, gather_rows
from astroclip.models.astroclip import AstroCLIP
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer
from astroclip.training.alignment import (
    Alignment,
    align,
    batch_rows,
    embed_pairs,
    load_pairs,
    oriented_crops,
    validation_scores,
)
from astroclip.training.loop import Best

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN = Alignment(steps=6, batch_size=16, warmup=1, validate_every=3, checkpoint_every=2)
TUNED = Alignment(
    steps=4,
    batch_size=8,
    warmup=1,
    validate_every=2,
    checkpoint_every=2,
    train_image_tower=True,
    place_weight=1.0,
)


def new_model(place=4):
    torch.manual_seed(0)
    return AstroCLIP(
        VisionTransformer(48, 12, 16, 1, 1),
        SpecFormer(80, 40, 16, 1, 1, place=place),
        embed_dim=8,
        num_heads=2,
    )


@pytest.fixture(scope="module")
def frozen_pairs():
    return load_pairs(sample_path(), new_model(), FROZEN)


@pytest.fixture(scope="module")
def tuned_pairs():
    return load_pairs(sample_path(), new_model(), TUNED)


def changed(model):
    before = new_model().state_dict()
    return {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}


def test_frozen_towers_stay_and_heads_move(frozen_pairs):
    model = new_model()
    list(align(model, frozen_pairs, FROZEN))
    assert changed(model) and all(".head." in name for name in changed(model))


def test_trained_image_tower_moves_and_spectrum_tower_stays(tuned_pairs):
    model = new_model()
    records = list(align(model, tuned_pairs, TUNED))
    names = changed(model)
    assert any(n.startswith("image_encoder.backbone") for n in names) and not any(
        n.startswith("spectrum_encoder.backbone") for n in names
    )
    assert np.isfinite(records[-1]["place"])


@pytest.mark.parametrize("kind", ["frozen", "tuned"])
def test_resume_equals_uninterrupted(kind, tmp_path, request):
    config, pairs = (FROZEN, TUNED)[kind == "tuned"], request.getfixturevalue(f"{kind}_pairs")
    whole, killed, resumed = new_model(), new_model(), new_model()
    list(align(whole, pairs, config))
    for record in align(killed, pairs, config, tmp_path / "c.pt"):
        if record["step"] == 2:
            break
    assert next(iter(align(new_model(), pairs, config, tmp_path / "c.pt")))["step"] == 2
    list(align(resumed, pairs, config, tmp_path / "c.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_the_best_validation_is_what_is_kept(frozen_pairs):
    model = new_model()
    records = list(
        align(model, frozen_pairs, Alignment(steps=12, batch_size=16, warmup=1, validate_every=2, lr=3e-2))
    )
    losses = [r["val_loss"] for r in records if r["val_loss"] is not None]
    assert abs(validation_scores(model, frozen_pairs["validation"], FROZEN)[0] - min(losses)) < 1e-4


def test_best_goes_through_a_checkpoint():
    module = torch.nn.Linear(2, 2)
    best = Best(module)
    best.update(1.0, 3)
    kept = module.weight.clone()
    with torch.no_grad():
        module.weight.zero_()
    best.update(2.0, 4)
    again = Best(module)
    again.load_state_dict(best.state_dict())
    again.restore()
    assert torch.equal(module.weight, kept) and again.step == 3


def test_epochs_meet_everybody_once():
    rows = torch.cat([batch_rows(step, 20, 5, 0) for step in range(4)])
    assert sorted(rows.tolist()) == list(range(20)) and batch_rows(4, 20, 5, 0).tolist() != rows[:5].tolist()
    assert len(batch_rows(0, 3, 64, 0)) == 3  # fewer pairs than a batch


def test_views_are_crops_in_eight_orientations():
    image = torch.arange(3 * 10 * 10.0).view(1, 3, 10, 10)
    views = oriented_crops(image.repeat(300, 1, 1, 1), 8, torch.Generator().manual_seed(0))
    allowed = {
        f.contiguous().numpy().tobytes()
        for y in range(3)
        for x in range(3)
        for t in (0, 1)
        for d in ((), (2,), (3,), (2, 3))
        for f in [(lambda c: (c.transpose(2, 3) if t else c).flip(d))(image[:, :, y : y + 8, x : x + 8])]
    }
    seen = {v[None].contiguous().numpy().tobytes() for v in views}
    assert seen <= allowed and len(seen) > 60  # 9 places x 8 orientations


def test_place_needs_a_finder():
    with pytest.raises(ValueError, match="place_weight"):
        load_pairs(sample_path(), new_model(place=0), TUNED)


def test_memory_layout_of_pairs(frozen_pairs, tuned_pairs):
    assert frozen_pairs["train"].images.dtype == torch.bfloat16 and frozen_pairs["train"].images.shape[
        1:
    ] == (17, 16)
    assert tuned_pairs["train"].images.shape[1:] == (3, 56, 56) and tuned_pairs["validation"].images.shape[
        1:
    ] == (3, 48, 48)
    assert frozen_pairs["train"].spectra.shape[1:] == (194, 16)


def _process(rank, store, images, spectra, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    u, v = images[4 * rank : 4 * rank + 4].clone().requires_grad_(), spectra[4 * rank : 4 * rank + 4]
    loss = clip_loss(u, v, gather=gather_rows)
    loss.backward()
    results[rank] = (loss.item(), u.grad)
    torch.distributed.destroy_process_group()


def test_two_processes_contrast_with_all(tmp_path):
    torch.manual_seed(0)
    images, spectra = torch.randn(8, 5), torch.randn(8, 5)
    results = torch.multiprocessing.Manager().dict()
    torch.multiprocessing.spawn(_process, (str(tmp_path / "store"), images, spectra, results), nprocs=2)
    whole = clip_loss(images, spectra)
    assert abs(np.mean([results[r][0] for r in (0, 1)]) - float(whole)) < 1e-4


def test_embedding_does_not_depend_on_the_batch(frozen_pairs):
    model, pairs = new_model().eval(), frozen_pairs["train"]
    with torch.no_grad():
        together = embed_pairs(model, pairs.images[:6].float(), pairs.spectra[:6].float(), False)
        alone = embed_pairs(model, pairs.images[2:3].float(), pairs.spectra[2:3].float(), False)
    for a, b in zip(together, alone):
        assert torch.allclose(a[2:3], b, atol=1e-5)
