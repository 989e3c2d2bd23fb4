"""The page in a real browser, headless Chromium, from the first view to files of a telescope; skipped where one is missing."""

import io
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
    "Open a drawer of what can be taken home."
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
    page.get_by_text("Rank by my marks").first.click()
    expect(page.locator(".ac-count")).to_contain_text("Ranked by your marks")
    settled(page)
    save = popover(page, "Marks", "Download marks")
    with page.expect_download() as got:
        save.click()
    asks = page.locator(".ac-hero h2").inner_text()
    assert json.loads(Path(got.value.path()).read_text())["yes"] == [int(asks), int(before)]  # what asks is a yes
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
    expect(page.locator('[data-testid="stMain"]').get_by_role("alert")).to_contain_text("rubbish.fits")
    expect(sidebar(page).get_by_role("alert")).to_have_count(0)  # once
    expect(page.locator("article")).to_have_count(0)


def test_on_a_telephone_an_upload_is_answered_in_sight(browser, address, tmp_path):
    "The side lies over the page there: it closes by itself once a galaxy was brought along."
    context = browser.new_context(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)
    page = opened(context.new_page(), address)
    page.locator('[data-testid="stExpandSidebarButton"]').first.click()
    press(page, "Galaxy", "My file")
    upload(page, jpeg(tmp_path / "mine.jpg"))
    expect(page.locator(".ac-hero h2")).to_have_text("mine.jpg")
    expect(page.locator('[data-testid="stExpandSidebarButton"]').first).to_be_visible()
    page.wait_for_timeout(600)
    box = page.locator(".ac-hero h2").bounding_box()
    at = "([x, y]) => document.elementFromPoint(x, y).closest('.ac-hero') !== null"
    assert page.evaluate(at, [box["x"] + 20, box["y"] + 8])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_what_can_be_taken_home_is_near_for_a_keyboard(tab, address):
    page = opened(tab, address)
    settled(page)
    page.locator(".st-key-taken-home summary").first.focus()
    page.keyboard.press("Enter")
    inside = page.get_by_role("button", name="Download 12 rows")
    expect(inside).to_be_visible()
    for _ in range(6):
        page.keyboard.press("Tab")
        if inside.evaluate("x => x === document.activeElement"):
            return
    raise AssertionError("more than six presses of Tab from the word Table to its download")


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


def chart_of(page):
    one = page.locator('[data-testid="stVegaLiteChart"] canvas, [data-testid="stVegaLiteChart"] svg').first
    expect(one).to_be_visible()
    settled(page)
    page.wait_for_timeout(700)
    return one


def edge_columns(chart):
    "Columns of pixels (of a copy of the chart) in which the ink of the rectangle's sides stands upright."
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("RGB")).astype(int)
    ink = np.abs(pixels - [213, 94, 0]).max(2) < 90  # the orange of the rectangle
    return np.flatnonzero(ink.sum(0) > 60)


def drag(page, chart, start, end):
    box = chart.bounding_box()
    spots = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*spots[0])
    page.mouse.down()
    page.mouse.move(*spots[1], steps=8)
    page.mouse.up()


