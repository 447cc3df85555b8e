"""Reports and pages at Weights & Biases: figures, a table, numbers, and the files as an artifact."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sae_cli.files import short_hash
from sae_cli.reporting.collect import Point
from sae_cli.reporting.dashboard import PAGE
from sae_cli.runs.tracking import FINISH_SECONDS, one_line, start

logger = logging.getLogger(__name__)

EXTRAS = (PAGE, "compare.json")
"""Files of a run that go with a report."""


def publish_report(points: list[Point], written: Mapping[str, Any]) -> dict[str, str]:
    """Publish what `write_report` wrote about these points; see `publish_files` for the answer and the guarantees."""
    from sae_cli.reporting.gallery import figures_of, summary_of, table_of

    report = Path(written["report"])
    files = {path.name: path for path in (report, Path(written["parquet"]), Path(written["json"]))}
    files |= {f"{p.run_id}/{name}": path for p in points for name in EXTRAS if (path := Path(p.folder, name)).exists()}
    shown: dict[str, Any] = {}
    try:
        shown = {"figures": figures_of(points), "table": table_of(points), "summary": summary_of(points)}
    except Exception as problem:
        # The report is written; what it holds must not fail now.
        logger.warning("wandb: %s; only the files are published", one_line(problem))
    return publish_files(points, "report", files, report.parent, **shown)


def publish_files(
    points: Sequence[Point],
    job: str,
    files: Mapping[str, Path],
    folder: Path,
    *,
    figures: Mapping[str, Any] | None = None,
    table: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Make or update the W&B run of job type `job` about these points; `files` are its artifact of that type.

    Its id follows from the job and the run ids, so publishing again updates it. Project, entity, mode and group are
    those of the points' tracker settings; where these differ, the most common, which is said. `folder` takes W&B's
    local files. Returns id, folder, and url if online; empty if nothing was published. Never prompts or raises; a
    server that does not answer costs a warning, and the run is written offline for `wandb sync`.
    """
    chosen = {key: _common(points, f"tracker.{key}") for key in ("project", "entity", "mode")}
    group = _common(points, "tracker.group") or _common(points, "name")
    identity = f"{job}-{short_hash(sorted(point.run_id for point in points))}"
    arguments = {
        "dir": str(folder),
        "id": identity,
        "name": f"{job} {group}".strip(),
        "job_type": job,
        "resume": "allow",
        "reinit": "create_new",
        "group": group or None,
        "project": chosen["project"] or "sae",
        "entity": chosen["entity"] or None,
    }
    run = start(arguments, chosen["mode"] or "auto", f"the {job} is not published")
    if run is None:
        return {}
    local = str(Path(run.settings.sync_dir))
    problems: list[str] = []

    def send() -> None:
        try:
            import wandb

            run.log({name: wandb.Plotly(figure) for name, figure in (figures or {}).items()}, commit=False)
            run.summary.update(dict(summary or {}))
            if table:
                base = f"{run.url.rsplit('/', 1)[0]}/" if run.url else ""
                links = [_link(point, base) for point in points]
                cells: list[Any] = [[*row.values(), link] for row, link in zip(table, links, strict=True)]
                columns: list[str | int] = [*table[0], "wandb"]
                run.log({"points": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})
            artifact = wandb.Artifact(identity, type=job)
            for name, path in files.items():
                artifact.add_file(str(path), name, skip_cache=True)
            run.log_artifact(artifact)
        except Exception as problem:
            problems.append(one_line(problem))
        finally:
            with suppress(Exception):
                run.finish()

    # A server may take the run and then fall silent; what W&B's client waits for then has no limit of its own.
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(None if run.offline else FINISH_SECONDS)
    if thread.is_alive():
        rest = f"`wandb sync --include-online {local}` sends the rest"
        logger.warning("wandb: not all was sent in %d s; %s", FINISH_SECONDS, rest)
    elif problems:
        logger.warning("wandb: %s; the %s is not published in full", problems[0], job)
    return {"id": run.id, "folder": local} | ({} if run.offline else {"url": run.url})


def _common(points: Sequence[Point], key: str) -> str:
    """The most common value among the points, the first of equals; says so where there are several."""
    counts = Counter(str(point.config.get(key, "")) for point in points if point.config)
    if not counts:
        return ""
    value = counts.most_common(1)[0][0]
    if len(counts) > 1:
        logger.info("wandb: the runs differ in %s; %s is used", key, value or "its default")
    return value


def _link(point: Point, base: str) -> str:
    """The run's own id at W&B, or where it is, as its local folder names it; empty if it was never logged there."""
    folders = sorted(Path(point.folder).glob("wandb/*run-*-*"), key=lambda path: path.name.split("run-")[-1])
    return base + folders[-1].name.split("run-")[-1].partition("-")[2] if folders else ""
