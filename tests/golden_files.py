"""Where golden vectors are: the whole set in the shared folder, a small part of it in `tests/goldens` for everybody."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from astroclip.core.config import shared_root

COMMITTED = Path(__file__).parent / "goldens"


def whole_set() -> Path | None:
    "The folder of all golden vectors, None where it is not."
    shared = shared_root()
    return shared / "goldens" if shared and (shared / "goldens").is_dir() else None


def golden_file(name: str) -> Path:
    "Path of a golden file: of the whole set where that is, else a committed one; skips the test that finds neither."
    for folder in (whole_set(), COMMITTED):
        if folder and (folder / name).exists():
            return folder / name
    pytest.skip(
        f"{name} is not among the committed golden vectors: set $ASTROCLIP_SHARED to a folder with goldens/"
    )


class Goldens:
    "Looks like a folder: `goldens / name` is `golden_file(name)`."

    def __truediv__(self, name: str) -> Path:
        return golden_file(name)


def noise(*shape: int, start: int = 0) -> np.ndarray:
    "Numbers in [-1, 1) that look random and are the same on every machine, by integer arithmetic (a mixing function)."
    k = np.arange(start + 1, start + 1 + int(np.prod(shape)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        k = (k ^ (k >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        k = (k ^ (k >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    k ^= k >> np.uint64(31)
    return ((k >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(shape).astype(np.float32)


def filled(net):
    "The network with weights that need no file: `noise`, scaled so that signals neither die nor explode."
    import torch

    with torch.no_grad():
        for name, value in net.state_dict().items():
            if not value.dtype.is_floating_point:
                continue
            wave = torch.from_numpy(noise(*value.shape, start=zlib.crc32(name.encode())))
            matrix = value.ndim > 1 and "pos" not in name and "token" not in name
            scale = (3 / value[0].numel()) ** 0.5 if matrix else 0.3
            value.copy_(scale * wave + float(value.ndim == 1 and name.endswith(("weight", "gamma"))))
    return net.eval()


def small_vit():
    from astroclip.models.vit import VisionTransformer

    return filled(VisionTransformer(48, 12, 24, depth=4, num_heads=2))


def small_astroclip():
    from astroclip.models.astroclip import AstroCLIP
    from astroclip.models.specformer import SpecFormer

    towers = small_vit(), filled(SpecFormer(embed_dim=16, depth=2, num_heads=2))
    return filled(AstroCLIP(*towers, embed_dim=32, num_heads=4, configuration="released"))


def network_outputs() -> dict[str, np.ndarray]:
    "What the small networks answer to `noise`: two towers, their alignment loss, one step of self-distillation."
    import torch

    from astroclip.losses.contrastive import clip_loss
    from astroclip.training.self_distillation import ImageConfig, SelfDistillation

    images, vit, both = torch.from_numpy(noise(2, 3, 48, 48)) / 2 + 0.5, small_vit(), small_astroclip()
    spectra = 1 + torch.from_numpy(noise(2, 7781))
    mask = torch.from_numpy(noise(2, 16)) > 0.3
    with torch.no_grad():
        features, hidden, small = (
            vit.forward_features(*x) for x in ((images,), (images, mask), (images[..., :36, :36],))
        )
        u, v = both(images, spectra)
    out = dict(vit_class=features["x_norm_clstoken"], vit_patches=features["x_norm_patchtokens"])
    out |= dict(vit_masked=hidden["x_norm_patchtokens"], vit_36=small["x_norm_clstoken"])
    out |= dict(image_embeddings=u, spectrum_embeddings=v, clip_loss=clip_loss(u, v))
    for balance in ("centering", "sinkhorn_knopp"):
        sizes = dict(
            image_size=48,
            local_size=24,
            cutout=60,
            patch_size=12,
            embed_dim=24,
            depth=2,
            num_heads=2,
            n_local=2,
        )
        head = dict(n_prototypes=32, hidden_dim=24, bottleneck_dim=12)
        model = filled(SelfDistillation(ImageConfig(**sizes, **head, balance=balance))).train()
        crops = images.repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.8, 0.6, 0.9])[:, None, None, None]
        local = torch.from_numpy(noise(4, 3, 24, 24, start=7)) / 2 + 0.5
        loss, parts = model(crops, local, torch.from_numpy(noise(4, 16, start=5)) > 0.3, 0.07)
        loss.backward()
        norms = [p.grad.norm() for p in model.student.parameters()]
        out |= {f"{balance}_{k}": v for k, v in parts.items()}
        out |= {f"{balance}_loss": loss, f"{balance}_gradient": torch.stack(norms).norm()}
    return {k: np.asarray(torch.as_tensor(v).detach(), np.float32) for k, v in out.items()}
