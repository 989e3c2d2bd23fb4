"""Masked modelling and the label-free rest frame: a killed run resumes to the same weights; masks, views, released configuration."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from astroclip.core.config import sample_path
from astroclip.data.log_grid import LOG_STEP, LOG_WAVELENGTH, N_LOG, rebin, to_log_grid
from astroclip.models.redshift import RedshiftNetwork
from astroclip.models.rest_frame import unfilled
from astroclip.models.specformer import SpecFormer
from astroclip.training.shift_consistency import Placing, consistency_loss, learn_place, two_views
from astroclip.training.masked_modelling import (
    SpectrumPretraining,
    fill_masked,
    hidden_tokens,
    load_flux,
    pretrain_spectrum,
)
from astroclip.surveys.log_spectra import LogSpectra
from astroclip.data.spectrum_augment import degrade, move, move_to_redshift

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = SpectrumPretraining(
    steps=8, batch_size=4, warmup=2, validate_every=4, checkpoint_every=1, chunk_width=13
)
RUN = """
import sys, torch
sys.path.insert(0, "tests")
from test_masked_modelling import CONFIG, new_model, toy_flux
from astroclip.training.masked_modelling import pretrain_spectrum
torch.set_num_threads(1)
for record in pretrain_spectrum(new_model(), toy_flux(), toy_flux()[:2], CONFIG, sys.argv[1]): print(record["step"], flush=True)
"""


def new_model():
    torch.manual_seed(0)
    return SpecFormer(80, 40, 16, 1, 1, dropout=0.1, place=4)


def toy_flux():
    return torch.randn(12, 7781, generator=torch.Generator().manual_seed(1))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_killed_process_resumes_to_the_same_weights(tmp_path):
    whole = new_model()
    list(pretrain_spectrum(whole, toy_flux(), toy_flux()[:2], CONFIG))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "c.pt")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )
    while process.stdout.readline().strip() != "3":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = new_model()
    records = list(pretrain_spectrum(resumed, toy_flux(), toy_flux()[:2], CONFIG, tmp_path / "c.pt"))
    assert records[0]["step"] >= 3 and records[-1]["step"] == 7
    assert same(whole, resumed)


def test_seed_decides():
    runs = []
    for seed in (0, 0, 1):
        model = new_model()
        for _ in pretrain_spectrum(
            model,
            toy_flux(),
            toy_flux()[:2],
            SpectrumPretraining(steps=2, batch_size=4, warmup=1, seed=seed, validate_every=9),
        ):
            pass
        runs.append(model)
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_hidden_tokens_keep_their_rest_wavelength_but_not_their_flux():
    model, flux = new_model().eval(), toy_flux()[:2]
    masked = hidden_tokens(model, 2, CONFIG, 0)
    with torch.no_grad():
        out = model(flux, masked)
        other = flux.clone()
        assert out["tokens"].shape[-1] == 82 and out["reconstructions"].shape[-1] == 82
        answer = fill_masked(model, other, masked)
    assert torch.isfinite(answer).any() and torch.isnan(answer).any()


def test_released_specformer_has_no_rest_frame():
    model = SpecFormer(80, 40, 16, 1, 1)
    assert model.finder is None and not any("finder" in name for name in model.state_dict())
    assert model.preprocess(toy_flux()[:1]).shape[-1] == 82


def test_place_survives_saving(tmp_path):
    model = new_model().eval()
    model.save_pretrained(tmp_path / "s")
    again = SpecFormer.from_pretrained(tmp_path / "s", device="cpu").eval()
    with torch.no_grad():
        assert torch.equal(model(toy_flux()[:1])["embedding"], again(toy_flux()[:1])["embedding"])


def test_filled_pixels_are_recognised():
    flux = torch.randn(1, 300)
    flux[0, 100:150] = flux[0].mean()
    assert (~unfilled(flux)).sum() == 50


def test_log_grid_keeps_flux_and_moves_lines_by_the_redshift():
    wavelength = np.arange(3600, 9824.1, 0.8)
    flux = torch.zeros(2, len(wavelength))
    flux[0, 2000], flux[1, int(round((wavelength[2000] * 1.1 - 3600) / 0.8))] = 1, 1
    g = rebin(flux, wavelength)
    width = torch.as_tensor(np.gradient(LOG_WAVELENGTH)).float()
    assert torch.allclose((g * width).sum(1), flux.sum(1) * 0.8, rtol=1e-3)
    centre = (g * torch.arange(N_LOG)).sum(1) / g.sum(1)
    assert abs(float(centre[1] - centre[0]) - np.log(1.1) / LOG_STEP) < 0.6


def test_missing_pixels_never_enter():
    flux = torch.ones(1, 7781)
    flux[0, 500:600] = float("nan")
    ivar = torch.ones_like(flux)
    flux[0, 900:1000], ivar[0, 900:1000] = 1e9, 0
    f, good = to_log_grid(flux, 3600 + 0.8 * np.arange(7781), ivar)
    assert (
        torch.allclose(f[good], torch.tensor(1.0)) and (f[~good] == 0).all() and 0.9 < good.float().mean() < 1
    )


def test_views_are_functions_of_the_generator_and_labels_move_along():
    flux, good, y = torch.randn(4, N_LOG), torch.ones(4, N_LOG, dtype=torch.bool), torch.full((4,), 0.2)
    one, two = (move_to_redshift(flux, good, y, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[2], two[2])
    pixels = ((one[2] - y) / LOG_STEP).round().long()
    assert torch.equal(move(flux, good, pixels)[0], one[0])
    f, g = degrade(*one[:2], torch.Generator().manual_seed(1))
    assert not g[~one[1]].any() and (f[~g] == 0).all()


def test_edges_of_two_views_do_not_tell_the_move():
    flux, good = torch.ones(400, N_LOG), torch.ones(400, N_LOG, dtype=torch.bool)
    _, seen, shift = two_views(flux, good, torch.Generator().manual_seed(0), Placing(crop=0.2))
    left = seen.float().argmax(1).chunk(2)
    assert abs(np.corrcoef((left[1] - left[0]).numpy(), shift.numpy())[0, 1]) < 0.15


def test_consistency_prefers_answers_that_move_along():
    def peak(s):
        return 40.0 * torch.eye(50)[torch.tensor([s])]

    d = torch.tensor([5])
    assert consistency_loss(peak(10), peak(15), d) < 1e-3 < consistency_loss(peak(10), peak(10), d)


def test_place_resumes_to_the_same_weights(tmp_path):
    generator = torch.Generator().manual_seed(0)
    spectra = LogSpectra(
        torch.randn(16, N_LOG, generator=generator).half(),
        torch.ones(16, N_LOG, dtype=torch.bool),
        torch.zeros(16),
    )
    config = Placing(steps=4, batch_size=2, warmup=1, checkpoint_every=2)

    def network():
        torch.manual_seed(0)
        return RedshiftNetwork(features=2, templates=2, hidden=4)

    whole, killed, resumed = network(), network(), network()
    list(learn_place(whole, spectra, config))
    for record in learn_place(killed, spectra, config, tmp_path / "c.pt"):
        if record["step"] == 2:
            break
    assert next(iter(learn_place(resumed, spectra, config, tmp_path / "c.pt")))["step"] == 2
    resumed = network()
    list(learn_place(resumed, spectra, config, tmp_path / "c.pt"))
    assert same(whole, resumed)


def test_load_flux_has_no_holes():
    flux = load_flux([sample_path()], split=0)
    assert flux.dtype == torch.float16 and flux.shape[1] == 7781 and torch.isfinite(flux).all()
