"The embeddings file: streamed, complete or absent, read back by name."

import h5py
import numpy as np
import pytest
import torch

from astroclip.core.config import Params, sample_path
from astroclip.surveys.pairs import Survey
from astroclip.evaluation.embeddings import (
    Embeddings,
    classifier,
    embed_survey,
    image_summary,
    image_tower,
    spectrum_summary,
    spectrum_tower,
    towers,
)
from astroclip.surveys.leakage import fingerprint
from astroclip.evaluation.published import PAPER, page_file, paper_number, read_table, score_row
from astroclip.data.photometry import aperture_magnitudes
from astroclip.models.astroclip import AstroCLIP
from astroclip.models.specformer import SpecFormer
from astroclip.models.vit import VisionTransformer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AstroCLIP(
        VisionTransformer(image_size=96, patch_size=12, embed_dim=24, depth=1, num_heads=2),
        SpecFormer(window=80, stride=40, embed_dim=24, depth=1, num_heads=2),
        embed_dim=16,
    ).eval()


class Guess:
    def predict(self, flux, ivar):
        return np.full(len(flux), 0.2), np.full(len(flux), 0.9)


@pytest.mark.parametrize("batch_size", [64, 17])
def test_what_is_written_is_what_the_model_says(model, tmp_path, batch_size):
    survey = Survey(sample_path())
    models = dict(
        astroclip=towers(model),
        vit=image_tower(model.image_encoder.backbone),
        specformer=spectrum_tower(model.spectrum_encoder.backbone),
        redshift=classifier(Guess(), survey.split == 2),
        photometry=aperture_magnitudes,
        checks=fingerprint,
    )
    path = embed_survey(
        survey.path,
        tmp_path / "embeddings.h5",
        models,
        {"astroclip": dict(checkpoint="abc", configuration="corrected")},
        batch_size,
        report=None,
    )
    e = Embeddings(path)
    assert (e.targetid == survey.targetid).all() and (e.split == survey.split).all() and len(e) == len(survey)
    assert e.attributes["astroclip"] == dict(checkpoint="abc", configuration="corrected")
    np.testing.assert_allclose(e.get("astroclip", "image"), model.embed_images(survey.images()), atol=1e-5)
    np.testing.assert_allclose(
        e.get("astroclip", "spectrum"), model.embed_spectra(survey.flux(), ivar=survey.ivar()), atol=1e-5
    )
    np.testing.assert_allclose(
        e.get("vit", "image", survey.split == 2),
        image_summary(model.image_encoder.backbone, survey.images(survey.split == 2)),
        atol=1e-5,
    )
    assert e.get("specformer", "spectrum").shape == (len(survey), 24)
    assert (np.isfinite(e.get("redshift", "z")) == (survey.split == 2)).all()
    with h5py.File(path) as f:
        assert f.attrs["simulated"] and f["astroclip/image"].dtype == np.float32


def test_summaries_do_not_depend_on_the_batch(model):
    survey = Survey(sample_path())
    images, flux = survey.images(slice(0, 5)), np.nan_to_num(survey.flux(slice(0, 5)))
    vit, specformer = model.image_encoder.backbone, model.spectrum_encoder.backbone
    np.testing.assert_allclose(image_summary(vit, images)[3], image_summary(vit, images[3:4])[0], atol=1e-5)
    np.testing.assert_allclose(
        spectrum_summary(specformer, flux)[3], spectrum_summary(specformer, flux[3:4])[0], atol=1e-5
    )
    assert image_summary(vit, images).shape == (5, 48)


def test_a_failed_run_leaves_nothing(tmp_path):
    broken = dict(vit=lambda batch: {"image": np.full((len(batch["row"]), 4), np.nan, np.float32)})
    with pytest.raises(FloatingPointError, match="not finite"):
        embed_survey(sample_path(), tmp_path / "embeddings.h5", broken, report=None)
    assert not list(tmp_path.iterdir())


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="embed.ipynb"):
        Embeddings(tmp_path / "none.h5")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match="not an embeddings file"):
        Embeddings(tmp_path / "cut.h5")


def test_paper_numbers_are_looked_up_never_filled_in(tmp_path):
    assert paper_number("redshift r2", "image", "astroclip_finetuned", "knn")["paper"] == 0.79
    assert paper_number("redshift r2", "spectrum", "redshift_classifier", "supervised")["paper"] == 0.99
    assert (
        paper_number("redshift r2", "image", "random_vit", "knn")["paper"] is None
        and paper_number("redshift r2", "image", "vit", "mlp")["paper"] is None
    )
    assert all(0 < r[4] < 1 for r in PAPER)
    row = score_row(
        "redshift", "image", "vit", "knn", "r2", 0.5, paper=paper_number("redshift r2", "image", "vit", "knn")
    )
    assert row["difference"] == pytest.approx(-0.13) and "real" in row["paper_sample"]
    (tmp_path / "t.csv").write_text("a,b\n1.5,\nx,2\n")
    assert read_table(tmp_path / "t.csv") == [dict(a=1.5, b=None), dict(a="x", b=2.0)]


def test_a_stale_figure_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROCLIP_HOME", str(tmp_path))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "f.json").write_text(
        '{"numbers": {"x": 1}, "parameters": {"seed": 0}, "inputs": {"embed": "00000000"}}'
    )
    assert page_file("f.json", "redshift", Params(), make=False) is None
    (tmp_path / "figures" / "f.json").write_text(
        '{"numbers": {"x": 1}, "parameters": {"seed": 0}, "inputs": {}}'
    )
    assert page_file("f.json", "redshift", Params(), make=False) == tmp_path / "figures" / "f.json"
