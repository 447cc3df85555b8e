"""What a step's memory is made of, and what to lower when there is not enough."""

from sae_cli.config.schema import Config, TrainConfig
from sae_cli.device import is_out_of_memory
from sae_cli.dictionary.stack import SAEStack
from sae_cli.errors import of_system
from sae_cli.torchrun import world_size

WEIGHT_BYTES = 16
"""Bytes per parameter: weights, gradients and two Adam moments in fp32."""
LATENT_BYTES, FROZEN_BYTES = 24, 12
"""Bytes that a row takes per latent: about six tensors of at most four; frozen: m, f and the firing."""


def training_memory(config: Config, width: int) -> int:
    """Return an estimate of the bytes that a point's training takes at the stage that takes most, the loader apart.

    Under torchrun it is that of one process.
    """
    train, ranks, needs, frozen = config.train, world_size(), [], 0
    held = ranks if train.parallel == "latents" else 1
    for size in config.sae.grow or [config.sae.latents]:
        latents = train.batch * (LATENT_BYTES * size + FROZEN_BYTES * frozen) // ranks
        needs.append(WEIGHT_BYTES * (2 * width * size + size + width) // held + 8 * width * frozen)
        needs[-1] += min(latents, train.memory_bytes or latents)
        frozen += size
    return max(needs)


def rows_per_piece(train: TrainConfig, stack: SAEStack, frozen: SAEStack | None, members: int) -> int:
    """Return how many rows of a batch are processed at a time under `train.memory_bytes`; pieces are even."""
    rows = train.batch // stack.ranks.row_shares
    bytes_per_row = LATENT_BYTES * stack.b_enc_KF.shape[1]
    if frozen is not None:
        bytes_per_row += FROZEN_BYTES * frozen.b_enc_KF.shape[1]
    most = max(train.memory_bytes // (bytes_per_row * members), 1) if train.memory_bytes else rows
    return -(-rows // -(-rows // most))


def describe(error: BaseException, config: Config, step: int) -> str:
    """Return an error in one line; of a lack of memory it says what to lower and from which step the run goes on."""
    line = of_system(error) or " ".join(str(error).split()) or type(error).__name__
    if not is_out_of_memory(error):
        return line
    taken = LATENT_BYTES * config.train.batch * config.sae.latents // world_size()
    less = min(taken, config.train.memory_bytes or taken) // 2
    return (
        f"out of memory: set train.memory_bytes={less} (half of what the latents of a step take), with which the run "
        f"goes on at step {step}; or lower train.batch or sae.latents, which is another run ({line[:200]})"
    )
