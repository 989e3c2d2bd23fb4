"""The second opinion on redshifts: hand-computed scores, rates that are kept, and rows in, rows out."""

import json
import warnings

import numpy as np
import pytest

from astroclip.opinions.consistency import combined, least_stated, p_of_odds, p_values, threshold, verdicts
from astroclip.opinions.densities import best_window, log_odds, quantile, tail
from astroclip.opinions.planted import CONFUSED, FAILURES, confusions, name_failure, plant, same_redshift, swapped

NAN = float("nan")


def comb(centers, *peaks):
    "A density with all its weight in single shifts, (1, S)."
    p = np.zeros((1, len(centers)))
    for place, weight in peaks:
        p[0, np.argmin(np.abs(centers - place))] += weight
    return p


CENTERS = np.arange(0, 1.5, 0.001)


def test_odds_by_hand():
    p = comb(CENTERS, (0.2, 0.75), (0.201, 0.05), (0.7, 0.2))
    assert best_window(p, CENTERS)[0][0] == pytest.approx(0.8)
    assert best_window(p, CENTERS)[1][0] == pytest.approx((0.75 * 0.2 + 0.05 * 0.201) / 0.8)
    assert log_odds(p, CENTERS, [np.expm1(0.7)])[0] == pytest.approx(np.log(0.25))
    assert log_odds(p, CENTERS, [np.expm1(0.2)])[0] == 0
    assert np.isnan(log_odds(np.repeat(p, 2, 0), CENTERS, [NAN, 60.0])).all()


def test_odds_do_not_depend_on_what_lies_elsewhere():
    "Mass that is moved between far redshifts changes nothing for a near one."
    a, b = comb(CENTERS, (0.2, 0.6), (0.5, 0.2), (0.9, 0.2)), comb(CENTERS, (0.2, 0.6), (0.7, 0.2), (1.1, 0.2))
    z = [np.expm1(0.2)]
    assert log_odds(a, CENTERS, z) == log_odds(b, CENTERS, z)


def test_tails_and_quantiles_by_hand():
    edges, q = np.array([0, 0.1, 0.2, 0.3]), np.array([[0.2, 0.5, 0.3]])
    found = [float(tail(q, edges, [np.expm1(y)])[0]) for y in (0.05, 0.15, 0.25)]
    assert found == pytest.approx([0.2, 1.0, 0.5])
    assert np.log1p(quantile(q, edges, 0.45))[0] == pytest.approx(0.15)
    assert np.isnan(tail(q, edges, [np.expm1(0.31)])).all()


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_stated_rate_is_kept(alpha):
    "Over many validation sets, right scores are contradicted in at most alpha of all cases."
    rng = np.random.default_rng(0)
    alarms = [np.mean(p_values(rng.gumbel(size=500), rng.gumbel(size=300)) <= alpha) for _ in range(200)]
    assert np.mean(alarms) < alpha * 1.08
    assert np.mean(alarms) > alpha * 0.4


def test_p_values_by_hand():
    assert p_values([0, 1.5, 9], [1, 2, 3]) == pytest.approx([0.25, 0.5, 1.0])
    assert p_of_odds([np.log(1 / 3)], [0.0] * 99)[0] == pytest.approx(0.25)  # odds of three to one
    assert combined([[0.02, 0.5, NAN], [NAN, NAN, NAN], [0.9, 0.8, 0.7]]) == pytest.approx([0.04, NAN, 1], nan_ok=True)


def test_a_threshold_is_where_the_p_value_is():
    right = np.sort(np.random.default_rng(1).normal(-60, 9, 700))
    at = threshold(right, 0.01)
    assert p_of_odds([at], right)[0] <= 0.01 < p_of_odds([right[6]], right)[0]
    assert threshold(right[:50], 0.01) == -np.inf


def test_silence_where_wrong_ones_look_right():
    n = 2000
    stated, right = np.linspace(0, 1, n), np.zeros(n)
    wrong = np.where(stated[:, None] > 0.5, -20.0, 0.0)
    cut = least_stated(stated, right, wrong)
    assert cut == pytest.approx(0.5)  # half of those just above 0.45 are not found
    assert least_stated(stated, right, np.zeros((n, 1))) == np.inf
    assert least_stated(stated[:20], right[:20], wrong[-20:]) == np.inf  # twenty galaxies allow no rate of 1 %


def test_verdicts_by_hand():
    p = [[0.9, NAN, NAN], [0.005, 0.5, NAN], [0.02, NAN, NAN], [NAN] * 3, [NAN, 0.6, NAN]]
    said = verdicts(p, [0.0, -6.0, -3.0, NAN, NAN], [False, True, False, True, True])
    assert said.tolist() == ["agree", "contradict", "doubtful", "agree", "agree"]
    with pytest.raises(ValueError, match="0 < alpha <= doubt"):
        verdicts(p, [0.0] * 5, [True] * 5, alpha=0)


def test_confused_lines_keep_the_observed_wavelength():
    for z in (0.0, 0.3, 1.1):
        for (a, b), wrong in confusions(z).items():
            assert (1 + wrong) * CONFUSED[b] == pytest.approx((1 + z) * CONFUSED[a])
            assert 3600 < (1 + z) * CONFUSED[a] < 9824
            assert name_failure(wrong, z).isascii() and "may have been taken for" in name_failure(wrong, z)
    assert name_failure(1.1 * 6564.6 / 5008.2 - 1, 0.1) == "H-alpha may have been taken for [O III]"


def test_planted_redshifts_are_wrong():
    z = np.random.default_rng(0).uniform(0, 1.5, 300)
    wrong = plant(z, z, seed=2)
    assert set(wrong) == set(FAILURES)
    for values in wrong.values():
        assert not same_redshift(values, z).any() and np.isfinite(values).mean() > 0.5
    np.testing.assert_array_equal(plant(z, z, seed=2)["neighbour"], wrong["neighbour"])


