"""Every shipped experiment, and every sweep's first and last point, trains and is evaluated at a few rows."""

import pytest

from sae_cli.config.compose import compose
from sae_cli.config.groups import choices, grid_files
from sae_cli.runs.grid import read_grid_file
from sae_cli.training.execute import execute

BRIEF = ["train.tokens=256", "train.batch=64", "train.resample_rows=128", "train.log_every=2", "tracker=jsonl"]
BRIEF += ["cache.tokens=1024", "cache.validation_tokens=256", "eval.rows=128", "eval.batch=128"]
MODEL = ["model=tiny", "text=wiki", "text.dataset=''", "model.context=32", "eval.contexts=1"]
SMALL = {"synthbench": ["source.features=340", "source.width=64", "source.trees=4", "sae.latents=128"]}


def brief(words: list[str], folder) -> list[str]:
    """Return the overrides of the same recipe at a few rows, on the bundled model where it needs one."""
    config = compose([*words, *BRIEF])
    more = MODEL if config.source.kind == "language_model" else SMALL.get(config.source.kind, [])
    return [*words, *BRIEF, *more, f"runs_dir={folder}", f"cache.dir={folder / 'caches'}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("experiment"))
def test_an_experiment_trains_and_is_evaluated(name, folder):
    (outcome,) = execute([compose(brief([f"experiment={name}"], folder))], evaluate=True)
    assert outcome.state in ("done", "skipped")
    assert (outcome.folder / "eval.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", grid_files())
def test_the_ends_of_a_sweep_train_and_are_evaluated(name, folder):
    points = read_grid_file(grid_files()[name])
    for words in (points[0], points[-1]):
        (outcome,) = execute([compose(brief(words, folder))], evaluate=True)
        assert outcome.state in ("done", "skipped")
        assert (outcome.folder / "eval.json").exists()
