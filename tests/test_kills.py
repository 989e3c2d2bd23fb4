"Killed at any moment, a stage resumes to the same result; the long form of this is tests/kill_and_resume.py."

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from astroclip.core.artifacts import create, resolve
from astroclip.training.loop import Curves, read_curves

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
def test_stages_that_are_killed_resume_to_the_same_result(sample):
    done = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--n",
            "3",
            "--survey",
            str(sample),
            "--stages",
            "pretrain_image",
            "train_redshift",
            "embed",
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "3 kills, 0 differences" in done.stdout


def test_the_rows_of_a_curve_survive_a_second_kill(tmp_path, monkeypatch):
    with Curves(tmp_path / "c.csv") as curves:
        for step in range(4):
            curves.write(dict(step=step, loss=1.0))
    monkeypatch.setattr(
        Curves, "write", lambda self, record: 1 / 0
    )  # killed while the old rows are written again
    with pytest.raises(ZeroDivisionError):
        Curves(tmp_path / "c.csv", 3)
    assert [r["step"] for r in read_curves(tmp_path / "c.csv")] == [0, 1, 2, 3]
    assert [f.name for f in tmp_path.iterdir()] == ["c.csv"]


@pytest.mark.parametrize("training", ["spectrum", "place", "classifier"])
def test_a_record_that_nobody_kept_is_made_again(training, tmp_path, sample):
    "A run that is killed between a step and the line in its curve file has not lost that line."
    from astroclip.training.redshift_classifier import Classification, train_classifier
    from astroclip.training.shift_consistency import Placing, learn_place
    from astroclip.training.masked_modelling import SpectrumPretraining, pretrain_spectrum
    from astroclip.surveys.log_spectra import load_log_spectra
    from astroclip.models.redshift import RedshiftClassifier
    from astroclip.models.specformer import SpecFormer

    def records():
        torch.manual_seed(0)
        if training == "spectrum":
            flux = torch.randn(8, 7781, generator=torch.Generator().manual_seed(1))
            config = SpectrumPretraining(
                steps=3, batch_size=2, warmup=1, validate_every=3, checkpoint_every=1, chunk_width=13
            )
            return pretrain_spectrum(SpecFormer(80, 40, 16, 1, 1), flux, flux[:2], config, tmp_path / "c.pt")
        spectra, network = (
            load_log_spectra([sample], 0)[:16],
            RedshiftClassifier(features=2, templates=2, hidden=4),
        )
        if training == "place":
            return learn_place(
                network, spectra, Placing(steps=3, batch_size=4, checkpoint_every=1), tmp_path / "c.pt"
            )
        config = Classification(steps=3, batch_size=4, validate_every=3, checkpoint_every=1)
        return train_classifier(network, spectra, spectra[:4], config, tmp_path / "c.pt")

    first = records()
    assert next(first)["step"] == 0 and next(first)["step"] == 1
    first.close()  # record 1 was not kept
    assert [r["step"] for r in records()] == [1, 2]


def test_half_written_files_never_become_part_of_an_artifact(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    artifact = resolve("embed", profile="smoke")
    with pytest.raises(KeyboardInterrupt), create(artifact) as folder:
        (folder / "kept.csv").write_text("1")
        (folder / "inner").mkdir()
        for name in (".embeddings.h5.123.tmp", "inner/checkpoint.partial"):
            (folder / name).write_text("half")
        raise KeyboardInterrupt
    with create(artifact) as folder:
        pass
    assert {str(f.relative_to(artifact.path)) for f in artifact.path.rglob("*") if f.is_file()} == {
        "kept.csv",
        "artifact.json",
    }
