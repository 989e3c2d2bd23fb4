"""What tests/test_processors.py runs in processes of their own, each told to be an older processor.

python tests/processors.py train            two steps of every network; the last line names the one under way
python tests/processors.py answers out.npz  what the library answers, to be compared between processors
"""

import sys

import numpy as np
import torch

from astroclip import AstroCLIP, RedshiftClassifier, SpecFormer, VisionTransformer
from astroclip.core.config import sample_path
from astroclip.data.image_augment import Multicrop, multicrop
from astroclip.data.images import center_crop, to_rgb
from astroclip.surveys.pairs import Survey, read_rows
from astroclip.search.exact import encode, search_exact
from astroclip.search.neighbours import knn_regress, nearest
from astroclip.losses.contrastive import clip_loss
from astroclip.models.baselines import ConvAttention, ConvNeXt, ResNet
from astroclip.models.stein import embed_images
from astroclip.data.log_grid import N_LOG
from astroclip.training.loop import has_bf16

ORDERS = dict(plain=torch.contiguous_format, last=torch.channels_last)


def steps(name, net, *inputs):
    "Two steps, so that what the first broke in memory the second finds."
    print(name, flush=True)
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(2):
        found = net(*inputs)
        found = found["embedding"] if isinstance(found, dict) else found
        optimizer.zero_grad()
        found.float().square().mean().backward()
        optimizer.step()


def train():
    "Image networks of small widths in both orders of memory, and one of each of the others."
    for width in (2, 3, 4, 6, 8):
        for order, memory_format in ORDERS.items():
            x = torch.rand(4, 3, 32, 32).contiguous(memory_format=memory_format)
            nets = dict(
                ResNet=ResNet(1, (1, 1, 1, 1), width=width),
                ConvNeXt=ConvNeXt(1, (1, 1, 1), (width, 2 * width, 4 * width)),
            )
            nets["Stein"] = ResNet(8, (1, 1, 1), bottleneck=True, width=width, head=16)
            for name, net in nets.items():
                steps(f"{name} of width {width}, {order}", net.to(memory_format=memory_format), x)
    flux = torch.rand(4, 7781)
    steps("ConvAttention", ConvAttention(2), flux)
    steps("SpecFormer", SpecFormer(80, 40, 16, 1, 1, place=4), flux)
    good = torch.ones(4, N_LOG, dtype=torch.bool)
    for width in (4, 6, 8):
        steps(f"VisionTransformer {width}", VisionTransformer(24, 6, width, 1, 2), torch.rand(4, 3, 24, 24))
        steps(
            f"RedshiftClassifier {width}",
            RedshiftClassifier(features=width, templates=width, hidden=width),
            torch.rand(4, N_LOG),
            good,
        )
    print("all networks", flush=True)


def answers(path):
    "Preparation, networks, losses and search on the committed galaxies, with weights that come from a seed."
    survey = Survey(sample_path())
    images, flux, ivar = (read_rows(survey.path, name, np.arange(8)) for name in ("image", "flux", "ivar"))
    images, flux, ivar = (x.astype(np.float32) for x in (images, flux, ivar))
    torch.manual_seed(0)
    model = AstroCLIP(
        VisionTransformer(48, 12, 32, 2, 2), SpecFormer(80, 40, 32, 2, 2, place=4), embed_dim=16
    ).eval()
    classifier, resnet = RedshiftClassifier(features=4, templates=4, hidden=8), ResNet(4, width=8).eval()
    found = dict(rgb=to_rgb(center_crop(images, 96)))
    found["crops"] = np.concatenate(
        [x.reshape(-1) for x in multicrop(torch.from_numpy(images), 3, Multicrop(64, 32, 2))]
    )
    found["image"], found["spectrum"] = model.embed_images(images), model.embed_spectra(flux, ivar=ivar)
    found["logits"] = classifier.logits_of(flux, ivar=ivar).numpy()
    found["resnet"] = embed_images(resnet, images, 64)
    u, v = torch.from_numpy(found["image"]), torch.from_numpy(found["spectrum"])
    found["loss"] = clip_loss(u, v).numpy()
    found["neighbours"], found["similarity"] = nearest(found["spectrum"], found["spectrum"], 3)
    train = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    found["knn"] = knn_regress(train, train[:, 0], train[:50] + 0.1, 16)
    bank = np.random.default_rng(1).normal(size=(4000, 64)).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    for name, codes in dict(floats=None, bytes=encode(bank)).items():
        for n in (1, 60):
            rows, values = search_exact(bank[:n], bank, 10, codes=codes)
            found |= {f"exact {name} {n}": rows, f"exact {name} {n} values": values}
    np.savez(path, **found)
    print(torch.backends.cpu.get_cpu_capability(), has_bf16("cpu"), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dict(train=train, answers=answers)[sys.argv[1]](*sys.argv[2:])
