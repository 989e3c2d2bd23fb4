"""PROVABGS, Galaxy Zoo and DESI's redshifts: small files in the published layouts, values by hand, traps of each."""

import sys
import types

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from astroclip.bulk.doors import sample_services, write_provabgs, write_votes
from astroclip.core.config import sample_path
from astroclip.formats.catalog_tables import catalogue_files, catalog_columns, read_flags
from astroclip.surveys.labels import ANSWERS, QUESTIONS, match_votes, read_catalogue
from astroclip.surveys.pairs import Survey
from astroclip.surveys.published_labels import (
    PAPER_CUTS,
    RedshiftCuts,
    cut_in_turn,
    join_labels,
    label_survey,
    read_galaxy_zoo,
    read_provabgs,
    read_redshifts,
)
from astroclip.surveys.remote import fetch, usual_services
from astroclip.web.downloads import Downloads
from astroclip.web.stand_in import StandIn


def lost(counts):
    return dict(zip(counts["cut"], counts["lost"]))


# PROVABGS


def provabgs_table(ready):
    "Five rows as DESI's file has them; `ready`: with the three properties of the Multimodal Universe."
    rng = np.random.default_rng(0)
    t = Table(dict(TARGETID=39_627_000_000_000_000 + np.arange(5), RA=np.arange(5.0), DEC=np.zeros(5)))
    t["Z_HP"] = [0.1, 0.2, 0.3, 0.4, 0.5]
    t["PROVABGS_LOGMSTAR_BF"] = [10.0, 11.0, -1.0, 9.5, 10.5]
    for band in "GRZ":
        t[f"MAG_{band}"] = [18.0, 17.0, 18.0, -999.0, 19.0]
    t["PROVABGS_MCMC"] = rng.normal(size=(5, 100, 13))
    t["PROVABGS_THETA_BF"] = np.arange(65.0).reshape(5, 13)
    if ready:
        t["Z_MW"], t["TAGE_MW"], t["AVG_SFR"] = [0.01, 0.02, 0.01, 0.01, 0.03], [5.0, 6, 5, 5, 7], [10.0, 0.1, 1, 1, 0]
    return t


@pytest.mark.parametrize("layout", ["table.hdf5", "table.fits", "folder of MMU"])
def test_provabgs_by_hand(tmp_path, layout):
    t = provabgs_table(ready=True)
    path = tmp_path / layout
    if layout == "table.hdf5":
        t.write(path, path="__astropy_table__", serialize_meta=False)
    elif layout == "table.fits":
        t.write(path)
    else:  # two cells of the sky, a dataset for each column, identifiers as bytes
        for cell, rows in (("healpix=7", slice(0, 2)), ("healpix=12", slice(2, 5))):
            (path / cell).mkdir(parents=True)
            with h5py.File(path / cell / "001-of-001.h5", "w") as file:
                for name in t.colnames[3:]:
                    file[name] = t[name][rows]
                file["object_id"] = np.array([str(i) for i in t["TARGETID"][rows]], "S20")
                file["ra"], file["dec"] = t["RA"][rows], t["DEC"][rows]
    labels, counts = read_provabgs(path)
    order = np.argsort(labels["targetid"])
    assert labels["targetid"][order].tolist() == [39_627_000_000_000_000, 39_627_000_000_000_001]
    assert np.allclose(labels["log_mstar"][order], [10, 11])
    assert np.allclose(labels["log_z_mw"][order], [-2, np.log10(0.02)])
    assert np.allclose(labels["t_age_mw"][order], [5, 6])
    assert np.allclose(labels["log_sfr"][order], [1, -1])
    assert np.allclose(labels["log_ssfr"][order], [-9, -12])  # the true one
    assert np.allclose(labels["ln_sfr_over_z"][order], [np.log(1000), np.log(5)])  # the released one
    assert np.allclose(labels["redshift"][order], [0.1, 0.2]) and np.allclose(labels["ra"][order], [0, 1])
    assert list(counts["lost"]) == [0, 1, 1, 1, 0] and counts["left"][-1] == 2


