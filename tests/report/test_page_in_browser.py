"""The page in a real browser: no error, no request, nothing cut off, in light and dark; what can be moved moves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser, overlapping
from conftest import ROOT
from pages import HOSTILE, hostile, large, write_run

import datadistill as dd
from datadistill.report.look import look_at
from datadistill.report.page import Subject, make_page, read_subject

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(digits: dd.RealData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by what is on them."""
    folder = tmp_path_factory.mktemp("pages")
    method = dd.methods.DD(steps=1, epochs=3, images="mean", batch=64, labels="soft")
    ten = dd.distill(digits, method, model="mlp", iterations=2, device="cpu").distilled
    write_run(ten, folder / "run", looks=40)
    write_run(large(ten), folder / "large", looks=200)
    run = replace(read_subject(folder / "run"), look=look_at(ten, digits))
    unkind = Subject(HOSTILE, 1, hostile(ten), run.metrics, run.history, {HOSTILE: HOSTILE})
    contents = {
        "run": make_page([run]),
        "large": make_page([read_subject(folder / "large")]),
        "shipped": make_page([read_subject(ROOT / "gallery" / "mnist-random-100-soft")]),
        "several": make_page([run, read_subject(ROOT / "gallery" / "mnist-fixed-10")]),
        "hostile": make_page([unkind, unkind]),
    }
    places = {name: folder / f"{name}.html" for name in contents}
    for name, place in places.items():
        place.write_bytes(contents[name])
    return places


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["run", "large", "shipped", "several", "hostile"])
def test_it_opens_whole(name: str, width: int, dark: bool, chromium: Browser, pages: dict[str, Path]) -> None:
    address = pages[name].as_uri()
    chromium.show(address, width, dark=dark)
    assert chromium.said == []
    assert chromium.asked == [address]
    assert chromium.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert chromium.run(CUT_OFF) == []
    assert chromium.run(OVERLAPPING) == []
    paper = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] | 0")
    assert (paper < 60) if dark else (paper > 200)
    assert chromium.run("document.querySelectorAll('.picture canvas').length") > 0


CUT_OFF = """[...document.querySelectorAll("main *")].filter(node => {
  const box = node.getBoundingClientRect();
  const scrolls = node.closest(".scroll, pre, svg, canvas, .uplot") !== null || node.checkVisibility() === false;
  return !scrolls && box.width && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
}).map(node => node.outerHTML.slice(0, 200))"""

OVERLAPPING = overlapping("h1, h2, h3, p, dt, dd, label, .picture, .plot, .keys, summary, pre", "dialog, .scroll")

SLIDE = """(slider => {
  slider.value = %s;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
})(document.querySelector(".moment"))"""
PLACE = """(box => [box.left, box.right, box.top + box.height / 2])(
  document.querySelector("%s").getBoundingClientRect())"""
SHOWN = "document.querySelector('.picture canvas').toDataURL()"


def test_the_images_move_and_change_their_range(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.show(pages["run"].as_uri())
    kept = chromium.run(SHOWN)
    chromium.run(SLIDE % 0)
    chromium.wait_for("document.querySelector('article.set').dataset.drawn === '0'")
    first = chromium.run(SHOWN)
    assert chromium.run("document.querySelector('form output').textContent").startswith("step 1")
    assert "held-out" in chromium.run("document.querySelector('form output').textContent")
    chromium.run("document.querySelector('[value=true]').click()")
    chromium.wait_for(f"{SHOWN} !== {first!r}")
    chromium.run("document.querySelector('[value=stretched]').click()")
    chromium.run(SLIDE % 24)
    chromium.wait_for(f"{SHOWN} === {kept!r}")


def test_an_image_opens_large_beside_the_nearest_real_one(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.show(pages["run"].as_uri())
    chromium.run("document.querySelectorAll('.picture')[3].click()")
    chromium.wait_for("document.querySelector('dialog').open")
    chromium.wait_for("document.querySelector('dialog .real figcaption').textContent.includes('of class')")
    assert chromium.run("document.querySelector('dialog h2').textContent") == "3"
    assert chromium.run("document.querySelectorAll('dialog .bars div').length") == 10
    left, right, _ = chromium.run(PLACE % "dialog")
    assert 0 <= left < right <= 1400
    chromium.run("document.querySelector('dialog .next').click()")
    chromium.wait_for("document.querySelector('dialog h2').textContent === '4'")
    chromium.run("document.querySelector('dialog .close').click()")
    assert not chromium.run("document.querySelector('dialog').open")


def test_curves_are_read_off_with_the_pointer_and_with_keys(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.show(pages["run"].as_uri())
    assert chromium.run("document.querySelectorAll('.chart').length") == 4
    chromium.run("document.querySelector('.charts').scrollIntoView()")
    left, right, middle = chromium.run(PLACE % ".u-over")
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=(left + right) / 2, y=middle)
    chromium.wait_for("document.querySelector('.tip:not([hidden])')")
    assert "%" in chromium.run("document.querySelector('.tip:not([hidden])').textContent")
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    chromium.wait_for("!document.querySelector('.tip:not([hidden])')")
    chromium.run("document.querySelector('.plot').focus()")
    for kind in ("keyDown", "keyUp"):
        chromium.call(
            "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
        )
    chromium.wait_for("document.querySelector('.tip:not([hidden])')")
    chromium.run("document.querySelector('.curves summary').click()")
    chromium.wait_for("document.querySelectorAll('.series tbody tr').length > 30")


def test_a_hostile_name_does_nothing(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.show(pages["hostile"].as_uri())
    assert "onerror=alert(1)" in chromium.run("document.querySelector('.picture').title")
    assert chromium.run("[...document.images].filter(i => !i.src.startsWith('data:')).length") == 0


def test_it_prints(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.show(pages["run"].as_uri(), dark=True)
    chromium.run("window.dispatchEvent(new Event('beforeprint'))")
    assert chromium.run("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()") == "#1c2127"
    chromium.run("window.dispatchEvent(new Event('afterprint'))")
    assert len(chromium.call("Page.printToPDF")["data"]) > 10000
    assert chromium.said == []
