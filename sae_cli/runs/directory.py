"""A run directory: the only thing that later steps read and that nothing but its run writes."""

import fcntl
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_cli.config.convert import load_config, load_flat, to_yaml
from sae_cli.config.schema import Config
from sae_cli.errors import UserError
from sae_cli.files import (
    naming,
    parse_json,
    read_json,
    refuse_newer,
    refuse_special,
    replace_atomically,
    sha256_of,
    write_json,
)

SEALED = ("config.yaml", "overrides.txt", "metrics.jsonl", "sae.safetensors", "true_features.safetensors")
"""Files whose SHA-256 the status of a finished run holds; JSON files hold their own."""
WRITTEN = (".lock", "log.txt", "metrics.jsonl", "checkpoint", "wandb")
"""What a run adds to in place; all else is written anew under its name."""
VERSIONS = {"eval.json": 1, "compare.json": 1}
"""Format versions of the JSON files of a run; the others are of version 1 and do not say so."""
PACKAGES = ("torch", "transformer-lens", "transformers", "hydra-core", "wandb", "safetensors")


@dataclass
class RunDirectory:
    """Paths and records of one run; see docs/architecture.md for the files."""

    path: Path

    @cached_property
    def config(self) -> Config:
        """The resolved configuration, as it was written before work began."""
        self.check("config.yaml")
        return load_config(self.path / "config.yaml")

    @property
    def flat_config(self) -> dict[str, Any]:
        """The same configuration as values by dotted key, read at a tenth of the time."""
        self.check("config.yaml")
        return load_flat(self.path / "config.yaml")

    @property
    def overrides(self) -> list[str]:
        """The words of the command that made the run; empty if they are not there."""
        file = self.path / "overrides.txt"
        return file.read_text(errors="replace").splitlines() if file.exists() else []

    @property
    def status(self) -> dict[str, Any]:
        """state (new | running | done | failed | interrupted), step, steps, error, run_id, updated."""
        fresh = {"state": "new", "step": 0, "steps": 0, "error": ""}
        exists = (self.path / "status.json").exists()
        return fresh | (self.record("status.json", state=str) if exists else {})

    @property
    def stamp(self) -> dict[str, Any]:
        """Provenance: source fingerprint, versions, git state, device, arguments."""
        return self.record("stamp.json")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the source the run was trained on."""
        return self.record("stamp.json", source_fingerprint=str).get("source_fingerprint", "")

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """Content of eval.json, or None before evaluation."""
        return self.record("eval.json") if (self.path / "eval.json").exists() else None

    def record(self, name: str, **kinds: type) -> dict[str, Any]:
        """Read one of the run's JSON files; UserError names it.

        It may be missing, damaged, of a later version, or have a key of another kind than given.
        """
        try:
            value = read_json(self.path / name)
            if not isinstance(value, dict):
                raise ValueError(f"holds {type(value).__name__}, not dict")
            refuse_newer(self.path / name, value.get("version"), VERSIONS.get(name, 1))
            if wrong := [key for key, kind in kinds.items() if not isinstance(value.get(key, kind()), kind)]:
                raise ValueError(f"{', '.join(wrong)} of another kind")
            return value
        except FileNotFoundError:
            raise UserError(f"{self.path / name} is missing") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name}: damaged ({error})") from error

    def check(self, name: str) -> None:
        """Raise UserError if one of the SEALED files is not as the finished run left it."""
        file, sealed = self.path / name, self.status.get("files")
        if isinstance(sealed, dict) and name in sealed and file.is_file() and sha256_of(file) != sealed[name]:
            raise UserError(f"{file}: damaged or edited after training; `sae doctor {self.path}` says what to do")

    @property
    def checkpoint(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoint"

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; an unfinished last line is left out. UserError names a damaged file."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        self.check("metrics.jsonl")
        try:
            refuse_special(file)
            lines = [parse_json(line) for line in file.read_text().split("\n")[:-1] if line]
            return [line for line in lines if isinstance(line, dict)]
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: damaged ({error})") from error

    def clear(self) -> None:
        """Remove what an earlier attempt left, so that the run starts over."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        records = ("metrics.jsonl", "eval.json", "compare.json", "status.json", "stamp.json")
        for name in (*records, "sae.safetensors", "cfg.json"):
            (self.path / name).unlink(missing_ok=True)

    def prepare(
        self,
        config: Config,
        overrides: list[str],
        source_fingerprint: str,
        run_id: str,
        device: str,
        ranks: int = 1,
    ) -> None:
        """Write the configuration and the stamp; an attempt that goes on keeps its id."""
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.path.glob(".*.tmp"), *self.checkpoint.glob(".*.tmp")):  # of an attempt that was killed
            leftover.unlink(missing_ok=True)
        replace_atomically(self.path / "config.yaml", to_yaml(config).encode())
        replace_atomically(self.path / "overrides.txt", "".join(f"{word}\n" for word in overrides).encode())
        attempt = self.stamp.get("attempt") if (self.path / "stamp.json").exists() else secrets.token_hex(3)
        stamp = {
            "attempt": attempt,
            "run_id": run_id,
            "source_fingerprint": source_fingerprint,
            "device": device,
            "ranks": ranks,
            "parallel": config.train.parallel,
            "memory_bytes": config.train.memory_bytes,
            "precision": config.train.precision,
            "tf32": config.train.tf32,
            "deterministic": config.train.deterministic,
            "seed": config.seed,
            "data_seed": config.train.data_seed,
            "argv": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": socket.gethostname(),
            "versions": {name: _version(name) for name in ("sae-cli", *PACKAGES)},
            "git": _git_state(),
        }
        write_json(self.path / "stamp.json", stamp)

    def set_status(self, state: str, step: int, steps: int, run_id: str, error: str = "") -> None:
        """Replace status.json; that of a finished run holds the hashes of what it left."""
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "step": step, "steps": steps, "run_id": run_id, "error": error, "updated": updated}
        if state == "done":
            status["files"] = {name: sha256_of(self.path / name) for name in SEALED if (self.path / name).exists()}
        write_json(self.path / "status.json", status)

    def truncate_metrics(self, step: int) -> None:
        """Drop metric lines after `step`, which a resumed run will write again."""
        kept = [line for line in self.metrics() if isinstance(line.get("step"), int) and line["step"] <= step]
        replace_atomically(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append_metrics(self, values: dict[str, float]) -> None:
        """Add one line to metrics.jsonl; non-finite numbers become null."""
        clean = {key: value if abs(value) < float("inf") else None for key, value in values.items()}
        file = self.path / "metrics.jsonl"
        with naming(file), file.open("a") as stream:
            stream.write(json.dumps(clean) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; UserError if another process holds it, or if it would write elsewhere."""
        self.path.mkdir(parents=True, exist_ok=True)
        if links := [str(self.path / name) for name in WRITTEN if (self.path / name).is_symlink()]:
            raise UserError(f"{', '.join(links)} is a link: a run writes in its own folder only; delete it")
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(f"{self.path} is being trained by {holder}; wait for it or stop it") from None
            stream.truncate(0)
            job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
            with naming(self.path):
                os.write(stream.fileno(), f"process {os.getpid()} on {socket.gethostname()}{job}".encode())
            yield


def find_runs(path: Path) -> list[RunDirectory]:
    """Return the run at `path`, or every run below it, sorted by path.

    Raises UserError if the path does not exist or holds no run.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a folder of runs")
    if (path / "config.yaml").exists():
        return [RunDirectory(path)]
    runs = [RunDirectory(file.parent) for file in sorted(path.glob("**/config.yaml")) if "wandb" not in file.parts]
    if not runs:
        raise UserError(f"{path} holds no run (no config.yaml below it)")
    return runs


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any]:
    """Return commit and dirty flag of the package's repository, empty outside one."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