def test_properties_are_computed_where_the_package_is(tmp_path, monkeypatch):
    "A stand-in for the package: what it is asked, and for whom."
    provabgs_table(ready=False).write(tmp_path / "t.hdf5", path="__astropy_table__", serialize_meta=False)
    monkeypatch.setitem(sys.modules, "provabgs", None)
    with pytest.raises(ImportError, match="take the Multimodal Universe's copy, which has them, or pip install"):
        read_provabgs(tmp_path / "t.hdf5")
    asked = []

    class NMF:
        def __init__(self, burst, emulator):
            assert burst and emulator

        def Z_MW(self, theta, zred):
            assert theta.shape == (12,)
            asked.append((theta[0], zred))
            return np.array([0.01 * (1 + theta[0])])

        def tage_MW(self, theta, zred):
            return 10 * zred

        def avgSFR(self, theta, zred, dt):
            assert dt == 1
            return np.array([2.0])

    package = types.ModuleType("provabgs")
    package.models = types.SimpleNamespace(NMF=NMF)
    monkeypatch.setitem(sys.modules, "provabgs", package)
    labels, _ = read_provabgs(tmp_path / "t.hdf5")
    assert asked == [(0.0, 0.1), (13.0, 0.2), (52.0, 0.5)]  # rows that pass the cuts, and no other
    assert np.allclose(labels["log_z_mw"], np.log10([0.01, 0.14, 0.53])) and np.allclose(labels["t_age_mw"], [1, 2, 5])


def test_files_that_are_no_provabgs(tmp_path):
    t = provabgs_table(ready=False)
    for names, words in (
        (["TARGETID"], "no column PROVABGS_LOGMSTAR_BF or LOG_MSTAR"),
        (["PROVABGS_LOGMSTAR_BF"], "no column TARGETID or object_id"),
        (["TARGETID", "PROVABGS_LOGMSTAR_BF"], "neither Z_MW, TAGE_MW, AVG_SFR nor PROVABGS_THETA_BF"),
    ):
        t[names].write(tmp_path / "bad.fits", overwrite=True)
        with pytest.raises(ValueError, match=words):
            read_provabgs(tmp_path / "bad.fits")
    (tmp_path / "cut.fits").write_bytes((tmp_path / "bad.fits").read_bytes()[:3000])
    with pytest.raises(OSError, match="cannot be read"):
        read_provabgs(tmp_path / "cut.fits")
    with pytest.raises(FileNotFoundError, match="expected a file or folder"):
        read_provabgs(tmp_path / "none")


# Galaxy Zoo


def zoo_frame(n=6):
    rng = np.random.default_rng(1)
    frame = dict(iauname=[f"J{i}" for i in range(n)], ra=np.arange(n) * 10.0, dec=np.arange(n) * 1.0)
    for question, answers in QUESTIONS.items():
        votes = rng.integers(0, 30, (n, len(answers)))
        frame[f"{question}_total-votes"] = votes.sum(1)
        for k, answer in enumerate(answers):
            frame[f"{question}_{answer}"] = votes[:, k]
            frame[f"{question}_{answer}_fraction"] = votes[:, k] / np.maximum(votes.sum(1), 1)
            frame[f"{question}_{answer}_debiased"] = np.full(n, np.nan)
    frame = pd.DataFrame(frame | dict(wrong_size_warning=np.arange(n) == 2))
    first = [f"smooth-or-featured_{answer}" for answer in QUESTIONS["smooth-or-featured"]]
    frame.loc[0, first] = [5, 0, 0]
    frame.loc[3, first] = [1, 1, 0]
    return frame


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5"])
def test_votes_of_every_kind_of_file(tmp_path, suffix):
    frame, path = zoo_frame(), tmp_path / f"zoo.{suffix}"
    frame["bar_weak"] = frame["bar_weak"].astype(float)
    frame.loc[4, "bar_weak"] = np.nan
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:  # as the released code writes it: masked values come back as 0.0 beside a mask
        Table.from_pandas(frame).write(path, path="__astropy_table__", serialize_meta=False)
    found, counts = read_galaxy_zoo(path)
    assert found["ra"].tolist() == [0, 10, 40, 50]  # 2: wrong size; 3: two votes
    assert lost(counts)["wrong_size_warning is not set"] == 1
    assert lost(counts)["3 votes on smooth-or-featured"] == 1
    rows = [0, 1, 4, 5]
    for question, answers in QUESTIONS.items():
        wanted = frame.loc[rows, [f"{question}_{a}" for a in answers]].fillna(0).to_numpy()
        assert np.array_equal(found["votes"][question], wanted), question
    assert len(read_galaxy_zoo(path, min_votes=0)[0]["ra"]) == 5
    if suffix == "csv":  # the reader of the lesson on labels agrees
        plain = read_catalogue(path)
        assert all(np.array_equal(read_galaxy_zoo(path, 0)[0]["votes"][q], plain["votes"][q]) for q in QUESTIONS)


