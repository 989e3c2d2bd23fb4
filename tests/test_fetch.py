"""From a list of targets to galaxies and to answers: order, identifiers, holes, faults, interruptions, no network."""

import io
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, Table

import astroclip
from astroclip.cli.fetching import kind_of_table, spectrum_fits
from astroclip.cli.main import main
from astroclip.data.images import read_cutout
from astroclip.files.spectrum_files import read_spectra
from astroclip.surveys.remote import BLOCK, Manner, Patience, fetch_each, usual_services
from astroclip.web.wanted import wanted_objects
from astroclip.web.cutouts import cutout_fits, cutout_service
from astroclip.web.downloads import Downloads, ServiceDown
from astroclip.web.services import desi_files, desi_service, sdss_service, sparcl_record, sparcl_service, toy_spectrum
from astroclip.web.stand_in import Reply, StandIn, json_reply

BIG = 39627835576420141  # 2^55 and some: a float names its neighbour
TOYS = [toy_spectrum(BIG + i, seed=i, redshift=0.05 * (i + 1), ra=150.0 + i, dec=2.0) for i in range(8)]
FIBER = toy_spectrum(0, seed=99, redshift=0.07, ra=185.0, dec=30.0)


def sky(ra, dec, size):
    if dec < -60:
        return None
    y, x = np.indices((size, size)) - (size - 1) / 2
    noise = np.random.default_rng(int(1000 * ra)).normal(0, 0.005, (3, size, size))
    return noise + np.array([0.5, 1, 1.5])[:, None, None] * np.exp(-np.hypot(x, y) / 6)


def routes():
    found = sparcl_service([sparcl_record(s) for s in TOYS]) | sdss_service({("26", 266, 51602, 7): FIBER})
    return found | {"/viewer/": cutout_service(sky)}


@pytest.fixture
def server():
    with StandIn(routes(), hangs=1) as server:
        yield server


@pytest.fixture
def how(server, tmp_path):
    downloads = Downloads(tmp_path / "cache", pause=0.001, tries=2, timeout=10)
    return dict(downloads=downloads, services=usual_services(server.url), progress=False)


@pytest.fixture
def shell(server, tmp_path, monkeypatch, capsys):
    "The program, its services on this machine: words -> (status, stdout, stderr)."
    monkeypatch.setenv("ASTROCLIP_MIRROR", server.url)
    monkeypatch.setenv("ASTROCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("astroclip.web.downloads.waiting_time", lambda *given: 0)

    def run(*words):
        status = main([str(word) for word in words])
        return (status, *capsys.readouterr())

    return run


def paths(server):
    return [heard.path for heard in server.log]


# Whose spectrum is it?


def test_rows_follow_the_table_whatever_the_order_of_the_answer(server, how):
    order = list(range(8))
    random.Random(3).shuffle(order)
    table = Table(dict(TARGETID=np.array([BIG + i for i in order])))
    found = astroclip.fetch(table=table, **how)
    for i, one in zip(order, found):
        assert one.wanted.targetid == BIG + i and type(one.wanted.targetid) is int
        assert one.spectrum.id == str(BIG + i) and np.array_equal(one.spectrum.flux, TOYS[i].flux)
        assert one.image.ra == pytest.approx(150.0 + i) and one.reason == ""
        assert (one.release, one.survey, one.program) == ("DESI-EDR", "sv3", "bright")
        assert (one.layer.name, one.layer.release, one.layer.side) == ("ls-dr9-south", "DR9", "south")
    assert found.table()["targetid"].tolist() == [BIG + i for i in order]
    assert found.table()["targetid"].dtype == np.int64


def test_a_column_of_floats_is_refused_before_anybody_is_asked(server, how, tmp_path):
    holes = pd.DataFrame(dict(targetid=[BIG, None], ra=[1.0, 2.0], dec=[1.0, 2.0]))
    assert holes["targetid"].dtype == float
    (tmp_path / "f.csv").write_text(f"targetid\n{float(BIG)!r}\n")
    for table in (holes, dict(targetid=np.array([float(BIG)])), tmp_path / "f.csv"):
        with pytest.raises(ValueError, match="floats, which lose the last digits"):
            astroclip.fetch(table=table, **how)
    with pytest.raises(ValueError, match="floats"):
        astroclip.fetch(targetid=float(BIG), **how)
    assert not server.log


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".vot", ".parquet"])
def test_identifiers_survive_every_kind_of_table(tmp_path, suffix):
    table = Table(dict(TargetID=np.array([BIG, 2**62 + 1]), RA=[1.0, 2.0], DEC=[3.0, -4.0]))
    path = tmp_path / f"t{suffix}"
    table.write(path, format={".csv": "ascii.csv", ".vot": "votable"}.get(suffix))
    wanted = wanted_objects(table=path)
    assert [(w.targetid, w.ra, w.dec) for w in wanted] == [(BIG, 1.0, 3.0), (2**62 + 1, 2.0, -4.0)]


