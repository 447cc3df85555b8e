"""Devices by name: what cannot be one anywhere, and what this machine has."""

import pytest
import torch

from sae_cli.device import choose_device
from sae_cli.errors import UserError


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "CUDA", "cuda:0\n"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^device=.* is not one of auto, cpu, cuda, cuda:N$"):
        choose_device(name)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(UserError, match="device=cuda:2: this machine has 2 CUDA devices; use device=auto"):
        choose_device("cuda:2")
