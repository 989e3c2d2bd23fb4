"""`python tests/goldens/make.py`: the committed golden vectors, from the whole set ($ASTROCLIP_SHARED/goldens).

Small files are copied, two are cut to the smallest case that still shows what they show, and `networks.npz` is what this
package's own networks answered when they agreed with the whole set; the agreement is written into it.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from golden_files import network_outputs, whole_set  # noqa: E402

COPIED = ("losses_io.npz", "training_math.npz", "masking_stats.npz", "augmentation_stats.npz")
TOKENS = slice(None, None, 16)  # of the 778


def preprocessing(source: Path) -> dict:
    "The stretch on 24 central pixels (it acts on each pixel alone), the crop from them, and the blur of one band."
    g = np.load(source / "preprocessing_io.npz")
    middle, crop = (
        slice(64, 88),
        slice(64, 80),
    )  # of 152 and of 144 pixels: the crop of 16 lies in the middle of the 24
    out = {k: g[k][..., middle, middle, :] for k in ("raw_hwc", "rgb_hwc", "rgb_hwc_g5_m005_Q10")}
    out["collator_output"] = g["collator_output"][..., crop, crop]
    return out | {k: g[k][1:2] for k in ("blur_input", "blur_sigma", "blur_output")}


def spectrum_encoder(source: Path) -> dict:
    "The weights under their original names, one spectrum, and the answers at every sixteenth token."
    file = torch.load(source / "specformer.ckpt", map_location="cpu", weights_only=True)
    g = np.load(source / "specformer_io.npz")
    out = {f"state_dict.{k}": v.numpy() for k, v in file["state_dict"].items()}
    out["hyper_parameters"] = np.array(json.dumps(file["hyper_parameters"]))
    out["spectrum"], out["embedding_mean"] = g["spectra"][:1], g["embedding_mean"][:1]
    for name in ("preprocessed", "embedding", "reconstructions"):
        out[name] = g[name][:1, TOKENS]
    return out | {"preprocessed_len260": g["preprocessed_len260"][:1]}


def position_table(source: Path) -> dict:
    "The table of 12 x 12 patches and what it becomes for 5 x 5."
    file = torch.load(source / "astrodino.ckpt", map_location="cpu", weights_only=True)["teacher"]
    g = np.load(source / "astrodino_io.npz")
    return dict(pos_embed=file["backbone.pos_embed"].numpy(), pos_encoding_60=g["pos_encoding_60"])


def main():
    source = whole_set()
    if source is None:
        sys.exit("set $ASTROCLIP_SHARED to a folder with goldens/")
    from astroclip.evaluation.parity import deviations

    rows = deviations(source)
    assert all(row["deviation"] < 1e-5 for row in rows), "this package does not agree with the whole set"
    for name in COPIED:
        shutil.copyfile(source / name, HERE / name)
    agreed = np.array(
        json.dumps(
            {f"{row['file']} {row['weights']}".strip(): float(f"{row['deviation']:.2g}") for row in rows}
        )
    )
    made = dict(preprocessing_io=preprocessing(source), spectrum_encoder=spectrum_encoder(source))
    made |= dict(position_table=position_table(source), networks=network_outputs() | {"agreed_json": agreed})
    for name, arrays in made.items():
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
    sizes = {p.name: p.stat().st_size for p in sorted(HERE.glob("*.npz"))}
    print(*(f"{n:8d}  {name}" for name, n in sizes.items()), f"{sum(sizes.values()):8d}  in all", sep="\n")


if __name__ == "__main__":
    main()
