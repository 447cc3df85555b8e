"""`sae train --profile`: a trace of a few steps, and a table of where their time goes."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from sae_cli.config.schema import TrainConfig

TRACE, TABLE = "profile.json", "profile.txt"
WARM, DISCARDED, RECORDED, OPERATORS = 8, 2, 5, 15
"""Steps before the profiler starts, steps that it runs without recording, steps that it records; operators listed."""


class phase(ContextDecorator):
    """Names what a part of a step does. While nothing is profiled that costs two attribute look-ups.

    While something is, it also waits for a GPU: a phase's time is that of its kernels.
    """

    on: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def _recreate_cm(self) -> "phase":
        return phase(self.name)

    def __enter__(self) -> None:
        self.label = record_function(self.name) if phase.on else None
        if self.label:
            self.label.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.label:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.label.__exit__(*error)


PHASES = ("data", "encode", "find", "decode", "penalty", "auxiliary", "backward", "optimiser", "log", "checkpoint")
"""In the order of a step; find lists the latents that fire, decode has nonlinearity, reconstruction and sparsity."""


@contextmanager
def profiled(folder: Path, train: TrainConfig, start: int, steps: int) -> Iterator[Callable[[], None]]:
    """Give what is to be called after each step from `start` on; write TRACE and TABLE into a run's folder.

    The recorded steps end with the first log line after the warm-up, so that each phase is among them.
    """
    if start >= steps:
        yield lambda: None
        return
    logged = -(-(start + WARM + DISCARDED + RECORDED) // train.log_every) * train.log_every
    end = min(steps, logged) - start
    recorded = min(RECORDED, end)
    discarded = min(DISCARDED, end - recorded)

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(folder / TRACE))
        (folder / TABLE).write_text(where_time_goes(profiler.key_averages(), train))

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the tracer announces its start and stop on stderr
    with warnings.catch_warnings(action="ignore"):  # of a run too short to discard steps
        schedule = torch.profiler.schedule(wait=end - recorded - discarded, warmup=discarded, active=recorded, repeat=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profiler:
        phase.on = True
        try:
            yield profiler.step
        finally:
            phase.on = False


def where_time_goes(events: Any, train: TrainConfig) -> str:
    """Return the table of a profile's averages: phases, then the operators that take longest by themselves.

    A log line or checkpoint among the recorded steps counts with its share of all steps.
    """
    found = {event.key: event for event in events if event.device_type == DeviceType.CPU}
    steps = [name for name in found if name.startswith("ProfilerStep")]
    count = sum(found[name].count for name in steps)
    rare = {"log": train.log_every, "checkpoint": train.checkpoint_every}
    took = {name: found[name].cpu_time_total / 1000 for name in PHASES if name in found}
    rest = sum(found[name].cpu_time_total for name in steps) / 1000 - sum(took.values())
    ms = {name: time / (found[name].count * rare[name] if rare.get(name) else count) for name, time in took.items()}
    ms["rest"] = max(0.0, rest) / count
    total = sum(ms.values())

    def line(name: str, calls: Any, time: Any, share: Any = "") -> str:
        return f"{name[:40]:<40} {calls:>6} {time:>9} {share:>6}".rstrip()

    lines = [line("phase", "calls", "ms/step", "share")]
    for name, time in ms.items():
        lines.append(line(name, found[name].count if name in found else count, f"{time:.3f}", f"{time / total:.1%}"))
    lines += [line("a step", count, f"{total:.3f}"), "", line("operator, by itself", "calls", "ms/step")]
    alone = {
        name: (event.self_device_time_total or event.self_cpu_time_total) / 1000 / count
        for name, event in found.items()
        if name not in PHASES and name not in steps
    }
    for name in sorted(alone, key=alone.__getitem__, reverse=True)[:OPERATORS]:
        lines.append(line(name, found[name].count, f"{alone[name]:.3f}"))
    return "\n".join(lines) + "\n"
