"Predictor: densities, calibrated intervals, reasons, folders, and the command that asks it."

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy.stats import norm

from astroclip import AstroCLIP, Predictor, RedshiftClassifier, SpecFormer, VisionTransformer
from astroclip.answers.asking import galaxy_logits, predict_table
from astroclip.answers.doubts import References, limits_of, reasons_of
from astroclip.answers.inputs import open_rows, see_images, see_spectra
from astroclip.answers.intervals import WIDEST, asked_levels, central, coverage_rows, fraction_range
from astroclip.answers.mixtures import Mixture, MixtureHead, inverse
from astroclip.answers.opinions import fraction_intervals
from astroclip.answers.peaks import Peaked, fit_width, peaks_of, with_prior
from astroclip.answers.predictor import predictor_folder
from astroclip.answers.runs import abstention, held
from astroclip.cli.main import main
from astroclip.core.outputs import write_table
from astroclip.data.images import Cutout
from astroclip.data.spectrum_grid import N_PIXELS, Spectrum

WAVELENGTH = np.arange(3600, 9800, 8.0)


def images_of(bright, rng):
    y, x = np.indices((24, 24)) - 11.5
    shape = np.exp(-(x**2 + y**2) / 18)
    noise = 0.02 * rng.normal(size=(len(bright), 3, 24, 24))
    return (bright[:, None, None, None] * shape + noise).astype(np.float32)


def spectra_of(bright, rng):
    flux = 5 * bright[:, None] * (WAVELENGTH / 6000) ** 2
    return flux + rng.normal(size=flux.shape)


@pytest.fixture(scope="module")
def sky():
    "Eighty galaxies that differ in brightness only, untrained networks, and a predictor fitted to them."
    torch.manual_seed(0)
    vit = VisionTransformer(image_size=24, patch_size=12, embed_dim=8, depth=1, num_heads=2)
    model = AstroCLIP(vit, SpecFormer(80, 40, 8, 1, 2), embed_dim=8, num_heads=2).eval()
    classifier = RedshiftClassifier(features=4, templates=2, hidden=4, kinds=True).eval()
    rng = np.random.default_rng(0)
    bright = rng.uniform(0.1, 2, 80)
    images, flux = images_of(bright, rng), spectra_of(bright, rng)
    seen = dict(image=see_images(model, images))
    seen["spectrum"], logits = see_spectra(model, classifier, open_rows(flux, WAVELENGTH, np.ones_like(flux)))
    split = np.repeat([0, 1], [50, 30])
    labels = dict(redshift=0.4 - 0.1 * bright, log_mstar=10 + bright)
    votes = {"disk-edge-on": np.stack([np.full(80, 10), np.full(80, 20)], 1)}
    predictor = Predictor.fit(model, classifier, seen, labels, split, logits=logits[split == 1], votes=votes)
    return predictor, images, flux


def test_quantiles_are_those_of_the_sum():
    "By hand: one Gaussian, and two so far apart that each has half of the galaxies."
    one = Mixture(np.ones((1, 1)), np.array([[3.0]]), np.array([[2.0]]))
    assert np.allclose(one.quantile(norm.cdf(1.5)), 3 + 1.5 * 2, atol=1e-9)
    two = Mixture(np.array([[0.5, 0.5]]), np.array([[-10.0, 10.0]]), np.ones((1, 2)))
    assert np.allclose(two.quantile(0.25), -10, atol=1e-6) and np.allclose(two.quantile(0.75), 10, atol=1e-6)
    assert np.allclose(inverse(lambda y: y**3, 0.125, np.zeros(2), np.ones(2)), 0.5)


def test_a_head_repeats_itself_and_ignores_missing_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = np.stack([x[:, 0], x[:, 1]], 1)
    y[::2, 1] = np.nan
    one, two = (MixtureHead(seed=3, epochs=3).fit(x, y, x[:50], y[:50]).predict(x[:4]) for _ in range(2))
    assert all(np.array_equal(a.mean, b.mean) for a, b in zip(one, two))
    assert np.isfinite(one[1].mean).all()


def test_levels_by_hand():
    "Nine galaxies: 0.68 of ten is the seventh smallest interval, and 0.95 cannot be promised."
    u = np.arange(1, 10) / 20  # r = 0.9, 0.8, ... 0.1
    asked = asked_levels(u)
    assert np.isclose(asked[0], 0.7) and asked[1] == WIDEST


def test_calibrated_intervals_hold_whatever_the_densities_are():
    rng = np.random.default_rng(1)
    y = rng.standard_t(3, 6000)
    wrong = Mixture(np.ones((6000, 1)), np.full((6000, 1), 0.3), np.full((6000, 1), 0.6))
    found = central(wrong, asked_levels(wrong.cdf(y)[:3000]))[3000:]
    for low, high, level in ((1, 2, 0.68), (3, 4, 0.95)):
        inside = ((found[:, low] <= y[3000:]) & (y[3000:] <= found[:, high])).mean()
        least, most = fraction_range(3000, level, 3000, 0.001)
        assert least <= inside <= most