def test_a_mask_beside_a_zero_is_obeyed(tmp_path):
    frame = zoo_frame()
    frame["bar_no"], frame["bar_no.mask"] = 7.0, [False, True, False, False, False, False]
    frame.to_parquet(tmp_path / "zoo.parquet")
    found, _ = read_galaxy_zoo(tmp_path / "zoo.parquet")
    assert found["votes"]["bar"][:, 2].tolist() == [7, 0, 7, 7]


def test_masked_cells_are_no_votes(tmp_path):
    t = Table.from_pandas(zoo_frame())
    t["bar_no"] = MaskedColumn(np.full(6, 9), mask=[True, False, False, False, False, False])
    t.write(tmp_path / "zoo.fits")
    found, _ = read_galaxy_zoo(tmp_path / "zoo.fits")
    assert found["votes"]["bar"][1:, 2].tolist() == [9, 9, 9]


def test_copies_with_the_campaign_in_the_name_and_other_campaigns(tmp_path):
    frame = zoo_frame()
    renamed = {f"{q}_{a}": f"{q}-dr5_{a}" for q, answers in QUESTIONS.items() for a in answers}
    frame.rename(columns=renamed).to_parquet(tmp_path / "dr5.parquet")
    frame.to_parquet(tmp_path / "zoo.parquet")
    one, two = (read_galaxy_zoo(tmp_path / name)[0]["votes"] for name in ("zoo.parquet", "dr5.parquet"))
    assert all(np.array_equal(one[q], two[q]) for q in QUESTIONS)
    other = frame.rename(columns={"how-rounded_round": "how-rounded_completely"})
    other.to_csv(tmp_path / "1_and_2.csv", index=False)
    with pytest.raises(ValueError, match="no column how-rounded_round"):
        read_galaxy_zoo(tmp_path / "1_and_2.csv")
    frame["bar_no"] = 0.4  # a fraction in the place of a count
    frame.to_parquet(tmp_path / "fractions.parquet")
    assert lost(read_galaxy_zoo(tmp_path / "fractions.parquet")[1])["counts are whole numbers"] == 5


# Redshifts


def zall(tmp_path, **more):
    n = 9
    t = Table(dict(TARGETID=2**50 + np.arange(n), SURVEY=["sv3"] * n, PROGRAM=["bright"] * n, HEALPIX=np.arange(n)))
    t["Z"], t["ZERR"] = np.linspace(0.1, 0.9, n), np.full(n, 1e-4)
    t["ZWARN"] = [0, 0, 4, 0, 0, 0, 0, 0, 0]
    t["SPECTYPE"] = ["GALAXY", "QSO", "GALAXY", "GALAXY", "GALAXY", "GALAXY", "STAR", "GALAXY", "GALAXY"]
    t["DELTACHI2"] = [1e3, 1e3, 1e3, 40.0, 41.0, 1e3, 1e3, 1e3, 1e3]
    t["COADD_FIBERSTATUS"] = [0, 0, 0, 0, 0, 8, 0, 0, 0]
    t["OBJTYPE"] = ["TGT"] * 7 + ["SKY", "TGT"]
    t["TARGET_RA"], t["TARGET_DEC"] = np.arange(n) * 1.0, np.zeros(n)
    t["SV_PRIMARY"] = [True] * 8 + [False]
    for name, values in more.items():
        t[name] = values
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(Table(dict(A=[1])), name="OTHER"), fits.BinTableHDU(t, name="ZCATALOG")]
    fits.HDUList(hdus).writeto(tmp_path / "zall.fits", overwrite=True)
    return tmp_path / "zall.fits"


