"""The report in a real browser; needs Chromium and playwright, so it runs only with `-m browser`."""

import csv
import json
from contextlib import contextmanager

import pytest

from sae_cli.reporting.collect import collect
from sae_cli.reporting.replicates import interval, replicates
from sae_cli.reporting.report import write_report
from tests.reporting import fake
from tests.reporting.test_composites import content

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sweep with two seeds, truth, a comparison, a feature page and a failed run."""
    runs = fake.write_sweep(tmp_path_factory.mktemp("demo") / "demo", truth=True, seeds=2)
    fake.write_run(runs / "ffff", fake.config(weight=8.0), state="failed", error="loss went non-finite")
    (runs / "0000001000" / "dashboard.html").write_text("<title>features of 0000001000</title>")
    (runs / "0000001000" / "compare.json").write_text(json.dumps(content()))
    return runs


@pytest.fixture(scope="module")
def report(runs):
    """The report, in another folder than the runs."""
    return write_report([runs], runs.parent / "out" / "report.html")["report"]


@contextmanager
def opened(browser, report, width=1440, scheme="light"):
    """The opened report; fails if anything is said on the console or asked of a network."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{report}")
    page.locator(".points tbody tr").first.wait_for()
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture(params=[(1440, "light"), (390, "dark")], ids=["desktop", "phone"])
def page(browser, report, request):
    """The report with every figure that is not behind a tab drawn."""
    with opened(browser, report, *request.param) as page:
        for plot in page.locator(".plot:visible").all():
            plot.scroll_into_view_if_needed()
            plot.and_(page.locator("[data-drawn]")).wait_for()
        yield page


@pytest.fixture
def desk(browser, report):
    with opened(browser, report) as page:
        page.locator("[data-figure=l0_fvu][data-drawn]").wait_for()
        yield page


def rows_of(download) -> list[dict[str, str]]:
    with open(download.value.path(), newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_figure_has_its_marks(page):
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot[data-drawn]')].map(p => [p.dataset.figure, p.data.length,"
        " p.querySelectorAll('.scatterlayer .trace, .heatmaplayer image').length])"
    )
    assert {"l0_delta_ce", "l0_fvu", "l0_l1", "l1_mse", "l0_mcc"} <= {name for name, _, _ in drawn}
    for name, traces, marks in drawn:
        assert marks == traces > 0, name
    # 18 means of two seeds, and 36 single runs as dots
    assert page.evaluate("document.querySelectorAll('[data-figure=l0_fvu] .points path').length") == 18 + 36
    assert page.evaluate("document.querySelectorAll('[data-figure=l0_fvu] .errorbars path').length") >= 36
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hover_tells_settings_numbers_intervals_and_the_feature_page(desk, runs):
    group = replicates(collect([runs]))[0]
    trace, place = desk.evaluate(
        "(() => { const {data} = document.querySelector('[data-figure=l0_fvu]');"
        " const trace = data.findIndex(one => one.meta?.of === 'groups' && one.customdata.includes(0));"
        " return [trace, data[trace].customdata.indexOf(0)]; })()"
    )
    plot = desk.locator("[data-figure=l0_fvu]")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    x, y = desk.evaluate(
        "([trace, place]) => { const plot = document.querySelector('[data-figure=l0_fvu]');"
        " const {xaxis, yaxis} = plot._fullLayout; const {x, y} = plot.data[trace];"
        " return [xaxis.d2p(x[place]) + xaxis._offset, yaxis.d2p(y[place]) + yaxis._offset]; }",
        [trace, place],
    )
    desk.mouse.move(box["x"] + x, box["y"] + y)
    text = plot.locator(".hovertext")
    text.wait_for()
    said = text.text_content()
    assert "relu · no penalty · lambda 1" in said
    assert "n = 2 seeds" in said
    fvu = interval(group, "fvu")
    assert f"FVU {fvu.mean:.4g} ± {fvu.half:.2g}" in said
    assert "feature page" in said
    desk.mouse.click(box["x"] + x, box["y"] + y)
    picked = desk.locator(".points tr.picked")
    assert picked.locator("td:first-child").all_inner_texts() == [point.run_id for point in group]
    link = picked.first.get_by_role("link", name="features")
    link.click()
    desk.wait_for_url("**/0000001000/dashboard.html")
    assert desk.title() == "features of 0000001000"


def test_columns_sort_both_ways(page):
    def column(place: int) -> list[float]:
        return [float(text) for text in page.locator(f".points tbody tr td:nth-child({place})").all_inner_texts()]

    heads = page.locator(".points th").all_inner_texts()
    place = heads.index("FVU") + 1
    head = page.locator(f".points th:nth-child({place})")
    for order in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(place) == sorted(column(place), reverse=order == "descending")


