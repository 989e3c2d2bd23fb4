"The whole self-distillation step against the original, the statistics of its masks, and a run that is really killed."

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
import torch

from golden_files import golden_file

from astroclip.core.artifacts import resolve
from astroclip.core.profiles import key_settings
from astroclip.training.self_distillation import (
    ImageConfig,
    SelfDistillation,
    image_stream,
    make_views,
    pretrain_image,
    schedules,
)
from astroclip.training.loop import NonFiniteLoss, read_curves
from astroclip.losses.masked import batch_masks, block_mask

SMALL = ImageConfig(
    image_size=48,
    cutout=60,
    local_size=24,
    embed_dim=32,
    depth=2,
    num_heads=1,
    drop_path=0.25,
    n_prototypes=64,
    hidden_dim=64,
    bottleneck_dim=16,
    steps=14,
    batch_size=8,
    warmup=3,
    checkpoint_every=5,
)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    "Forty-eight images of noise with a bright spot."
    path = tmp_path_factory.mktemp("survey") / "survey.h5"
    rng = np.random.default_rng(0)
    y, x = np.indices((152, 152)) - 76
    spots = np.exp(-(x**2 + y**2) / 2 / rng.uniform(3, 12, (48, 1, 1, 1)) ** 2) * rng.uniform(
        0.1, 1, (48, 3, 1, 1)
    )
    with h5py.File(path, "w") as f:
        f["targetid"], f["redshift"], f["magnitude"] = np.arange(48), rng.random(48), np.full((48, 3), 17.0)
        f["image"] = (spots + 0.01 * rng.standard_normal((48, 3, 152, 152))).astype(np.float16)
    return path


def load_golden_step(balance):
    data = np.load(golden_file("ssl_step_io.npz"))
    g = {k: data[k] for k in data.files}
    c = json.loads(str(g["config_json"]))
    head = c["head"]
    model = SelfDistillation(
        ImageConfig(
            image_size=c["global_crops_size"],
            patch_size=c["patch_size"],
            embed_dim=c["embed_dim"],
            depth=c["depth"],
            num_heads=c["num_heads"],
            cutout=60,
            n_local=c["local_crops_number"],
            local_size=c["local_crops_size"],
            n_prototypes=head["out_dim"],
            hidden_dim=head["hidden_dim"],
            bottleneck_dim=head["bottleneck_dim"],
            balance=balance,
        )
    )
    for who in ("student", "teacher"):
        getattr(model, who).load_state_dict(
            {ours(k[8:]): torch.from_numpy(v) for k, v in g.items() if k.startswith(f"{who}.")}
        )
    return model, g


def ours(name):
    return re.sub(r"blocks\.\d+\.(\d+)", r"blocks.\1", name)


@pytest.mark.parametrize("balance", ["centering", "sinkhorn_knopp"])
def test_whole_step_golden(balance):
    model, g = load_golden_step(balance)
    for i in range(2):
        batch = [
            torch.from_numpy(g[f"batch_{i}_collated_{k}"]) for k in ("global_crops", "local_crops", "masks")
        ]
        model.zero_grad()
        loss, parts = model(*batch, float(g[f"batch_{i}_teacher_temp"]))
        loss.backward()
        logged = dict(
            total=loss,
            dino_local_crops_loss=parts["dino_local"],
            dino_global_crops_loss=parts["dino_global"],
            koleo_loss=parts["koleo"] / 2,
            ibot_loss=parts["ibot"] / 2,
        )  # the original logs half of these two
        for k, v in logged.items():
            assert v.item() == pytest.approx(float(g[f"{balance}_{i}_{k}"]), rel=1e-5, abs=1e-5)
        if balance == "centering":
            check_gradients_and_centers(model, g, i)


def check_gradients_and_centers(model, g, i):
    student = dict(model.student.named_parameters())
    assert {ours(str(n)) for n in g[f"grad_{i}_names"]} == set(student)
    for name, norm in zip(g[f"grad_{i}_names"], g[f"grad_{i}_norms"]):
        assert student[ours(str(name))].grad.norm().item() == pytest.approx(norm, rel=1e-4)
    for key in [k for k in g if k.startswith(f"grad_{i}.")]:
        np.testing.assert_allclose(student[ours(key[7:])].grad.numpy(), g[key], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.dino_center.numpy(), g[f"dino_center_after_{i}"], atol=1e-6)
    np.testing.assert_allclose(model.ibot_center.numpy(), g[f"ibot_center_after_{i}"][0], atol=1e-6)