def test_redshifts_by_hand(tmp_path):
    path = zall(tmp_path)
    labels, counts = read_redshifts(path)
    assert (labels["targetid"] - 2**50).tolist() == [0, 4] and np.allclose(labels["redshift"], [0.1, 0.5])
    assert labels["redshift"].dtype.isnative and labels["ra"].tolist() == [0, 4]
    assert lost(counts) == {
        "rows of the catalogue": 0,
        "TARGETID > 0": 0,
        "OBJTYPE is TGT": 1,
        "COADD_FIBERSTATUS = 0": 1,
        "SV_PRIMARY": 1,
        "ZWARN = 0": 1,
        "SPECTYPE is GALAXY": 2,
        "DELTACHI2 > 40": 1,
        "the first row of its target id": 0,
    }
    paper, _ = read_redshifts(path, PAPER_CUTS)
    assert (paper["targetid"] - 2**50).tolist() == [0, 1, 2, 3, 4, 6, 7]
    both, _ = read_redshifts(path, RedshiftCuts(spectype=("GALAXY", "QSO"), min_deltachi2=None))
    assert (both["targetid"] - 2**50).tolist() == [0, 1, 3, 4]


def test_the_primary_is_the_newest_that_the_file_knows(tmp_path):
    path = zall(tmp_path, MAIN_PRIMARY=[True] * 9, ZCAT_PRIMARY=[False] + [True] * 8)
    assert 2**50 not in read_redshifts(path)[0]["targetid"]
    assert 2**50 in read_redshifts(path, RedshiftCuts(primary="main_primary"))[0]["targetid"]
    _, counts = read_redshifts(path, RedshiftCuts(primary="nothing"))
    assert "the primary spectrum: no such column, not cut" in lost(counts)


def test_one_target_with_several_spectra_is_one_galaxy(tmp_path):
    ids = 2**50 + np.array([0, 1, 2, 3, 0, 5, 6, 7, 8])
    labels, counts = read_redshifts(zall(tmp_path, TARGETID=ids))
    assert labels["targetid"].tolist() == [2**50] and labels["redshift"] == pytest.approx([0.1])
    assert lost(counts)["the first row of its target id"] == 1
    cut = [8, 0, 0, 0, 0, 0, 0, 0, 0]  # the first row of the two has a broken fibre: the second speaks
    labels, _ = read_redshifts(zall(tmp_path, TARGETID=ids, COADD_FIBERSTATUS=cut))
    assert labels["redshift"][labels["targetid"] == 2**50] == pytest.approx([0.5])


def test_both_senses_of_the_warning(tmp_path):
    n = 10
    base = dict(object_id=[str(2**60 + i) for i in range(n)], Z=np.arange(n) / 10, ra=np.arange(n) * 1.0, dec=np.zeros(n))
    for good in (True, False):
        flag = np.full(n, good)
        flag[3] = not good
        pd.DataFrame(base | {"ZWARN": flag}).to_parquet(tmp_path / "mmu.parquet")
        labels, counts = read_redshifts(tmp_path / "mmu.parquet")
        assert (labels["targetid"] - 2**60).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        sense = "ZWARN, where true says good" if good else "ZWARN, where true is a warning"
        assert lost(counts)[sense] == 1 and "SPECTYPE is GALAXY: no such column, not cut" in lost(counts)
    pd.DataFrame(base | {"ZWARN": np.arange(n) % 2 == 0}).to_parquet(tmp_path / "mmu.parquet")
    with pytest.raises(ValueError, match="good or bad cannot be told"):
        read_redshifts(tmp_path / "mmu.parquet")
    assert len(read_redshifts(tmp_path / "mmu.parquet", RedshiftCuts(no_warning=None))[0]["redshift"]) == n