def test_ranges_and_bins():
    assert fraction_range(100, 0.5) == (0.4, 0.6)
    assert fraction_range(100, 0.5, 50)[0] < 0.4  # the calibration has luck of its own
    rng = np.random.default_rng(0)
    rows = coverage_rows(dict(a=rng.uniform(size=1000) < 0.68), 0.68, dict(x=np.arange(1000.0)), 1000, 5)
    assert [row["m"] for row in rows] == [200] * 5 and all(row["in_joint"] for row in rows)
    missing = np.where(np.arange(1000) < 600, np.nan, np.arange(1000.0))
    assert sum(r["m"] for r in coverage_rows(dict(a=np.ones(1000, bool)), 0.68, dict(x=missing), 1000, 2)) == 400


def test_a_confused_line_widens_the_interval():
    centers, rest = np.linspace(0, 1, 1001), np.zeros((2, 1001))
    rest[:, 800] = 1
    found = Peaked(np.full(2, 0.2), np.full(2, 1e-4), np.array([0.999, 0.6]), rest, centers)
    wide = found.quantile(0.84) - found.quantile(0.16)
    assert wide[0] < 3e-4 and wide[1] > 0.5
    assert np.allclose(found.masses().sum(1), 1) and np.allclose(found.cdf(np.full(2, 0.5)), found.probability)


def test_an_image_decides_between_lines_and_keeps_the_width():
    centers, logits = np.linspace(0, 1, 1001), np.full((1, 1001), -10.0)
    logits[0, 300], logits[0, 700] = 5.0, 5.5
    image = Mixture(np.ones((1, 1)), np.array([[0.31]]), np.array([[0.05]]))
    width = (-7.0, 0.1)
    alone = peaks_of(logits, centers, width=width)
    both = peaks_of(with_prior(logits, image, centers), centers, width=width, alone=logits)
    assert abs(alone.y[0] - 0.7) < 2e-3 and abs(both.y[0] - 0.3) < 2e-3
    assert both.probability[0] > 0.99 > alone.probability[0]
    assert both.sigma[0] > 0.9 * np.exp(-7.0) * 0.5**0.1  # sure, but as wide as the spectrum alone says


def test_width_of_peaks():
    rng = np.random.default_rng(0)
    spill = rng.uniform(-18, -3, 4000)
    a, b = fit_width(spill, np.exp(-7 + 0.2 * spill) * rng.normal(size=4000))
    assert abs(a + 7) < 0.1 and abs(b - 0.2) < 0.01


def test_references_do_not_count_a_galaxy_as_its_own_neighbour():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    near = References.of(x, 400)
    assert np.median(near.distance(x, own=True)) > 1.05 * np.median(near.distance(x))
    assert limits_of(np.arange(1001), np.arange(1001)) == (990.0, 5.0)
    assert reasons_of("image", 0.9, 1.0, 0.5, 0.0) == [] and len(reasons_of("spectrum", 2.0, 0.0, 0.5, 0.5)) == 3


def test_vote_intervals():
    found = fraction_intervals([[0.5, 0.5]], [2.0])[0, 0]  # Beta(1, 1): uniform
    assert np.allclose(found, [0.5, 0.16, 0.84, 0.025, 0.975])


def test_rows_in_are_rows_out(sky):
    "Whatever is wrong with a row: NaN, zeros, too small, a picture, nothing."
    predictor, images, flux = sky
    rgb = Cutout(np.clip(images[3], 0, 1), 0.0, 0.0, kind="rgb")
    asked = [images[0], np.full((3, 24, 24), np.nan), images[2][:, :10, :10], rgb, None, None]
    good = Spectrum("s", WAVELENGTH, flux[0].astype(np.float32), np.ones(len(WAVELENGTH)), np.zeros(len(WAVELENGTH), bool))
    dead = Spectrum("d", WAVELENGTH, 0 * good.flux, good.ivar, good.mask)
    table = predictor.predict(asked, [good, good, None, None, dead, None], ids=list("abcdef"))
    assert list(table["id"]) == list("abcdef")
    assert list(table["input"]) == ["both", "spectrum", "", "image", "", ""]
    assert list(np.asarray(table["flag"])[[2, 4, 5]]) == [True] * 3
    assert table["reason"][5] == "nothing was given" and "all zero" in table["reason"][4]
    assert np.isnan(table["log_mstar"][4]) and np.isfinite(table["log_mstar"][[0, 1, 3]]).all()
    assert np.isfinite(table["disk-edge-on_yes_low68"][[0, 3]]).all() and np.isnan(table["disk-edge-on_yes"][1])


