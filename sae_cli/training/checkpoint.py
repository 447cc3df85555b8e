"""Checkpoints: one safetensors file per member and step, complete or absent.

Where ranks share out the latents it is a folder of such files, one per rank, which torch.distributed.checkpoint writes;
either can be resumed on any number of ranks.
Batches, partitions and resampling are pure functions of seeds and the step, so parameters, Adam moments, counters and
the step are the whole state; the step says which stage of `sae.grow` it is.
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae_cli.errors import UserError
from sae_cli.files import read_json, refuse_newer, replace_atomically, sha256_of, sync_folder, write_json
from sae_cli.training.step import Stepper

log = logging.getLogger(__name__)

EARLIER = "earlier."
"""Prefix of the latents of finished stages."""
PENALTY = "penalty."
"""Prefix of the tensors that an orthogonality penalty keeps from step to step."""
EXTRA = "extra.json"
"""Beside the shares of ranks: the step and what else a file has in its header."""
VERSION = 1
"""Format version; a checkpoint of another one names it as `version` beside the step."""
KEPT = 2
"""Checkpoints kept per run: a kill between the members of a stack leaves them one apart."""


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return the file of a step (the number of finished steps)."""
    return folder / f"step-{step:09d}.safetensors"


def shards_folder(folder: Path, step: int) -> Path:
    """Return the folder of a step whose latents were held by several ranks."""
    return folder / f"step-{step:09d}.shards"


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
    if stepper.ranks.sharded:
        _save_shards(folder, stepper, live, step, extra)
    if stepper.ranks.sharded or not stepper.ranks.first:
        return
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in live.items()}
    metadata = {"step": str(step), "extra": json.dumps(extra)}
    metadata["sha256"] = _sha256(tensors, metadata)
    replace_atomically(checkpoint_file(folder, step), save(tensors, metadata))
    drop(sorted(folder.glob("step-*"))[:-KEPT])


def saved_steps(folder: Path) -> list[int]:
    """Return the steps that have a readable checkpoint, in order. UserError if one is of a later version."""
    steps = []
    for file in sorted(folder.glob("step-*")):
        try:
            if file.is_dir():
                told = read_json(file / EXTRA)
            else:
                with safe_open(file, "pt") as opened:
                    told = opened.metadata()
            refuse_newer(file, int(told.get("version", VERSION)), VERSION)
            steps.append(int(told["step"]))
        except (SafetensorError, OSError, TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            log.warning("ignoring the damaged checkpoint %s (%s)", file, error)
    return steps


def common_step(folders: list[Path]) -> int:
    """Return the newest step that every member has a sound checkpoint of; 0 if there is none."""
    for step in sorted(set.intersection(*(set(saved_steps(folder)) for folder in folders)), reverse=True):
        if all(is_sound(folder, step) for folder in folders):
            return step
    return 0


def is_sound(folder: Path, step: int) -> bool:
    """Return whether a checkpoint holds what was saved, by its hashes; it is read whole."""
    file, shards = checkpoint_file(folder, step), shards_folder(folder, step)
    try:
        if file.exists():
            with safe_open(file, "pt") as opened:
                metadata = dict(opened.metadata())
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is a file)
            told = metadata.pop("sha256", None)
            # without a hash it is of an earlier version, or the name of the hash was damaged and is still there
            sound = metadata.keys() == {"step", "extra"} and told in (None, _sha256(tensors, metadata))
        else:
            hashes = read_json(shards / EXTRA).get("sha256", {})
            sound = all(sha256_of(shards / Path(name).name) == value for name, value in hashes.items())
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, AttributeError):
        sound = False
    if not sound:
        log.warning("ignoring the damaged checkpoint of step %d in %s", step, folder)
    return sound