# Files, joins, the survey


def test_the_margin_of_a_hats_collection_is_left_out(tmp_path):
    for folder in ("main/dataset/Norder=0/Dir=0", "main_5arcs/dataset/Norder=0/Dir=0"):
        (tmp_path / folder).mkdir(parents=True)
        pd.DataFrame(dict(targetid=[1], z=[0.1])).to_parquet(tmp_path / folder / "Npix=1.parquet")
    pd.DataFrame(dict(targetid=[9], z=[9.0])).to_parquet(tmp_path / "main/dataset/_metadata.parquet")
    (tmp_path / "collection.properties").write_text("#HATS\nobs_collection=x\nhats_primary_table_url=main\n")
    assert [p.name for p in catalogue_files(tmp_path)] == ["Npix=1.parquet"]
    assert catalog_columns(tmp_path, ("targetid", "Z".lower()))["targetid"].tolist() == [1]


def test_cuts_charge_each_row_once():
    keep, counts = cut_in_turn(5, [("a", np.array([0, 0, 1, 1, 1], bool)), ("b", None), ("c", np.array([0, 1, 1, 0, 1], bool))])
    assert keep.tolist() == [False, False, True, False, True]
    assert counts["lost"].tolist() == [0, 2, 0, 1] and counts["left"].tolist() == [5, 3, 3, 2]
    assert counts["lost"].sum() + counts["left"][-1] == 5


def test_joins_by_name_and_by_place():
    found = dict(targetid=np.array([2**62 + 5, 3]), ra=np.array([359.99999, 10.0]), dec=np.array([0.0, 0.0]), x=np.array([1.0, 2.0]))
    joined, counts = join_labels(found, targetid=[3, 4, 2**62 + 5, 2**62 + 4])
    assert np.array_equal(joined["x"], [2, np.nan, 1, np.nan], equal_nan=True)
    assert counts["left"].tolist() == [4, 2] and counts["lost"].tolist() == [0, 2]
    joined, _ = join_labels(found, ra=[0.00001, 10, 50], dec=[0, 0.001, 0], radius_arcsec=0.5)
    assert np.array_equal(joined["x"], [1, np.nan, np.nan], equal_nan=True)
    joined, _ = join_labels(found, ra=[10.0, 10.00001], dec=[0, 0], radius_arcsec=0.5)  # both want one entry
    assert np.array_equal(joined["x"], [2, np.nan], equal_nan=True)
    empty, counts = join_labels(dict(targetid=np.empty(0, int), x=np.empty(0)), targetid=[1])
    assert np.isnan(empty["x"]).all() and counts["left"].tolist() == [1, 0]


@pytest.fixture()
def survey_file(tmp_path):
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        file["targetid"] = 39_627_000_000_000_000 + np.array([1, 7, 0])
        file["redshift"] = np.float32([0.2, 0.3, 0.1])
        file["ra"], file["dec"] = [10.0, 20.0, 40.0], [1.0, 2.0, 4.0]
    provabgs_table(ready=True).write(tmp_path / "provabgs.fits")
    zoo_frame().to_csv(tmp_path / "zoo.csv", index=False)
    return tmp_path


