"""What is offered for an unfinished word, in the words of bash, which breaks them at `=` and `:`."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sae_cli.cli import app


def offered(*words: str) -> list[str]:
    environment = {"_SAE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    return CliRunner().invoke(app, [], prog_name="sae", env=environment).stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train train.l", "train.lr= train.log_every="),
        ("train model = ti", "tiny"),
        ("train sparsity.kind =", "none l1 sqrt_l1 lp tanh l0"),
        ("train sparsity.kin", "sparsity.kind=none sparsity.kind=l1 sparsity.kind=sqrt_l1 sparsity.kind=lp"),
        ("train train.lr", "train.lr= train.lr=0.001"),
        ("train source.pat", "source.path= source.path=STR"),
        ("train train.lr =", "0.001"),
        ("train train.tf32 = t", "true"),
        ("train sae=batch", "sae=batchtopk"),
        ("sweep sae = relu,prolu_m", "relu,prolu_mixed"),
        ("sweep smok", "smoke"),
        ("train smok", ""),
        ("train model.path = bundled : t", ""),
        ("train runs_dir = s3 : //t", ""),
        ("train nothing = ", ""),
        ("train --config-dir nowhere sae = batch", "batchtopk"),
        ("eval runs eval.comp", "eval.composition=true eval.composition=false"),
        ("eval runs sae.lat", ""),
        ("eval ", ""),
        ("config cp train/qu", "train/quick"),
        ("config ls swee", "sweeps"),
        ("config keys sparsity.ta", "sparsity.target_l0"),
    ],
)
def test_offered(words: str, expected: str) -> None:
    assert offered("sae", *words.split(" "))[: len(expected.split()) or 1] == expected.split()


def test_a_value_that_is_called_like_a_group_is_no_group() -> None:
    assert offered("sae", "train", "name", "=", "sae", "")[:2] == ["model=", "text="]


def test_nothing_heavy_is_loaded() -> None:
    told = {"_SAE_COMPLETE": "complete_bash", "COMP_WORDS": "sae\ntrain\nsparsity.kind\n=", "COMP_CWORD": "3"}
    words = [sys.executable, "-X", "importtime", "-c", "from sae_cli.cli import main; main()"]
    run = subprocess.run(words, env=os.environ | told, capture_output=True, text=True)
    assert run.stdout.split()[:2] == ["none", "l1"]
    assert not any(f" {name}\n" in run.stderr for name in ("torch", "numpy", "hydra", "wandb", "pandas"))
