"""Findings name what is wrong with a machine and the fix."""

from pathlib import Path

import pytest

from sae_cli import doctor


def by_name() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_this_machine_is_examined() -> None:
    found = by_name()
    assert set(found) == {"packages", "torch", "precision", "config", "bundled", "wandb", "disk", "memory"}
    assert found["config"].state == "ok"
    assert "hydra-core 1.3" in found["packages"].detail
    assert all(finding.fix for finding in found.values() if finding.state != "ok")


def test_wrong_versions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.4.0" if name == "omegaconf" else "1.3.2")
    found = by_name()["packages"]
    assert found.state == "fail"
    assert "omegaconf, transformer-lens" in found.fix


def test_wandb_login_is_found_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    logins = tmp_path / "netrc"
    logins.write_text("machine wandb.example login user password secret\n")
    monkeypatch.setenv("NETRC", str(logins))
    assert by_name()["wandb"].state == "warn"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    found = by_name()["wandb"]
    assert found.state == "ok"
    assert "secret" not in found.detail
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline" in by_name()["wandb"].detail


@pytest.mark.parametrize(("free", "state"), [(6 * 10**9, "ok"), (10**9, "warn"), (10**6, "fail")])
def test_free_disk(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert by_name()["disk"].state == state


def test_free_memory_that_the_system_does_not_tell_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    assert by_name()["memory"].state == "ok"
    doctor.MEMINFO.write_text("MemFree: 1 kB\nMemAvailable:    3000000 kB\n")
    assert (by_name()["memory"].state, by_name()["memory"].detail) == ("warn", "3.1 GB free")


def test_missing_assets_and_broken_checks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise OSError("no meter")

    monkeypatch.setattr(doctor, "ASSETS", ("tiny/none.safetensors",))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: broken())
    found = by_name()
    assert found["bundled"].state == "fail"
    assert "tiny/none.safetensors" in found["bundled"].detail
    assert (found["disk"].state, found["disk"].detail) == ("fail", "OSError: no meter")
