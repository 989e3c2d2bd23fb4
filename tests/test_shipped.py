"The weights that ship: the files that were written, the run that made them, the answers that they give, without a network."

import socket

import numpy as np
import pytest
from astropy.table import Table

from astroclip import AstroCLIP, Predictor, RedshiftClassifier, SpecFormer, VisionTransformer
from astroclip.cli.main import main
from astroclip.core.artifacts import STAGES, resolve
from astroclip.core.config import sample_path
from astroclip.files.weight_files import PARTS, SHIPPED, locate, shipped, shipped_names
from astroclip.models.pretrained import model_hash
from astroclip.opinions.check_trials import load_all
from astroclip.shipped.shipping import LIMIT, about_shipped
from astroclip.surveys.pairs import Survey

ABOUT = about_shipped("simulated")  # compares every file with its hash


@pytest.fixture
def offline(monkeypatch):
    "Whoever opens a connection fails."

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def galaxies():
    return Survey(sample_path())


def test_what_ships_is_small_and_says_what_it_has_seen():
    assert shipped_names() == ["simulated"]
    files = [p for p in (SHIPPED / "simulated").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < LIMIT
    assert not [
        p for p in files if p.suffix not in (".safetensors", ".json", ".md")
    ]  # nothing that could run
    card = (SHIPPED / "simulated" / "README.md").read_text()
    assert (
        "simulated galaxies only" in card.splitlines()[4] and ABOUT["trained_on"] == "simulated galaxies only"
    )
    assert all(value in card for value in [*ABOUT["sha256"].values(), *ABOUT["keys"].values()])
    assert "R2 of redshift" in card and f"PROFILE={ABOUT['profile']}" in card


def test_today_s_profile_makes_these_weights():
    "A setting that changes a stage changes its key: then the run has to be made again, and shipped."
    made = {stage: key for stage, key in ABOUT["keys"].items() if stage in STAGES}
    assert {"align", "train_redshift", "pretrain_image", "pretrain_spectrum", "mock_survey"} <= set(made)
    assert made == {stage: resolve(stage, profile=ABOUT["profile"], seed=ABOUT["seed"]).key for stage in made}


def test_a_run_of_the_profile_gives_the_same_answers(galaxies):
    "Where this machine has such a run: what was shipped is its networks, rounded."
    folder = resolve("align", profile=ABOUT["profile"], seed=ABOUT["seed"]).path / "astroclip"
    if not folder.is_dir():
        pytest.skip(
            f"no run of profile {ABOUT['profile']} on this machine: `make reproduce PROFILE={ABOUT['profile']}`"
        )
    made, ours = (
        AstroCLIP.from_pretrained(folder, device="cpu"),
        AstroCLIP.from_pretrained("simulated", device="cpu"),
    )
    a, b = (model.embed_images(galaxies.images()) for model in (made, ours))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999  # another processor's training would be as far off as another seed's scores


def test_every_class_takes_its_own(offline):
    model = AstroCLIP.from_pretrained("simulated", device="cpu")
    for cls, tower in ((VisionTransformer, model.image_encoder), (SpecFormer, model.spectrum_encoder)):
        assert model_hash(cls.from_pretrained("simulated", device="cpu")) == model_hash(tower.backbone)
    classifier = RedshiftClassifier.from_pretrained("simulated", device="cpu")
    predictor = Predictor.from_pretrained("simulated", device="cpu")
    assert model_hash(predictor.model) == model_hash(model)
    assert model_hash(predictor.classifier) == model_hash(classifier)
    assert {x.dtype.itemsize for x in model.parameters()} == {4}  # stored by halves, computed in float32
    opinion, *_ = load_all("simulated", "cpu")
    assert 0 < opinion.cut < 1 and opinion.alpha == 0.01
    assert AstroCLIP.from_pretrained(device="cpu").config == model.config  # the default of every class


def test_three_lines_answer(offline, galaxies):
    predictor = Predictor.from_pretrained("simulated", device="cpu")
    table = predictor.predict(galaxies.images(), galaxies.flux(), ivar=galaxies.ivar())
    z = galaxies.redshift
    right = np.abs(np.asarray(table["redshift"]) - z) / (1 + z) < 0.0033
    held = (table["redshift_low95"] <= z) & (z <= table["redshift_high95"])
    assert len(table) == 64 and right.mean() > 0.9 and np.asarray(held).mean() > 0.8
    image = predictor.predict(galaxies.images())
    assert np.corrcoef(np.asarray(image["redshift"]), z)[0, 1] > 0.6


def test_the_commands_start_from_them(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    survey = str(sample_path())
    assert main(["predict", survey, "-o", "answers.ecsv", "--device", "cpu"]) == 0
    assert main(["check", survey, "-o", "verdicts.ecsv", "--device", "cpu"]) == 0
    assert main(["embed", "simulated", survey, "-o", "index.h5", "--device", "cpu"]) == 0
    assert main(["search", "index.h5", str(Survey(sample_path()).targetid[0]), "-k", "3"]) == 0
    assert main(["info", "simulated"]) == 0
    assert len(Table.read("answers.ecsv")) == len(Table.read("verdicts.ecsv")) == 64
    said = " ".join(capsys.readouterr().out.split())
    assert "kind: AstroCLIP" in said
    verdicts = list(Table.read("verdicts.ecsv")["verdict"])
    assert verdicts.count("contradict") <= 3 and verdicts.count("agree") > 40  # right redshifts


def test_a_model_of_that_name_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simulated").mkdir()  # a folder without a model is in nobody's way
    assert locate("simulated") == SHIPPED / "simulated" / PARTS["AstroCLIP"]
    torch_model = VisionTransformer(24, 12, 8, 1, 2)
    torch_model.save_pretrained(tmp_path / "simulated")
    assert shipped("simulated") is None
    assert model_hash(VisionTransformer.from_pretrained("simulated", device="cpu")) == model_hash(torch_model)
    with pytest.raises(FileNotFoundError, match="weights that ship .simulated."):
        AstroCLIP.from_pretrained("simulation")