def test_block_masks_have_the_original_statistics():
    g = np.load(golden_file("masking_stats.npz"))
    rng, n = np.random.default_rng(0), 1500
    for i, target in enumerate(g["targets"]):
        masks = np.array([block_mask((12, 12), int(target), rng) for _ in range(n)])
        counts = masks.sum((1, 2))
        error = np.hypot(g["count_mean_stderr"][i], counts.std() / n**0.5)
        assert abs(counts.mean() - g["count_mean"][i]) < 5 * error and counts.max() <= target
        p = g["heatmap"][i]
        assert (
            np.abs(masks.mean(0) - p) < 5 * np.sqrt(p * (1 - p) * (1 / n + 1 / g["n_draws"])) + 1e-3
        ).all()


def test_batch_masks_have_the_original_statistics():
    g = np.load(golden_file("masking_stats.npz"))
    rng = np.random.default_rng(1)
    counts = np.array([np.sort(batch_masks(64, (12, 12), rng).sum(1)) for _ in range(200)])
    assert ((counts > 0).sum(1) == int(g["collate_n_samples_masked"][0])).all()
    total = counts.sum(1)
    assert abs(total.mean() - g["collate_total_masked_mean"]) < 5 * total.std() * (2 / 200) ** 0.5
    np.testing.assert_allclose(counts.mean(0), g["collate_sorted_counts_mean"], atol=0.3)


def test_resume_equals_uninterrupted(survey, tmp_path):
    for record in pretrain_image(survey, SMALL, tmp_path / "killed", "cpu", every=1e9):
        if record["step"] == 7:
            break  # last checkpoint: after step 4
    for run in ("killed", "whole"):
        list(pretrain_image(survey, SMALL, tmp_path / run, "cpu", every=1e9))
    a, b = [
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["parts"]
        for run in ("killed", "whole")
    ]
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    curves = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_curves(tmp_path / run / "curves.csv")]
        for run in ("killed", "whole")
    ]
    assert curves[0] == curves[1] and [r["step"] for r in curves[0]] == list(range(14))


def test_pictures_are_off_by_default_and_change_no_other_crop(survey):
    images = next(image_stream(survey, SMALL))[1]
    off, on = (make_views(images, replace(SMALL, degrade=fraction), 3) for fraction in (0.0, 0.5))
    assert all(torch.equal(x, y) for x, y in zip(make_views(images, SMALL, 3), off))
    changed = (on[0] != off[0]).flatten(1).any(1)
    assert 0 < changed.sum() < 16 and torch.equal(changed[:8], changed[8:]) and torch.equal(on[2], off[2])
    assert all(torch.equal(x, y) for x, y in zip(on, make_views(images, replace(SMALL, degrade=0.5), 3)))
    with pytest.raises(ValueError, match="expected 0"):
        replace(SMALL, degrade=2.0)


def test_the_switch_is_in_the_key_only_where_it_is_on():
    usual = resolve("pretrain_image")
    assert usual.settings["degrade"] == 0.0 and ImageConfig(**usual.settings).degrade == 0.0
    assert resolve("pretrain_image", set="pretrain_image.degrade=0.0").key == usual.key
    assert resolve("pretrain_image", set="pretrain_image.degrade=0.5").key != usual.key
    assert "degrade" not in key_settings("pretrain_image", usual.settings)


