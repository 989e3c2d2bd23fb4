"""The committed golden vectors: of the original implementation where they are small, of this package's networks elsewhere."""

import json

import numpy as np
import pytest
import torch
from golden_files import COMMITTED, network_outputs, noise, whole_set

from astroclip.data.images import center_crop, to_rgb
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import resize_positions

NOISE = [-0.32366681, 0.71735293, -0.76308072, 0.43470588]


def committed(name):
    return dict(np.load(COMMITTED / f"{name}.npz"))


def close(found, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


def test_they_are_small():
    assert sum(p.stat().st_size for p in COMMITTED.iterdir()) < 600_000
    readme = (COMMITTED / "README.md").read_text()
    assert all(f"`{p.name}`" in readme for p in COMMITTED.glob("*.npz"))


@torch.no_grad()
def test_spectrum_encoder(tmp_path):
    "A checkpoint with the original names and settings, read as any published one, gives the original's tokens."
    z = committed("spectrum_encoder")
    state = {
        k.removeprefix("state_dict."): torch.from_numpy(v)
        for k, v in z.items()
        if k.startswith("state_dict.")
    }
    content = {"state_dict": state, "hyper_parameters": json.loads(str(z["hyper_parameters"]))}
    torch.save(content, tmp_path / "specformer.ckpt")
    model = SpecFormer.from_pretrained(tmp_path / "specformer.ckpt", device="cpu")
    flux = torch.from_numpy(z["spectrum"])
    out, tokens = model(flux), slice(None, None, 16)
    close(out["tokens"][:, tokens], z["preprocessed"])
    close(out["embedding"][:, tokens], z["embedding"])
    close(out["reconstructions"][:, tokens], z["reconstructions"])
    close(out["embedding"].mean(1), z["embedding_mean"])
    close(model.preprocess(flux[:, :260]), z["preprocessed_len260"])


@torch.no_grad()
def test_position_table():
    z = committed("position_table")
    close(resize_positions(torch.from_numpy(z["pos_embed"]), (5, 5)), z["pos_encoding_60"])


def test_stretch_and_crop():
    z = committed("preprocessing_io")
    rgb = to_rgb(z["raw_hwc"].transpose(0, 3, 1, 2))
    close(rgb.transpose(0, 2, 3, 1), z["rgb_hwc"])
    close(center_crop(rgb.transpose(0, 1, 3, 2), z["collator_output"].shape[-1]), z["collator_output"])


def test_networks():
    "Two towers, the alignment loss and a whole step of self-distillation, as they were when the whole set agreed."
    z = committed("networks")
    agreed = json.loads(str(z.pop("agreed_json")))
    assert len(agreed) == 9 and max(agreed.values()) < 1e-5
    found = network_outputs()
    assert set(found) == set(z)
    for name, expected in z.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_noise_is_the_same_everywhere():
    assert noise(4).tolist() == pytest.approx(NOISE, abs=1e-7)
    assert abs(noise(10_000).mean()) < 0.02 and noise(10_000).std() == pytest.approx(3**-0.5, abs=0.02)


@pytest.mark.skipif(whole_set() is None, reason="compares with the whole set of golden vectors")
@pytest.mark.parametrize("name", ["losses_io", "training_math", "masking_stats", "augmentation_stats"])
def test_copies_are_those_of_the_whole_set(name):
    assert (COMMITTED / f"{name}.npz").read_bytes() == (whole_set() / f"{name}.npz").read_bytes()