def test_intervals_are_nested_and_ordered(sky):
    predictor, images, flux = sky
    for table in (predictor.predict(images[:20]), predictor.predict(images[:20], flux[:20], wavelength=WAVELENGTH)):
        galaxies = np.isfinite(table["redshift_low95"])
        for name in predictor.labels:
            order = [table[f"{name}{end}"][galaxies] for end in ("_low95", "_low68", "", "_high68", "_high95")]
            assert (np.diff(order, axis=0) >= -1e-9).all()


def test_a_block_is_answered_like_its_rows(sky):
    predictor, images, flux = sky
    whole = predictor.predict(images[:6], flux[:6], wavelength=WAVELENGTH)
    parts = predictor.predict(images[:6], flux[:6], wavelength=WAVELENGTH, batch_size=2)
    for name in whole.colnames:
        if whole[name].dtype.kind == "f":
            assert np.allclose(whole[name], parts[name], rtol=1e-3, atol=1e-3, equal_nan=True), name


def test_a_folder_gives_the_same_answers(sky, tmp_path):
    predictor, images, flux = sky
    again = Predictor.from_pretrained(predictor.save_pretrained(tmp_path / "p"), device="cpu")
    one, two = (x.predict(images[:5], flux[:5], wavelength=WAVELENGTH) for x in (predictor, again))
    for name in one.colnames:
        same = np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")
        assert same, name
    assert not list((tmp_path / "p").rglob("*.pkl")) and (tmp_path / "p" / "README.md").is_file()
    z, image, spectrum = again.redshift_density(images[:2], flux[:2], wavelength=WAVELENGTH)
    assert image.shape == spectrum.shape == (2, len(z)) and np.allclose(spectrum.sum(1), 1, atol=1e-6)


def test_bad_calls_say_what_to_do(sky, tmp_path):
    predictor, images, flux = sky
    for call, words in (
        (lambda: predictor.predict(), "nothing to predict"),
        (lambda: predictor.predict(images[:2], flux[:3], wavelength=WAVELENGTH), "one row a galaxy"),
        (lambda: predictor.predict(images[:2], ids=["a"]), "one for each"),
        (lambda: predictor.predict(spectra=flux[:2]), "give wavelength"),
        (lambda: predictor_folder(tmp_path), "holds no predictor"),
        (lambda: predict_table(predictor, spectra=np.zeros((2, N_PIXELS)), unit="parsec"), "parsec"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(FileNotFoundError, match="no predictor 'nobody'"):
        Predictor.from_pretrained("nobody")


def test_no_galaxies_at_all(sky):
    predictor, images, _ = sky
    assert len(predictor.predict(images[:0])) == 0


def test_judging_by_hand():
    columns = dict(m_low68=np.array([0, 0, np.nan]), m_high68=np.array([1.0, 1.0, 1.0]))
    assert np.array_equal(held(columns, "m", np.array([0.5, 2.0, 0.5]), 0.68), [1, 0, np.nan], equal_nan=True)
    columns = dict(m=np.zeros(4), m_low68=np.zeros(4), m_high68=np.array([1.0, 2.0, 3.0, 4.0]))
    curve = abstention(columns, "m", np.array([1.0, 2.0, 3.0, 4.0]), 20)
    assert np.isclose(curve["risk"][0], 1) and np.isclose(curve["risk"][-1], 2.5) and np.isclose(curve["gain"], 1)
    assert galaxy_logits(None) is None and galaxy_logits(np.zeros((2, 4, 9))).shape == (2, 9)


@pytest.mark.parametrize("suffix", [".ecsv", ".fits", ".vot", ".parquet", ".csv"])
def test_the_command_writes_every_table(sky, tmp_path, suffix, capsys):
    "A table that names files, of which one is not there."
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    predictor, _, flux = sky
    predictor.save_pretrained(tmp_path / "model")
    Table(dict(wavelength=WAVELENGTH, flux=flux[0], ivar=np.ones(len(WAVELENGTH)))).write(tmp_path / "s.ecsv")
    Table(dict(id=["one", "two"], spectrum=["s.ecsv", "gone.fits"])).write(tmp_path / "list.csv")
    out = tmp_path / f"answers{suffix}"
    words = ["predict", str(tmp_path / "list.csv"), "-o", str(out), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main(words) == 0, capsys.readouterr().err
    table = Table.read(out, **(dict(format="votable") if suffix == ".vot" else {}))
    assert list(np.asarray(table["id"]).astype(str)) == ["one", "two"]
    assert main(words) == 1 and "there already" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*parts"))


def test_a_table_without_its_library_says_so(tmp_path, monkeypatch):
    def gone(*_, **__):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(Table, "write", gone)
    with pytest.raises(ValueError, match="needs a library"):
        write_table(Table(dict(a=[1])), tmp_path / "t.parquet")