def test_holes_are_none_and_text_is_exact():
    masked = Table(dict(targetid=MaskedColumn([BIG, 0], mask=[False, True]), ra=[1.0, 2.0], dec=[3.0, 4.0]))
    assert [w.targetid for w in wanted_objects(table=masked)] == [BIG, None]
    frame = pd.DataFrame(dict(targetid=pd.array([BIG, None], dtype="Int64"), ra=[1.0, 2.0], dec=[3.0, 4.0]))
    assert [w.targetid for w in wanted_objects(table=frame)] == [BIG, None]
    assert wanted_objects(targetid=str(BIG))[0].targetid == BIG
    assert wanted_objects(targetid=np.int64(BIG))[0].targetid == BIG


def test_floats_are_taken_for_plates_and_never_for_targets(how):
    "A gap makes floats of a column; SDSS's numbers are small."
    frame = pd.DataFrame(dict(plate=[266, None], mjd=[51602, None], fiberid=[7, None], ra=[None, 186.0], dec=[None, 30.0]))
    assert frame["plate"].dtype == float
    wanted = wanted_objects(table=frame)
    assert [w.fiber for w in wanted] == [(266, 51602, 7), None] and [w.why for w in wanted] == ["", ""]
    odd = dict(plate=[266.5, np.inf, 266.0], mjd=[51602] * 3, fiberid=[7, 7, -7])
    assert all("neither an identifier nor a position" in w.why for w in wanted_objects(table=odd))
    assert astroclip.fetch(table=frame, images=False, **how)[0].spectrum.redshift == pytest.approx(0.07)


def test_an_angle_is_taken_with_its_unit():
    place = SkyCoord(150.0, 2.0, unit="deg")
    many = SkyCoord([150.0, 151.0], [2.0, 3.0], unit="deg")
    for ra, dec, expected in (
        (place.ra, place.dec, [(150.0, 2.0)]),
        (many.ra, many.dec, [(150.0, 2.0), (151.0, 3.0)]),
        (10 * units.hourangle, np.pi / 4 * units.rad, [(150.0, 45.0)]),
        ([10 * units.hourangle], [2 * units.deg], [(150.0, 2.0)]),
        (units.Quantity([10.0], "hourangle"), units.Quantity([120.0], "arcmin"), [(150.0, 2.0)]),
    ):
        assert [(w.ra, w.dec) for w in wanted_objects(ra=ra, dec=dec)] == [pytest.approx(pair) for pair in expected]


def test_an_archive_that_sends_the_neighbour_is_not_believed(how):
    "It answers every question with the record of another target."
    wrong = sparcl_record(TOYS[1])

    def lies(heard):
        if heard.path.endswith("/find/"):
            ask = sparcl_service([wrong])["/sparc/"]
            heard.body["search"][0] = [heard.body["search"][0][0], BIG + 1]
            return ask(heard)
        return sparcl_service([wrong])["/sparc/"](heard)

    with StandIn({"/sparc/": lies}) as server:
        found = astroclip.fetch(targetid=BIG, images=False, **how | dict(services=usual_services(server.url)))
    assert found[0].spectrum is None and "no spectrum" in found[0].reason


# One bad object


def test_one_bad_object_never_stops_the_rest(server, how):
    rows = [BIG, 17, BIG + 1, "abc", "", "", BIG + 2]
    table = dict(targetid=[str(x) for x in rows], ra=["", "", "", "", "10", "x", ""], dec=["", "", "", "", "-70", "1", ""])
    found = astroclip.fetch(table=table, **how)
    assert [one.reason == "" for one in found] == [True, False, True, False, False, False, True]
    reasons = [one.reason for one in found]
    assert "SPARCL has no spectrum of this target" in reasons[1] and "position is not known" in reasons[1]
    assert "'abc' is no TARGETID" in reasons[3]
    assert "outside the footprint of ls-dr9-south" in reasons[4]
    assert "neither an identifier nor a position" in reasons[5]
    assert [one.wanted.row for one in found] == list(range(7))