def _sha256(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return the hash of tensors with their names, dtypes and shapes, and of what is told about them."""
    told = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps([told, metadata], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def load_checkpoint(folder: Path, stepper: Stepper, member: int, step: int) -> dict[str, Any]:
    """Fill a member's live tensors from the checkpoint of `step`; return what was saved as `extra`.

    Raises UserError if it does not hold them.
    """
    file, live = checkpoint_file(folder, step), member_tensors(stepper, member)
    path, load = (file, _load_file) if file.exists() else (shards_folder(folder, step), _load_shards)
    try:
        extra = load(path, stepper, live, member)
        if not isinstance(extra, dict):
            raise ValueError("no state beside the tensors")
        return extra
    except UserError:
        raise
    except Exception as error:  # those of safetensors, JSON and torch.distributed share no base class
        raise UserError(
            f"{path}: not a checkpoint of this run ({error}); delete it, and run the command again"
        ) from error


def _load_file(file: Path, stepper: Stepper, live: dict[str, Tensor], member: int) -> Any:
    """Fill live tensors from one file; return what was saved as `extra`."""
    with safe_open(file, "pt") as opened:
        if missing := sorted(live.keys() - set(opened.keys())):
            raise UserError(f"{file}: of a version that had no {', '.join(missing)}: start over with --fresh")

        def own(name: str) -> Tensor:
            axis = latents_axis(name) if stepper.ranks.sharded else None
            if axis is None:
                return opened.get_tensor(name)
            part = stepper.ranks.own(opened.get_slice(name).get_shape()[axis])
            return opened.get_slice(name)[:, part] if axis else opened.get_slice(name)[part]

        for name, tensor in live.items():
            saved = own(name)
            _check_shape(file, name, saved.shape, tensor.shape)
            tensor.copy_(saved)
        kept = [name for name in opened.keys() if name.startswith(PENALTY)]  # noqa: SIM118 (it is a file)
        stepper.penalty_states[member] = {name.removeprefix(PENALTY): own(name).to(stepper.device) for name in kept}
        return json.loads(opened.metadata()["extra"])


def drop(paths: Sequence[Path]) -> None:
    """Remove checkpoints; a folder is first given a name that no longer counts."""
    for path in paths:
        gone = path.rename(path.with_name(f".{path.name}.old"))
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


def latents_axis(name: str) -> int | None:
    """Return the axis of a saved tensor along which ranks share out the latents; None: each has the whole."""
    if name.startswith(("b_dec_KD", "sums", "frozen", "lambda_scale")) or name.endswith(".step"):
        return None
    return 1 if name.startswith("W_enc_KDF") else 0


def _check_shape(file: Path, name: str, saved: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(saved) != tuple(wanted):
        raise UserError(f"{file}: {name} has shape {tuple(saved)}, expected {tuple(wanted)}")


def _distributed(stepper: Stepper, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return live tensors as torch.distributed.checkpoint sees them: those of latents as shares of one tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    state = {name: tensor.detach().view(tensor.shape or 1) for name, tensor in tensors.items()}
    if stepper.ranks.sharded:
        mesh = init_device_mesh(torch.device(stepper.device).type, (stepper.ranks.size,))
        for name, tensor in state.items():
            if (axis := latents_axis(name)) is not None:
                state[name] = DTensor.from_local(tensor, mesh, [Shard(axis)], run_check=False)
    return state


def _save_shards(folder: Path, stepper: Stepper, live: dict[str, Tensor], step: int, extra: dict[str, Any]) -> None:
    """Write every rank's share of a member's state; the folder gets its name when all are there."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_distributed

    ranks, target = stepper.ranks, shards_folder(folder, step)
    begun = target.with_name(f".{target.name}.tmp")
    if ranks.first:
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
    ranks.wait()
    writer = HuggingFaceStorageWriter(str(begun), save_distributed=True)
    save_distributed(_distributed(stepper, live), storage_writer=writer)
    if ranks.first:
        hashes = {file.name: sha256_of(file) for file in begun.iterdir()}
        write_json(begun / EXTRA, {"step": step, "extra": extra, "sha256": hashes})
        drop([target] if target.exists() else [])
        begun.rename(target)
        sync_folder(folder)
        drop(sorted(folder.glob("step-*"))[:-KEPT])
    ranks.wait()


def _load_shards(folder: Path, stepper: Stepper, live: dict[str, Tensor], member: int) -> Any:
    """Fill live tensors from the folder of any number of ranks; return what was saved as `extra`."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_distributed

    reader, ranks = HuggingFaceStorageReader(str(folder)), stepper.ranks
    saved: Any = reader.read_metadata().state_dict_metadata
    kept = {}
    for name in saved:
        if name.startswith(PENALTY):
            shape = list(saved[name].size)
            shape[0] = len(range(shape[0])[ranks.own(shape[0])])
            kept[name] = torch.empty(shape, dtype=saved[name].properties.dtype, device=stepper.device)
    state = _distributed(stepper, live | kept)
    for name, tensor in state.items():
        _check_shape(folder, name, saved[name].size, tensor.shape)
    with warnings.catch_warnings(action="ignore"):  # "assuming the intent is to load in a single process"
        load_distributed(state, storage_reader=reader, no_dist=ranks.size == 1)
    stepper.penalty_states[member] = {name.removeprefix(PENALTY): tensor for name, tensor in kept.items()}
    return read_json(folder / EXTRA)["extra"]