def test_labels_go_into_the_survey_file(survey_file):
    path = survey_file / "survey.h5"
    table = label_survey(path, survey_file / "provabgs.fits", survey_file / "zoo.csv")
    survey = Survey(path)
    assert np.array_equal(survey.label("log_ssfr"), np.float32([-12, np.nan, -9]), equal_nan=True)
    expected = match_votes(survey.ra, survey.dec, read_galaxy_zoo(survey_file / "zoo.csv")[0])
    assert all(np.array_equal(survey.votes(q), expected[q]) for q in QUESTIONS)
    assert survey.votes("bar").sum(1)[1] == 0  # of a wrong size, so without votes
    assert table["left"][table["cut"] == "found by target id"] == 2
    with h5py.File(path) as file:
        assert list(file["votes/bar"].attrs["answers"]) == list(QUESTIONS["bar"])
        assert file["label/log_mstar"].attrs["source"] == "provabgs.fits, zoo.csv"
        assert "unfinished" not in file and file["votes/bar"].dtype == np.int16
    with pytest.raises(FileExistsError, match="give --overwrite"):
        label_survey(path, survey_file / "provabgs.fits")
    label_survey(path, galaxy_zoo=survey_file / "zoo.csv", overwrite=True)
    assert len(ANSWERS) == 34


def test_a_run_that_was_killed_is_repaired_by_the_next(survey_file):
    path = survey_file / "survey.h5"
    with h5py.File(path, "r+") as file:
        file["unfinished/label/log_mstar"] = np.zeros(3)
    label_survey(path, provabgs=survey_file / "provabgs.fits")
    assert np.array_equal(Survey(path).label("log_mstar"), np.float32([11, np.nan, 10]), equal_nan=True)


def test_surveys_that_cannot_be_labelled(survey_file, tmp_path):
    with pytest.raises(ValueError, match="no catalogue was given"):
        label_survey(survey_file / "survey.h5")
    with h5py.File(tmp_path / "original.h5", "w") as file:
        file["0/targetids"] = [1]
    with pytest.raises(ValueError, match="is not our survey file"):
        label_survey(tmp_path / "original.h5", survey_file / "provabgs.fits")
    with h5py.File(survey_file / "survey.h5", "r+") as file:
        del file["ra"]
    with pytest.raises(ValueError, match="votes are joined by position"):
        label_survey(survey_file / "survey.h5", galaxy_zoo=survey_file / "zoo.csv")


@pytest.mark.parametrize("kind, odd", [("uint64", -5), ("int64", 2**63 + 5)])
def test_an_identifier_that_the_catalogue_cannot_hold_keeps_its_row(tmp_path, kind, odd):
    "Four galaxies, the first with a name beyond the catalogue's type: four labels, none of a neighbour."
    ids = np.array([odd, 11, 12, 13], "uint64" if odd > 0 else "int64")
    found = dict(targetid=np.array([13, 12, 11], kind), log_mstar=np.array([10.3, 10.2, 10.1]))
    joined, counts = join_labels(found, targetid=ids)
    assert np.array_equal(joined["log_mstar"], [np.nan, 10.1, 10.2, 10.3], equal_nan=True)
    assert counts["left"].tolist() == [4, 3]
    with h5py.File(tmp_path / "survey.h5", "w") as file:
        file["targetid"] = ids
    names = {"LOG_MSTAR": [10.1, 10.2, 10.3]} | {m: [18.0] * 3 for m in ("MAG_G", "MAG_R", "MAG_Z")}
    names |= {"TARGETID": np.array([11, 12, 13], kind), "Z_MW": [0.01] * 3, "TAGE_MW": [5.0] * 3, "AVG_SFR": [1.0] * 3}
    pd.DataFrame(names).to_parquet(tmp_path / "fits.parquet")
    label_survey(tmp_path / "survey.h5", tmp_path / "fits.parquet")
    with h5py.File(tmp_path / "survey.h5") as file:
        assert np.allclose(file["label/log_mstar"], [np.nan, 10.1, 10.2, 10.3], equal_nan=True)


def flagged(path, **columns):
    "Eight good spectra in a file of any kind, with other columns where they are given."
    n = 8
    t = dict(TARGETID=2**60 + np.arange(n), Z=np.arange(n) / 10, ZWARN=np.zeros(n, int), SPECTYPE=["GALAXY"] * n)
    t |= dict(DELTACHI2=np.full(n, 99.0), COADD_FIBERSTATUS=np.zeros(n, int), OBJTYPE=["TGT"] * n)
    t |= columns
    if path.suffix == ".csv":
        pd.DataFrame(t).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(t).to_parquet(path)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, column in t.items():
                column = np.asarray(column)
                file[name] = column.astype("S") if column.dtype.kind == "U" else column
    else:
        Table(t).write(path, overwrite=True, **(dict(format="votable") if path.suffix == ".vot" else {}))
    return path


