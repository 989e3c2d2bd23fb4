"""Damaged files through every reader: each gives a value, or one of our errors with the file's name, and nothing else happens.

    python tests/fuzz_files.py --n 10000 --seed 0 --kinds fits,hdf5,checkpoint,safetensors,text,npz,jpeg --jobs 2

Small whole files of every kind are made first (and real ones taken from ../shared/real, where that is there), then damaged:
cut short, bits flipped, blocks repeated or left out, header cards rewritten, sizes claimed that cannot be, zip directories
and pickle programs tampered with. A worker process with a memory limit and an alarm reads them; the parent notes a worker
that dies or hangs. Exit status 1 for: an error of another type or without the file's name, a crash, more than 10 seconds,
more than 2 GB, a program started, a file written, a pickle that looked up a class.
"""

import argparse
import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

SECONDS, MEMORY = 10, 2 << 30
KINDS = ("fits", "hdf5", "checkpoint", "safetensors", "text", "npz", "jpeg")
SHARE = dict(fits=0.38, hdf5=0.17, checkpoint=0.12, safetensors=0.06, text=0.15, npz=0.06, jpeg=0.06)


# ---- whole files


def fits_seeds(folder):
    from astropy.io import fits
    from astropy.table import Table

    rng = np.random.default_rng(0)
    wave, flux = 3600 + 0.8 * np.arange(2751), rng.normal(5, 1, (2, 2751)).astype("f4")
    fibres = Table(
        {
            "TARGETID": [39627785483846390, 7],
            "COADD_FIBERSTATUS": [0, 512],
            "TARGET_RA": [1.0, 2.0],
            "TARGET_DEC": [1.0, 2.0],
            "OBJTYPE": ["TGT", "SKY"],
        }
    )
    arm = [
        fits.ImageHDU(x, name=f"B_{k}")
        for k, x in dict(
            WAVELENGTH=wave, FLUX=flux, IVAR=np.ones_like(flux), MASK=np.zeros(flux.shape, "i4")
        ).items()
    ]
    first = fits.PrimaryHDU()
    fits.HDUList([first, fits.BinTableHDU(fibres, name="FIBERMAP"), *arm]).writeto(folder / "coadd-1.fits")
    redrock = Table(
        {"TARGETID": [7, 39627785483846390], "Z": [0.1, 0.2], "ZWARN": [0, 4], "SPECTYPE": ["STAR", "GALAXY"]}
    )
    fits.HDUList([first, fits.BinTableHDU(redrock, name="REDSHIFTS")]).writeto(folder / "redrock-1.fits")
    n = 1500
    coadd = Table(
        {
            "flux": flux[0, :n],
            "loglam": (3.6 + 1e-4 * np.arange(n)).astype("f4"),
            "ivar": np.ones(n, "f4"),
            "and_mask": np.zeros(n, "i4"),
        }
    )
    row = Table({"Z": [0.1], "ZWARNING": [0], "CLASS": ["GALAXY"], "PLUG_RA": [1.0], "PLUG_DEC": [2.0]})
    fits.HDUList([first, fits.BinTableHDU(coadd, name="COADD"), fits.BinTableHDU(row, name="SPALL")]).writeto(
        folder / "spec-0001-50000-0001.fits"
    )
    own = Table(
        {"WAVE": wave[None], "FLUX": flux[:1], "ERR": np.ones_like(flux[:1])},
        units={"WAVE": "nm", "FLUX": "erg/s/cm2/AA"},
    )
    own.write(folder / "own.fits")
    axis = fits.Header(
        {"CRVAL1": 4000.0, "CD1_1": 1.0, "CUNIT1": "Angstrom", "ROW1": "Spectrum", "ROW2": "Error", "Z": 0.1}
    )
    fits.PrimaryHDU(flux, axis).writeto(folder / "rows.fits")
    cube = {
        "WAVE": wave[:300],
        "FLUX": rng.normal(5, 1, (300, 3, 3)).astype("f4"),
        "IVAR": np.ones((300, 3, 3), "f4"),
    }
    fits.HDUList([first, *(fits.ImageHDU(x, name=k) for k, x in cube.items())]).writeto(
        folder / "manga-LOGCUBE.fits"
    )
    image = rng.normal(0, 0.01, (3, 160, 160)).astype("f4")
    image[:, 70:90, 70:90] += 1
    wcs = fits.Header(
        {
            "BANDS": "grz",
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CRVAL1": 10.0,
            "CRVAL2": 20.0,
            "CRPIX1": 80.5,
            "CRPIX2": 80.5,
            "CD1_1": -7.28e-5,
            "CD2_2": 7.28e-5,
            "CD1_2": 0.0,
            "CD2_1": 0.0,
        }
    )
    fits.PrimaryHDU(image, wcs).writeto(folder / "cutout.fits")
    fits.HDUList(
        [
            first,
            fits.CompImageHDU(image[0], name="g"),
            fits.CompImageHDU(image[1], name="r"),
            fits.CompImageHDU(image[2], name="z"),
        ]
    ).writeto(folder / "packed.fits.fz")
    for name, pack in (
        ("spec-0001-50000-0001.fits", gzip.compress),
        ("own.fits", bz2.compress),
        ("rows.fits", lzma.compress),
    ):
        suffix = {gzip: ".gz", bz2: ".bz2", lzma: ".xz"}[
            sys.modules[pack.__module__.split("_")[-1] if pack.__module__ != "gzip" else "gzip"]
        ]
        (folder / (name + suffix)).write_bytes(pack((folder / name).read_bytes()))