def test_a_run_with_pictures_resumes_to_the_same_weights(survey, tmp_path):
    config, weights = replace(SMALL, degrade=0.5, steps=8, checkpoint_every=3), {}
    for record in pretrain_image(survey, config, tmp_path / "killed", "cpu", every=1e9):
        if record["step"] == 4:
            break  # last checkpoint: after step 2
    with pytest.raises(ValueError, match="degrade 0.5 -> 0.0"):
        list(pretrain_image(survey, replace(config, degrade=0.0), tmp_path / "killed", "cpu"))
    for run, c in (("killed", config), ("whole", config), ("flux", replace(config, degrade=0.0))):
        list(pretrain_image(survey, c, tmp_path / run, "cpu", every=1e9))
        weights[run] = (tmp_path / run / "vit" / "model.safetensors").read_bytes()
    assert weights["killed"] == weights["whole"] != weights["flux"]


RUN = """
import sys, torch
from astroclip.training.self_distillation import ImageConfig, pretrain_image
torch.set_num_threads(1)
for record in pretrain_image(sys.argv[1], ImageConfig(**eval(sys.argv[2])), sys.argv[3], "cpu", every=1e9): print(record["step"], flush=True)
"""


@pytest.mark.slow
def test_killed_process_resumes(survey, tmp_path):
    "SIGKILL in the middle, run again: the teacher's backbone is that of a run left alone, byte for byte."

    def command(run):
        return [
            sys.executable,
            "-c",
            RUN,
            str(survey),
            repr(asdict(replace(SMALL, steps=30))),
            str(tmp_path / run),
        ]

    process = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True)
    while int(process.stdout.readline()) < 12:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "vit").exists()
    for run in ("killed", "whole"):
        subprocess.run(command(run), check=True, stdout=subprocess.DEVNULL)
    weights = [(tmp_path / run / "vit" / "model.safetensors").read_bytes() for run in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_non_finite_loss_stops_before_the_weights_move(survey, tmp_path, monkeypatch):
    original = SelfDistillation.forward

    def poisoned(self, *views):
        loss, parts = original(self, *views)
        poisoned.calls += 1
        return (loss * float("nan"), parts) if poisoned.calls == 7 else (loss, parts)

    poisoned.calls = 0
    monkeypatch.setattr(SelfDistillation, "forward", poisoned)
    with pytest.raises(NonFiniteLoss, match="step 6") as error:
        list(pretrain_image(survey, SMALL, tmp_path, "cpu"))
    assert set(error.value.parts) == {"loss", "dino_global", "dino_local", "ibot", "koleo"}
    assert len(read_curves(tmp_path / "curves.csv")) == 6


def test_views_are_a_function_of_the_step(survey):
    images = next(image_stream(survey, SMALL))[1]
    a, b, c = [make_views(images, SMALL, step) for step in (3, 3, 4)]
    assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], c[0])
    assert a[0].shape == (16, 3, 48, 48) and 0 <= a[0].min() and a[0].max() <= 1


def test_learns_on_few_images(survey, tmp_path):
    config = replace(SMALL, steps=60, drop_path=0.0, koleo_weight=0.0)
    records = list(pretrain_image(survey, config, tmp_path, "cpu", every=1e9))
    assert np.mean([r["ibot"] for r in records[-10:]]) < np.mean([r["ibot"] for r in records[:10]]) - 0.1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_runs_on_cuda(survey, tmp_path):
    records = list(pretrain_image(survey, SMALL, tmp_path, "cuda", every=1e9))
    assert len(records) == 14 and np.isfinite([r["loss"] for r in records]).all()


def test_paper_settings_are_expressible():
    c = ImageConfig(
        image_size=144,
        cutout=152,
        local_size=60,
        n_local=8,
        embed_dim=1024,
        depth=24,
        num_heads=16,
        layer_scale=1e-5,
        drop_path=0.3,
        n_prototypes=65536,
        hidden_dim=2048,
        bottleneck_dim=256,
        balance="centering",
        teacher_temp=(0.04, 0.07),
        teacher_temp_warmup=37500,
        steps=250_000,
        batch_size=72,
        weight_decay=(1e-3, 1e-2),
        momentum=(0.992, 1.0),
        layer_decay=0.9,
        patch_embed_lr=0.2,
        warmup=40_000,
        freeze_last_layer=1250,
    )
    assert schedules(0, c)["temperature"] == 0.04 and schedules(37499, c)["temperature"] == pytest.approx(
        0.07
    )
    assert schedules(1249, c)["last_layer_lr"] == 0.0
