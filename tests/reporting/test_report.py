import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from sae_cli.errors import UserError
from sae_cli.reporting.report import write_report
from tests.reporting import fake

HOSTILE = "<script>alert(1)</script>'\"&</b>"


class Elements(HTMLParser):
    """Collects start tags with their attributes, and the text of script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def data_of(page: str) -> dict:
    """What the page's script works on."""
    return json.loads(Elements(page).scripts[0])


def test_report_of_a_sweep(tmp_path):
    runs = fake.write_sweep(tmp_path / "demo")
    fake.write_run(runs / "ffff", fake.config(weight=8.0), state="failed", error="loss went non-finite at step 3")
    result = write_report([runs])
    assert (result["points"], result["done"]) == (19, 18)
    (failed,) = result["failed"]
    assert (failed["run_id"], failed["state"]) == ("ffff", "failed")
    page = (runs / "report.html").read_text()
    assert result["report"] == str(runs / "report.html")
    assert "18 of 19 points done" in page
    assert "loss went non-finite at step 3" in page
    data = data_of(page)
    assert {"l0_delta_ce", "l0_fvu", "l0_l1", "l1_mse"} <= data["figures"].keys()
    table = pd.read_parquet(result["parquet"]).set_index("run_id")
    saved = json.loads((runs / "report.json").read_text())
    assert saved["frontiers"] == result["frontiers"]
    assert len(saved["table"]) == len(table) == 19
    best = table[table.state == "done"].fvu.idxmin()
    assert best in result["frontiers"]["l0_fvu"]
    assert saved["table"][-1]["delta_ce"] is None


def test_page_loads_nothing(tmp_path):
    page = fake.write_sweep(tmp_path / "demo", truth=True)
    write_report([page])
    elements = Elements((page / "report.html").read_text())
    for tag, attributes in elements.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    style = re.search(r"<style>(.*?)</style>", (page / "report.html").read_text(), re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_names_from_the_data_stay_text(tmp_path):
    hostile = fake.config()
    hostile.sae.nonlinearity = hostile.model.name = hostile.text.name = HOSTILE
    run = fake.write_run(tmp_path / "runs" / "a", hostile)
    status = {"state": "done", "error": "", "run_id": HOSTILE}
    (run / "status.json").write_text(json.dumps(status))
    fake.write_run(tmp_path / "runs" / "b", fake.config(weight=2.0), state="failed", error=HOSTILE)
    write_report([tmp_path / "runs"])
    page = (tmp_path / "runs" / "report.html").read_text()
    elements = Elements(page)
    assert len(elements.scripts) == 3
    assert "<script>alert" not in page
    data = data_of(page)
    assert "<" not in data["figures"]["l0_fvu"]["data"][1]["name"]
    assert data["points"]["run"] == [HOSTILE, "b"]


def test_runs_without_evaluation_still_make_a_report(tmp_path):
    for index, weight in enumerate((1.0, 2.0)):
        fake.write_run(tmp_path / str(index), fake.config(weight=weight), evaluated=False)
    result = write_report([tmp_path], tmp_path / "out" / "r.html")
    assert result["frontiers"].keys() == {"l0_fvu"}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["r.html", "r.json", "r.parquet"]


def test_only_corrupt_runs_still_make_a_report(tmp_path):
    run = fake.write_run(tmp_path / "a", fake.config())
    (run / "config.yaml").write_text("[")
    result = write_report([tmp_path])
    assert result["failed"][0]["state"] == "corrupt"
    assert "0 of 1 point done" in (tmp_path / "report.html").read_text()


def test_out_must_be_html(tmp_path):
    fake.write_run(tmp_path / "a", fake.config())
    with pytest.raises(UserError, match="html"):
        write_report([tmp_path], tmp_path / "report.pdf")


def test_only_columns_of_numbers_are_numbers(tmp_path):
    for name in ("a", "b"):
        point = fake.config(weight=1.0 + (name == "b"))
        point.train.tf32 = name == "a"
        fake.write_run(tmp_path / name, point)
    write_report([tmp_path])
    columns = {one["head"]: one for one in data_of((tmp_path / "report.html").read_text())["points"]["table"]}
    assert columns["lambda"]["number"]
    assert columns["lambda"]["values"] == [1, 2]
    assert not columns["tf32"]["number"]
    assert columns["tf32"]["values"] == ["true", "false"]
    assert columns["FVU"]["digits"] == 4


def test_several_folders_are_overlaid(tmp_path):
    folders = [fake.write_sweep(tmp_path / name, lambdas=(1.0, 2.0)) for name in ("first", "second")]
    result = write_report([*folders, folders[0]], tmp_path / "both.html")
    assert result["points"] == 24
    page = (tmp_path / "both.html").read_text()
    assert "<h1>first + second</h1>" in page
    points = data_of(page)["points"]
    assert points["families"][0] == "first · relu"
    assert points["label"][-1].startswith("second · prolu_ste · chunked 0.25")
    assert next(one["values"] for one in points["table"] if one["head"] == "sweep") == ["first"] * 12 + ["second"] * 12
    assert "sweep" in pd.read_parquet(result["parquet"])
    write_report(folders[:1])
    alone = data_of((folders[0] / "report.html").read_text())["points"]
    assert alone["families"][0] == "relu"
    assert "sweep" not in [one["head"] for one in alone["table"]]


def test_tables_have_intervals_over_seeds(tmp_path):
    write_report([fake.write_sweep(tmp_path / "one", seeds=1)])
    write_report([fake.write_sweep(tmp_path / "three", seeds=3)])
    one, three = ((tmp_path / name / "report.html").read_text() for name in ("one", "three"))
    for heading in ("at-equal-l0", "what-the-penalty-does"):
        table = re.compile(f"<section id='{heading}'>.*?</section>", re.S)
        assert "<td class=number>" in table.search(one).group()
        assert "±" not in re.sub("<p class='note'>.*?</p>", "", table.search(one).group())
        assert "±" in re.sub("<p class='note'>.*?</p>", "", table.search(three).group())


def test_cost_of_a_penalty_says_what_it_was_measured_on(tmp_path):
    write_report([fake.write_sweep(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "cpu, 9 points at once" in page
    assert "0.1000 → 0.1500" in page
    assert "98.0%" in page
