"""docs/notebook.ipynb runs from top to bottom, and its numbers are those of `sae eval`.

Its cells are executed in order in one namespace of a fresh process: all that a kernel would add is a dependency on
Jupyter, and the notebook uses nothing of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
RUN = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
space = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)

import torch
from sae_cli.evaluation.language_model import spliced_losses
from sae_cli.sources.language_model import LanguageModel

store, latent = space["store"], space["latent"]
model = LanguageModel(store.config.model, "cpu")
given = [space["tokens_BT"]], store.config.model.hook, [space["sae"]], store.mean_D, True
(expected,) = spliced_losses(model, *given)
print(json.dumps({
    "clean": [space["clean"], expected["ce_clean"]],
    "delta": [space["delta"], expected["delta_nats"]],
    "fires": float(space["acts_BTF"][..., latent].max()),
    "bos": [bool((space[name][:, 0] == space["clean_BTV"][:, 0]).all()) for name in ("steered_BTV", "ablated_BTV")],
}))
"""


@pytest.mark.slow
def test_the_notebook_runs_and_agrees_with_the_evaluation(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["clean"][0] == pytest.approx(found["clean"][1], abs=1e-4)
    assert found["delta"][0] == pytest.approx(found["delta"][1], abs=1e-4)
    assert 0 < found["delta"][0] < 2
    assert found["fires"] > 0
    assert found["bos"] == [True, True]


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
