"""Checkpoints: one safetensors file per member and step, complete or absent.

Batches, partitions and resampling are pure functions of seeds and the step, so parameters, Adam moments, counters and
the step are the whole state; the step says which stage of `sae.grow` it is.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_cli.errors import UserError
from sae_cli.files import replace_atomically
from sae_cli.training.step import Stepper

log = logging.getLogger(__name__)

EARLIER = "earlier."
"""Prefix of the latents of finished stages."""
PENALTY = "penalty."
"""Prefix of the tensors that an orthogonality penalty keeps from step to step."""
KEPT = 2
"""Checkpoints kept per run: a kill between the members of a stack leaves them one apart."""


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return the file of a step (the number of finished steps)."""
    return folder / f"step-{step:09d}.safetensors"


def member_tensors(stepper: Stepper, member: int) -> dict[str, Tensor]:
    """Return the live tensors that make up a member's state, by name."""
    tensors = {name: tensor[member] for name, tensor in stepper.stack.state().items()}
    for name, state in stepper.adam.state(member).items():
        tensors |= {f"{name}.{part}": value if value.ndim == 0 else value[0] for part, value in state.items()}
    if stepper.earlier is not None and stepper.earlier.centre_KD is not None:
        tensors |= {f"{EARLIER}{name}": tensor[member] for name, tensor in stepper.earlier.state().items()}
        tensors |= {"centre": stepper.earlier.centre_KD[member], "earlier_fired": stepper.earlier_fired_KG[member]}
    tensors["last_fired"] = stepper.last_fired_KF[member]
    tensors["fired"] = stepper.fired_KF[member]
    tensors["frozen"] = stepper.frozen_K[member]
    tensors["sums"] = stepper.sums_KM[member]
    tensors["lambda_scale"] = stepper.lambda_scale_K[member]
    return tensors


def save_checkpoint(folder: Path, stepper: Stepper, member: int, step: int, extra: dict[str, Any]) -> None:
    """Write a member's state after `step` steps with `extra` (JSON) and drop all but the newest files."""
    kept = {f"{PENALTY}{name}": tensor for name, tensor in stepper.penalty_states[member].items()}
    live = member_tensors(stepper, member) | kept
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in live.items()}
    metadata = {"step": str(step), "extra": json.dumps(extra)}
    replace_atomically(checkpoint_file(folder, step), save(tensors, metadata))
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a readable checkpoint, in order."""
    steps = []
    for file in sorted(folder.glob("step-*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                steps.append(int(opened.metadata()["step"]))
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            log.warning("ignoring the damaged checkpoint %s (%s)", file, error)
    return steps


def common_step(folders: list[Path]) -> int:
    """Return the newest step that every member has a checkpoint of; 0 if there is none."""
    return max(set.intersection(*(set(saved_steps(folder)) for folder in folders)), default=0)


@torch.no_grad()
def load_checkpoint(folder: Path, stepper: Stepper, member: int, step: int) -> dict[str, Any]:
    """Fill a member's live tensors from the checkpoint of `step`; return what was saved as `extra`."""
    file = checkpoint_file(folder, step)
    live = member_tensors(stepper, member)
    with safe_open(file, "pt") as opened:
        for name, tensor in live.items():
            saved = opened.get_tensor(name)
            if saved.shape != tensor.shape:
                raise UserError(f"{file}: {name} has shape {tuple(saved.shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(saved)
        stepper.penalty_states[member] = {
            name.removeprefix(PENALTY): opened.get_tensor(name).to(stepper.device)
            for name in opened.keys()  # noqa: SIM118 (it is a file)
            if name.startswith(PENALTY)
        }
        return json.loads(opened.metadata()["extra"])
