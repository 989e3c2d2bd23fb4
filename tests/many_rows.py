"""A survey of as many rows as one likes, tiny untrained networks, and what a command takes of memory for it.

python tests/many_rows.py predict 2000 10000 100000        peak memory and seconds of each, in a process of its own
python tests/many_rows.py check 2000 --suffix .fits
python tests/many_rows.py embed 10000 100000               image files of Stein et al. into a folder of parts
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from astroclip.core.config import sample_path
from astroclip.surveys.pairs import Survey

SIZE = 24  # pixels of an image


def write_many(path, n, chunk=256):
    "A survey file of n rows that repeat those of the sample, their images cut to the middle; ids are their own."
    survey = Survey(sample_path())
    rows, middle = np.arange(len(survey)), slice(64, 64 + SIZE)
    columns = dict(image=survey.images(rows)[..., middle, middle], flux=survey.flux(rows), ivar=survey.ivar(rows))
    columns = {name: x.astype(np.float16) for name, x in columns.items()}
    with h5py.File(path, "w") as file:
        file["targetid"] = np.arange(n, dtype=np.int64) + 2**60
        file["redshift"] = np.resize(survey.redshift, n).astype(np.float32)
        data = {name: file.create_dataset(name, (n, *x.shape[1:]), np.float16) for name, x in columns.items()}
        for start in range(0, n, chunk):
            which = np.arange(start, min(start + chunk, n)) % len(survey)
            for name, x in columns.items():
                data[name][start : start + len(which)] = x[which]
    return path


def tiny_networks():
    "(AstroCLIP, RedshiftClassifier), untrained."
    import torch

    from astroclip import AstroCLIP, RedshiftClassifier, SpecFormer, VisionTransformer

    torch.manual_seed(0)
    model = AstroCLIP(VisionTransformer(SIZE, 12, 8, 1, 2), SpecFormer(80, 40, 8, 1, 2), embed_dim=8).eval()
    return model, RedshiftClassifier(features=4, templates=2, hidden=4, z_max=1.0, kinds=True).eval()


def save_predictor(folder):
    "A predictor of tiny networks, fitted to the rows of the sample."
    from astroclip import Predictor
    from astroclip.answers.inputs import open_rows, see_images, see_spectra

    model, classifier = tiny_networks()
    survey = Survey(sample_path())
    seen = dict(image=see_images(model, survey.images()))
    rows = open_rows(survey.flux(), ivar=survey.ivar())
    seen["spectrum"], logits = see_spectra(model, classifier, rows)
    split = np.repeat([0, 1], [44, 20])
    labels = dict(redshift=survey.redshift, log_mstar=survey.label("log_mstar"), t_age_mw=survey.label("t_age_mw"))
    votes = {"disk-edge-on": np.stack([np.full(64, 10), np.full(64, 20)], 1)}
    kept = Predictor.fit(model, classifier, seen, labels, split, logits=logits[split == 1], votes=votes)
    return kept.save_pretrained(folder)


def save_second_opinion(folder):
    "A second opinion of tiny networks."
    from astroclip.opinions.check_trials import save_all
    from astroclip.opinions.second_opinion import KnownSpectra, fit_opinion

    model, classifier = tiny_networks()
    survey = Survey(sample_path())
    x, even = model.embed_images(survey.images()), np.arange(64) % 2 == 0
    known = KnownSpectra(np.ones(40), np.zeros(40), dict(planted=np.full(40, -9.0)))
    opinion = fit_opinion(x, x, survey.redshift, even, ~even, np.ones(32), known, alpha=0.05, steps=10)
    save_all(opinion, model, classifier, folder)
    return folder


def save_model(folder):
    "An AstroCLIP of tiny networks."
    tiny_networks()[0].save_pretrained(folder)
    return folder


def write_images(path, n):
    "n images in the files of Stein et al., ten thousand a file."
    from astroclip.formats.shard_files import write_shards

    write_shards(path, n, per_file=10_000, size=SIZE)
    return path


CHILD = """
import sys
from pathlib import Path
from astroclip.cli.main import main
status = main(sys.argv[2:])
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0]
Path(sys.argv[1]).write_text(peak.split()[1])
sys.exit(status)
"""


def measure(command, source, model, output):
    "(MB, seconds) of one command in a process of its own, which looks up its peak itself."
    said, start = output.with_name("peak"), time.time()
    words = [command, source, "--model", model, "-o", output, "--device", "cpu"]
    if command == "embed":
        words = [command, model, source, "-o", f"{output}/", "--device", "cpu"]
    subprocess.run([sys.executable, "-c", CHILD, *map(str, [said, *words])], check=True, capture_output=True)
    return int(said.read_text()) / 1024, time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("predict", "check", "embed"))
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--suffix", default=".ecsv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save = dict(predict=save_predictor, check=save_second_opinion, embed=save_model)[args.command]
        model = save(folder / "model")
        for n in args.rows:
            if args.command == "embed":
                source, args.suffix = write_images(folder / f"{n}_images", n), "_run"
            else:
                source = write_many(folder / "survey.h5", n)
            output = folder / f"{n}{args.suffix}"
            peak, seconds = measure(args.command, source, model, output)
            print(f"{args.command} {n:,d} rows -> {args.suffix}: {peak:.0f} MB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
