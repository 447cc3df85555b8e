"""Wall time and peak memory of `sae dashboard` on the bundled model, by latents and by tokens of the cache.

Each is a fresh `sae dashboard` process, start and model included. Usage: python benchmarks/dashboard.py [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from publish import publish

TOKENS, LATENTS = (250_000, 1_000_000), (100, 1000)


def sae(*words: str) -> str:
    command = [sys.executable, "-m", "sae_cli", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dashboard(run: str, latents: int) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "sae_cli", "-q", "dashboard", run, "--latents", f"0-{latents - 1}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, state, usage = os.wait4(process.pid, 0)
    assert state == 0, state
    page = Path(run) / "dashboard.html"
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(usage.ru_maxrss / 1000),
        "page_mb": round(page.stat().st_size / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for tokens in TOKENS:
            place = [f"runs_dir={folder}/runs", f"cache.dir={folder}/caches", f"cache.tokens={tokens}", "seed=0"]
            point = ["model=tiny", "text=wiki", "sae=prolu_relu", "sae.latents=1024", "train.tokens=400_000"]
            run = json.loads(sae("train", *point, *place, "sparsity.weight=2", "tracker=jsonl", "--json"))["folder"]
            rows += [{"tokens": tokens, "latents": latents, **dashboard(run, latents)} for latents in LATENTS]
    what = "sae dashboard, bundled model (D 256, F 1,024), 12 strongest and 20 random examples of 33 tokens per latent"
    publish({"what": what, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