@pytest.mark.parametrize("mode", ("light", "dark"))
def test_a_region_is_drawn_linked_drawn_again_and_wiped_away(browser, address, mode):
    context = browser.new_context(viewport=dict(width=1400, height=1000), color_scheme=mode)
    page = context.new_page()
    page.goto(address + "/?view=map")
    chart = chart_of(page)
    assert len(edge_columns(chart)) == 0
    drag(page, chart, (0.3, 0.3), (0.6, 0.6))
    expect(page.locator(".ac-count")).to_contain_text("galaxies in the region")
    expect(page.locator("article").first).to_be_visible()
    expect(page).to_have_url(re.compile("region="))
    page.mouse.move(5, 5)
    chart, said = chart_of(page), page.locator(".ac-count").inner_text()
    drawn = edge_columns(chart)
    wide = chart.bounding_box()["width"]
    assert abs(drawn.min() - 0.3 * wide) < 4 and abs(drawn.max() - 0.6 * wide) < 4
    link = page.url
    other = context.new_page()
    other.goto(link)  # whoever opens the link sees the same rectangle
    linked = edge_columns(chart_of(other))
    assert other.locator(".ac-count").inner_text() == said
    assert abs(linked.min() - drawn.min()) < 3 and abs(linked.max() - drawn.max()) < 3
    other.get_by_role("radiogroup", name="Colour").get_by_text("Stellar mass").click()  # drawn anew in another colour
    other.mouse.move(5, 5)
    linked = edge_columns(chart_of(other))
    assert abs(linked.min() - drawn.min()) < 3 and abs(linked.max() - drawn.max()) < 3
    box = chart_of(other).bounding_box()
    other.mouse.click(box["x"] + 0.97 * box["width"], box["y"] + 0.03 * box["height"])  # beside it
    expect(other.get_by_text("Drag over the map")).to_be_visible()
    expect(other).not_to_have_url(re.compile("region="))
    other.mouse.move(5, 5)
    assert len(edge_columns(chart_of(other))) == 0 and other.locator("article").count() == 0
    page.get_by_text("Clear the region").click()
    expect(page).not_to_have_url(re.compile("region="))
    page.mouse.move(5, 5)
    assert len(edge_columns(chart_of(page))) == 0
    context.close()


def test_a_finger_draws_a_region(browser, address):
    context = browser.new_context(viewport=dict(width=390, height=844), has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address + "/?view=map")
    chart_of(page).scroll_into_view_if_needed()
    box, hand = chart_of(page).bounding_box(), context.new_cdp_session(page)
    for step in range(15):  # sideways at first: up and down moves the page
        spot = dict(x=box["x"] + 60 + 14 * step, y=box["y"] + 150 + 18 * max(0, step - 4))
        kind = "touchMove" if step else "touchStart"
        hand.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=[spot]))
        page.wait_for_timeout(30)
    hand.send("Input.dispatchTouchEvent", dict(type="touchEnd", touchPoints=[]))
    expect(page.locator(".ac-count")).to_contain_text("galaxies in the region")
    expect(page).to_have_url(re.compile("region="))
    x0, x1, y0, y1 = map(float, re.search("region=(.*)", page.url)[1].replace("%3A", ":").split(":"))
    assert x1 - x0 > 3 and y1 - y0 > 1
    context.close()


def test_nothing_is_cut_off_at_any_width(browser, address):
    context = browser.new_context(viewport=dict(width=1280, height=900))
    page = opened(context.new_page(), address)
    for width in (1920, 1280, 1024, 768, 390):
        page.set_viewport_size(dict(width=width, height=900))
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sticking = "all => all.filter(x => x.getBoundingClientRect().right > innerWidth + 1).map(x => x.innerText)"
        assert page.locator(".ac-hero dd, .ac-hero img, .ac-said, article dd").evaluate_all(sticking) == []
        shown = page.locator(".ac-hero .ac-spectrum >> visible=true")
        assert shown.count() == 1
        size = shown.evaluate("x => x.clientWidth / x.naturalWidth * (x.closest('.ac-wide') ? 11.5 : 25)")
        assert size > 8  # pixels of the letters
    context.close()


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
    settled(page)
    page.wait_for_timeout(500)
    expect(page.locator("article")).to_have_count(12)
    far, main = page.locator(".ac-foot span").nth(9), page.locator('[data-testid="stMain"]')
    far.scroll_into_view_if_needed()
    assert main.evaluate("x => x.scrollTop") > 300
    id = far.inner_text()
    page.get_by_role("button", name="Ask with this").nth(9).press("Enter")
    expect(page.locator(".ac-hero h2")).to_have_text(id)
    page.wait_for_function("document.querySelector('[data-testid=stMain]').scrollTop == 0")  # what asks is seen
    summary = page.locator("article summary").first
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article table").first).to_be_visible()
    context.close()