def hdf5_seeds(folder):
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(folder / "survey.h5", "w") as f:
        f["targetid"] = 2**62 + np.arange(6)
        f["image"] = rng.normal(0, 1, (6, 3, 24, 24)).astype("f2")
        for name in ("flux", "ivar"):
            f[name] = np.ones((6, 400), "f2")
        f["redshift"], f["magnitude"] = np.linspace(0.1, 0.4, 6).astype("f4"), np.full((6, 3), 18, "f4")
        f["ra"], f["dec"] = np.arange(6.0), np.arange(6.0)
        f["label/log_mstar"] = np.arange(6.0)
        f.attrs["simulated"], f.attrs["data_card"] = True, "made for a test"
    with h5py.File(folder / "packed.h5", "w") as f:
        f["targetid"] = np.arange(6)
        for name, shape in (("image", (6, 3, 16, 16)), ("flux", (6, 300)), ("ivar", (6, 300))):
            f.create_dataset(
                name, data=np.ones(shape, "f4"), chunks=(2, *shape[1:]), compression="gzip", fletcher32=True
            )
    with h5py.File(folder / "paper.h5", "w") as f:
        for g in "01":
            f[f"{g}/images"], f[f"{g}/spectra"] = np.ones((3, 8, 8, 3), "f4"), np.ones((3, 100, 1), "f4")
            f[f"{g}/redshifts"], f[f"{g}/targetids"] = np.ones(3), np.arange(3)
    from astroclip.search.similarity import SimilarityIndex

    ids = np.array([f"g{i}" for i in range(6)])
    table = {"redshift": np.linspace(0, 1, 6), "file": ids}
    SimilarityIndex.build(
        rng.normal(0, 1, (6, 8)).astype("f4"), ids, modality=np.array(["image"] * 6), table=table
    ).save(folder / "index.h5")


def tiny_model():
    import torch

    from astroclip.models.specformer import SpecFormer

    torch.manual_seed(0)
    return SpecFormer(
        window=20, stride=10, embed_dim=8, depth=1, num_heads=2, max_len=40, n_pixels=400
    ).eval()


def checkpoint_seeds(folder):
    import torch

    model = tiny_model()
    table = [
        ("norm1.", "layernorm1."),
        ("norm2.", "layernorm2."),
        ("attn.qkv.", "attention.attention."),
        ("attn.proj.", "attention.projection."),
        ("mlp.fc1.", "mlp.encoder."),
        ("mlp.fc2.", "mlp.decoder."),
    ]
    state = {}
    for k, v in model.state_dict().items():
        for a, b in table:
            k = k.replace(a, b)
        state["final_layernorm." + k[5:] if k.startswith("norm.") else k] = v
    hyper = dict(num_heads=2, slice_section_length=20, slice_overlap=10, dropout=0.0)
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": hyper}, folder / "specformer.ckpt")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, folder / "teacher.ckpt")

    class Shell:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'EXECUTED'}",)

    torch.save({"state_dict": state, "hyper_parameters": hyper, "callback": Shell()}, folder / "hostile.ckpt")


