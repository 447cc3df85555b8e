"""A report of 500 points (500-line metrics.jsonl, full eval.json): time to write it, to open it, and its size.

Opening is measured in headless Chromium from the start of navigation to the first figure with its points drawn.

Usage: python benchmarks/report_500.py [--repeats N] [--out FILE]
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from publish import publish

sys.path.insert(0, str(Path(__file__).parent.parent))

from sae_cli.reporting.report import write_report
from tests.reporting import fake

LADDER = {
    "nonlinearities": ("relu", "prolu_relu", "prolu_ste", "jumprelu", "trec"),
    "lambdas": (0.5, 1.0, 2.0, 4.0, 8.0),
    "gammas": (0.0, 0.0625, 0.125, 0.25, 0.5),
    "seeds": 4,
}
WATCH = """
const watch = () => {
  const drawn = document.querySelector("#frontiers .plot[data-drawn] .points path");
  if (drawn) requestAnimationFrame(() => { window.drawnAfter = performance.now(); });
  else requestAnimationFrame(watch);
};
watch();
"""
"""Notes in the page when its first figure has been drawn and painted, in milliseconds since navigation began."""


def seconds_to_open(page: str) -> float:
    """Seconds from the start of navigation until the first figure has its points, in a fresh browser."""
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.add_init_script(WATCH)
        tab.goto(f"file://{page}", wait_until="commit")
        began = time.monotonic()
        while (taken := tab.evaluate("window.drawnAfter ?? null")) is None and time.monotonic() - began < 60:
            time.sleep(0.05)
        browser.close()
    return taken / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = fake.write_sweep(Path(folder) / "large", truth=True, **LADDER)
        began = time.perf_counter()
        result = write_report([runs])
        written = time.perf_counter() - began
        opened = [seconds_to_open(result["report"]) for _ in range(arguments.repeats)]
        size = Path(result["report"]).stat().st_size
    publish(
        {
            "points": result["points"],
            "write_seconds": round(written, 2),
            "open_seconds": [round(seconds, 2) for seconds in opened],
            "open_seconds_median": round(statistics.median(opened), 2),
            "page_megabytes": round(size / 1e6, 2),
        },
        arguments.out,
    )


if __name__ == "__main__":
    main()