HALF = [True, False] * 4
WORDS = {"as it is": HALF, "True": [str(x) for x in HALF], "T": [str(x)[0] for x in HALF], "1": [int(x) for x in HALF]}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5", "fits", "ecsv", "vot"])
@pytest.mark.parametrize("word", WORDS)
def test_a_primary_is_read_however_it_is_written(tmp_path, suffix, word):
    labels, counts = read_redshifts(flagged(tmp_path / f"z.{suffix}", ZCAT_PRIMARY=WORDS[word]))
    assert (labels["targetid"] - 2**60).tolist() == [0, 2, 4, 6] and lost(counts)["ZCAT_PRIMARY"] == 4


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_empty_flag_says_nothing(tmp_path, suffix):
    "Neither primary nor good: three of eight primaries stay, and of eight good ones seven."
    gaps = pd.array([True, False, None, False, True, False, True, False], dtype="boolean")
    labels, counts = read_redshifts(flagged(tmp_path / f"z.{suffix}", ZCAT_PRIMARY=gaps))
    assert (labels["targetid"] - 2**60).tolist() == [0, 4, 6] and lost(counts)["ZCAT_PRIMARY"] == 5
    for sense, words in ((True, "ZWARN, where true says good"), (False, "ZWARN, where true is a warning")):
        good = pd.array([sense] * 7 + [None], dtype="boolean")
        labels, counts = read_redshifts(flagged(tmp_path / f"z.{suffix}", ZWARN=good))
        assert (labels["targetid"] - 2**60).tolist() == [0, 1, 2, 3, 4, 5, 6] and lost(counts)[words] == 1


def test_a_word_that_is_no_flag_is_refused(tmp_path):
    path = flagged(tmp_path / "z.csv", ZCAT_PRIMARY=["yes", "no", "perhaps", "no"] * 2)
    with pytest.raises(ValueError, match="z.csv: ZCAT_PRIMARY holds 'perhaps': expected true or false"):
        read_redshifts(path)
    assert np.array_equal(read_flags(np.array(["Y", " ".strip(), "0"]), "x"), [1, np.nan, 0], equal_nan=True)
    with pytest.raises(ValueError, match="x holds '2.0'"):
        read_flags(np.array([0.0, 2.0]), "x")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5", "fits", "ecsv", "vot"])
def test_padding_is_no_part_of_a_word(tmp_path, suffix):
    path = flagged(tmp_path / f"z.{suffix}", SPECTYPE=["GALAXY    "] * 7 + ["QSO       "], OBJTYPE=["TGT "] * 7 + ["SKY "])
    labels, counts = read_redshifts(path)
    assert len(labels["targetid"]) == 7 and lost(counts)["OBJTYPE is TGT"] == 1