def safetensors_seeds(folder):
    from astroclip.models.pretrained import save

    save(tiny_model(), folder / "model")
    (folder / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes())
    (folder / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    shutil.rmtree(folder / "model")


def text_seeds(folder):
    from astropy.table import Table

    w, f = np.linspace(3600, 9800, 300), np.random.default_rng(0).normal(5, 1, 300)
    t = Table(
        {"wavelength": w, "flux": f, "ivar": np.ones(300)},
        units={"wavelength": "Angstrom", "flux": "1e-17 erg / (Angstrom s cm2)"},
    )
    t.meta["z"] = 0.1
    t.write(folder / "a.ecsv", format="ascii.ecsv")
    t.write(folder / "a.vot", format="votable")
    lines = [f"{a:.2f},{b:.4g},1.0" for a, b in zip(w, f)]
    (folder / "a.csv").write_text("# z = 0.1\nwavelength [A],flux,ivar\n" + "\n".join(lines))
    (folder / "b.txt").write_text("# wavelength flux err\n" + "\n".join(x.replace(",", " ") for x in lines))
    (folder / "c.dat").write_text(
        "wave;flux;err\n" + "\n".join(x.replace(",", ";").replace(".", ",") for x in lines)
    )
    (folder / "d.csv.gz").write_bytes(gzip.compress((folder / "a.csv").read_bytes()))


def npz_seeds(folder):
    w, x = 3600 + 0.8 * np.arange(900), np.ones((2, 900), "f4")
    np.savez(
        folder / "own.npz", wave=w, flux=x, ivar=x, targetid=np.array([2**62, 1]), z=np.array([0.1, 0.2])
    )
    np.savez_compressed(folder / "arms.npz", b_flux=x, b_ivar=x, b_wavelength=w)
    np.savez(folder / "normalised.npz", flux=x, valid=x, z_true=np.array([0.1, 0.2]))
    np.savez(folder / "hostile.npz", flux=np.array([{"a": 1}], object), wave=w)


def jpeg_seeds(folder):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.normal(30, 5, (160, 160, 3))
    pixels[60:100, 60:100] += 120
    picture = Image.fromarray(pixels.clip(0, 255).astype("u1"))
    picture.save(folder / "a.jpg", quality=90)
    picture.save(folder / "p.jpeg", quality=80, progressive=True)
    picture.save(folder / "a.png")


def real_seeds(folder, kind, most=400_000):
    "A few real files of a kind, if there are any."
    from astroclip.core.config import shared_root

    shared = shared_root()
    wanted = dict(
        fits=(
            "spectra_sdss/spec-1045*.fits",
            "spectra_manga/*.gz",
            "spectra_desi/redrock-4*",
            "templates/calzetti/ngc1068.fits",
        ),
        jpeg=("../real_2/pairs_legacy_sdss/*95683184714.jpeg",),
    ).get(kind, ())
    for pattern in wanted if shared else ():
        for path in sorted((shared / "real").glob(pattern))[:1]:
            if path.stat().st_size < most:
                shutil.copy(path, folder / f"real-{path.name}")


# ---- damage


def cut_short(data, rng):
    return data[: int(len(data) * rng.random() ** 0.5)]


def flip_bits(data, rng):
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.6 else min(len(out), 6000)
    for at in rng.integers(0, max(reach, 1), int(2 ** rng.integers(0, 8))):
        out[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(out)


def overwrite(data, rng):
    at, n = int(rng.integers(0, len(data))), int(2 ** rng.integers(2, 12))
    fill = bytes([[0, 255, 32, int(rng.integers(0, 256))][int(rng.integers(0, 4))]]) * n
    return data[:at] + fill + data[at + n :]


def repeat_block(data, rng):
    size = int(rng.choice([80, 512, 2880, 5760]))
    at = int(rng.integers(0, max(len(data) // size, 1))) * size
    return data[:at] + data[at : at + size] * int(rng.integers(2, 5)) + data[at + size :]


def drop_block(data, rng):
    size = int(rng.choice([1, 80, 512, 2880, 5760]))
    at = int(rng.integers(0, max(len(data) // size, 1))) * size
    return data[:at] + data[at + size :]


def shuffle_blocks(data, rng):
    blocks = [data[i : i + 2880] for i in range(0, len(data), 2880)]
    i, j = rng.integers(0, len(blocks), 2)
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


def add_rubbish(data, rng):
    return data + rng.bytes(int(rng.integers(1, 5000)))


VALUES = [
    "99999999999",
    "-1",
    "0",
    "2147483648",
    "9223372036854775807",
    "1E300",
    "'text'",
    "T",
    "",
    "NaN",
    "1.5",
    "'P(99999999)'",
    "'1PE(9999999)'",
    "'999999999E'",
    "'0X'",
    "'-8'",
    "16",
    "-64",
    "7",
    "'ANGSTROM'",
    "'ct'",
    "'RA---TAN'",
    "'WAVE-LOG'",
    "'grz'",
    "'\xe9'",
]


def cards(data, rng):
    "Other values, names or rubbish in some header cards."
    out = bytearray(data)
    places = [
        i
        for i in range(0, min(len(out), 400_000) - 80, 80)
        if out[i + 8 : i + 10] == b"= " and out[i : i + 1].isalpha()
    ]
    if not places:
        return flip_bits(data, rng)
    sizes = [
        i
        for i in places
        if out[i : i + 5]
        in (
            b"NAXIS",
            b"BITPI",
            b"TFORM",
            b"PCOUN",
            b"GCOUN",
            b"TFIEL",
            b"ZNAXI",
            b"ZTILE",
            b"TDIM1",
            b"CRVAL",
            b"CD1_1",
            b"BANDS",
            b"COEFF",
            b"TTYPE",
            b"TUNIT",
            b"EXTNA",
            b"XTENS",
            b"BUNIT",
        )
    ]
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.choice(sizes if sizes and rng.random() < 0.8 else places))
        value = VALUES[int(rng.integers(0, len(VALUES)))].encode("latin-1")
        how = rng.random()
        if how < 0.75:
            out[at + 10 : at + 80] = value.rjust(20).ljust(70)
        elif how < 0.85:
            out[at : at + 80] = b" " * 80
        elif how < 0.95:
            out[at : at + 8] = rng.choice(
                [b"NAXIS3  ", b"END     ", b"HIERARCH", b"        ", b"TFORM1  ", b"TTYPE1  "]
            ).ljust(8)
        else:
            out[at : at + 80] = rng.bytes(80)
    return bytes(out)


def words(data, rng):
    "Other fields and lines in a text."
    lines = data.decode("latin-1").split("\n")
    for _ in range(int(rng.integers(1, 6))):
        i, how = int(rng.integers(0, len(lines))), int(rng.integers(0, 8))
        fields = lines[i].replace(";", ",").split(",")
        junk = [
            "1e999",
            "-inf",
            "nan",
            "",
            "x" * 5000,
            "9" * 400,
            "\x00",
            "'",
            '"',
            "1,2",
            "!!python/object/apply:os.system ['x']",
            "&a;",
            "1e-320",
            "\u00e9",
        ]
        if how == 0:
            lines[i] = ""
        elif how == 1:
            lines.insert(i, lines[i])
        elif how == 2:
            lines[i] = lines[i][: len(lines[i]) // 2]
        elif how == 3:
            lines[i] = ",".join(reversed(fields))
        elif how == 4:
            lines = lines[: i + 1]
        else:
            fields[int(rng.integers(0, len(fields)))] = junk[int(rng.integers(0, len(junk)))]
            lines[i] = ",".join(fields)
    return "\n".join(lines).encode("latin-1", "replace")


def zip_damage(data, rng):
    "Damage inside the entries of a zip, the zip itself being whole; or in its directory."
    if rng.random() < 0.3:
        at = data.rfind(b"PK\x01\x02")
        return data[:at] + flip_bits(data[at:], rng) if at > 0 else flip_bits(data, rng)
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            names = old.namelist()
            chosen = names[int(rng.integers(0, len(names)))]
            pickles = [n for n in names if n.endswith("data.pkl")]
            if pickles and rng.random() < 0.7:
                chosen = pickles[0]
            for name in names:
                content = old.read(name)
                if name == chosen:
                    content = program(content, rng) if name.endswith("pkl") else damaged_plain(content, rng)
                if not (name == chosen and rng.random() < 0.05):
                    new.writestr(name, content)
    except Exception:
        return flip_bits(data, rng)
    return out.getvalue()


def program(data, rng):
    "A pickle with other instructions."
    how, at = int(rng.integers(0, 8)), int(rng.integers(2, len(data)))
    evil = [
        b"cos\nsystem\n(S'touch EXECUTED'\ntR.",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x0etouch EXECUTED\x85R.",
        b"\x8d" + (2**60).to_bytes(8, "little") + b"a",
        b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1",
        b"\x8e" + (2**40).to_bytes(8, "little"),
        b"]" * 5000 + b"a" * 4999,
        b"(" * 20000,
        b"}q\x00h\x00s",
        b"r" + (2**32 - 1).to_bytes(4, "little"),
        b"I" + b"9" * 6000 + b"\n",
        b"\x97",
        b"\x96" + (2**50).to_bytes(8, "little"),
        b"(" + b"2" * 3000 + b"t",
    ]
    if how < 3:
        return data[:at] + evil[int(rng.integers(0, len(evil)))] + data[at:]
    if how == 3:
        return data[:2] + evil[int(rng.integers(0, len(evil)))] + b"."
    if how == 4:
        return data[:at] + data[at : at + 40] * int(rng.integers(2, 2000)) + data[at:]
    return damaged_plain(data, rng)


def json_damage(data, rng):
    "Other values in a configuration, or another header of safetensors."
    if data[:1] != b"{":
        n = int.from_bytes(data[:8], "little")
        how = int(rng.integers(0, 3))
        if how == 0:
            return int(rng.choice([0, 1, n + 1, 2**31, 2**40, 2**63 - 1])).to_bytes(8, "little") + data[8:]
        if how == 1:
            return flip_bits(data[: 8 + n], rng) + data[8 + n :]
        return data[:8] + words(data[8 : 8 + min(n, 9999)], rng)[:n].ljust(min(n, 9999)) + data[8 + n :]
    try:
        tree = json.loads(data)
    except ValueError:
        return flip_bits(data, rng)
    values = [None, -1, 0, 10**9, 10**30, "x", [], {}, 1.5, True, "../../etc", [1] * 1000, float("nan")]
    part = tree["config"] if rng.random() < 0.8 and isinstance(tree.get("config"), dict) else tree
    key = list(part)[int(rng.integers(0, len(part)))]
    if rng.random() < 0.2:
        part.pop(key)
    else:
        part[key] = values[int(rng.integers(0, len(values)))]
    return json.dumps(tree).encode()


def sizes_claimed(data, rng):
    "A JPEG or PNG that claims to be huge."
    out = bytearray(data)
    at = next((i for i in range(len(out) - 9) if out[i] == 0xFF and out[i + 1] in (0xC0, 0xC2)), None)
    if out[:4] == b"\x89PNG":
        out[16:24] = int(rng.choice([0, 2**31 - 1, 60000])).to_bytes(4, "big") * 2
    elif at:
        out[at + 5 : at + 9] = rng.bytes(4) if rng.random() < 0.5 else b"\xff\xff\xff\xff"
    return bytes(out)


PLAIN = (cut_short, flip_bits, flip_bits, overwrite, repeat_block, drop_block, shuffle_blocks, add_rubbish)
OWN = dict(
    fits=(cards,) * 8,
    hdf5=(flip_bits,) * 4,
    checkpoint=(zip_damage,) * 8,
    safetensors=(json_damage,) * 10,
    text=(words,) * 10,
    npz=(zip_damage,) * 6,
    jpeg=(sizes_claimed,) * 2,
)


def damaged_plain(data, rng):
    return PLAIN[int(rng.integers(0, len(PLAIN)))](data, rng) if data else b"\x00"


def damage(data, kind, rng):
    "The bytes of a file, damaged once or twice; of a packed one also beneath the packing."
    packed = next(
        (
            p
            for p, magic in ((gzip, b"\x1f\x8b"), (bz2, b"BZh"), (lzma, b"\xfd7zXZ"))
            if data.startswith(magic)
        ),
        None,
    )
    if packed and rng.random() < 0.6:
        return packed.compress(damage(packed.decompress(data), kind, rng))
    ways = PLAIN + OWN[kind]
    for _ in range(int(rng.integers(1, 3))):
        data = ways[int(rng.integers(0, len(ways)))](data, rng) or b"\x00"
    if kind == "fits" and rng.random() < 0.85:
        data += bytes(-len(data) % 2880)  # whole blocks, or the first check would end it
    return data[: 8 << 20]


# ---- reading


def read_fits(path):
    from astroclip.data.images import read_cutout
    from astroclip.data.spectra import read_spectrum

    try:
        return check_spectra_read(read_spectrum(path))
    except ValueError as no:
        if getattr(no, "reason", "") != "an image":
            raise
    image = read_cutout(path).image
    assert image.ndim == 3 and len(image) == 3, "a cutout of another shape"
    return "image"


def check_spectra_read(spectra):
    "What every reader promises of a spectrum."
    for s in spectra[:2]:
        assert np.isfinite(s.ivar).all() and (s.ivar >= 0).all() and np.isfinite(s.flux[s.ivar > 0]).all(), (
            "not finite"
        )
        assert len(s.flux) == len(s.ivar) == len(s.mask) == len(s.wavelength), "lengths differ"
        assert isinstance(s.id, str) and isinstance(s.flags, list) and (s.usable or s.flags), (
            "unusable without a flag"
        )
        if s.usable:
            s.on_grid()
    return "spectrum"


def read_hdf5(path):
    from astroclip.surveys.pairs import Survey, batches
    from astroclip.search.similarity import SimilarityIndex

    if "index" in path.name:
        index = SimilarityIndex.load(path)
        index.search(np.ones(index.vectors.shape[1], "f4"), 2)
        return "index"
    survey = Survey(path)
    for name in ("image", "flux", "ivar"):
        survey.read(name, slice(0, 3))
    for batch in batches(
        path, ("image", "flux", "redshift") if "packed" not in path.name else ("image", "flux"), 2, prefetch=0
    ):
        pass
    return "survey"


def read_model(path):
    from astroclip.models.pretrained import describe
    from astroclip.models.specformer import SpecFormer

    describe(path)
    SpecFormer.from_pretrained(path, device="cpu")
    return "model"


def read_any(path):
    from astroclip.data.spectra import read_spectrum

    return check_spectra_read(read_spectrum(path))


READERS = dict(
    fits=read_fits,
    hdf5=read_hdf5,
    checkpoint=read_model,
    safetensors=read_model,
    text=read_any,
    npz=read_any,
    jpeg=read_fits,
)


class Hang(BaseException):
    "Raised by the alarm, so that no reader's `except Exception` takes it."


FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
    "os.remove",
    "os.rename",
    "shutil.rmtree",
)


def spy(events, watched):
    "Note what a reader has no business to do."

    def hook(event, args):
        if not watched["on"]:
            return
        if event in FORBIDDEN:
            events.append(event)
        elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            events.append(f"open {args[0]} {args[1]}")

    sys.addaudithook(hook)


def rss(field="VmHWM"):
    with open("/proc/self/status") as f:
        return next((int(line.split()[1]) << 10 for line in f if line.startswith(field)), 0)


def worker(line, here, memory):
    "Read the files that come down the line until None comes; tell the parent before and after each."
    warnings.simplefilter("ignore")
    os.chdir(here)
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(Hang()))
    events, watched, limited = [], {"on": False}, False
    spy(events, watched)
    while (job := line.recv()) is not None:
        number, kind, path, learn = job
        path = Path(path)
        line.send(("begin", number))
        if not learn and not limited:  # the libraries are loaded: from here on it counts
            limited = True
            ceiling = rss("VmSize") + memory
            resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
        try:
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
        except OSError:
            pass
        before, start, events[:] = rss("VmRSS"), time.process_time(), []
        watched["on"] = not learn
        if not learn:
            signal.setitimer(
                signal.ITIMER_PROF, SECONDS
            )  # seconds of the processor: a busy machine is no fault
        try:
            result, said = READERS[kind](path), ""
        except Hang:
            result, said = "HANG", f"over {SECONDS} s"
        except BaseException as error:
            said = f"{error}"
            ours = (
                isinstance(error, (ValueError, OSError))
                and path.name in said
                and "\n" not in said
                and len(said) < 900
            )
            result = f"refused: {type(error).__name__}" if ours else f"UNEXPECTED {type(error).__name__}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        watched["on"] = False
        grown = max(rss() - before, 0)
        if events:
            result, said = "EXECUTED", "; ".join(events)
        if grown > memory:
            result, said = "MEMORY", f"{grown / 2**30:.1f} GB; {said}"
        if learn and result.isupper() or result.startswith("UNEXPECTED"):
            said = f"a whole file: {said}" if learn else said
        line.send(("end", number, result, said, time.process_time() - start, grown))


# ---- all of it


def make_seeds(folder, kinds):
    for kind in kinds:
        (folder / kind).mkdir()
        globals()[f"{kind}_seeds"](folder / kind)
        real_seeds(folder / kind, kind)
        (folder / kind / "EXECUTED").unlink(missing_ok=True)
    return {kind: sorted(p for p in (folder / kind).iterdir() if p.is_file()) for kind in kinds}


def write_damaged(seeds, kind, number, seed, folder):
    "File number `number` of a kind, under a name that tells its origin."
    rng = np.random.default_rng([seed, KINDS.index(kind), number])
    source = seeds[kind][number % len(seeds[kind])]
    path = folder / f"{number:05d}" / source.name
    path.parent.mkdir()
    path.write_bytes(damage(source.read_bytes(), kind, rng))
    if kind == "safetensors":  # a folder of two files: one of them damaged
        other = next(p for p in seeds[kind] if p != source)
        shutil.copy(other, path.parent / other.name)
        return path.parent / "model.safetensors"
    return path


class Pool:
    "Workers that read one file at a time, each at a line of its own; one that dies or hangs is replaced, and its file noted."

    def __init__(self, jobs, here, memory, warm):
        self.context = multiprocessing.get_context("spawn")
        self.here, self.memory, self.warm = here, memory, warm
        self.members = [self.start() for _ in range(jobs)]

    def start(self):
        line, end = self.context.Pipe()
        process = self.context.Process(target=worker, args=(end, self.here, self.memory), daemon=True)
        process.start()
        end.close()
        for job in self.warm:
            line.send(job)
        return {"line": line, "process": process, "busy": None, "since": 0.0}

    def run(self, files):
        "(kind, path, result, said, seconds, bytes) of each of `files`, an iterator of (number, kind, path)."
        files = iter(files)
        for m in self.members:
            self.give(m, files)
        while busy := [m for m in self.members if m["busy"]]:
            for line in multiprocessing.connection.wait([m["line"] for m in busy], timeout=1):
                m = next(m for m in busy if m["line"] is line)
                try:
                    word, number, *rest = line.recv()
                except (EOFError, OSError):
                    word, number = "gone", None
                if word == "begin":
                    m["since"] = time.monotonic()
                if word == "end" and m["busy"] and number == m["busy"][0]:
                    yield (*m["busy"][1:], *rest)
                    self.give(m, files)
                if word == "gone":
                    yield self.replace(m, files, dead=True)
            for m in busy:
                if m["busy"] and m["since"] and time.monotonic() - m["since"] > 30 * SECONDS:
                    m["process"].kill()
                    yield self.replace(m, files, dead=False)
        for m in self.members:
            m["line"].send(None)
        for m in self.members:
            m["process"].join(10)

    def replace(self, m, files, dead):
        "Another worker in the place of m; what is to be said of the file it had."
        m["process"].join(5)
        code = f"signal {-(m['process'].exitcode or 0)}" if dead else "a hang that no alarm ends"
        lost = (*m["busy"][1:], "CRASH", code, time.monotonic() - m["since"], 0)
        m.update(self.start())
        self.give(m, files)
        return lost

    def give(self, m, files):
        job = next(files, None)
        m["busy"], m["since"] = job, 0.0
        if job:
            m["line"].send((job[0], job[1], str(job[2]), False))


def fuzz(n, seed=0, kinds=KINDS, jobs=1, keep=None, memory=MEMORY, echo=print):
    "(table by kind, list of failures) of n damaged files."
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        (place / "seeds").mkdir()
        (place / "damaged").mkdir()
        seeds = make_seeds(place / "seeds", kinds)
        total = sum(SHARE[k] for k in kinds)
        counts = {k: max(1, round(n * SHARE[k] / total)) for k in kinds}
        warm = [
            (-1 - i, k, str(p), True)
            for i, (k, p) in enumerate((k, p) for k in kinds for p in seeds[k] if "hostile" not in p.name)
        ]

        def files():
            for kind in kinds:
                (place / "damaged" / kind).mkdir()
                for i in range(counts[kind]):
                    yield (kind, i), kind, write_damaged(seeds, kind, i, seed, place / "damaged" / kind)

        rows, failures = defaultdict(list), []
        for kind, path, result, said, seconds, grown in Pool(jobs, place, memory, warm).run(files()):
            rows[kind].append((result, seconds, grown, path.name))
            if result.isupper() or result.startswith("UNEXPECTED"):
                failures.append((kind, str(path.relative_to(place / "damaged")), result, said[:300]))
                if keep:
                    Path(keep).mkdir(exist_ok=True, parents=True)
                    shutil.copy(path, Path(keep) / f"{kind}-{path.parent.name}-{path.name}")
                echo(f"{kind} {path.parent.name}/{path.name}: {result}: {said[:300]}")
            shutil.rmtree(path.parent)
        executed = [p for p in place.rglob("EXECUTED")] + (
            [Path("EXECUTED")] if Path("EXECUTED").exists() else []
        )
        if executed:
            failures.append(("all", str(executed[0]), "EXECUTED", "a file's program ran"))
    return rows, failures


def report(rows, echo=print):
    "The table by kind."
    echo(
        f"{'kind':12}{'files':>7}{'read':>7}{'refused':>9}{'faults':>8}{'slowest':>9}{'memory':>9}  refused as"
    )
    for kind, found in rows.items():
        said = Counter(r for r, *_ in found)
        refused = {k.split(": ")[1]: v for k, v in said.items() if k.startswith("refused")}
        faults = sum(v for k, v in said.items() if k.isupper() or k.startswith("UNEXPECTED"))
        read, slow = len(found) - sum(refused.values()) - faults, max(found, key=lambda r: r[1])
        echo(
            f"{kind:12}{len(found):7d}{read:7d}{sum(refused.values()):9d}{faults:8d}{slow[1]:8.1f}s{max(r[2] for r in found) >> 20:7d}MB  "
            + ", ".join(f"{k} {v}" for k, v in sorted(refused.items(), key=lambda x: -x[1]))
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", help="folder for the files that failed")
    args = parser.parse_args()
    kinds = tuple(args.kinds.split(","))
    if set(kinds) - set(KINDS):
        parser.error(f"kinds are {', '.join(KINDS)}")
    start = time.time()
    rows, failures = fuzz(args.n, args.seed, kinds, args.jobs, args.keep)
    report(rows)
    print(f"{sum(map(len, rows.values()))} files in {time.time() - start:.0f} s, {len(failures)} faults")
    return 1 if failures else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
