"""Weights & Biases without the account of the person who runs the tests."""

import os

import pytest

from sae_cli.runs import tracking


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """No key, no settings of the person who runs the tests, and nothing learnt by earlier tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name.lower()}"))
    monkeypatch.setattr(tracking, "_answers", [])
    monkeypatch.setattr(tracking, "_said", set())
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def key(no_account, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
