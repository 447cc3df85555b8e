"""Looks at the machine before work does: each finding is ok, warn or fail, with the fix."""

import importlib.util
import netrc
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlparse

from packaging.specifiers import SpecifierSet

from sae_cli.console import size

PINNED = {"hydra-core": ">=1.3,<1.4", "omegaconf": ">=2.3,<2.4", "transformer-lens": ">=4.3,<5"}
"""Packages of which only some versions work."""

EXTRAS = {
    "gemma": "gguf",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""Optional extras and a module that each brings."""

ASSETS = ("tiny/model.safetensors", "tiny/tokenizer.json", "wiki.jsonl.gz")
MEMINFO = Path("/proc/meminfo")


@dataclass
class Finding:
    """One line of `sae doctor`."""

    name: str
    state: str
    """ok | warn | fail"""
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Return the findings; a check that raises is itself a failure."""
    findings = []
    for check in (_packages, _torch, _precision, _config, _bundled, _wandb, _disk, _memory):
        try:
            found: Sequence[str] = check()
        except Exception as error:
            found = "fail", f"{type(error).__name__}: {error}", "pip install -U sae-cli"
        findings.append(Finding(check.__name__[1:], *found))
    return findings


def has_extra(extra: str) -> bool:
    """Return whether an optional extra is installed."""
    try:
        return importlib.util.find_spec(EXTRAS[extra]) is not None
    except ModuleNotFoundError:  # of the module's parent
        return False


def _packages() -> Sequence[str]:
    found = {name: metadata.version(name) for name in PINNED}
    wrong = [
        name for name, wanted in PINNED.items() if not SpecifierSet(wanted).contains(found[name], prereleases=True)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    extras = ", ".join(filter(has_extra, EXTRAS)) or "none"
    detail = f"Python {platform.python_version()}, {versions}; extras: {extras}"
    if wrong:
        return "fail", detail, f"other versions of {', '.join(wrong)}: pip install -U sae-cli"
    return "ok", detail


def _torch() -> Sequence[str]:
    import torch

    if torch.cuda.is_available():
        return "ok", f"{torch.__version__}, {torch.cuda.get_device_name(0)}"
    detail = f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        return "warn", detail, "there is an NVIDIA driver: install a CUDA build of torch"
    return "ok", detail


def _precision() -> Sequence[str]:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if native:
        return "ok", "bf16 products run natively"
    return "warn", "bf16 products are emulated and slow here", "train.precision=fp32"


def _config() -> Sequence[str]:
    from sae_cli.config.compose import compose

    config = compose([])
    return "ok", f"the default is model={config.model.name} text={config.text.name}"


def _bundled() -> Sequence[str]:
    missing = [name for name in ASSETS if not files("sae_cli.assets").joinpath(name).is_file()]
    if missing:
        return "fail", f"missing: {', '.join(missing)}", "reinstall: pip install sae-cli"
    return "ok", "model=tiny text=wiki work without a network"


def _wandb() -> Sequence[str]:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    mode = os.environ.get("WANDB_MODE", "online")
    try:
        logins = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        logins = {}
    if mode != "online":
        return "ok", f"WANDB_MODE={mode}"
    if os.environ.get("WANDB_API_KEY") or host in logins:
        return "ok", f"a key for {host} is at hand"
    return "warn", "no key: runs are kept offline", "wandb login, or tracker=jsonl"


def _disk() -> Sequence[str]:
    return _amount(shutil.disk_usage(Path.cwd()).free, 5e9, 5e8, "put caches elsewhere: cache.dir=/another/disk")


def _memory() -> Sequence[str]:
    found = re.search(r"MemAvailable: *(\d+) kB", MEMINFO.read_text()) if MEMINFO.exists() else None
    if not found:
        return "ok", "free memory is not known on this system"
    return _amount(int(found[1]) * 1024, 6e9, 2e9, "lower cache.mix_bytes, cache.shuffle_bytes, train.batch")


def _amount(free: int, enough: float, little: float, fix: str) -> Sequence[str]:
    state = "ok" if free >= enough else "warn" if free >= little else "fail"
    return state, f"{size(free)} free", "" if state == "ok" else fix