def test_comparisons_and_composites_sort_as_numbers(desk):
    for section, column in (
        ("what-the-penalty-does", "L0"),
        ("at-equal-l0", "nearest cosine"),
        ("composite-features", "by 2"),
    ):
        table = desk.locator(f"#{section} table").first
        place = [text.strip() for text in table.locator("th").all_inner_texts()].index(column) + 1
        table.locator(f"th:nth-child({place}) button").click()
        cells = [float(text.split()[0]) for text in table.locator(f"td:nth-child({place})").all_inner_texts()]
        assert cells == sorted(cells)
        assert len(cells) > 1


def test_filter_and_legend_narrow_table_and_figures(page):
    page.get_by_label("Filter points").fill("prolu_ste chunked")
    status = page.locator("#all-points .find span")
    assert status.inner_text() == "6 of 37 points"
    page.get_by_label("Filter points").fill("")
    page.locator(".chip", has_text="prolu_relu").click()
    assert status.inner_text() == "25 of 37 points"
    assert page.evaluate("document.querySelectorAll('[data-figure=l0_fvu] .points path').length") == 36


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
    page.locator("#training .tabs button", has_text="step time").click()
    page.locator("[data-figure=training-step-time] .scatterlayer .trace").first.wait_for(state="attached")
    assert page.locator("#training .grid:visible").count() == 1


def test_heatmaps_show_the_metric_that_is_chosen(page, runs):
    section = page.locator("#lambda-orthogonality")
    for metric in ("fvu", "nearest_cosine"):
        section.get_by_label("Metric").select_option(metric)
        plot = section.locator(".plot").first
        plot.scroll_into_view_if_needed()
        section.locator(f"[data-figure={metric}-relu-chunked][data-drawn]").wait_for()
        z = plot.evaluate("plot => plot.data[0].z")
        pairs = [
            [fake.numbers(fake.config("relu", w, g, s)) for s in (0, 1)] for g in (0.0, 0.25) for w in (1.0, 2.0, 4.0)
        ]
        means = [sum(one[metric.split("_")[0]] for one in pair) / 2 for pair in pairs]
        assert [value for row in z for value in row] == pytest.approx(means, rel=1e-5)


def test_figures_are_saved_as_their_numbers(desk, runs):
    with desk.expect_download() as download:
        button = desk.get_by_role("button", name="Save L0 against FVU as CSV")
        button.focus()
        button.press("Enter")
    assert download.value.suggested_filename == "demo-l0_fvu.csv"
    rows = rows_of(download)
    groups = [group for group in replicates(collect([runs])) if group[0].state == "done"]
    means = {row["run"]: row for row in rows if row["n"] == "2"}
    assert len(rows) == 18 + 36
    assert len(means) == 18
    for group in groups:
        row = means[" ".join(point.run_id for point in group)]
        for name in ("l0", "fvu"):
            found = interval(group, name)
            assert float(row[name]) == pytest.approx(found.mean, rel=1e-5)
            assert float(row[f"{name}_interval"]) == pytest.approx(found.half, rel=1e-5)
        assert row["on_frontier"] in ("yes", "no")
    assert {row["series"] for row in rows} >= {"relu · no penalty", "prolu_ste · chunked 0.25"}


def test_heatmaps_and_curves_are_saved_as_long_tables(desk):
    desk.locator("#lambda-orthogonality .plot").first.scroll_into_view_if_needed()
    with desk.expect_download() as download:
        desk.get_by_role("button", name="Save relu as CSV", exact=True).click()
    assert download.value.suggested_filename == "demo-fvu-relu-chunked.csv"
    rows = rows_of(download)
    assert {(row["lambda"], row["gamma"]) for row in rows} == {(w, g) for w in "124" for g in ("off", "0.25")}
    with desk.expect_download() as download:
        desk.locator("#training .tabs button", has_text="step time").click()
        desk.get_by_role("button", name="Save step time as CSV").click()
    rows = rows_of(download)
    assert rows[0].keys() == {"series", "run", "rows", "step_seconds"}
    assert len({row["run"] for row in rows}) == 37


def test_figures_are_saved_as_pictures(desk):
    for kind, first in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with desk.expect_download() as download:
            desk.get_by_role("button", name=f"Save L0 against FVU as {kind}").click()
        with open(download.value.path(), "rb") as stream:
            image = stream.read()
        assert download.value.suggested_filename == f"demo-l0_fvu.{kind.lower()}"
        assert image.startswith(first)
        assert len(image) > 10_000


@pytest.mark.slow
def test_five_hundred_points_open(browser, tmp_path):
    lambdas, gammas = (0.5, 1.0, 2.0, 4.0, 8.0), (0.0, 0.0625, 0.125, 0.25, 0.5)
    names = ("relu", "prolu_relu", "prolu_ste", "jumprelu", "trec")
    fake.write_sweep(tmp_path / "large", True, lambdas, 4, gammas, names)
    with opened(browser, write_report([tmp_path / "large"])["report"]) as page:
        page.locator("[data-figure=l0_fvu][data-drawn]").wait_for()
        assert page.evaluate("document.querySelectorAll('[data-figure=l0_fvu] .points path').length") == 125 + 500
        assert page.locator("#all-points .find span").inner_text() == "500 of 500 points"
