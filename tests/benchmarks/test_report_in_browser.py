"""report.html in a real browser; skipped where playwright or Chromium is not installed."""

import shutil

import pytest

from subquad.benchmarks.report import write_report

from .fake_records import MIXERS, quick_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
# The page needs no network, and the browser shall not look for one either.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--disable-quic"]  # fmt: skip


HERE = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    *_, page = write_report(quick_run(tmp_path_factory.mktemp("report")))
    return page.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """The report, loaded; whatever it asks of the network or complains about fails the test."""
    options = getattr(request, "param", {})
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(HERE) else trouble.append(asked.url))
    page.goto(address)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    yield page
    assert trouble == []
    context.close()


def column(page, index: int, table: str = "results") -> list[str]:
    return page.locator(f"#{table} tbody tr:visible td:nth-child({index})").all_text_contents()


def test_every_figure_is_drawn(page):
    assert page.locator(".js-plotly-plot").count() == page.locator("figure").count() == 8
    drawn = page.locator(".js-plotly-plot").evaluate_all("plots => plots.map(p => p.querySelectorAll('.trace').length)")
    assert min(drawn) >= len(MIXERS)


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": w, "height": 800}} for w in (800, 1400)], indirect=True, ids=str
)
def test_no_figure_covers_another(page):
    boxes = page.locator(".main-svg").evaluate_all("all => all.map(svg => svg.getBoundingClientRect().toJSON())")
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = a["right"] <= b["left"] + 1 or b["right"] <= a["left"] + 1 or a["bottom"] <= b["top"] + 1
            same = a == b or b["bottom"] <= a["top"] + 1  # plotly lays two of one size over each other
            assert apart or same, (a, b)


def test_a_heading_sorts_up_and_down(page):
    heading = page.locator("#results th button", has_text="state")
    place = page.locator("#results th").all_text_contents().index(heading.text_content()) + 1

    def keys():
        cells = page.locator(f"#results tbody td:nth-child({place})")
        return [float(key) for key in cells.evaluate_all("cells => cells.map(cell => cell.dataset.key)")]

    heading.click()
    assert keys() == sorted(keys(), reverse=True)
    assert heading.locator("..").get_attribute("aria-sort") == "descending"
    heading.press("Enter")
    assert keys() == sorted(keys())
    page.locator("#results th button", has_text="mixer").click()
    assert column(page, 1) == sorted(MIXERS)


def test_a_filter_keeps_the_rows_with_all_its_words(page):
    page.locator(".filter[data-table=results]").fill("base")
    assert set(column(page, 1)) == {"based", "rebased", "base_conv"}
    page.locator(".filter[data-table=results]").fill("base, CONV")
    assert column(page, 1) == ["base_conv"]
    page.locator(".filter[data-table=results]").fill("")
    assert len(column(page, 1)) == len(MIXERS)


def test_a_mixers_button_hides_it_everywhere(page):
    def visible():
        return page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')].map("
            "p => p.data.filter(t => t.meta[0] === 'hyena' && t.visible !== false).length)"
        )

    assert min(visible()) == 1
    button = page.locator("#mixers button[data-mixer=hyena]")
    button.focus()
    page.keyboard.press("Space")
    assert max(visible()) == 0 and "hyena" not in column(page, 1)
    assert button.get_attribute("aria-pressed") == "false"
    page.locator("summary").click()
    assert "hyena" not in column(page, 1, "trials") and len(column(page, 1, "trials")) > len(MIXERS)
    page.locator("#all").click()
    assert min(visible()) == 1 and "hyena" in column(page, 1)


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=str)
def test_light_and_dark(page):
    def look():
        return page.evaluate(
            "[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor,"
            " document.querySelector('.js-plotly-plot').layout.font.color,"
            " document.querySelector('.js-plotly-plot').data.find(t => t.meta.includes('baseline')).marker.color]"
        )

    dark = ["dark", "rgb(22, 25, 29)", "#e8e8e8", "#e8e8e8"]
    light = ["light", "rgb(255, 255, 255)", "#222222", "#222222"]
    first = look()
    assert first in (dark, light)
    page.locator("#theme").click()
    assert look() == (light if first == dark else dark)


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 800}}], indirect=True)
def test_a_phone_is_wide_enough(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.locator(".js-plotly-plot").evaluate_all("plots => plots.map(p => p.getBoundingClientRect().width)")
    assert min(widths) > 300 and max(widths) <= 390


def test_everything_that_can_be_clicked_can_be_reached_by_keys(page):
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(e => e.id || e.dataset.mixer || e.tagName)(document.activeElement)"))
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if page.evaluate("document.activeElement.matches('button, input')"):
            assert outlined == "solid"
    assert reached >= {"theme", "all", *MIXERS, "INPUT", "SUMMARY"}
