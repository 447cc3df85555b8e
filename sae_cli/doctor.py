"""Looks at the machine before work does: each finding is ok, warn or fail, with the fix."""

import importlib.util
import netrc
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlparse

from sae_cli.console import size

PINNED = {"hydra-core": ((1, 3), (1, 4)), "omegaconf": ((2, 3), (2, 4)), "transformer-lens": ((4, 3), (5, 0))}
"""Packages of which only some versions work: from the first up to, not including, the second."""

EXTRAS = {
    "gemma": "gguf",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""Optional extras and a module that each brings."""

ASSETS = ("tiny/model.safetensors", "tiny/tokenizer.json", "wiki.jsonl.gz")


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
    return [_guarded(check) for check in (_packages, _torch, _precision, _config, _bundled, _wandb, _disk, _memory)]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(check.__name__[1:], "fail", f"{type(error).__name__}: {error}", "pip install -U sae-cli")


def _packages() -> Finding:
    found = {name: metadata.version(name) for name in PINNED}
    wrong = [
        name
        for name, (low, high) in PINNED.items()
        if not low <= tuple(int(part) for part in found[name].split(".")[:2]) < high
    ]
    extras = [extra for extra, module in EXTRAS.items() if _installed(module)]
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    detail = f"Python {platform.python_version()}, {versions}; extras: {', '.join(extras) or 'none'}"
    if wrong:
        return Finding("packages", "fail", detail, f"other versions of {', '.join(wrong)}: pip install -U sae-cli")
    return Finding("packages", "ok", detail)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, {torch.cuda.get_device_name(0)}")
    detail = f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        return Finding("torch", "warn", detail, "there is an NVIDIA driver: install a CUDA build of torch")
    return Finding("torch", "ok", detail)


def _precision() -> Finding:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if native:
        return Finding("precision", "ok", "bf16 products run natively")
    return Finding("precision", "warn", "bf16 products are emulated and slow here", "train.precision=fp32")


def _config() -> Finding:
    from sae_cli.config.compose import compose

    config = compose([])
    return Finding("config", "ok", f"the default is model={config.model.name} text={config.text.name}")


def _bundled() -> Finding:
    missing = [name for name in ASSETS if not files("sae_cli.assets").joinpath(name).is_file()]
    if missing:
        return Finding("bundled", "fail", f"missing: {', '.join(missing)}", "reinstall: pip install sae-cli")
    return Finding("bundled", "ok", "model=tiny text=wiki work without a network")


def _wandb() -> Finding:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    mode = os.environ.get("WANDB_MODE", "online")
    try:
        logins = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        logins = {}
    if mode != "online":
        return Finding("wandb", "ok", f"WANDB_MODE={mode}")
    if os.environ.get("WANDB_API_KEY") or host in logins:
        return Finding("wandb", "ok", f"a key for {host} is at hand")
    return Finding("wandb", "warn", "no key: runs are kept offline", "wandb login, or tracker=jsonl")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return _amount("disk", free, 5e9, 5e8, "put caches elsewhere: cache.dir=/another/disk")


def _memory() -> Finding:
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return _amount("memory", free, 6e9, 2e9, "lower cache.mix_bytes, cache.shuffle_bytes, train.batch")


def _amount(name: str, free: int, enough: float, little: float, fix: str) -> Finding:
    state = "ok" if free >= enough else "warn" if free >= little else "fail"
    return Finding(name, state, f"{size(free)} free", "" if state == "ok" else fix)