@pytest.mark.parametrize(
    "changed, says",
    [
        (dict(targetid=float(BIG + 1)), "is no integer: its digits cannot be trusted, and this may be the target"),
        (dict(targetid=None), "sent the identifier None"),
        (dict(flux=[10**400] * 7781), "hold something else than numbers"),
        (dict(redshift_warning=10**30), "redshift_warning has more than 64 bits"),
        (dict(coadd_fiberstatus=[]), "cannot be read (TypeError"),
    ],
)
def test_a_record_of_nonsense_costs_its_row(how, changed, says):
    records = [sparcl_record(s) for s in TOYS[:3]]
    records[1] |= changed
    with StandIn(sparcl_service(records) | {"/viewer/": cutout_service(sky)}) as server:
        found = astroclip.fetch(targetid=[BIG, BIG + 1, BIG + 2], **how | dict(services=usual_services(server.url)))
    assert [one.spectrum is None for one in found] == [False, True, False] and says in found[1].reason
    assert [one.image is None for one in found] == [False, True, False]
    assert found.table()["targetid"].tolist() == [BIG, BIG + 1, BIG + 2]


def test_an_identifier_of_more_than_64_bits_costs_its_row(shell, tmp_path):
    (tmp_path / "t.csv").write_text(f"targetid\n{BIG}\n{2**63 + 5}\n")
    status, out, err = shell("fetch", "t.csv", "-o", "out")
    assert status == 0 and "2 objects: 1 images, 1 spectra, 1 not complete" in out, err
    table = Table.read(tmp_path / "out" / "targets.ecsv")
    assert table["targetid"].tolist() == [BIG, None] and "9223372036854775813 is no TARGETID" in table["reason"][1]


def test_a_spectrum_that_fits_in_no_file_costs_its_row(shell, server, tmp_path):
    records = [sparcl_record(s) for s in TOYS[:2]]
    server.routes |= sparcl_service([records[0], records[1] | dict(survey="s\u00fcd")])
    status, out, err = shell("fetch", "--targetid", BIG, "--targetid", BIG + 1, "-o", "out")
    assert status == 0 and "2 objects: 2 images, 1 spectra, 1 not complete" in out, err
    assert "fits in no file" in Table.read(tmp_path / "out" / "targets.ecsv")["reason"][1]


def test_a_cutout_of_nonsense_costs_its_row(server, how):
    "Its header has a word where the size of a pixel is expected."

    def odd(heard):
        reply = cutout_service(sky)(heard)
        if heard["ra"].startswith("151."):
            with fits.open(io.BytesIO(reply.body)) as hdus:
                hdus[0].header["CD2_2"] = "abc"
                hdus.writeto(content := io.BytesIO())
            reply.body = content.getvalue()
        return reply

    server.routes["/viewer/"] = odd
    found = astroclip.fetch(targetid=[BIG, BIG + 1, BIG + 2], **how)
    assert [one.image is None for one in found] == [False, True, False] and found[1].spectrum is not None
    assert "no image: " in found[1].reason and "cannot be read (TypeError" in found[1].reason


@pytest.mark.parametrize("rows", [[dict(plate=266)], ["abc"], [dict(plate=266, mjd=1, fiberid=7, ra=None, dec=2.0)]])
def test_a_row_of_nonsense_from_skyserver_costs_its_row(server, how, rows):
    usual = server.routes[next(path for path in server.routes if "SkyServerWS" in path)]

    def odd(heard):
        return json_reply([dict(Rows=rows)]) if "186." in heard["cmd"] else usual(heard)

    server.routes["/dr17/SkyServerWS/"] = odd
    found = astroclip.fetch(ra=[185.0, 186.0, 185.0], dec=[30.0] * 3, **how)
    assert [one.spectrum is None for one in found] == [False, True, False]
    assert "no spectrum: " in found[1].reason and found[1].image is not None


