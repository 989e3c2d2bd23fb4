"Schedules, groups, masks of the released code to their last digit, and the pieces of the loop under faults."

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from golden_files import golden_file

from astroclip.training.loop import (
    Curves,
    NonFiniteLoss,
    Progress,
    autocast,
    check_finite,
    clip_gradients,
    has_bf16,
    load_checkpoint,
    read_curves,
    save_checkpoint,
)
from astroclip.training.schedules import (
    cosine_schedule,
    lr_multiplier,
    parameter_groups,
    scaled_lr,
    set_schedule,
    warmup_cosine,
    wd_multiplier,
)


@pytest.fixture(scope="module")
def golden():
    return np.load(golden_file("training_math.npz"))


def same(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("i", range(4))
def test_cosine_golden(golden, i):
    k = json.loads(str(golden[f"cosine_{i}_kwargs_json"]))
    expected = golden[f"cosine_{i}_values"]
    same(
        [
            cosine_schedule(
                t,
                k["base_value"],
                k["final_value"],
                k["total_iters"],
                k.get("warmup_iters", 0),
                k.get("start_warmup_value", 0),
                k.get("freeze_iters", 0),
            )
            for t in range(len(expected))
        ],
        expected,
    )


def test_published_schedules_golden(golden):
    steps, epoch, base = 250_000, 1250, scaled_lr(2e-4, 72 * 20)
    same(base, golden["official_base_lr_20gpu"])
    curves = dict(
        lr=lambda t: cosine_schedule(t, base, 1e-6, steps, 32 * epoch),
        wd=lambda t: cosine_schedule(t, 1e-3, 1e-2, steps),
        momentum=lambda t: cosine_schedule(t, 0.992, 1, steps),
        teacher_temp=lambda t: cosine_schedule(t, 0.07, 0.07, 30 * epoch, 30 * epoch, 0.04),
        last_layer_lr=lambda t: 0.0 if t < epoch else cosine_schedule(t, base, 1e-6, steps, 32 * epoch),
    )
    for name, curve in curves.items():
        same([curve(int(t)) for t in golden["official_iterations"]], golden[f"official_{name}"])


def test_contrastive_schedule_golden(golden):
    k = json.loads(str(golden["clip_lr_kwargs_json"]))
    same(
        [warmup_cosine(t, k["base_lr"], k["T_warmup"], k["T_max"], k["eta_min"]) for t in range(110)],
        golden["clip_lr_values"],
    )


@pytest.mark.parametrize("m", ["vit", "head", "vit_b"])
def test_parameter_groups_golden(golden, m):
    k = json.loads(str(golden[f"groups_{m}_settings_json"]))
    decay, patch = k["layerwise_decay"], k["patch_embed_lr_mult"]
    names = [str(n) for n in golden[f"groups_{m}_name"]]
    depth = k["depth"] if m != "head" else 0
    same([lr_multiplier(n, depth, decay, patch) for n in names], golden[f"groups_{m}_lr_multiplier"])
    assert [wd_multiplier(n) for n in names] == golden[f"groups_{m}_wd_multiplier"].tolist()
    triples = {(lr_multiplier(n, depth, decay, patch), wd_multiplier(n), "last_layer" in n) for n in names}
    assert len(triples) == int(golden[f"groups_{m}_n_fused"])
    ours = [re.sub(r"blocks\.\d+\.(\d+)", r"blocks.\1", n) for n in names]  # our names have no chunks
    same([lr_multiplier(n, depth, decay, patch) for n in ours], golden[f"groups_{m}_lr_multiplier"])


def test_frozen_parameters_get_no_group():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(net)) == 1


def test_set_schedule_without_multipliers():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), weight_decay=0.3)
    set_schedule(optimizer, lr=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["weight_decay"] == 0.3


def small_run(folder, stop, config=None):
    torch.manual_seed(0)
    np.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    parts = dict(model=model, optimizer=optimizer)
    start = load_checkpoint(folder / "checkpoint.pt", parts, config)
    with Curves(folder / "curves.csv", start) as curves:
        for step in range(start, stop):
            x = torch.randn(8, 4) + float(np.random.rand())
            with autocast("cpu"):
                loss = model(x).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(model.parameters(), 1.0)
            optimizer.step()
            curves.write(dict(step=step, loss=loss.item()))
            if (step + 1) % 5 == 0:
                save_checkpoint(folder / "checkpoint.pt", step + 1, parts, config)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_resume_is_bit_for_bit(tmp_path):
    small_run(tmp_path / "killed", 13)  # last checkpoint at 10: rows 10, 11, 12 of the curve are beyond it
    assert torch.equal(small_run(tmp_path / "killed", 20), small_run(tmp_path / "whole", 20))
    assert (tmp_path / "killed" / "curves.csv").read_text() == (tmp_path / "whole" / "curves.csv").read_text()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    small_run(tmp_path, 5, config=dict(lr=1, width=16))
    with pytest.raises(ValueError, match="lr 1 -> 2"):
        small_run(tmp_path, 10, config=dict(lr=2, width=16))


def test_kill_while_saving_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "c.pt", 1, dict(model=model))

    def full_disk(obj, path, *a, **k):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "c.pt", 2, dict(model=model))
    assert load_checkpoint(tmp_path / "c.pt", dict(model=model)) == 1


def test_checkpoint_is_read_without_running_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save(dict(step=1, parts={}, config=None, rng=Hostile()), tmp_path / "c.pt")
    with pytest.raises(Exception, match="(?i)weights"):
        load_checkpoint(tmp_path / "c.pt", {})


def test_half_written_last_row_is_dropped(tmp_path):
    with Curves(tmp_path / "c.csv") as curves:
        for step in range(3):
            curves.write(dict(step=step, loss=step / 2, val=None))
    with open(tmp_path / "c.csv", "a") as f:
        f.write("3,0.")
    assert [r["step"] for r in read_curves(tmp_path / "c.csv")] == [0, 1, 2]
    with Curves(tmp_path / "c.csv", step=3) as curves:
        curves.write(dict(step=3, loss=9.0, val=1.0))
    assert read_curves(tmp_path / "c.csv")[-1] == dict(step=3, loss=9, val=1)


def test_non_finite_loss_names_step_and_parts():
    with pytest.raises(NonFiniteLoss, match=r"step 17 \(loss nan, ibot inf\)") as error:
        check_finite(17, dict(loss=torch.tensor(float("nan")), ibot=float("inf")))
    assert error.value.step == 17 and set(error.value.parts) == {"loss", "ibot"}


def test_progress_prints_rarely(capsys):
    progress = Progress(1000, every=3600)
    for step in range(1000):
        progress.update(step, 1.0, samples=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("step 1000/1000") and lines[0].endswith("0:00 left")


def test_bf16_is_asked_of_the_hardware():
    assert has_bf16("cpu") in (True, False)
    with autocast("cpu", enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
