"""The report in a real browser; needs Chromium and playwright, so it runs only with `-m browser`."""

import pytest

from sae_cli.reporting.report import write_report
from tests.reporting import fake

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    runs = fake.write_sweep(tmp_path_factory.mktemp("demo"), truth=True)
    return write_report([runs])["report"]


@pytest.fixture(params=[(1440, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(browser, report, request):
    """The opened report with every figure drawn; fails if anything is said on the console or asked of a network."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{report}")
    for plot in page.query_selector_all(".plot"):
        if plot.is_visible():
            plot.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.grid:not([hidden]) .plot')].every(p => p.dataset.drawn)")
    yield page
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_every_figure_has_its_marks(page):
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot[data-drawn]')].map(p => [p.dataset.figure, p.data.length,"
        " p.querySelectorAll('.scatterlayer .trace, .heatmaplayer image').length])"
    )
    assert {"l0_delta_ce", "l0_fvu", "l0_l1", "l1_mse", "l0_mcc"} <= {name for name, _, _ in drawn}
    for name, traces, marks in drawn:
        assert marks == traces > 0, name
    points = "document.querySelectorAll('[data-figure=l0_fvu] .points path').length"
    assert page.evaluate(points) == 18
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_columns_sort_both_ways(page):
    def column() -> list[float]:
        return [float(text) for text in page.locator(".points tbody tr td[data-value]:nth-child(8)").all_inner_texts()]

    head = page.locator(".points th").nth(7)
    assert head.inner_text() == "FVU"
    for order in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column() == sorted(column(), reverse=order == "descending")


def test_filter_and_legend_narrow_table_and_figures(page):
    page.get_by_label("Filter points").fill("prolu_ste chunked")
    assert page.locator(".find span").inner_text() == "3 of 18 points"
    page.get_by_label("Filter points").fill("")
    page.locator(".chip", has_text="prolu_relu").click()
    assert page.locator(".find span").inner_text() == "12 of 18 points"
    points = "document.querySelectorAll('[data-figure=l0_fvu] .points path').length"
    page.wait_for_function(f"{points} === 12")


def test_look_switches_page_and_figures(page):
    font = "document.querySelector('.plot').layout.template.layout.font.color"
    state = f"[getComputedStyle(document.body).backgroundColor, {font}]"
    before = page.evaluate(state)
    page.locator("#look").click()
    after = page.evaluate(state)
    assert before[0] != after[0]
    assert before[1] != after[1]
    page.locator("#look").click()
    assert page.evaluate(state) == before


def test_tabs_open_other_figures(page):
    page.locator("#lambda-orthogonality .tabs button", has_text="L0").click()
    page.wait_for_selector("#lambda-orthogonality .grid:nth-of-type(3) .plot[data-drawn] .heatmaplayer image")
    assert page.locator("#lambda-orthogonality .grid:visible").count() == 1
