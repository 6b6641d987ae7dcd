"""What people see of a page: at phone and desktop width, in the light and in the dark, with and without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from diffmavil.reporting import galleries
from diffmavil.reporting.page import write_comparison
from tests.reporting.browser import CHROMIUM, Browser
from tests.reporting.some_runs import write_run
from tests.runs import very_small

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

WIDTHS = (400, 1200)
SCHEMES = {"light": False, "dark": True}
_CONTRAST = """(() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(x => x / 255)
            .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const paper = node => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!/rgba\\(.*, 0\\)/.test(colour)) return light(colour);
        }
        return 1;
    };
    const found = {};
    const texts = 'h1, h2, h3, p, td, th, nav a, summary, figcaption *, .strips span, svg text';
    for (const node of document.querySelectorAll(texts)) {
        const style = getComputedStyle(node);
        const ink = light(node instanceof SVGElement ? style.fill : style.color), back = paper(node);
        const name = node.tagName.toLowerCase() + '.' + node.className;
        found[name] = Math.min(found[name] ?? 99, (Math.max(ink, back) + .05) / (Math.min(ink, back) + .05));
    }
    return {paper: paper(document.body), found};
})()"""


@pytest.fixture(scope="module")
def pages(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of one run, and of two that have a modality each."""
    folder = tmp_path_factory.mktemp("pages")
    config = replace(very_small(cache), train=replace(very_small(cache).train, steps=3))
    runs = [write_run(folder / "a-run-with-a-rather-long-name-as-people-give-them", config)]
    for modalities in ("audio", "video"):
        model = replace(config.model, modalities=modalities)
        runs.append(write_run(folder / modalities, replace(config, model=model)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(galleries, "_QUERIES", 1)  # clips are coded for each question
        return {
            "one": write_comparison(runs[:1], folder / "one.html", most=12),
            "two": write_comparison(runs[1:], folder / "two.html", most=12),
        }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen_and_nothing_complains(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.errors == []


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_figure_tells_what_it_shows_and_can_be_seen(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], 1200)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    counts = browser.run("['img', 'svg[role=img]', 'video', 'audio'].map(x => document.querySelectorAll(x).length)")
    assert all(counts), counts
    assert browser.run("[...document.images].filter(one => !one.alt.trim() || !one.naturalWidth).length") == 0
    unnamed = "[...document.querySelectorAll('svg:not([aria-hidden])')].filter(one => !one.getAttribute('aria-label'))"
    assert browser.run(f"{unnamed}.length") == 0
    clips = "[...document.querySelectorAll('video, audio')]"
    assert browser.run(f"{clips}.filter(one => !one.controls || !one.getAttribute('aria-label')).length") == 0
    assert browser.run(f"{clips}.filter(one => one.error || !(one.duration > .3)).map(one => one.ariaLabel)") == []


def test_a_clip_plays_with_its_sound(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], 1200)
    played = browser.run("""(async () => {
        const clip = document.querySelector('video');
        clip.muted = true;
        await clip.play();
        await new Promise(done => { clip.ontimeupdate = () => clip.currentTime > .2 && done(); });
        return [clip.currentTime, clip.videoWidth, clip.webkitAudioDecodedByteCount];
    })()""")
    assert all(played), played


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read_in_the_light_and_in_the_dark(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    browser.open(pages["one"], 1200, dark=SCHEMES[scheme])
    seen = browser.run(_CONTRAST)
    assert (seen["paper"] < 0.05) == SCHEMES[scheme]
    assert any(name.startswith("text") for name in seen["found"]), "curves have words too"
    assert {name: contrast for name, contrast in seen["found"].items() if contrast < 4.5} == {}


def test_lines_of_curves_are_seen_in_the_dark(browser: Browser, pages: dict[str, Path]) -> None:
    colours = []
    for dark in SCHEMES.values():
        browser.open(pages["two"], 1200, dark=dark)
        line = "document.querySelector('.panels svg path[style*=\"--c2\"]')"
        colours.append(browser.run(f"getComputedStyle({line}).stroke"))
    assert colours[0] != colours[1]


def test_the_keyboard_reaches_everything_in_order(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], 400)
    titles = browser.run("[...document.querySelectorAll('nav a')].map(one => one.textContent)")
    reached = []
    for _ in titles:
        browser.press("Tab", 9)
        reached.append(browser.run("document.activeElement.textContent"))
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == titles
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.matches('.scroll')")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "Run, table"

    # Everything that can be focused lies in the order of the page, and nothing jumps the queue.
    assert browser.run("document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])').length") == 0


def test_keys_scroll_pictures_open_lists_and_follow_links(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], 400)
    browser.run("document.querySelector('.strips').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run("""new Promise(done => {
        const box = document.querySelector('.strips'); let tries = 0;
        const look = () => box.scrollLeft > 0 || tries++ > 40 ? done(box.scrollLeft > 0) : setTimeout(look, 50);
        look();
    })""")
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter", 13)
    assert browser.run("document.querySelector('details').open")
    browser.run("document.querySelector('nav a:last-child').focus()")
    browser.press("Enter", 13)
    assert browser.run("location.hash") == "#s1"
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    ids = browser.run("[...document.querySelectorAll('section[id], [id^=figure], [id^=axes]')].map(one => one.id)")
    assert len(ids) == len(set(ids)) > 5
