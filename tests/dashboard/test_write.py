"""Which runs get a page, and what is refused before anything is read."""

import json

import pytest

from sae_cli.dashboard.build import Extent
from sae_cli.dashboard.write import write_dashboards
from sae_cli.errors import UserError
from sae_cli.runs import subjects
from tests.reporting import fake


def test_only_finished_runs_have_a_page(tmp_path):
    fake.write_run(tmp_path / "a", fake.config(), state="failed")
    with pytest.raises(UserError, match="none of the 1 runs"):
        write_dashboards([tmp_path], [], "0-9", Extent())


def test_an_unknown_order_is_refused_with_the_nearest(tmp_path):
    fake.write_run(tmp_path / "a", fake.config())
    with pytest.raises(UserError, match=r"--top densty: choose density \| max \| nearest\. Did you mean density"):
        write_dashboards([tmp_path], [], ("densty", 5), Extent())


@pytest.mark.parametrize("name", ["page.txt", "page.html"])
def test_one_file_is_for_one_run_and_html(tmp_path, monkeypatch, name):
    monkeypatch.setattr(subjects, "check_unchanged", lambda *given: None)  # these runs were trained on nothing
    for run in ("a", "b"):
        _write_artefact(fake.write_run(tmp_path / run, fake.config()))
    folders = [tmp_path] if name == "page.html" else [tmp_path / "a"]
    with pytest.raises(UserError, match="--out"):
        write_dashboards(folders, [], "0-9", Extent(), out=tmp_path / name)


def test_a_synthetic_source_has_no_text(tmp_path):
    from sae_cli.config.convert import from_dict, to_dict, to_yaml

    point = to_dict(fake.config()) | {"source": {"kind": "three_features"}}
    run = fake.write_run(tmp_path / "a", fake.config())
    (run / "config.yaml").write_text(to_yaml(from_dict(json.loads(json.dumps(point)))))
    _write_artefact(run)
    with pytest.raises(UserError, match="source=three_features has no text"):
        write_dashboards([run], [], "0", Extent())


def _write_artefact(run):
    from sae_cli.dictionary.artifact import save_sae
    from tests.dashboard.test_build import random_sae

    save_sae(run, random_sae(3, 4))
    (run / "stamp.json").write_text(json.dumps({"source_fingerprint": "0"}))
