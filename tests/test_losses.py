"Losses against the numbers of the original implementation, and the gather over two processes."

import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from golden_files import golden_file

from astroclip.losses.contrastive import clip_loss, contrastive_logits, gather_rows
from astroclip.losses.masked import chunk_mask, masked_spectrum_loss
from astroclip.losses.selfdistill import (
    DINOHead,
    center_probs,
    dino_loss,
    ibot_loss,
    koleo_loss,
    mask_weights,
    sinkhorn_knopp,
    update_center,
)
from astroclip.training.loop import update_average


def golden(name):
    data = np.load(golden_file(f"{name}.npz"))
    return {k: torch.from_numpy(data[k]) if data[k].dtype.kind in "fib" else data[k] for k in data.files}


def close(value, expected, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(value).double(), torch.as_tensor(expected).double(), rtol=rtol, atol=atol
    )


def test_clip_loss_golden():
    g = golden("astroclip_io")
    u, v = g["image_embeddings"], g["spectrum_embeddings"]
    close(contrastive_logits(u, v), g["logits_per_image"])
    close(clip_loss(u, v), g["clip_loss"])
    close(clip_loss(v, u), g["clip_loss_swapped_arguments"])
    close(clip_loss(u, v.roll(1, 0)), g["clip_loss_rolled_pairs"])
    close(clip_loss(u, v, logit_scale=1.0), g["clip_loss_scale_1"])
    close(clip_loss(g["small_norm_a"], g["small_norm_b"]), g["small_norm_loss"])
    close(contrastive_logits(g["small_norm_a"], g["small_norm_b"]), g["small_norm_logits"])


def test_clip_loss_is_float32_under_autocast():
    u, v = torch.randn(32, 16), torch.randn(32, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clip_loss(u, v)
    assert inside.dtype == torch.float32
    close(inside, clip_loss(u, v), atol=1e-6)


def gather_worker(rank, path, queue):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    u, v, w = gather_problem()
    mine = slice(4 * rank, 4 * rank + 4)
    loss = clip_loss(u[mine] @ w, v[mine], gather=gather_rows)
    loss.backward()
    dist.all_reduce(w.grad)
    queue.put((loss.item(), (w.grad / 2).tolist()))
    dist.barrier()
    dist.destroy_process_group()


def gather_problem():
    torch.manual_seed(0)
    return torch.randn(8, 5), torch.randn(8, 5), torch.randn(5, 5).requires_grad_()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.start_processes(gather_worker, (str(tmp_path / "meet"), queue), nprocs=2, start_method="spawn")
    u, v, w = gather_problem()
    whole = clip_loss(u @ w, v)
    whole.backward()
    for loss, gradient in (queue.get(), queue.get()):
        close(loss, whole.item())
        close(torch.tensor(gradient), w.grad)


@pytest.mark.parametrize("i", range(3))
def test_dino_golden(i):
    g = golden("losses_io")
    T, center = float(g[f"dino_teacher_temp_{i}"]), g[f"dino_center_used_{i}"]
    teacher = center_probs(g[f"dino_teacher_{i}"], center, T)
    close(teacher, g[f"dino_teacher_probs_{i}"])
    local = g[f"dino_student_local_{i}"].view(8, 6, 32)
    close(dino_loss(local, teacher.view(2, 6, 32)), g[f"dino_loss_local_{i}"])
    close(dino_loss(g[f"dino_student_global_{i}"][None], teacher[None]), g[f"dino_loss_global_{i}"])
    if i < 2:
        close(update_center(center, g[f"dino_teacher_{i}"]), g[f"dino_center_used_{i + 1}"])


@pytest.mark.parametrize("i", range(3))
def test_ibot_golden(i):
    g = golden("losses_io")
    T, center = float(g[f"ibot_teacher_temp_{i}"]), g[f"ibot_center_used_{i}"][0]
    teacher = center_probs(g[f"ibot_teacher_{i}"], center, T)
    close(teacher, g[f"ibot_teacher_probs_{i}"].view_as(teacher))
    masks = g[f"ibot_mask_{i}"]
    close(mask_weights(masks), g[f"ibot_masks_weight_{i}"])
    close(ibot_loss(g[f"ibot_student_{i}"], teacher, masks), g[f"ibot_loss_{i}"])
    if i < 2:
        close(update_center(center, g[f"ibot_teacher_{i}"]), g[f"ibot_center_used_{i + 1}"][0])


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_sinkhorn_golden(name):
    g = golden("losses_io")
    close(sinkhorn_knopp(g[f"{name}_sinkhorn_input"], 0.07), g[f"{name}_sinkhorn_probs"])


def test_koleo_golden():
    g = golden("losses_io")
    close(koleo_loss(g["koleo_input"]), g["koleo_loss"])
    close(koleo_loss(g["koleo_input_duplicate"]), g["koleo_loss_duplicate"], atol=1e-4, rtol=1e-4)


def test_head_golden():
    g = golden("losses_io")
    c = json.loads(str(g["head_config_json"]))
    head = DINOHead(c["in_dim"], c["out_dim"], c["hidden_dim"], c["bottleneck_dim"], c["nlayers"])
    head.load_state_dict(
        {k.removeprefix("head_weight."): v for k, v in g.items() if k.startswith("head_weight.")}
    )
    close(head(g["head_input"]), g["head_output"])


def test_average_golden():
    g = golden("losses_io")
    teacher, student = [torch.nn.ParameterList([g[f"ema_{k}"].clone()]) for k in ("teacher", "student")]
    update_average(teacher, student, float(g["ema_momentum"]))
    close(teacher[0].detach(), g["ema_result"])


def test_masked_loss_golden():
    g = golden("specformer_io")
    tokens, changed = g["preprocessed"], g["masked_tokens"].bool()
    assert int((changed[..., None] & (tokens != 0)).sum()) == int(g["masked_loss_n_elements"])
    from astroclip.models.specformer import SpecFormer  # the network that made the golden loss

    model = SpecFormer.from_pretrained(golden_file("specformer.ckpt"), device="cpu").eval()
    with torch.no_grad():
        prediction = model.head(model.forward_tokens(g["masked_input"]))
    close(masked_spectrum_loss(prediction, tokens, changed), g["masked_loss"])


def test_chunk_mask_hides_the_same_share_everywhere():
    mask = chunk_mask(4000, 778, 6, 50, torch.Generator().manual_seed(1))
    assert (mask.sum(1) == 300).all() and not mask[:, 0].any()
    assert (
        (mask[:, 1:].any(0)).sum() > 770 and mask[:, 1].any() and mask[:, -1].any()
    )  # every part of the spectrum is hidden somewhere


def test_losses_at_initialisation():
    uniform = torch.full((2, 8, 1024), 1 / 1024)
    close(dino_loss(torch.zeros(1, 8, 1024), uniform[:1]), math.log(1024))
    close(clip_loss(torch.ones(128, 4), torch.ones(128, 4)), math.log(128))