def test_what_is_no_fault_of_an_object_passes(how, monkeypatch):
    def full(*given, **more):
        raise OSError(28, "No space left on device")

    def stopped(*given, **more):
        raise KeyboardInterrupt

    for fault, kind in ((full, OSError), (stopped, KeyboardInterrupt)):
        monkeypatch.setattr("astroclip.surveys.remote.cutout_at", fault)
        with pytest.raises(kind):
            astroclip.fetch(targetid=BIG, **how)


def test_a_cutout_that_breaks_costs_its_row(server, how):
    def breaks(heard):
        if heard["ra"].startswith("152."):
            return Reply(b"internal error", 500, "text/plain")
        return cutout_service(sky)(heard)

    server.routes["/viewer/"] = breaks
    found = astroclip.fetch(targetid=[BIG + i for i in range(4)], **how)
    assert [one.image is None for one in found] == [False, False, True, False]
    assert "no image: " in found[2].reason and "500" in found[2].reason and found[2].spectrum is not None


def test_a_service_that_is_down_ends_the_work_and_the_same_call_resumes(server, how):
    ids = [BIG + i for i in range(8)]
    first = astroclip.fetch(targetid=ids[:3], **how)
    server.routes["/viewer/"] = lambda heard: Reply(b"maintenance", 503, "text/plain")
    with pytest.raises(ServiceDown) as error:
        astroclip.fetch(targetid=ids, **how)
    assert "503" in str(error.value) and "\n" not in str(error.value)
    server.routes["/viewer/"] = cutout_service(sky)
    server.log.clear()
    found = astroclip.fetch(targetid=ids, **how)
    assert [one.reason for one in found] == [""] * 8 and first[0].path == found[0].path
    assert len(server.log) == 5 and set(paths(server)) == {"/viewer/fits-cutout"}  # only what was missing


def test_many_places_outside_the_footprint_do_not_stop_the_work(server, how):
    "The service breaks on them; only when it breaks on everything is it taken to be down."

    def breaks(heard):
        outside = float(heard["dec"]) < -60
        return Reply(b"internal error", 500, "text/plain") if outside else cutout_service(sky)(heard)

    server.routes["/viewer/"] = breaks
    ra, dec = np.arange(12.0), np.where(np.arange(12) % 6 < 5, -70.0, 10.0)
    found = astroclip.fetch(ra=ra, dec=dec, spectra=False, **how)
    assert [one.image is None for one in found] == (dec < -60).tolist()
    assert "outside the footprint: the service breaks there" in found[0].reason
    with pytest.raises(ServiceDown):
        astroclip.fetch(ra=np.arange(40.0), dec=np.full(40, -70.0), spectra=False, **how)


def test_patience_counts_failures_in_a_row():
    def call(fails):
        if fails:
            raise ServiceDown("away")
        return 1

    patience = Patience(3)
    for fails in (1, 1, 0, 1, 1, 0):
        patience.ask(call, fails)
    assert patience.failed == 0
    for fails in (1, 1):
        patience.ask(call, fails)
    with pytest.raises(ServiceDown):
        patience.ask(call, 1)


# Positions and other archives


def test_a_position_gets_its_cutout_and_the_nearest_sdss_spectrum(server, how):
    found = astroclip.fetch(ra=[185.0, 185.1], dec=[30.0, 30.0], **how)
    assert found[0].spectrum.redshift == pytest.approx(0.07) and found[0].release == "SDSS DR17"
    assert found[1].spectrum is None and "SDSS has no spectrum within 1.5 arcsec" in found[1].reason
    assert found[1].image is not None
    found = astroclip.fetch(table=dict(plate=[266], mjd=[51602], fiberid=[7]), **how)
    assert found[0].wanted.id == "0266-51602-0007" and found[0].image.ra == pytest.approx(185.0)


def test_an_identifier_and_a_place_that_do_not_agree_are_noted(how):
    found = astroclip.fetch(targetid=BIG, ra=150.0, dec=2.01, **how)
    assert "its spectrum was taken 36.0 arcsec from the position given" in found[0].note
    assert found[0].image.dec == pytest.approx(2.01)
    assert "arcsec from" not in astroclip.fetch(targetid=BIG, ra=510.0, dec=2.0001, **how)[0].note


