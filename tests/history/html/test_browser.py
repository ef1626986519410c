"""The page in a real browser: Chromium, without a window and without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from llamafleet.history.html import gpus
from llamafleet.history.html.render import render
from llamafleet.history.html.view import Material
from llamafleet.history.store import GpuLine
from tests.history import RESULT
from tests.history.html.fleets import NOTHING, record, slow_fleet
from tests.history.html.test_render import HOSTILE, MADE, of_words, row

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium")

SIZES = [(1280, 900), (400, 900)]

OVERLAPS = """() => {
  // Elements with a text of their own, by what is seen of them: a region that scrolls cuts them.
  const seen = [];
  const walk = (element, cut) => {
    const style = getComputedStyle(element);
    if (style.visibility === "hidden" || style.display === "none") return;
    const box = element.getBoundingClientRect();
    if (style.overflowX !== "visible") {
      cut = { left: Math.max(cut.left, box.left), right: Math.min(cut.right, box.right) };
    }
    for (const node of element.childNodes) {
      if (node.nodeType === Node.ELEMENT_NODE) walk(node, cut);
      if (node.nodeType !== Node.TEXT_NODE || !node.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const rect of range.getClientRects()) {
        const [left, right] = [Math.max(rect.left, cut.left), Math.min(rect.right, cut.right)];
        if (right - left > 1 && rect.height > 1) {
          seen.push({ left, right, top: rect.top, bottom: rect.bottom, text: node.data.trim() });
        }
      }
    }
  };
  walk(document.body, { left: -1e9, right: 1e9 });
  const found = [];
  seen.forEach((a, i) => seen.slice(i + 1).forEach((b) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    // Lines of one text stand closer than their boxes are high.
    if (wide > 2 && high > 0.35 * Math.min(a.bottom - a.top, b.bottom - b.top)) {
      found.push([a.text, b.text]);
    }
  }));
  return { texts: seen.length, found };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        # Root, as CI is, has no sandbox; the page is our own.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        arguments.append("--disable-dev-shm-usage")  # Containers have 64 MB of it.
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Opened:
    """A page with what it said on the console."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    shown = Opened(page)
    yield shown
    page.close()


def show(opened: Opened, text: str, folder: Path) -> Page:
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    opened.page.goto(file.as_uri())
    return opened.page


def fleet_page() -> str:
    """A fleet with all that a page has: a slow GPU, an update, a BUSY run, evidence, a build."""
    records = [
        replace(one, driver="580.95.05") if one.test_time.day > 7 else one for one in slow_fleet()
    ]
    records += [record(n, "pp", median_ts=12000.0 + n, n_prompt=512) for n in range(3)]
    records += [record(3, busy=("in use",), median_ts=60.0)]
    result = replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid="GPU-1"),))
    rows = (row(reason=("offload: found 17 of 33; expected 33; next: deploy",), verdict="FAIL"),)
    return render(Material(MADE, rows, tuple(records), {"gpu-a": result}), NOTHING)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_text_covers_another_and_nothing_is_wider_than_the_window(
    width: int, height: int, scheme: str, opened: Opened, tmp_path: Path
) -> None:
    opened.page.set_viewport_size({"width": width, "height": height})
    opened.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page = show(opened, fleet_page(), tmp_path)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overlaps = page.evaluate(OVERLAPS)
    assert overlaps["texts"] > 200
    assert overlaps["found"] == []
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("file:")] == []


def test_a_text_over_another_is_seen(opened: Opened, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    page = show(opened, "<p>one text</p><p style='margin-top:-2.2em'>another text</p>", tmp_path)
    assert page.evaluate(OVERLAPS)["found"] == [["one text", "another text"]]


def test_texts_are_legible_in_both_schemes(opened: Opened, tmp_path: Path) -> None:
    """Contrast of 4.5 at least, as WCAG 2.2 asks for (1.4.3)."""
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page = show(opened, fleet_page(), tmp_path)
        low = page.evaluate(
            """() => {
          const light = (text) => {
            const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
              .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const style = (one) => getComputedStyle(one);
          const behind = (one) => {
            for (; one; one = one.parentElement) {
              const colour = style(one).backgroundColor;
              if (!/rgba\\(.*, 0\\)/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          const found = [];
          for (const one of document.querySelectorAll("body *")) {
            if (![...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
            if (one.closest("script")) continue;
            const ink = one.closest("svg") ? style(one).fill : style(one).color;
            const [a, b] = [light(ink), light(behind(one))].sort((x, y) => y - x);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < 4.5) found.push(`${one.textContent.slice(0, 40)}: ${contrast}`);
          }
          return found;
        }"""
        )
        assert low == []


def test_what_hosts_say_runs_nowhere(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, of_words(HOSTILE), tmp_path)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.get_by_role("button", name="Open all").click()
    page.evaluate("document.querySelectorAll('[data-runs]').forEach((one) => one.click())")
    page.wait_for_function("!document.querySelector('[data-runs]')")
    page.locator("[data-copy]").first.click()
    page.wait_for_function("document.querySelector('textarea')")
    page.keyboard.press("Tab")
    assert page.locator("img").count() == 0
    assert (dialogs, opened.said) == ([], [])


def test_the_fleet_is_sorted_and_filtered_by_keyboard(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, fleet_page(), tmp_path)
    hosts = page.locator("#fleet tbody th")
    header = page.get_by_role("columnheader", name="tg t/s")
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert hosts.first.text_content() == "gpu-a"
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert hosts.first.text_content() == "gpu-c"
    empty_last = page.get_by_role("columnheader", name="pp t/s").get_by_role("button")
    for _ in range(2):
        page.keyboard.press("Tab")
        empty_last.press("Enter")
        assert hosts.first.text_content() == "gpu-a", "the others have no pp"
    assert empty_last.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    page.get_by_label("Show lines with").fill("gpu-d 4090")
    assert [host.text_content() for host in hosts.all() if host.is_visible()] == ["gpu-d"]
    assert page.locator("#matches").text_content() == "1 of 6 lines"


def test_a_plot_is_read_by_arrow_keys(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, fleet_page(), tmp_path)
    figure = page.get_by_role("group", name="generation (tg128)").first
    said = figure.locator("xpath=following-sibling::output")
    figure.focus()
    for key, wanted in (
        ("Home", "1 of 4: 2026-03-01 00:00 UTC: 100.0 ± 0.5 t/s, driver 575.57.08"),
        ("ArrowRight", "2 of 4: 2026-03-08 00:00 UTC: 100.0 ± 0.5 t/s, driver 580.95.05"),
        ("End", "4 of 4: 2026-03-22 00:00 UTC: 60.0 ± 0.5 t/s"),
        ("ArrowLeft", "3 of 4"),
    ):
        page.keyboard.press(key)
        said.get_by_text(wanted).wait_for()
    page.keyboard.press("Home")
    said.get_by_text("1 of 4").wait_for()
    box = figure.locator("svg").bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.70 * box["width"], box["y"] + 40)
    said.get_by_text("3 of 4").wait_for()
    page.keyboard.press("End")
    said.get_by_text("not free or healthy: in use").wait_for()
    cursor, ring = figure.locator(".cursor"), figure.locator(".busy")
    for name in ("cx", "cy"):
        assert float(cursor.get_attribute(name) or "") == pytest.approx(
            float(ring.get_attribute(name) or ""), abs=0.1
        )


def test_runs_and_the_result_are_shown_as_they_are_kept(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, fleet_page(), tmp_path)
    page.get_by_role("button", name="Its runs as a table (4)").first.click()
    table = page.get_by_role("group", name="Runs, generation (tg128)")
    table.wait_for()
    assert table.locator("tbody tr").count() == 4
    assert "60.0" in (table.locator("tbody tr").last.text_content() or "")
    page.locator("[data-copy]").first.click()
    area = page.locator("textarea")
    area.wait_for()
    page.get_by_text(re.compile("Copied|Press Ctrl-C to copy")).wait_for()
    assert area.evaluate("(one) => one.selectionEnd - one.selectionStart === one.value.length")
    shown = json.loads(area.input_value())
    wanted = replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid="GPU-1"),))
    assert shown == json.loads(json.dumps(asdict(wanted)))


def many_page(monkeypatch: pytest.MonkeyPatch, note: str = "") -> str:
    """Five GPUs, of which the first alone is written out."""
    monkeypatch.setattr(gpus, "WRITTEN", 1)
    records = [
        record(n, host=f"gpu-{k}{note}", gpu_uuid=f"GPU-{k}") for k in "abcde" for n in (0, 1)
    ]
    rows = [row(GpuLine(f"RTX{note}", f"GPU-{k}", "PASS"), host=f"gpu-{k}{note}") for k in "abcde"]
    results = {
        one.host: replace(RESULT, gpus=(replace(RESULT.gpus[0], uuid=one.gpus[0].uuid),))
        for one in rows
    }
    return render(Material(MADE, tuple(rows), tuple(records), results), NOTHING)


def test_the_history_of_a_later_gpu_is_unpacked_when_it_is_opened(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = show(opened, many_page(monkeypatch), tmp_path)
    last = page.locator("#gpu-5")
    assert last.locator("svg").count() == 0
    for _ in range(2):  # The second time the address does not change.
        page.locator("#fleet tbody a").last.click()
        figure = last.locator("figure.history")
        figure.wait_for()
        last.locator("summary").first.click()
        assert not figure.is_visible()
    page.get_by_role("button", name="Open all").click()
    figure.focus()
    page.keyboard.press("End")
    last.get_by_text("2 of 2: 2026-03-08 00:00 UTC: 150.0").wait_for()
    last.get_by_role("button", name="Its runs as a table (2)").click()
    assert last.get_by_role("group", name="Runs, generation (tg128)").locator("tr").count() == 3
    last.get_by_text("Evidence of 2026-11-25: 2 checks, all green").click()
    assert last.get_by_text("33 of 33 layers").is_visible()
    page.locator("#gpu-2 svg").wait_for()
    assert opened.said == []


def test_what_hosts_say_runs_nowhere_when_it_is_unpacked(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = show(opened, many_page(monkeypatch, HOSTILE), tmp_path)
    page.get_by_role("button", name="Open all").click()
    page.locator("#gpu-5 svg").wait_for()
    page.locator("#gpu-5 [data-copy]").click()
    area = page.locator("textarea")
    area.wait_for()
    assert json.loads(area.input_value())["gpus"][0]["uuid"] == "GPU-e"
    assert page.locator("img").count() == 0
    assert opened.said == []


def test_a_browser_that_can_t_unpack_says_so(opened: Opened, tmp_path: Path) -> None:
    opened.page.add_init_script("delete window.DecompressionStream")
    page = show(opened, fleet_page(), tmp_path)
    page.get_by_role("button", name="Its runs as a table (4)").first.click()
    page.get_by_text("This browser can't unpack it").wait_for()
    assert opened.said == []


def test_verdicts_are_sorted_by_how_bad_they_are(opened: Opened, tmp_path: Path) -> None:
    rows = tuple(
        row(GpuLine("g", f"GPU-{n}", verdict), host=f"gpu-{n}", verdict=verdict)
        for n, verdict in enumerate(("PASS", "BUSY", "NOT VERIFIED", "FAIL"))
    )
    page = show(opened, render(Material(MADE, rows, ()), NOTHING), tmp_path)
    header = page.get_by_role("columnheader", name="Verdict").get_by_role("button")
    header.click()
    verdicts = page.locator("#fleet tbody td:first-child")
    assert verdicts.all_text_contents() == ["FAIL", "NOT VERIFIED", "BUSY", "PASS"]
    header.click()
    assert verdicts.first.text_content() == "PASS"


def test_every_link_leads_somewhere_and_opens_its_gpu(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, fleet_page(), tmp_path)
    for link in page.locator("a[href^='#']").all():
        target = link.get_attribute("href") or ""
        assert page.locator(f"[id='{target[1:]}']").count() == 1, target
    page.get_by_role("button", name="Close all").click()
    last = page.locator("#fleet tbody a").last
    last.click()
    wanted = page.locator(last.get_attribute("href") or "")
    assert wanted.evaluate("(one) => one.open")
    page.goto("about:blank")
    page.goto(f"{(tmp_path / 'report.html').as_uri()}#gpu-5")
    page.locator("#gpu-5[open] svg").first.wait_for()


def test_a_screen_reader_finds_names_for_everything(opened: Opened, tmp_path: Path) -> None:
    """Sections, plots, buttons and inputs have names, tables headers; headings skip no level."""
    page = show(opened, fleet_page(), tmp_path)
    page.get_by_role("button", name="Open all").click()
    unnamed = page.evaluate(
        """() => [
      ...[...document.querySelectorAll("svg[role=img], [role=region], [role=group]")]
        .filter((one) => !(one.getAttribute("aria-label") || one.getAttribute("aria-labelledby"))),
      ...[...document.querySelectorAll("button")].filter((one) => !one.textContent.trim()),
      ...[...document.querySelectorAll("input")].filter((one) => !one.labels.length),
      ...[...document.querySelectorAll("th")].filter((one) => !one.scope),
      ...[...document.querySelectorAll("[aria-labelledby]")]
        .filter((one) => !document.getElementById(one.getAttribute("aria-labelledby"))),
    ].map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.locator("html").get_attribute("lang") == "en"


def test_it_prints_what_is_open_and_no_controls(opened: Opened, tmp_path: Path) -> None:
    page = show(opened, fleet_page(), tmp_path)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_role("button", name="Open all").is_visible()
    assert page.locator("#gpu-1 svg").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_without_a_script_all_figures_are_there(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = show(Opened(context.new_page()), fleet_page(), tmp_path)
        assert page.locator("#fleet tbody tr").count() == 6
        assert page.locator("#gpu-1 svg").first.is_visible()
        assert not page.get_by_role("button", name="Open all").is_visible()
        assert not page.locator("#filter").is_visible()
    finally:
        context.close()