def test_nobody_keeps_his_spectrum():
    for like in (None, np.zeros((40, 2)), np.random.default_rng(0).normal(size=(40, 2))):
        assert (swapped(40, 0, like) != np.arange(40)).all()
    with pytest.raises(ValueError, match="needs two"):
        swapped(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A second opinion with its networks, untrained and tiny."
    import torch

    from astroclip.opinions.check_trials import save_all
    from astroclip.opinions.second_opinion import KnownSpectra, fit_opinion
    from astroclip.core.config import sample_path
    from astroclip.models.astroclip import AstroCLIP
    from astroclip.models.redshift import RedshiftClassifier
    from astroclip.models.specformer import SpecFormer
    from astroclip.models.vit import VisionTransformer
    from astroclip.surveys.pairs import Survey

    torch.manual_seed(0)
    model = AstroCLIP(VisionTransformer(96, 12, 24, 1, 2), SpecFormer(80, 40, 24, 1, 2), embed_dim=8).eval()
    classifier = RedshiftClassifier(features=4, templates=4, hidden=8, z_max=1.0).eval()
    survey = Survey(sample_path())
    x, even = model.embed_images(survey.images()), np.arange(64) % 2 == 0
    known = KnownSpectra(np.ones(40), np.zeros(40), dict(planted=np.full(40, -9.0)))
    opinion = fit_opinion(x, x, survey.redshift, even, ~even, np.ones(32), known, alpha=0.05, steps=10)
    path = tmp_path_factory.mktemp("opinion")
    save_all(opinion, model, classifier, path)
    return path


def test_a_folder_holds_no_code(folder):
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert {"opinion.safetensors", "opinion.json"} <= names
    assert not any(name.endswith((".pt", ".pkl", ".pickle")) for name in names)
    assert (folder / "opinion.safetensors").stat().st_size < 1_000_000
    assert json.loads((folder / "opinion.json").read_text())["schema"] == "astroclip-opinion-1"


def test_missing_inputs_cost_only_their_tests(folder):
    from astroclip.opinions.second_opinion import ask, load_opinion

    opinion = load_opinion(folder)
    table = ask(opinion, [0.2, NAN, 0.1], image=np.full((3, 8), NAN))
    assert table["verdict"].tolist() == ["cannot say"] * 3
    assert "no redshift to check" in table["reason"][1] and "neither image" in table["reason"][0]
    with pytest.raises(ValueError, match="expected a row for each"):
        ask(opinion, [0.2], image=np.zeros((2, 8)))
    with pytest.raises(FileNotFoundError, match="holds no opinion"):
        load_opinion(folder / "astroclip")


def check(capsys, *words):
    from astroclip.cli.main import main

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(["check", *map(str, words), "--device", "cpu"])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_answers_every_row_in_order_and_resumes(folder, tmp_path, capsys, monkeypatch):
    from astropy.table import Table

    from astroclip.cli import checking
    from astroclip.core.config import sample_path
    from astroclip.surveys.pairs import Survey

    asked, calls = checking.ask_block, []

    def fails_later(*args):
        calls.append(len(args[3]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return asked(*args)

    words = (sample_path(), "--model", folder, "-o", tmp_path / "out.ecsv", "--batch-size", 24)
    monkeypatch.setattr(checking, "ask_block", fails_later)
    status, _, err = check(capsys, *words)
    assert status == 130 and "the same command resumes it" in err and not (tmp_path / "out.ecsv").exists()
    status, out, _ = check(capsys, *words)
    assert status == 0 and calls == [24, 24, 16, 16] and "64 checked" in out
    table, survey = Table.read(tmp_path / "out.ecsv"), Survey(sample_path())
    assert table["id"].astype(str).tolist() == [str(i) for i in survey.targetid]
    assert np.allclose(table["z_catalogue"], survey.redshift)
    assert [p.name for p in tmp_path.iterdir()] == ["out.ecsv"]


def test_a_list_of_files_keeps_its_rows(folder, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("id,image,spectrum,Z\nfirst,none.fits,,0.1\nsecond,,,oops\nthird,,,\n")
    words = (tmp_path / "list.csv", "--model", folder, "-o", tmp_path / "out.csv", "--redshift", "Z")
    status, out, err = check(capsys, *words)
    assert status == 0 and "3 cannot say" in out, err
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["first", "second", "third"]
    assert "no file" in lines[1] and "neither image nor spectrum" in lines[2]


def test_a_fits_table_takes_any_file_name(folder, tmp_path, capsys):
    from astropy.table import Table

    (tmp_path / "gälaxy.fits").write_bytes(b"nothing")
    status, _, err = check(capsys, tmp_path / "gälaxy.fits", "--model", folder, "-o", tmp_path / "out.fits")
    assert status == 0, err
    assert Table.read(tmp_path / "out.fits")["verdict"].astype(str).tolist() == ["cannot say"]


def test_bad_questions_end_with_one_line(folder, tmp_path, capsys):
    (tmp_path / "a.fits").write_bytes(b"nothing")
    for words, says in (
        ((tmp_path / "a.fits", "--redshift", "Z"), "files have no columns"),
        ((tmp_path / "none",), "no such file"),
        ((tmp_path / "a.fits", "--batch-size", 0), "at least 1"),
    ):
        status, _, err = check(capsys, *words, "--model", folder, "-o", tmp_path / "out.csv")
        assert status == 1 and says in err and len(err.strip().splitlines()) == 1
    status, _, err = check(capsys, tmp_path / "a.fits", "--model", tmp_path, "-o", tmp_path / "out.csv")
    assert status == 1 and "holds no opinion" in err