def test_desi_files_by_position(how):
    with StandIn(desi_service(desi_files(TOYS[:3])) | {"/viewer/": cutout_service(sky)}) as server:
        services = usual_services(server.url)
        ids = [BIG + 2, BIG, BIG + 1]
        table = dict(targetid=ids, ra=[152.0, 150.0, 151.0], dec=[2.0] * 3)
        found = astroclip.fetch(table=table, archive="files", **how | dict(services=services))
        assert [one.spectrum.id for one in found] == [str(i) for i in ids]
        assert {(one.release, one.survey, one.program) for one in found} == {("DESI-EDR", "sv3", "bright")}
        blind = astroclip.fetch(targetid=BIG, archive="files", **how | dict(services=services))
        assert "found by position" in blind[0].reason
        server.log.clear()
        place = astroclip.fetch(ra=185.0, dec=30.0, archive="files", **how | dict(services=services))
        assert "its TARGETID: give both" in place[0].reason and place[0].image is not None
        assert paths(server) == ["/viewer/fits-cutout"]


def test_bad_questions(how):
    for given, says in (
        (dict(), "give a table"),
        (dict(targetid=BIG, table=dict(targetid=[BIG])), "not both"),
        (dict(ra=1.0), "needs both"),
        (dict(targetid=[BIG], ra=[1.0, 2.0], dec=[1.0, 2.0]), "different lengths"),
        (dict(targetid=BIG, images=False, spectra=False), "nothing to fetch"),
        (dict(targetid=BIG, archive="tape"), "expected 'sparcl' or 'files'"),
        (dict(targetid=BIG, release="DESI-DR9"), "DESI-DR9"),
        (dict(ra=1.0, dec=1.0, spectra=False, image_release="dr3"), "dr3"),
    ):
        found = None
        try:
            found = astroclip.fetch(**given, **how)
        except (ValueError, LookupError) as error:
            assert says in str(error), error
        assert found is None or says in found[0].reason


# Replay


def test_offline_gives_the_same_rows_and_asks_nobody(server, how):
    ids = [BIG + i for i in (5, 2, 7)]
    online = astroclip.fetch(targetid=ids, **how)
    server.log.clear()
    offline = how | dict(downloads=Downloads(how["downloads"].folder, offline=True))
    again = astroclip.fetch(targetid=ids, **offline)
    for a, b in zip(online, again):
        assert np.array_equal(a.image.image, b.image.image) and np.array_equal(a.spectrum.flux, b.spectrum.flux)
    never = astroclip.fetch(targetid=BIG + 1, **offline)
    assert not server.log and "offline" in never[0].reason


def test_thousands_come_block_by_block(how):
    "Spectra are asked for together, and what was yielded is not kept."
    asked = []

    def many(heard):
        asked.append(len(heard.body["search"][0]) - 1 if heard.path.endswith("/find/") else 0)
        if heard.path.endswith("/find/"):
            return json_reply([{"status": {}}])
        return sparcl_service([sparcl_record(TOYS[0])])["/sparc/"](heard)

    with StandIn({"/sparc/": many}) as server:
        manner = Manner(images=False, services=usual_services(server.url))
        wanted = wanted_objects(targetid=np.arange(1, 2 * BLOCK + 11))
        rows = sum(one.spectrum is None for one in fetch_each(wanted, manner, how["downloads"]))
    assert rows == len(wanted) and [n for n in asked if n] == [BLOCK, BLOCK, 10]


# The program


def test_fetch_writes_files_that_are_read_back(shell, tmp_path):
    (tmp_path / "t.csv").write_text(f"name,targetid\nM 81,{BIG}\nb,17\nb,{BIG + 1}\n")
    status, out, err = shell("fetch", "t.csv", "-o", "out")
    assert status == 0 and out == "out/targets.ecsv: 3 objects: 2 images, 2 spectra, 1 not complete\n", err
    table = Table.read(tmp_path / "out" / "targets.ecsv")
    assert table["targetid"].tolist() == [BIG, 17, BIG + 1] and table["targetid"].dtype == np.int64
    assert table["id"].tolist() == ["M 81", "b", "b"]
    assert table["image"].tolist() == ["images/M_81.fits", None, "images/b-row2.fits"]  # ECSV: empty is masked
    (spectrum,) = read_spectra(tmp_path / "out" / table["spectrum"][2])
    assert spectrum.id == str(BIG + 1) and np.array_equal(spectrum.flux, TOYS[1].flux)
    assert (spectrum.redshift, spectrum.ra, spectrum.spectype) == (TOYS[1].redshift, 151.0, "GALAXY")
    assert read_cutout(tmp_path / "out" / table["image"][0]).ra == pytest.approx(150.0)
    assert "SPARCL has no spectrum" in table["reason"][1]


