"""What was saved before the modules moved still loads and gives the same numbers.

The models in `old_models` were written, and the numbers in `expected.json` computed, by the code of commit afbe715.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import astroclip
from astroclip.core.artifacts import STAGES, resolve
from astroclip.models.pretrained import describe, model_hash

FOLDER = Path(__file__).parent / "old_models"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
KINDS = {
    "vit": "VisionTransformer",
    "specformer": "SpecFormer",
    "astroclip": "AstroCLIP",
    "redshift": "RedshiftClassifier",
}


def pixels():
    "(2, 3, 48, 48) two exponential discs, nanomaggies."
    y, x = np.mgrid[-24:24, -24:24]
    r2 = np.stack([x**2 + 1.5 * y**2, 2 * x**2 + y**2])
    light = np.exp(-np.sqrt(r2) / 5)
    return (light[:, None] * np.array([0.4, 1.0, 1.6])[:, None, None]).astype(np.float32)


def spectra():
    "(2, 7781) four lines on a slope, at two redshifts."
    wavelength = 3600 + 0.8 * np.arange(7781)
    rows = []
    for z in (0.1, 0.3):
        flux = 2 + (wavelength - 3600) / 4000 + 0.3 * np.sin(wavelength / 37.0)
        for rest, height in ((3728.5, 3), (4862.7, 2), (5008.2, 4), (6564.6, 6)):
            flux = flux + height * np.exp(-0.5 * ((wavelength - rest * (1 + z)) / 3) ** 2)
        rows.append(flux)
    return np.stack(rows).astype(np.float32)


@pytest.fixture
def old_model(request, tmp_path):
    "The folder of a model as the old code wrote it."
    with zipfile.ZipFile(FOLDER / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return request.param, tmp_path


@pytest.mark.parametrize("old_model", KINDS, indirect=True)
def test_old_models_load_and_give_the_same_numbers(old_model):
    name, folder = old_model
    model = getattr(astroclip, KINDS[name]).from_pretrained(folder, device="cpu")
    assert model_hash(model) == EXPECTED["hashes"][name]
    assert describe(folder)["kind"] == KINDS[name]
    found = {}
    if name in ("vit", "astroclip"):
        found[f"{name}.images"] = model.embed_images(pixels())
    if name in ("specformer", "astroclip"):
        found[f"{name}.spectra"] = model.embed_spectra(spectra())
    if name == "redshift":
        found["redshift.redshifts"] = np.stack(model.predict(spectra()))
    for key, values in found.items():
        np.testing.assert_allclose(values, EXPECTED[key], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("old_model", KINDS, indirect=True)
def test_old_models_are_written_again_as_they_were(old_model, tmp_path):
    "The same tensors and the same configuration, whatever the version: an old folder and a new one are one model."
    name, folder = old_model
    model = getattr(astroclip, KINDS[name]).from_pretrained(folder, device="cpu")
    again = model.save_pretrained(tmp_path / "again")
    old, new = (json.loads((f / "config.json").read_text()) for f in (folder, again))
    for record in (old, new):
        del record["astroclip"], record["sha256"]  # the version, which stands in the header too
    assert old == new
    for name in ("layout", "parameters", "tensors", "config", "training"):
        assert describe(folder)[name] == describe(again)[name]
    assert model_hash(type(model).from_pretrained(again, device="cpu")) == model_hash(model)


@pytest.mark.parametrize("profile", EXPECTED["artifact_keys"])
def test_artifacts_keep_their_keys(profile):
    "Settings alone make a key: what lies on a disk is found again."
    assert {stage: resolve(stage, profile=profile, seed=0).key for stage in STAGES} == EXPECTED[
        "artifact_keys"
    ][profile]


@pytest.mark.parametrize("profile", EXPECTED["artifact_keys_before"])
def test_settings_of_before_find_what_was_made_before(profile):
    "The first survey and its trainings have their old keys, where a run asks for them."
    before = "mock_survey.calibration=0 mock_survey.line_fraction=1 pretrain_spectrum.degrade=0 pretrain_spectrum.place_ramp=0"
    before += " align.views=0 align.carry=0" + (" pretrain_spectrum.place_steps=500" if profile == "mini" else "")
    found = {stage: resolve(stage, profile=profile, seed=0, set=before).key for stage in STAGES}
    assert found == EXPECTED["artifact_keys_before"][profile]
