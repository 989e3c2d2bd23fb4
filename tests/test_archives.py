"""Spectra from three archives: filed by identifier whatever order, cut, fault or lie the answer comes with."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from astroclip.core.config import shared_root
from astroclip.data.spectrum_grid import Spectrum
from astroclip.files.spectrum_files import read_spectra
from astroclip.metrics.sphere import healpix_index
from astroclip.web import desi_healpix, sdss, sparcl
from astroclip.web.downloads import Downloads, ServiceDown
from astroclip.web.services import (
    coadd_bytes,
    desi_files,
    desi_service,
    redrock_bytes,
    sdss_reply,
    sdss_service,
    spec_bytes,
    sparcl_record,
    sparcl_service,
    toy_spectrum,
)
from astroclip.web.stand_in import Reply, StandIn, json_reply

REAL = (shared_root() or Path("shared")) / "real"
BIG = 2**62 + 1  # as a float it is 2**62, and so are its neighbours


def needs_real(path):
    return pytest.mark.skipif(not path.exists(), reason=f"no {path.name}: set ASTROCLIP_SHARED to the shared folder")


@pytest.fixture
def downloads(tmp_path):
    return Downloads(tmp_path / "cache", pause=0, tries=2, timeout=2)


def offline(downloads):
    return Downloads(downloads.folder, offline=True)


def same(a, b):
    "Two spectra are the same, pixel by pixel."
    return a.id == b.id and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("wavelength", "flux", "ivar"))


def asked_of(server, ending):
    "Requests for paths that end so."
    return [heard for heard in server.log if heard.path.endswith(ending)]


# SPARCL


def test_sparcl_files_by_identifier_not_by_place(downloads):
    ids = [BIG, BIG + 1, BIG + 2, 39627835576420141, 7]
    truth = {i: toy_spectrum(i, seed=k, redshift=0.05 * k) for k, i in enumerate(ids)}
    service = sparcl_service([sparcl_record(s) for s in truth.values()])
    with StandIn(service) as server:
        for question in (ids, ids[::-1], [*ids, *ids], np.array(ids), [str(i) for i in ids]):
            got = sparcl.spectra_of_targets(question, downloads, url=server.url)
            assert list(got) == list(dict.fromkeys(int(i) for i in question))
            assert all(type(i) is int for i in got)
            for i, spectrum in got.items():
                assert same(spectrum, truth[i]) and spectrum.redshift == truth[i].redshift
        assert len(asked_of(server, "/spectras/")) == 1  # the question's order changes nothing: one answer, kept


def test_sparcl_keeps_the_primary_of_several_and_says_so(downloads):
    made = [
        sparcl_record(toy_spectrum(BIG, seed=k), program=p, primary=k == 1)
        for k, p in enumerate(("bright", "dark", "backup"))
    ]
    for records in (made, made[::-1]):
        with StandIn(sparcl_service(records)) as server:
            (got,) = sparcl.spectra_of_targets(BIG, downloads, url=server.url).values()
        assert same(got, toy_spectrum(BIG, seed=1)) and got.source == "SPARCL DESI-EDR sv3 dark"
        assert "one of 3 spectra in DESI-EDR: the primary one" in got.flags


def test_sparcl_without_a_primary_takes_the_longest_exposure(downloads):
    times = (100.0, 900.0, 900.0)
    made = [
        sparcl_record(toy_spectrum(5, seed=k), program=f"p{k}", primary=False, exptime=t) for k, t in enumerate(times)
    ]
    winner = min(made[1:], key=lambda r: r["sparcl_id"])
    with StandIn(sparcl_service(made)) as server:
        (got,) = sparcl.spectra_of_targets(5, downloads, url=server.url).values()
    assert got.source.endswith(winner["program"]) and any("none marked primary" in f for f in got.flags)


def test_sparcl_target_without_a_record_gets_a_sentence(downloads):
    with StandIn(sparcl_service([sparcl_record(toy_spectrum(5))])) as server:
        got = sparcl.spectra_of_targets([4, 5, BIG], downloads, url=server.url)
    assert [type(s) for s in got.values()] == [str, Spectrum, str]
    assert got[BIG] == "SPARCL has no spectrum of this target in DESI-EDR"


def test_sparcl_never_takes_a_record_of_another_release(downloads):
    records = [sparcl_record(toy_spectrum(5, seed=1), release="DESI-DR1"), sparcl_record(toy_spectrum(6, seed=2))]
    service = sparcl_service(records)["/sparc/"]

    def careless(heard):  # a service that does not look at the release
        if heard.path.endswith("/find/"):
            heard.body["search"] = heard.body["search"][:1]
        return service(heard)

    with StandIn({"/sparc/": careless}) as server:
        got = sparcl.spectra_of_targets([5, 6], downloads, url=server.url)
        assert isinstance(got[5], str) and same(got[6], toy_spectrum(6, seed=2))
        with pytest.raises(ValueError, match="SPARCL has DESI-DR1, DESI-EDR"):
            sparcl.spectra_of_targets([5], downloads, "DESI-DR3", server.url)


def test_sparcl_masks_and_bad_errors_hide_pixels(downloads):
    record = sparcl_record(toy_spectrum(5))
    assert min(record["ivar"][:60]) > 0
    record["mask"][0:10] = [4] * 10
    record["ivar"][10:20] = [-1.0] * 10
    record["ivar"][20:30] = [float("nan")] * 10
    record["flux"][30:40] = [None] * 10
    with StandIn(sparcl_service([record])) as server:
        (got,) = sparcl.spectra_of_targets(5, downloads, url=server.url).values()
    assert not got.ivar[:40].any() and (got.ivar[40:60] > 0).all() and got.mask[:40].all()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"wavelength": None}, "not complete"),
        ({"flux": [1.0, 2.0]}, "do not belong together"),
        ({"wavelength": [5000.0] * 7781}, "neither increase"),
        ({"flux": ["bright"] * 7781}, "numbers"),
        ({"targetid": 6}, "the spectrum of 6"),
    ],
)
def test_sparcl_one_bad_record_is_a_sentence(downloads, change, words):
    records = [sparcl_record(toy_spectrum(5)), sparcl_record(toy_spectrum(7))]
    service = sparcl_service(records)["/sparc/"]

    def spoilt(heard):
        reply = service(heard)
        if not heard.path.endswith("/spectras/"):
            return reply
        header, *sent = json.loads(reply.body)
        return json_reply([header, *(r | change if r["targetid"] == 5 else r for r in sent)])

    with StandIn({"/sparc/": spoilt}) as server:
        got = sparcl.spectra_of_targets([5, 7], downloads, url=server.url)
    assert words in got[5] and same(got[7], toy_spectrum(7))


def test_sparcl_record_on_which_the_service_breaks_stands_alone(downloads):
    ids = list(range(100, 110))
    with StandIn(sparcl_service([sparcl_record(toy_spectrum(i, seed=i)) for i in ids], broken=[104])) as server:
        got = sparcl.spectra_of_targets(ids, downloads, url=server.url)
    assert [i for i, s in got.items() if isinstance(s, str)] == [104]
    assert "500" in got[104]


def test_sparcl_pickle_is_never_opened(downloads, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    records = [sparcl_record(toy_spectrum(5))]
    service = sparcl_service(records)["/sparc/"]
    bomb = [pickle.dumps(Trap(), protocol=k) for k in (0, 2, 5)]
    for content in bomb:
        routes = {"/sparc/": service, "/sparc/spectras/": lambda heard, content=content: Reply(content)}
        with StandIn(routes) as server:
            got = sparcl.spectra_of_targets([5], downloads, url=server.url)
        assert isinstance(got[5], str) and not (tmp_path / "opened").exists()
    pickle.loads(bomb[0])
    assert (tmp_path / "opened").exists()  # it would have worked


def test_sparcl_survives_pages_half_answers_and_busy_servers(downloads):
    with StandIn(sparcl_service([sparcl_record(toy_spectrum(5))])) as server:
        for how, path in (("page", "/sparc/find"), ("half", "/sparc/spectras"), ("503", "/sparc/datafields")):
            server.fail_next(how, path=path)
        assert same(sparcl.spectra_of_targets(5, downloads, url=server.url)[5], toy_spectrum(5))
        server.fail_next("page", times=9, path="/sparc/spectras")
        fresh = Downloads(Path(downloads.folder) / "fresh", pause=0, tries=2)
        assert "a web page" in sparcl.spectra_of_targets(5, fresh, url=server.url)[5]


def test_sparcl_down_ends_the_call_and_the_next_goes_on(downloads, monkeypatch):
    monkeypatch.setattr(sparcl, "TOGETHER", 1)
    ids = [5, 6, 7, 8]
    records = [sparcl_record(toy_spectrum(i, seed=i)) for i in ids]
    seen = []
    with StandIn(sparcl_service(records)) as server:
        service = server.routes["/sparc/"]

        def dying(heard):
            if heard.path.endswith("/spectras/"):
                seen.append(heard)
                if len(seen) > 2:
                    return Reply(b"", 503)
            return service(heard)

        server.routes["/sparc/"] = dying
        with pytest.raises(ServiceDown):
            sparcl.spectra_of_targets(ids, downloads, url=server.url)
        server.routes["/sparc/"] = service
        server.log.clear()
        got = sparcl.spectra_of_targets(ids, downloads, url=server.url)
        assert len(server.log) == 2 and all(h.path.endswith("/spectras/") for h in server.log)
    assert all(same(got[i], toy_spectrum(i, seed=i)) for i in ids)
    again = sparcl.spectra_of_targets(ids[::-1], offline(downloads), url=server.url)
    assert all(same(again[i], got[i]) for i in ids)


def test_sparcl_answer_at_its_limit_is_never_taken_for_whole(downloads):
    base = sparcl_record(toy_spectrum(5))
    records = [base | {"sparcl_id": f"{k:03d}", "specprimary": k == 69, "program": f"p{k}"} for k in range(70)]
    records.append(sparcl_record(toy_spectrum(6)))
    with StandIn(sparcl_service(records)) as server:
        got = sparcl.spectra_of_targets([5, 6, 7], downloads, url=server.url)
        limits = [int(h.query["limit"]) for h in asked_of(server, "/find/")]
    assert got[5].source.endswith("p69")  # the last in the order of the answer, where the first question was cut
    assert limits[0] == 60 and max(limits) == sparcl.MOST_RECORDS and isinstance(got[6], Spectrum)


def test_sparcl_batches_cover_every_target_once(downloads, monkeypatch):
    monkeypatch.setattr(sparcl, "TARGETS", 3)
    monkeypatch.setattr(sparcl, "TOGETHER", 2)
    ids = list(range(10, 18))
    steps = []
    with StandIn(sparcl_service([sparcl_record(toy_spectrum(i, seed=i)) for i in ids])) as server:
        got = sparcl.spectra_of_targets(
            ids, downloads, url=server.url, progress=lambda done, of: steps.append((done, of))
        )
        asked = [i for h in asked_of(server, "/find/") for i in h.body["search"][0][1:]]
    assert sorted(asked) == ids and all(same(got[i], toy_spectrum(i, seed=i)) for i in ids)
    assert steps[-1] == (8, 8)


def test_identifiers_that_are_floats_are_refused_on_both_sides(downloads):
    for floats in (3.0, [3.0], np.array([3.0]), [5, 3.0]):
        with pytest.raises(ValueError, match="are floats"):
            sparcl.spectra_of_targets(floats, downloads)
    records = [sparcl_record(toy_spectrum(5)) | {"targetid": 5.0}, sparcl_record(toy_spectrum(6))]
    with StandIn(sparcl_service(records)) as server:
        got = sparcl.spectra_of_targets([5, 6], downloads, url=server.url)
    assert "identifier 5.0, which is no integer" in got[5] and same(got[6], toy_spectrum(6))


def test_a_target_with_more_records_than_are_sent_costs_itself(downloads, monkeypatch):
    monkeypatch.setattr(sparcl, "RECORDS", 2)
    monkeypatch.setattr(sparcl, "MOST_RECORDS", 3)
    one = sparcl_record(toy_spectrum(5))
    many = [one | {"sparcl_id": f"{k:04d}"} for k in range(4)]
    with StandIn(sparcl_service(many + [sparcl_record(toy_spectrum(6))])) as server:
        got = sparcl.spectra_of_targets([5, 6], downloads, url=server.url)
    assert "sent 3 records of this target, and there may be more" in got[5] and same(got[6], toy_spectrum(6))


def test_sparcls_own_client_understands_the_stand_in(downloads, monkeypatch):
    client = pytest.importorskip("sparcl.client", reason="pip install sparclclient")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ids = [BIG, BIG + 1, 7]
    truth = {i: toy_spectrum(i, seed=k) for k, i in enumerate(ids)}
    with StandIn(sparcl_service([sparcl_record(s) for s in truth.values()])) as server:
        theirs = client.SparclClient(url=server.url)
        fields = ["sparcl_id", "specid", "targetid", "redshift", "wavelength", "flux", "ivar"]
        found = theirs.retrieve_by_specid(specid_list=ids, include=fields, dataset_list=["DESI-EDR"], limit=9)
        ours = sparcl.spectra_of_targets(ids, downloads, url=server.url)
        asked = {k: [h for h in asked_of(server, k)] for k in ("/find/", "/spectras/")}
    assert {r.targetid for r in found.records} == set(ids)
    for record in found.records:
        assert record.redshift == ours[record.targetid].redshift
        assert np.array_equal(np.float32(record.flux), ours[record.targetid].flux)
    # the same questions, but for the format of the spectra
    for both in asked.values():
        assert both[0].path == both[1].path and len(both) == 2
    assert {k[0] for k in asked["/find/"][0].body["search"]} == {k[0] for k in asked["/find/"][1].body["search"]}
    assert [h.query["format"] for h in asked["/spectras/"]] == ["pkl", "json"]
    assert [h.query["dataset_list"] for h in asked["/spectras/"]] == ["DESI-EDR"] * 2


# DESI's files


def desi(targetids, downloads, server, *more, ra=150.0, dec=2.2, **options):
    targetids = np.atleast_1d(targetids)
    n = len(targetids)
    where = np.full(n, ra), np.full(n, dec)
    return desi_healpix.spectra_of_targets(targetids, *where, downloads, *more, url=server.url, **options)


def test_desi_cells_are_those_of_files_that_exist():
    # RA, Dec of a fibre in coadd-sv3-dark-26065 and of the one in coadd-special-dark-27247
    assert healpix_index([216.99304872, 149.46540425], [3.30133664, 1.79364675], desi_healpix.CELL_ORDER).tolist() == [26065, 27247]
    file = desi_healpix.CoaddFile("main", "dark", 10000, "DESI-DR1")
    folder = "https://data.desi.lbl.gov/public/dr1/spectro/redux/iron/healpix/main/dark/100/10000/"
    assert file.address() == folder + "coadd-main-dark-10000.fits"
    assert file.checksums == folder + "redux_iron_healpix_main_dark_100_10000.sha256sum"


def test_desi_file_of_many_targets_is_fetched_once(downloads):
    truth = [toy_spectrum(BIG + k, seed=k, redshift=0.1 * k) for k in range(4)]
    with StandIn(desi_service(desi_files(truth))) as server:
        got = desi([BIG + k for k in (3, 0, 2)] + [BIG + 9], downloads, server, "sv3", "bright")
        assert len(server.log) == 3  # checksums, coadd, redrock
    for k in (3, 0, 2):
        assert got[BIG + k].id == str(BIG + k) and got[BIG + k].redshift == truth[k].redshift
        np.testing.assert_allclose(got[BIG + k].flux, truth[k].flux, rtol=1e-5)
        np.testing.assert_array_equal(got[BIG + k].ivar, truth[k].ivar)
        assert got[BIG + k].flags == []
    assert got[BIG + 9].startswith("not in coadd-sv3-bright-")
    assert list(got) == [BIG + 3, BIG, BIG + 2, BIG + 9]


def test_desi_looks_through_programs_and_every_takes_the_best(downloads):
    poor, good = toy_spectrum(5, seed=1), toy_spectrum(5, seed=2)
    poor.ivar = poor.ivar / 100
    files = desi_files([poor]) | desi_files([good], program="dark")
    with StandIn(desi_service(files)) as server:
        first = desi(5, downloads, server)[5]
        best = desi(5, downloads, server, every=True)[5]
        named = desi(5, downloads, server, None, "dark")[5]
    assert [s.source.split("-")[3] for s in (first, best, named)] == ["bright", "dark", "dark"]
    assert any(f.startswith("one of 2 spectra") for f in best.flags)


def test_desi_survey_and_program_may_differ_from_row_to_row(downloads):
    files = desi_files([toy_spectrum(5)]) | desi_files([toy_spectrum(6)], survey="sv1", program="dark")
    survey = np.ma.array(["sv3 ", "SV1", "x"], object, mask=[False, False, True])
    with StandIn(desi_service(files)) as server:
        got = desi([5, 6, 7], downloads, server, survey, np.array([b"bright", b"dark", b"dark"], object))
        wrong = desi([5], downloads, server, "sv9", None)
    assert isinstance(got[7], str) and got[5].source.startswith("DESI-EDR coadd-sv3-bright")
    assert got[6].source.startswith("DESI-EDR coadd-sv1-dark") and wrong[5] == "DESI-EDR has no such survey and program"


def spoilt_coadd(spoil):
    files = desi_files([toy_spectrum(5)])
    path = next(p for p in files if "coadd" in p)
    return path, files | {path: spoil(files[path])}


def test_desi_checksum_that_does_not_fit_is_refused(downloads):
    path, files = spoilt_coadd(lambda b: b)
    flipped = bytearray(files[path])
    flipped[-4000] ^= 1
    service = desi_service(files)["/public/"]

    def changed(heard):
        return Reply(bytes(flipped)) if heard.path == path else service(heard)

    with StandIn({"/public/": changed}) as server:
        assert "SHA-256" in desi(5, downloads, server, "sv3", "bright")[5]
    with StandIn(desi_service(files, checksums=False)) as server:
        assert "no checksum file for it: taken as it came" in desi(5, downloads, server, "sv3", "bright")[5].flags


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda b: b[:2880] + b"\0" * (len(b) - 2880), "no TARGETID"),
        (lambda b: b[: 2880 * 5], "damaged"),
        (lambda b: redrock_bytes([toy_spectrum(5)]), "no TARGETID"),
    ],
)
def test_desi_damaged_file_is_a_sentence_and_leaves_the_cache(downloads, spoil, words):
    _, files = spoilt_coadd(spoil)
    with StandIn(desi_service(files, checksums=False)) as server:
        assert words in desi(5, downloads, server, "sv3", "bright")[5]
        server.routes = desi_service(desi_files([toy_spectrum(5)]), checksums=False)
        assert isinstance(desi(5, downloads, server, "sv3", "bright")[5], Spectrum)


@pytest.mark.parametrize("spoil", [lambda b: b"<html>busy</html>", lambda b: b"", lambda b: b[:-100]])
def test_desi_answer_that_is_no_fits_is_a_sentence(downloads, spoil):
    _, files = spoilt_coadd(spoil)
    with StandIn(desi_service(files, checksums=False)) as server:
        assert "FITS file" in desi(5, downloads, server, "sv3", "bright")[5]


def test_desi_half_a_file_is_completed(downloads):
    with StandIn(desi_service(desi_files([toy_spectrum(5)]))) as server:
        server.fail_next("half", path="/public/edr/spectro/redux/fuji/healpix/sv3/bright")
        cell = int(healpix_index(150.0, 2.2, desi_healpix.CELL_ORDER))
        coadd = desi_healpix.CoaddFile("sv3", "bright", cell, url="").address()
        server.fail_next("half", path=coadd)
        got = desi(5, downloads, server, "sv3", "bright")[5]
        ranges = [h.headers.get("Range") for h in server.log if h.path == coadd]
    assert same(replace(got, flux=toy_spectrum(5).flux), toy_spectrum(5)) and ranges[0] is None and ranges[1]


def test_desi_without_redshifts_keeps_the_spectrum(downloads):
    files = desi_files([toy_spectrum(5)])
    redrock = next(p for p in files if "redrock" in p)
    for content, words in ((None, "no redrock-"), (b"SIMPLE  =" + b" " * 2871, "cannot be read")):
        some = {p: b for p, b in files.items() if p != redrock} | ({redrock: content} if content else {})
        with StandIn(desi_service(some)) as server:
            got = desi(5, Downloads(downloads.folder / words.strip(), pause=0, tries=1), server, "sv3", "bright")[5]
        assert got.redshift is None and any(words in f for f in got.flags)


def test_desi_refuses_what_it_cannot_place(downloads):
    with pytest.raises(ValueError, match="expected degrees"):
        desi_healpix.spectra_of_targets([5], [np.nan], [2.0], downloads)
    with pytest.raises(ValueError, match="2 positions for 1 targets"):
        desi_healpix.spectra_of_targets([5], [1.0, 2.0], [2.0, 2.0], downloads)
    with pytest.raises(ValueError, match="expected one of DESI-EDR, DESI-DR1"):
        desi_healpix.spectra_of_targets([5], [1.0], [2.0], downloads, release="EDR")
    with pytest.raises(ValueError, match="are floats"):
        desi_healpix.spectra_of_targets([5.0], [1.0], [2.0], downloads)
    with pytest.raises(ValueError, match="2 surveys or programs for 1 targets"):
        desi_healpix.spectra_of_targets([5], [1.0], [2.0], downloads, ["sv3", "sv1"])
    assert desi_healpix.spectra_of_targets([], [], [], downloads) == {}


def test_desi_replays_offline(downloads):
    with StandIn(desi_service(desi_files([toy_spectrum(BIG)]))) as server:
        online = desi(BIG, downloads, server)[BIG]
    again = desi(BIG, offline(downloads), server)
    assert same(again[BIG], online)
    never = desi([BIG], Downloads(downloads.folder / "none", offline=True), server)
    assert "offline" in never[BIG]


def test_a_coadd_made_here_reads_back():
    pair = [toy_spectrum(BIG, seed=1), toy_spectrum(-5, seed=2)]
    assert coadd_bytes(pair)[:6] == redrock_bytes(pair)[:6] == b"SIMPLE"


# SDSS


def test_sdss_reductions_are_tried_in_order_and_written_down(downloads):
    fibres = {("26", 266, 51602, 13): 1, ("104", 3000, 54800, 7): 2, ("v5_13_2", 10200, 57700, 1000): 3}
    with StandIn(sdss_service({key: toy_spectrum(k, seed=k) for key, k in fibres.items()})) as server:
        for (run, *fibre), k in fibres.items():
            server.log.clear()
            got = sdss.spectrum_of(*fibre, downloads, url=server.url)
            order = [h.path.split("/redux/")[1].split("/")[0] for h in server.log]
            assert order[-1] == run and got.source == f"SDSS DR17 run2d {run}"
            assert order == list(sdss.RUNS)[: list(sdss.RUNS).index(run) + 1] or fibre[0] >= 3510 and len(order) == 1
            assert got.id == "{:04d}-{:05d}-{:04d}".format(*fibre) and got.redshift == pytest.approx(0.25)
        none = sdss.spectrum_of(266, 51602, 14, downloads, url=server.url)
    assert none == "SDSS DR17 has no spectrum 0266-51602-0014 under run2d 26, 103, 104, v5_13_2"


def test_sdss_fibre_is_proven_by_the_header(downloads):
    other = spec_bytes(toy_spectrum(1), 266, 51602, 99)
    with StandIn(sdss_service({("26", 266, 51602, 13): other, ("103", 266, 51602, 13): toy_spectrum(2)})) as server:
        got = sdss.spectrum_of(266, 51602, 13, downloads, url=server.url)
        assert got.source.endswith("103")  # the file under 26 is of another fibre
        said = sdss.spectrum_of(266, 51602, 13, downloads, "26", url=server.url)
    assert "it is of plate 266, day 51602, fibre 99" in said


def test_sdss_faults_are_sentences_and_do_not_stop_the_rest(downloads):
    whole = spec_bytes(toy_spectrum(1), 266, 51602, 1)
    cut = {("26", 266, 51602, k): whole[:n] for k, n in ((1, 2880 * 9), (2, 1000), (3, 0))}
    with StandIn(sdss_service(cut | {("26", 266, 51602, 4): toy_spectrum(4)})) as server:
        fibres = [1, 2, 3, 4, 5]
        got = sdss.spectra_of_fibers([266] * 5, [51602] * 5, fibres, downloads, 26, url=server.url)
    assert [type(s) for s in got.values()] == [str, str, str, Spectrum, str]
    assert [key[2] for key in got] == fibres and "damaged" in got[266, 51602, 1]
    for wrong in (1.5, "1", -1, True):
        with pytest.raises(ValueError, match="expected a whole number"):
            sdss.spectrum_of(266, 51602, wrong, downloads)


def test_sdss_replays_offline_without_knowing_the_reduction(downloads):
    with StandIn(sdss_service({("103", 2880, 54509, 230): toy_spectrum(1)})) as server:
        online = sdss.spectrum_of(2880, 54509, 230, downloads, url=server.url)
    again = sdss.spectrum_of(2880, 54509, 230, offline(downloads), url=server.url)
    assert same(online, again)
    assert "offline" in sdss.spectrum_of(2880, 54509, 231, offline(downloads), url=server.url)


@pytest.mark.parametrize("ra, dec", [(0.0002, 0.0), (359.9999, -40.0), (180.0, 60.0), (33.0, 89.9995), (200.0, -89.97)])
def test_sdss_box_holds_everything_within_the_radius(downloads, ra, dec):
    rng = np.random.default_rng(0)
    radius, n = 30.0, 300
    d = np.clip(dec + rng.uniform(-1, 1, n) * 0.02, -90, 90)
    a = (ra + rng.uniform(-1, 1, n) * 0.02 / np.cos(np.radians(min(abs(dec), 89.9)))) % 360
    spectra = {("26", 1000 + k, 51000, 1): b"" for k in range(n)}
    service = sdss_service(spectra)
    rows = [dict(plate=1000 + k, mjd=51000, fiberid=1, run2d="26", ra=a[k], dec=d[k]) for k in range(n)]
    service["/dr17/SkyServerWS/"] = partial(sdss_reply, {}, rows)
    with StandIn(service) as server:
        near = sdss.fibers_near(ra, dec, downloads, radius, url=server.url)
    truth = SkyCoord(ra * u.deg, dec * u.deg).separation(SkyCoord(a * u.deg, d * u.deg)).arcsec
    assert {r["plate"] for r in near} == {1000 + k for k in np.flatnonzero(truth <= radius)} and near
    np.testing.assert_allclose([r["arcsec"] for r in near], np.sort(truth[truth <= radius]), atol=2e-3)


def test_skyserver_that_sends_no_table_is_a_sentence(downloads):
    for reply in (Reply(b"<html>"), json_reply([]), json_reply({"error": "x"})):
        with StandIn({"/dr17/": lambda heard, reply=reply: reply}) as server:
            with pytest.raises(ValueError, match="SkyServer sent no table"):
                sdss.fibers_near(1.0, 1.0, downloads, url=server.url)


# Real files, served and compared with reading them directly


@needs_real(REAL / "spectra_desi")
@pytest.mark.parametrize("name", ["coadd-sv3-dark-26065.fits", "coadd-special-dark-27247.fits"])
def test_real_desi_files_through_the_service(downloads, name):
    path = REAL / "spectra_desi" / name
    _, survey, program, cell = path.stem.split("-")
    paths = [path, *path.parent.glob(f"redrock-{survey}-{program}-{cell}.fits")]
    direct = read_spectra(path)
    targets = [s for s in direct if int(s.id) > 0]
    with StandIn(desi_service(desi_files(paths=paths, release="DESI-DR1"))) as server:
        url = server.url
        got = desi_healpix.spectra_of_targets(
            [s.id for s in targets][::-1],
            [s.ra for s in targets][::-1],
            [s.dec for s in targets][::-1],
            downloads,
            release="DESI-DR1",
            url=url,
        )
    assert len(got) == len(targets) >= 1
    for s in targets:
        assert same(got[int(s.id)], s) and got[int(s.id)].redshift == s.redshift
        assert got[int(s.id)].source == f"DESI-DR1 {name}"


@needs_real(REAL / "spectra_desi")
def test_real_desi_spectra_through_sparcl(downloads):
    direct = [s for s in read_spectra(REAL / "spectra_desi/coadd-sv3-dark-26065.fits") if int(s.id) > 0]
    with StandIn(sparcl_service([sparcl_record(s, program="dark") for s in direct])) as server:
        got = sparcl.spectra_of_targets([s.id for s in direct], downloads, url=server.url)
    assert all(same(got[int(s.id)], s) and got[int(s.id)].ra == s.ra for s in direct) and len(direct) == 3


@needs_real(REAL / "spectra_sdss")
def test_real_sdss_files_through_the_service(downloads):
    paths = sorted((REAL / "spectra_sdss").glob("spec-*.fits"))
    fibres = [tuple(int(x) for x in p.stem.split("-")[1:]) for p in paths]
    runs = ["v5_13_2" if plate >= 3510 else "26" for plate, *_ in fibres]
    service = sdss_service({(run, *f): p.read_bytes() for run, f, p in zip(runs, fibres, paths)})
    with StandIn(service) as server:
        got = sdss.spectra_of_fibers(*zip(*fibres), downloads, url=server.url)
    assert len(got) == len(paths) >= 10
    for fibre, path in zip(fibres, paths):
        (direct,) = read_spectra(path)
        assert same(got[fibre], direct) and got[fibre].redshift == direct.redshift
