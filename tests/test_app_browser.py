"""The page in a real browser, headless Chromium, from the first view to files of a telescope; skipped where one is missing."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import astroclip

pytest.importorskip("streamlit", reason="the page needs Streamlit: pip install 'astroclip[app]'")
pytest.importorskip("playwright", reason="a browser is driven by playwright: pip install playwright")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
FLAG_INKS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
SHARED = Path(os.environ.get("ASTROCLIP_SHARED", "no shared folder"))
REAL = {
    "a cutout": SHARED / "real" / "images_legacysurvey" / "cutout_59.1067_-30.4848.fits",
    "a real SDSS spectrum": SHARED / "real" / "spectra_sdss" / "spec-0266-51602-0013.fits",
}
expect.set_options(timeout=40_000)


@pytest.fixture(scope="module")
def address():
    "The page, started as a user starts it."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    root = str(Path(astroclip.__file__).parent.parent)
    told = os.environ | dict(PYTHONPATH=root, OMP_NUM_THREADS="2")
    words = [sys.executable, "-c", "import sys; from astroclip.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    server = subprocess.Popen([*words, "app", "--quiet", "--port", str(port)], env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + "/_stcore/health", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()[-2000:]
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        one = p.chromium.launch(executable_path=CHROMIUM, args=FLAG_INKS.split())
        yield one
        one.close()


@pytest.fixture
def tab(browser):
    "A new visitor; at the end nothing may have gone wrong in his browser, and nothing left the machine."
    context = browser.new_context(viewport=dict(width=1400, height=1000), accept_downloads=True)
    page, wrong, asked = context.new_page(), [], []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    yield page
    context.close()
    assert not wrong, wrong[:3]
    elsewhere = [u for u in asked if not u.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))]
    assert not elsewhere, elsewhere[:3]


def opened(tab, url):
    tab.goto(url)
    expect(tab.locator(".ac-hero")).to_be_visible()
    expect(tab.locator("article").first).to_be_visible()
    return tab


def settled(tab):
    expect(tab.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')).to_be_attached()


def sidebar(tab):
    return tab.locator('[data-testid="stSidebar"]')


def press(tab, group, word):
    "A word of a segmented control."
    sidebar(tab).get_by_role("radiogroup", name=group).get_by_text(word, exact=True).click()


def popover(tab, name, inside):
    "Open a popover; the first click may only close another one."
    button = tab.get_by_role("button", name=inside)
    for _ in range(5):
        tab.locator(".st-key-taken-home").get_by_text(name, exact=True).click()
        tab.wait_for_timeout(700)
        if button.is_visible():
            return button
    raise AssertionError(f"no button {inside!r} in {name}: {tab.get_by_role('button').all_inner_texts()}")


def test_first_view_links_directions_marks_and_tables(tab, address, tmp_path):
    page = opened(tab, address)
    expect(page.get_by_text("SIMULATED")).to_be_visible()
    expect(page.locator("article")).to_have_count(12)
    pictures = page.locator("article img")
    assert pictures.evaluate_all("all => all.every(x => x.complete && x.naturalWidth > 0)")
    settled(page)
    for by in ("Image", "Spectrum", "Both"):
        press(page, "Ask with its", by)
        page.wait_for_timeout(30)  # and on at once, as people do
        for among in ("Image", "Spectrum", "Both"):
            press(page, "Among the galaxies'", among)
            word = dict(Image="images", Spectrum="spectra", Both="galaxies, by image")[among]
            expect(page.locator(".ac-count")).to_contain_text(f"12 nearest {word}")
            settled(page)
    assert "by=both" in page.url and "among=both" in page.url
    cards = page.locator("article")
    before = cards.first.locator(".ac-foot span").inner_text()
    for nth, mark in ((0, "Yes"), (1, "No"), (2, "No")):
        page.locator(".st-key-gallery > div").nth(nth).get_by_text(mark, exact=True).click()
    expect(page.locator(".st-key-teaching")).to_contain_text("1 yes, 2 no")
    expect(page).to_have_url(re.compile(r"yes=\d+&no=\d+%2C\d+$"))
    assert cards.first.locator(".ac-foot span").inner_text() == before  # nothing moves under the hand
    page.get_by_text("Rank by my marks").click()
    expect(page.locator(".ac-count")).to_contain_text("Ranked by your marks")
    settled(page)
    save = popover(page, "Marks", "Download marks")
    with page.expect_download() as got:
        save.click()
    assert json.loads(Path(got.value.path()).read_text())["yes"] == [int(before)]
    save = popover(page, "Table", "Download 12 rows")
    with page.expect_download() as got:
        save.click()
    lines = Path(got.value.path()).read_text().splitlines()
    assert len(lines) == 13 and lines[0].startswith("rank,id,modality,score")
    expect(page.locator("article")).to_have_count(12)
    seen = page.locator(".ac-foot span").all_inner_texts()
    opened(page, page.url)  # the link, opened anew
    expect(page.locator(".ac-count")).to_contain_text("Ranked by your marks")
    expect(page.locator("article")).to_have_count(12)
    settled(page)
    assert page.locator(".ac-foot span").all_inner_texts() == seen


def jpeg(path):
    from astroclip.app.shown import jpeg_of
    from astroclip.core.config import find_root
    from astroclip.data.images import to_rgb
    from astroclip.surveys.pairs import Survey

    survey = Survey(find_root(Path(__file__).parent) / "data" / "sample" / "survey.h5")
    path.write_bytes(jpeg_of(to_rgb(survey.images([2]))[0], 152, 92))
    return path


def upload(page, *paths):
    sidebar(page).locator('input[type="file"]').first.set_input_files([str(p) for p in paths])


def test_pictures_and_rubbish_from_a_visitors_disk(tab, address, tmp_path):
    page = opened(tab, address)
    press(page, "Galaxy", "My file")
    expect(page.get_by_text("Bring a galaxy along")).to_be_visible()
    upload(page, jpeg(tmp_path / "photo of a galaxy.jpg"))
    expect(page.locator(".ac-hero h2")).to_have_text("photo of a galaxy.jpg")
    expect(page.locator("article")).to_have_count(12)
    page.reload()
    press(page, "Galaxy", "My file")
    rubbish = tmp_path / "rubbish.fits"
    rubbish.write_bytes(np.random.default_rng(0).bytes(5000))
    upload(page, rubbish)
    expect(sidebar(page).get_by_role("alert")).to_contain_text("rubbish.fits")
    expect(page.locator("article")).to_have_count(0)


def test_a_real_cutout_and_a_real_spectrum(tab, address):
    missing = [name for name, path in REAL.items() if not path.is_file()]
    if missing:
        pytest.skip(f"{missing[0]} is not here: $ASTROCLIP_SHARED names no folder of real galaxies")
    page = opened(tab, address)
    press(page, "Galaxy", "My file")
    upload(page, REAL["a real SDSS spectrum"])
    expect(page.locator(".ac-hero h2")).to_have_text(REAL["a real SDSS spectrum"].name)
    expect(page.locator("article")).to_have_count(12)
    assert page.locator(".ac-hero .ac-spectrum").first.evaluate("x => x.naturalWidth > 0")
    page.reload()
    press(page, "Galaxy", "My file")
    upload(page, REAL["a cutout"])
    expect(page.locator(".ac-hero h2")).to_have_text(REAL["a cutout"].name)
    expect(page.locator("article")).to_have_count(12)
    assert page.locator(".ac-hero .ac-picture").evaluate("x => x.naturalWidth > 0")


def test_a_region_of_the_map_shows_its_galaxies(tab, address):
    page = tab
    page.goto(address + "/?view=map")
    chart = page.locator('[data-testid="stVegaLiteChart"] canvas, [data-testid="stVegaLiteChart"] svg').first
    expect(chart).to_be_visible()
    settled(page)
    page.wait_for_timeout(500)
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
    page.mouse.up()
    expect(page.locator(".ac-count")).to_contain_text("galaxies in the region")
    expect(page.locator("article").first).to_be_visible()


def test_on_a_telephone_in_the_dark_and_by_keyboard(browser, address, tmp_path):
    context = browser.new_context(viewport=dict(width=390, height=844), color_scheme="dark")
    page = opened(context.new_page(), address)
    assert page.evaluate("document.documentElement.scrollWidth <= 390")  # nothing sticks out
    wide = page.locator("article").first.bounding_box()
    assert 300 < wide["width"] <= 390
    ink, paper = page.evaluate("[getComputedStyle(document.querySelector('.ac-head h1')).color, getComputedStyle(document.querySelector('.stApp')).backgroundColor]")
    light = [sum(map(float, x.split("(")[1].split(")")[0].split(",")[:3])) for x in (ink, paper)]
    assert light[0] > 500 and light[1] < 120
    context.close()
    context = browser.new_context(viewport=dict(width=1400, height=1000))
    page = opened(context.new_page(), address)
    field = sidebar(page).get_by_label("Identifier")
    first, id = page.locator(".ac-hero h2").inner_text(), page.locator(".ac-foot span").nth(3).inner_text()
    field.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(id)
    page.keyboard.press("Enter")
    expect(page.locator(".ac-hero h2")).to_have_text(id)
    page.wait_for_timeout(3200)  # longer than a click may be on its way
    page.go_back()
    expect(page.locator(".ac-hero h2")).to_have_text(first)
    summary = page.locator("article summary").first
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article table").first).to_be_visible()
    context.close()
