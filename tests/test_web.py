"""Downloads and cutouts against a server that does what servers do: slow, busy, half, wrong, gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from astroclip.web import downloads as module
from astroclip.web.cached import cache_folder, is_whole, note_of, question
from astroclip.web.cutouts import check_cutout_file, cutout_at, cutout_fits, cutout_service, galactic_latitude, sky_layer
from astroclip.web.downloads import Downloads, NotCached, NotThere, ServiceDown, retry_after, waiting_time
from astroclip.web.stand_in import Reply, StandIn, json_reply

DATA = np.random.default_rng(0).bytes(200_000)


@pytest.fixture
def server():
    with StandIn({"/data": lambda heard: Reply(DATA), "/echo": lambda heard: json_reply(heard.body)}) as server:
        yield server


@pytest.fixture
def downloads(tmp_path):
    return Downloads(tmp_path, pause=0.001, timeout=0.4)


@pytest.fixture
def naps(monkeypatch):
    "Seconds that would have been waited, without waiting."
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    return slept


def ranges(server):
    return [heard.headers.get("Range") for heard in server.log]


# What fails and passes


@pytest.mark.parametrize("how", ["429", "500", "502", "503", "504", "hang", "half", "close", "page"])
def test_a_failure_that_passes_is_asked_again_and_the_answer_is_whole(server, downloads, how):
    def no_page(path):
        if path.read_bytes().startswith(b"<html"):
            raise ValueError("a page")

    server.fail_next(how)
    path = downloads.get(f"{server.url}/data", check=no_page)
    assert path.read_bytes() == DATA and len(server.log) == 2 and is_whole(path)


@pytest.mark.parametrize("how", ["400", "404"])
def test_what_will_not_pass_is_said_at_once(server, downloads, how):
    server.fail_next(how, times=3)
    with pytest.raises(NotThere, match=f"{how}.*this is a {how}"):
        downloads.get(f"{server.url}/data")
    assert len(server.log) == 1


def test_retry_after_is_obeyed_in_seconds_and_as_a_date_and_capped(server, downloads, naps):
    server.fail_next("429", wait="7")
    downloads.get(f"{server.url}/data/1")
    assert max(naps) == 7
    naps.clear()
    server.fail_next("503", wait=format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True))
    downloads.get(f"{server.url}/data/2")
    assert 55 < max(naps) <= 60
    naps.clear()
    server.fail_next("429", wait="99999")
    downloads.get(f"{server.url}/data/3")
    assert max(naps) == 300
    assert retry_after("nan") is None and retry_after("-5") == 0 and retry_after("Tue, 99 Foo") is None


def test_the_wait_doubles_with_jitter(monkeypatch):
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    assert [waiting_time(k, 0.2) for k in range(5)] == [1, 2, 4, 8, 16]
    monkeypatch.setattr(module.random, "uniform", lambda low, high: low)
    assert [waiting_time(k, 0.2) for k in range(3)] == [0.5, 1, 2]
    assert waiting_time(40, 0.2) == 150  # never beyond the cap


def test_a_service_that_is_down_is_one_line_after_as_many_tries(server, downloads):
    downloads.tries = 3
    server.fail_next("503", times=9)
    with pytest.raises(ServiceDown) as error:
        downloads.get(f"{server.url}/data")
    said = str(error.value)
    assert "503" in said and "3 times" in said and "the same command resumes" in said and "\n" not in said
    assert error.value.status == 503 and len(server.log) == 3
    assert isinstance(error.value, OSError) and not list(downloads.root.rglob("*.json"))


def test_a_server_that_breaks_is_asked_once_more_and_no_more(server, downloads):
    server.fail_next("500", times=9)
    with pytest.raises(ServiceDown, match="500.*asked 2 times") as error:
        downloads.get(f"{server.url}/data")
    assert error.value.status == 500 and len(server.log) == 2


def test_nobody_listens(downloads):
    downloads.tries = 2
    with StandIn({}) as gone:
        pass
    with pytest.raises(ServiceDown, match="no connection, asked 2 times"):
        downloads.get(f"{gone.url}/data")


def test_an_error_page_is_never_kept(server, downloads):
    def check(path):
        if not path.read_bytes() == DATA:
            raise ValueError("this is not the data")

    server.fail_next("page", times=2)
    with pytest.raises(ValueError, match="this is not the data"):
        downloads.get(f"{server.url}/data", check=check)
    left = [p.name for p in downloads.root.rglob("*") if p.is_file()]
    assert left in ([], [".lock"])
    assert downloads.get(f"{server.url}/data", check=check).read_bytes() == DATA


def test_a_wrong_hash_is_never_kept(server, downloads):
    with pytest.raises(ValueError, match="expected 000000000000"):
        downloads.get(f"{server.url}/data", sha256="0" * 64)
    import hashlib

    right = hashlib.sha256(DATA).hexdigest()
    path = downloads.get(f"{server.url}/data", sha256=right)
    assert note_of(path)["sha256"] == right


# Half a file


def test_half_a_file_is_resumed_where_it_broke(server, downloads):
    server.fail_next("half")
    assert downloads.get(f"{server.url}/data").read_bytes() == DATA
    start = int(ranges(server)[1].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= len(DATA) // 2


def test_half_a_file_is_begun_again_where_the_server_cannot(downloads):
    with StandIn({"/data": lambda heard: Reply(DATA)}, ranges=False) as server:
        server.fail_next("half")
        assert downloads.get(f"{server.url}/data").read_bytes() == DATA
        assert ranges(server) == [None, None]


def test_a_file_that_changed_meanwhile_is_not_glued_together(downloads):
    versions = [b"a" * 200_000, b"b" * 200_000]
    with StandIn({"/data": lambda heard: Reply(versions[min(len(server.log) - 1, 1)])}) as server:
        server.fail_next("half")
        assert downloads.get(f"{server.url}/data").read_bytes() == versions[1]


def test_a_file_that_became_shorter_is_begun_again(downloads):
    bodies = [b"a" * 200_000, b"a" * 50_000]

    def answer(heard):
        "The same mark for both: the server forgot to change it."
        body = bodies[min(len(server.log) - 1, 1)]
        headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        if "Range" in heard.headers and int(heard.headers["Range"][6:-1]) >= len(body):
            return Reply(b"", 416, headers=headers)
        return Reply(body, headers=headers)

    with StandIn({"/data": answer}, ranges=False) as server:
        server.fail_next("half")
        assert downloads.get(f"{server.url}/data").read_bytes() == bodies[1]


def test_more_bytes_than_allowed_are_refused(server, downloads):
    downloads.most_bytes = 1000
    with pytest.raises(ValueError, match="200000 bytes, more than most_bytes=1000"):
        downloads.get(f"{server.url}/data")


def test_a_killed_download_resumes(tmp_path):
    "A process is killed in the middle; the next asks for the rest alone."
    slow = threading.Event()

    def answer(heard):
        return Reply(DATA)

    with StandIn({"/data": answer}, hangs=20) as server:
        server.fail_next("half")
        code = (
            "import sys; from astroclip.web.downloads import Downloads\n"
            "import astroclip.web.downloads as d\n"
            "d.waiting_time = lambda *a: 60\n"  # dies while it waits for its second try
            "Downloads(sys.argv[1], pause=0.001).get(sys.argv[2])"
        )
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"{server.url}/data"])
        end = time.monotonic() + 30
        while not server.log and time.monotonic() < end:
            time.sleep(0.02)
        slow.wait(0.3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not list(tmp_path.rglob("*.json"))  # nothing that reads as an answer
        assert Downloads(tmp_path, pause=0.001).get(f"{server.url}/data").read_bytes() == DATA
        assert ranges(server)[-1] is not None


# The cache


def test_a_question_has_one_name_whatever_the_order(tmp_path):
    a, b = question("http://h/x", dict(ra=1, dec=2)), question("http://h/x", dict(dec=2, ra=1))
    assert a.place == b.place != question("http://h/x", dict(ra=1, dec=3)).place
    assert question("http://h/x", None, [1]).place != question("http://h/x", None, [2]).place != question("http://h/x").place
    assert question("http://user:secret@h/x").host == "h"


def test_the_second_time_nobody_is_asked_and_offline_it_is_replayed(server, downloads):
    first = downloads.get(f"{server.url}/data", dict(ra=1), suffix=".fits")
    again = downloads.get(f"{server.url}/data", dict(ra=1), suffix=".fits")
    offline = Downloads(downloads.folder, offline=True)
    assert first == again == offline.get(f"{server.url}/data", dict(ra=1), suffix=".fits") and len(server.log) == 1
    with pytest.raises(NotCached, match="not in the cache: run it once online"):
        offline.get(f"{server.url}/data", dict(ra=2), suffix=".fits")
    note = note_of(first)
    assert (note["bytes"], note["params"], note["etag"][:1]) == (len(DATA), {"ra": "1"}, '"')


def test_a_damaged_file_is_fetched_again_and_refused_offline(server, downloads):
    path = downloads.get(f"{server.url}/data")
    path.write_bytes(DATA[:-1] + b"x")  # the same length
    with pytest.raises(NotCached, match="damaged in the cache"):
        Downloads(downloads.folder, offline=True).get(f"{server.url}/data")
    assert downloads.get(f"{server.url}/data").read_bytes() == DATA and len(server.log) == 2
    path.with_name(path.name + ".json").write_text("{broken")
    assert downloads.get(f"{server.url}/data") == path and len(server.log) == 3


def test_post_keeps_integers_of_64_bits(server, downloads):
    body = {"ids": [2**53 + 1, 2**62 + 1]}
    path = downloads.post(f"{server.url}/echo", body, suffix=".json")
    assert json.loads(path.read_text()) == body and server.log[0].body == body


def test_threads_ask_one_at_a_time_and_not_too_fast(tmp_path):
    inside, most = [0], [0]

    def answer(heard):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return Reply(b"x")

    with StandIn({"/": answer}) as server:
        downloads = Downloads(tmp_path, pause=0.03)
        start = time.monotonic()
        threads = [threading.Thread(target=downloads.get, args=(f"{server.url}/{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] == 1 and len(server.log) == 6
        assert time.monotonic() - start > 5 * 0.03


def test_a_proxy_in_the_environment_does_not_stand_before_this_machine(server, downloads, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert downloads.get(f"{server.url}/data").read_bytes() == DATA
    assert server.log[0].headers["User-Agent"].startswith("astroclip/")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ASTROCLIP_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" and Downloads().root == tmp_path / "c"
    monkeypatch.delenv("ASTROCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    if os.name == "posix" and sys.platform != "darwin":
        assert cache_folder() == tmp_path / "x" / "astroclip" / "downloads"


def test_bad_arguments():
    with pytest.raises(ValueError, match="is no address of a server"):
        question("ftp://h/x")
    with pytest.raises(ValueError, match="tries=0"):
        Downloads(tries=0)


# Cutouts


def sky(ra, dec, size):
    if dec < -60:
        return None
    return np.random.default_rng(int(ra)).normal(0.1, 1, (3, size, size))


@pytest.fixture
def cutouts(tmp_path):
    with StandIn({"/viewer/": cutout_service(sky)}) as server:
        yield server, dict(downloads=Downloads(tmp_path, pause=0.001), url=f"{server.url}/viewer/fits-cutout")


def test_north_is_above_32_375_and_north_of_the_galaxy():
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 300), rng.uniform(-90, 90, 300)
    b = SkyCoord(ra, dec, unit="deg").galactic.b.deg
    assert np.abs(galactic_latitude(ra, dec) - b).max() < 1e-4
    for a, d, latitude in zip(ra, dec, b):
        assert (sky_layer(a, d).side == "north") == (d > 32.375 and latitude > 0)
    assert sky_layer(180, 32.375).side == "south" and sky_layer(180, 32.376).side == "north"
    assert sky_layer(180, 50, "dr10").name == "ls-dr9-north" and sky_layer(180, 0, "dr10").name == "ls-dr10-south"


def test_a_cutout_says_where_it_is_from(cutouts):
    server, how = cutouts
    found = cutout_at(150.0, 2.0, **how)
    asked = server.log[0].query
    assert asked == dict(
        ra="150.0000000", dec="2.0000000", layer="ls-dr9-south", size="152", bands="grz", pixscale="0.262"
    )
    assert found.cutout.image.shape == (3, 152, 152) and found.cutout.unit == "nanomaggy"
    assert np.allclose(found.cutout.image, sky(150.0, 2.0, 152), atol=1e-6)
    assert (found.layer.release, found.layer.side, found.cutout.source) == ("DR9", "south", "Legacy Survey DR9 south")
    assert cutout_at(200.0, 50.0, release="dr10", **how).layer.release == "DR9"


def test_zeros_are_no_image_and_are_not_asked_for_again(cutouts):
    server, how = cutouts
    for _ in range(2):
        with pytest.raises(NotThere, match="outside the footprint of ls-dr9-south: g, r, z not observed"):
            cutout_at(10.0, -70.0, **how)
    assert len(server.log) == 1


def test_one_empty_band_is_named(tmp_path):
    image = np.ones((3, 152, 152))
    image[2] = 0
    with StandIn({"/": cutout_service(lambda *place: image)}) as server:
        with pytest.raises(NotThere, match="ls-dr9-south: z not observed"):
            cutout_at(10.0, 0.0, Downloads(tmp_path, pause=0.001), url=f"{server.url}/x")


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(BANDS="griz"), "got griz"),
        (dict(CD2_2=1 / 3600), "got pixels of 1|pixels of 0.262 arcsec, got 1"),
        (dict(CRVAL1=150.01), "arcsec from the position asked for"),
        (dict(CRVAL2=2.01), "36 arcsec from"),
    ],
)
def test_the_answer_to_another_question_is_refused(tmp_path, change, says):
    from astropy.io import fits

    path = tmp_path / "x.fits"
    path.write_bytes(cutout_fits(np.ones((3, 152, 152)), 150.0, 2.0))
    check_cutout_file(path, 150.0, 2.0, 152)
    check_cutout_file(path, 150.0 + 360, 2.0, 152)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header.update(change)
    with pytest.raises(ValueError, match=says):
        check_cutout_file(path, 150.0, 2.0, 152)


def test_a_position_that_is_none_is_refused_before_anybody_is_asked(cutouts):
    server, how = cutouts
    for ra, dec in ((np.nan, 0.0), (10.0, 91.0), (10.0, np.nan)):
        with pytest.raises(ValueError, match="is no position"):
            cutout_at(ra, dec, **how)
    assert not server.log