def test_warnings_of_size_and_masks_are_flags(tmp_path):
    frame = zoo_frame()
    frame["wrong_size_warning"] = ["T" if i == 2 else "F" for i in range(6)]
    frame.to_csv(tmp_path / "zoo.csv", index=False)
    assert 20 not in read_galaxy_zoo(tmp_path / "zoo.csv")[0]["ra"]
    answer = ANSWERS[-1]
    frame[f"{answer}.mask"] = [str(i == 5) for i in range(6)]
    frame.to_csv(tmp_path / "zoo.csv", index=False)
    question = next(q for q, answers in QUESTIONS.items() if f"{q}_{answers[-1]}" == answer)
    found, _ = read_galaxy_zoo(tmp_path / "zoo.csv")
    wanted = np.where(np.arange(6) == 5, 0, frame[answer])[np.searchsorted(frame["ra"], found["ra"])]
    assert found["votes"][question][:, -1].tolist() == wanted.tolist() and wanted[:-1].any()


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.ecsv", "t.vot", "t.pq", "t.parquet", "T.FITS", "t.fits.gz", "t.dat"])
def test_provabgs_of_every_kind_of_file(tmp_path, name):
    t, path = provabgs_table(ready=True), tmp_path / name
    t.remove_columns(["PROVABGS_MCMC", "PROVABGS_THETA_BF"])
    if name in ("t.pq", "t.parquet"):
        t.to_pandas().to_parquet(path)
    elif name.startswith("t.csv"):
        t.to_pandas().to_csv(path, index=False)
    else:  # t.dat is FITS by its first bytes
        t.write(path, format={"t.ecsv": "ascii.ecsv", "t.vot": "votable"}.get(name, "fits"))
    labels, _ = read_provabgs(path)
    assert (labels["targetid"] - 39_627_000_000_000_000).tolist() == [0, 1] and np.allclose(labels["log_mstar"], [10, 11])


def test_a_kind_that_is_not_read_is_said_and_a_folder_is_no_survey(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"t.xlsx: a catalogue is read from a file of .fits, .* not from this"):
        read_provabgs(tmp_path / "t.xlsx")
    (tmp_path / "hub").mkdir()
    with pytest.raises(ValueError, match="hub is a folder, and labels go into a survey file: make one with"):
        label_survey(tmp_path / "hub", tmp_path / "t.csv")


def test_a_rehearsal_has_the_faults_of_the_published_catalogues(tmp_path):
    "What the writers spoil the readers leave out, and every other galaxy keeps its own values."
    survey, rows = Survey(sample_path()), slice(40)
    write_provabgs(tmp_path / "provabgs.hdf5", survey, rows, np.random.default_rng(3))
    failed, dark = np.random.default_rng(3).random((2, 40)) < 0.1
    found, counts = read_provabgs(tmp_path / "provabgs.hdf5")
    assert counts["left"][0] == 41 and 0 < (failed | dark).sum() < 40
    assert sorted(found["targetid"]) == sorted(survey.targetid[rows][~(failed | dark)])
    joined, _ = join_labels(found, targetid=survey.targetid[rows])
    good = np.isfinite(joined["log_mstar"])
    for name in ("log_mstar", "log_z_mw", "t_age_mw", "log_sfr", "log_ssfr"):
        assert np.allclose(joined[name][good], survey.label(name)[rows][good], atol=1e-4)
    write_votes(tmp_path / "votes.csv", survey, rows, np.random.default_rng(4))
    wrong, few = np.random.default_rng(4).random((2, 40)) < 0.1
    found, counts = read_galaxy_zoo(tmp_path / "votes.csv")
    kept = ~(wrong | few)
    assert np.array_equal(found["ra"], survey.ra[rows][kept])
    for question in QUESTIONS:
        assert np.array_equal(found["votes"][question], survey.votes(question)[rows][kept])


def test_one_galaxy_from_three_archives(tmp_path):
    survey = Survey(sample_path())
    place = dict(targetid=survey.targetid[[2]], ra=survey.ra[[2]], dec=survey.dec[[2]])
    with StandIn(sample_services(survey, slice(4))) as server:
        how = dict(downloads=Downloads(tmp_path, pause=0), services=usual_services(server.url), progress=False)
        how |= dict(images=False)
        one = fetch(survey.targetid[2], **how)[0].spectrum
        two = fetch(table=place, archive="files", **how)[0].spectrum
        three = fetch(table=dict(plate=[266], mjd=[51602], fiberid=[3]), **how)[0].spectrum
    assert np.array_equal(one.flux, survey.flux([2])[0]) and np.allclose(two.flux, one.flux, atol=1e-4)
    expected, ivar = one.on_grid(three.wavelength)
    assert np.allclose(three.flux[ivar > 0], expected[ivar > 0], atol=0.02)  # its grid is in single precision
    assert {one.redshift} == {two.redshift} and three.redshift == pytest.approx(one.redshift)