def test_one_target_on_the_command_line(shell, tmp_path):
    assert shell("fetch", "--targetid", BIG, "--targetid", BIG + 3, "-o", "a")[0] == 0
    assert Table.read(tmp_path / "a" / "targets.ecsv")["targetid"].tolist() == [BIG, BIG + 3]
    status, out, err = shell("fetch", "--ra", 185.0, "--dec", -5.5, "--no-spectra", "-o", "b")
    assert status == 0 and "1 images, 0 spectra" in out, err
    assert shell("fetch", "--targetid", BIG, "--targetid", BIG + 3, "-o", "c", "--offline")[0] == 0


@pytest.mark.parametrize(
    "words, says",
    [
        (["fetch", "-o", "x"], "give a table"),
        (["fetch", "none.csv", "-o", "x"], "no file none.csv"),
        (["fetch", "--targetid", "1e16", "-o", "x"], "is no TARGETID"),
        (["fetch", "--targetid", "5", "-o", "x"], "nothing was found"),
        (["fetch", "--targetid", "5", "-o", "x", "--release", "DR1"], "expected one of DESI-EDR, DESI-DR1"),
        (["fetch", "--targetid", "5", "-o", "x", "--no-images", "--no-spectra"], "nothing to fetch"),
        (["fetch", "--targetid", "5", "-o", "x", "--offline"], "offline"),
    ],
)
def test_mistakes_are_one_line(shell, words, says):
    status, out, err = shell(*words)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("astroclip ")]
    assert status == 1 and len(lines) == 1 and says in lines[0] and "Traceback" not in err, err


def test_a_service_that_is_down_is_one_line_and_a_status(shell, server, tmp_path):
    server.fail_next("503", times=99)
    (tmp_path / "t.csv").write_text(f"targetid\n{BIG}\n")
    status, out, err = shell("fetch", "t.csv", "-o", "out")
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("astroclip ")]
    assert status == 1 and len(lines) == 1 and "503" in lines[0] and "the same command resumes" in lines[0]
    server.failures.clear()
    assert shell("fetch", "t.csv", "-o", "out")[0] == 0


