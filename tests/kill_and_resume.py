"""Kill a stage at random moments, start it again until it is done, and compare what it made with an uninterrupted run.

python tests/kill_and_resume.py --n 100 --seed 0            all stages, about equally often
python tests/kill_and_resume.py --n 3 --stages embed --survey data/sample/survey.h5
"""

import argparse
import csv
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one order of every sum: results are compared bit by bit
os.environ |= dict(CUDA_VISIBLE_DEVICES="", MPLBACKEND="agg")

import h5py
import numpy as np
import torch

from astroclip.core.artifacts import SIDECAR, _write_sidecar, resolve
from astroclip.core.config import find_root
from astroclip.core.profiles import PROFILES

STAGES = ("mock_survey", "mock_targets", "pretrain_spectrum", "pretrain_image", "train_redshift", "align", "embed")
SMALL = dict(
    mock_survey=dict(n_pairs=64, n_spectra=64),
    mock_targets=dict(n=128),
    pretrain_spectrum=dict(place_steps=6, steps=12, batch_size=8, validate_every=4),
    pretrain_image=dict(steps=12, batch_size=8, checkpoint_every=3),
    train_redshift=dict(steps=12, batch_size=8, validate_every=4),
    align=dict(frozen_steps=8, frozen_batch_size=16, tuned_steps=6, tuned_batch_size=8),
)


def cells(stage):
    "Code cells of a stage's notebook up to the one that makes the artifact."
    notebook = json.loads((find_root(Path(__file__).parent) / "nbs" / f"{stage}.ipynb").read_text())
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("!"):
            continue
        source = source.replace('profile = "mini"', 'profile = "smoke"').replace(
            'device = "auto"', 'device = "cpu"'
        )
        made = "with create(artifact)" in source
        yield source.split("\ncurves =")[0] if made and "\ncurves =" in source else source
        if made:
            return


def run(stage, home):
    "In this process: the stage's own code."
    os.environ["ASTROCLIP_HOME"] = str(home)
    sys.stdout = open(os.devnull, "w")
    names = {"__name__": "stage"}
    for source in cells(stage):
        exec(compile(source, stage, "exec"), names)


def child(stage, home):
    "Start a stage in a fork of this process, where everything is imported; its process id."
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run(stage, home)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(pid, after=None):
    "Wait for a child, kill it `after` so many seconds; (exit status, seconds). Status None: killed."
    begin = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - begin
        if done:
            return os.waitstatus_to_exitcode(status), seconds
        if after is not None and seconds >= after:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, seconds
        time.sleep(0.002)


def content(path):
    "What a file holds, without what differs from run to run (seconds)."
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    if path.suffix == ".h5":
        found = {}
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: (
                    found.update({name: item[()].tobytes()})
                    if isinstance(item, h5py.Dataset) and item.dtype.kind != "O"
                    else None
                )
            )
        return found
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {k: file[k].tobytes() for k in file.files}
    return path.read_bytes()


def differences(a, b):
    "Names of the files of two artifact folders that differ or exist on one side."
    files = [
        {str(f.relative_to(x)): f for f in x.rglob("*") if f.is_file() and f.name != SIDECAR} for x in (a, b)
    ]
    alone = [f"{name} exists once" for name in sorted(files[0].keys() ^ files[1].keys())]
    return alone + [
        f"{name} differs"
        for name in sorted(files[0].keys() & files[1].keys())
        if content(files[0][name]) != content(files[1][name])
    ]


def prepare(home, survey):
    "The survey of the runs: a file that is given, or none (then the first stage makes one)."
    os.environ["ASTROCLIP_HOME"] = str(home)
    if survey is not None:
        artifact = resolve("mock_survey", profile="smoke")
        artifact.path.mkdir(parents=True)
        for name in ("survey.h5", "spectra.h5"):
            shutil.copy(survey, artifact.path / name)
        _write_sidecar(artifact, artifact.path, 0.0, artifact.code)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=None, choices=STAGES)
    parser.add_argument("--survey", help="survey file to work on; without: one is simulated")
    given = parser.parse_args(argv)
    for stage, values in SMALL.items():
        PROFILES["smoke"][stage] |= values
    torch.set_num_threads(1)
    import astroclip.evaluation.embeddings, astroclip.training.alignment, astroclip.training.self_distillation, matplotlib.pyplot  # noqa: E401, F401

    stages = [s for s in STAGES if s != "mock_survey" or given.survey is None]
    killed = given.stages or stages
    rng, counts, found = np.random.default_rng(given.seed), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        prepare(whole, given.survey)
        for stage in stages:
            status, seconds = finish(child(stage, whole))
            if status:
                raise SystemExit(f"{stage} fails without any kill")
            if stage not in killed:
                continue
            wanted, rounds = given.n // len(killed) + (killed.index(stage) < given.n % len(killed)), 0
            while counts[stage] < wanted:
                rounds += 1
                shutil.rmtree(broken, ignore_errors=True)
                os.environ["ASTROCLIP_HOME"] = str(whole)
                made = resolve(stage, profile="smoke").path
                shutil.copytree(whole, broken, ignore=shutil.ignore_patterns(made.name, "*.lock"))
                for attempt in range(20):
                    status, _ = finish(
                        child(stage, broken), rng.uniform(0, seconds) if counts[stage] < wanted else None
                    )
                    if status is not None:
                        break
                    counts[stage] += 1
                if status is None:
                    status, _ = finish(child(stage, broken))
                again = broken / made.relative_to(whole)
                wrong = [f"ended with {status}"] if status else differences(made, again)
                found += [f"{stage}: {w}" for w in wrong]
            print(
                f"{stage:18s} {seconds:5.1f} s alone, {counts[stage]} kills in {rounds} rounds, {sum(f.startswith(stage + ':') for f in found)} differences",
                flush=True,
            )
    print(f"{sum(counts.values())} kills, {len(found)} differences")
    print(*sorted(set(found)), sep="\n")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