def test_a_killed_fetch_resumes_without_asking_again(server, tmp_path):
    "Killed while the fourth cutout hangs; the same command asks for what is missing."
    server.hangs = 30
    (tmp_path / "t.csv").write_text("targetid\n" + "".join(f"{BIG + i}\n" for i in range(6)))
    mirror = dict(os.environ, ASTROCLIP_MIRROR=server.url, ASTROCLIP_CACHE=str(tmp_path / "cache"))
    command = [sys.executable, "-c", "import sys; from astroclip.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    command += ["fetch", "t.csv", "-o", "out"]
    seen, usual = [], server.routes["/viewer/"]

    def fourth_hangs(heard):
        seen.append(heard["ra"])
        if len(seen) == 4:
            server.closing.wait(30)
        return usual(heard)

    server.routes["/viewer/"] = fourth_hangs
    child = subprocess.Popen(command, cwd=tmp_path, env=mirror, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(seen) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(seen) == 4 and not (tmp_path / "out" / "targets.ecsv").exists()
    server.log.clear()
    done = subprocess.run(command, cwd=tmp_path, env=mirror, capture_output=True, text=True)
    assert done.returncode == 0 and "6 images, 6 spectra, 0 not complete" in done.stdout, done.stderr
    assert paths(server) == ["/viewer/fits-cutout"] * 3


def test_predict_takes_a_list_of_targets(shell, server, tmp_path):
    (tmp_path / "t.csv").write_text(f"targetid\n{BIG + 1}\n17\n{BIG}\n")
    status, out, err = shell("predict", "t.csv", "-o", "results.ecsv", "--device", "cpu")
    assert status == 0 and "fetched into results.ecsv.fetched: 3 objects: 2 images, 2 spectra" in err, err
    table = Table.read(tmp_path / "results.ecsv")
    assert table["id"].astype(str).tolist() == [str(BIG + 1), "17", str(BIG)]
    assert "SPARCL has no spectrum" in table["reason"][1]
    assert np.isfinite(table["redshift"][[0, 2]]).all() and np.isnan(table["redshift"][1])
    asked = len(server.log)
    status, out, err = shell("predict", "t.csv", "-o", "again.ecsv", "--device", "cpu", "--offline")
    assert status == 0 and len(server.log) == asked, err
    again = Table.read(tmp_path / "again.ecsv")
    assert np.array_equal(again["redshift"][0], table["redshift"][0])


LISTS = {
    "comment.csv": f"# from a catalogue\ntargetid,mag\n{BIG},17\n",
    "german.csv": f"TARGETID;mag\n{BIG};17,5\n",
    "tabs.txt": f"\ufeffid\ttargetid\nx\t{BIG}\n",
    "vizier.csv": "RAJ2000,DEJ2000\n150.0,2.0\n",
    "bright.csv": "ra,dec,flux\n150.0,2.0,31.5\n",
    "list.fits": Table(dict(TARGETID=np.array([BIG]), FLUX_R=[31.5])),
}


@pytest.mark.parametrize("name", LISTS)
def test_predict_takes_every_list_that_fetch_takes(shell, tmp_path, name):
    content = LISTS[name]
    content.write(tmp_path / name) if isinstance(content, Table) else (tmp_path / name).write_text(content)
    assert shell("fetch", name, "-o", "out")[0] == 0
    status, out, err = shell("predict", name, "-o", "r.ecsv", "--device", "cpu")
    assert status == 0 and "fetched into r.ecsv.fetched: 1 objects: 1 images" in err, err
    assert Table.read(tmp_path / "r.ecsv")["input"][0] in ("both", "image")


def test_what_is_no_list_says_what_a_list_needs(shell, tmp_path):
    (tmp_path / "a.csv").write_text(f"targetid\n{BIG}\n")
    (tmp_path / "b.csv").write_text(f"targetid\n{BIG + 1}\n")
    (tmp_path / "other.csv").write_text("name,mag\nM 81,7\n")
    Table(dict(name=["M 81"], mag=[7.0])).write(tmp_path / "other.fits")
    for words, says in (
        (["a.csv", "b.csv"], "is asked alone"),
        (["other.csv"], "no list of targets (columns targetid, or ra and dec, or plate, mjd and fiberid)"),
        (["other.fits"], "no list of targets (columns targetid, or ra and dec"),
    ):
        status, out, err = shell("predict", *words, "-o", "r.ecsv")
        assert status == 1 and says in err and not (tmp_path / "r.ecsv").exists(), err


def test_files_of_survey_spectra_are_no_lists_of_targets(tmp_path):
    "They name targets too, beside their pixels."
    for i, (name, content) in enumerate(desi_files(TOYS[:1]).items()):
        (tmp_path / f"{i}.fits").write_bytes(content)
        assert kind_of_table(tmp_path / f"{i}.fits")[0] == "" or "coadd" not in name
    (tmp_path / "s.fits").write_bytes(spectrum_fits(TOYS[0]))
    (tmp_path / "c.fits").write_bytes(cutout_fits(sky(150.0, 2.0, 152), 150.0, 2.0))
    (tmp_path / "w.csv").write_text("targetid,wavelength,flux\n5,4000,1\n5,4001,1\n")
    assert [kind_of_table(tmp_path / name)[0] for name in ("s.fits", "c.fits", "w.csv")] == [""] * 3


def test_a_pair_of_two_places_is_flagged(shell, tmp_path):
    (tmp_path / "t.csv").write_text(f"targetid,ra,dec\n{BIG},200.0,2.0\n{BIG},150.0002,2.0\n{BIG},150.001,2.0\n")
    assert shell("predict", "t.csv", "-o", "r.ecsv", "--device", "cpu")[0] == 0
    table = Table.read(tmp_path / "r.ecsv")
    far = ["two places: the spectrum was taken" in reason for reason in np.ma.filled(table["reason"], "")]
    assert table["input"].tolist() == ["both"] * 3 and far == [True, False, True]
    assert "179,8" in table["reason"][0] and " 3.6 arcsec from the centre of the image" in table["reason"][2]
    assert table["flag"][[0, 2]].all()


def test_fetched_files_keep_their_time_so_that_predict_recognises_them(shell, tmp_path):
    assert shell("fetch", "--targetid", BIG, "-o", "a")[0] == 0
    files = sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file())
    then = [p.stat().st_mtime_ns for p in files]
    assert len(files) == 4 and shell("fetch", "--targetid", BIG, "-o", "a")[0] == 0
    assert [p.stat().st_mtime_ns for p in files] == then


def test_a_folder_belongs_to_one_list(shell, tmp_path):
    "Both lists call their object x, and both images have as many bytes; each has an object that the other lacks."
    for name, i in (("a", 0), ("b", 4)):
        (tmp_path / f"{name}.csv").write_text(f"id,targetid\nx,{BIG + i}\n{name},{BIG + i + 1}\n")
    assert shell("fetch", "a.csv", "-o", "g")[0] == 0 and shell("fetch", "a.csv", "-o", "g")[0] == 0
    kept = {p: p.read_bytes() for p in (tmp_path / "g").rglob("*") if p.is_file()}
    for words in (["fetch", "b.csv"], ["fetch", "a.csv", "--no-images"], ["fetch", "a.csv", "--image-release", "dr10"]):
        status, out, err = shell(*words, "-o", "g")
        assert status == 1 and "g holds another list, or this one fetched with other options" in err, err
        assert {p: p.read_bytes() for p in (tmp_path / "g").rglob("*") if p.is_file()} == kept
    assert shell("fetch", "b.csv", "-o", "g", "--overwrite")[0] == 0
    assert sorted(p.name for p in (tmp_path / "g").rglob("*.fits")) == ["b.fits", "b.fits", "x.fits", "x.fits"]
    assert read_cutout(tmp_path / "g" / "images" / "x.fits").ra == pytest.approx(154.0)
    assert read_spectra(tmp_path / "g" / "spectra" / "x.fits")[0].id == str(BIG + 4)


def test_files_of_somebody_else_are_left_alone(shell, tmp_path):
    (tmp_path / "t.csv").write_text(f"targetid\n{BIG}\n")
    for words, folder in ((["fetch", "t.csv", "-o", "own"], "own"), (["predict", "t.csv", "-o", "r.ecsv"], "r.ecsv.fetched")):
        for own in ("targets.ecsv", f"images/{BIG}.fits"):
            path = tmp_path / folder / own
            path.parent.mkdir(parents=True)
            path.write_text("mine")
            status, out, err = shell(*words, "--overwrite")
            assert status == 1 and "no note of a list" in err and path.read_text() == "mine", err
            path.unlink()
            path.parent.rmdir()


def test_answers_point_to_their_own_targets(shell, tmp_path):
    "Two lists, two outputs of one stem: each answer names the row of its own list."
    for name, i in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.csv").write_text(f"targetid\n{BIG + i}\n")
    for name, out in (("a", "r.ecsv"), ("b", "r.fits")):
        assert shell("predict", f"{name}.csv", "-o", out, "--device", "cpu")[0] == 0
    for out, i in (("r.ecsv", 0), ("r.fits", 1)):
        (row,) = Table.read(tmp_path / out)
        listed = Table.read(tmp_path / str(row["file"]))
        assert listed["targetid"][row["row"]] == BIG + i and str(row["id"]) == str(BIG + i)
    status, out, err = shell("predict", "b.csv", "-o", "r.ecsv", "--device", "cpu", "--overwrite")
    assert status == 0 and str(Table.read(tmp_path / "r.ecsv")["id"][0]) == str(BIG + 1), err


@pytest.mark.parametrize("words", [["fetch", "t.csv", "-o", "out"], ["predict", "t.csv", "-o", "r.ecsv"]])
def test_a_list_without_rows_is_one_sentence(shell, tmp_path, words):
    (tmp_path / "t.csv").write_text("targetid,ra,dec\n")
    status, out, err = shell(*words)
    assert status == 1 and "the list of targets has no row" in err, err


def test_a_spectrum_file_holds_a_64_bit_identifier(shell, tmp_path):
    shell("fetch", "--targetid", BIG, "-o", "a", "--no-images")
    (path,) = (tmp_path / "a" / "spectra").iterdir()
    with fits.open(path) as hdus:
        assert int(hdus[1].data["targetid"][0]) == BIG and hdus[1].header["ORIGIN"].startswith("SPARCL DESI-EDR")
