"""Frozen batches: latents trained in stages (`sae.grow`), each on what the frozen earlier ones leave of x.

Without `sae.grow` there is one stage, and its settings are the point's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae_cli.config.schema import Config
from sae_cli.dictionary.stack import SAEStack
from sae_cli.randomness import derive_seed
from sae_cli.training.dead_latents import target
from sae_cli.training.schedules import due_steps, total_steps
from sae_cli.training.step import Stepper


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `end` of training, and the settings of each member in them."""

    index: int
    count: int
    start: int
    end: int
    configs: Sequence[Config]

    @classmethod
    def of(cls, points: Sequence[Config], index: int) -> "Stage":
        """Return a stage of the members' points; all stages have the same number of steps within one."""
        count, steps = max(len(points[0].sae.grow), 1), total_steps(points[0].train)
        start, end = index * steps // count, (index + 1) * steps // count
        return cls(index, count, start, end, [stage_config(point, index, end - start) for point in points])

    @property
    def resampling(self) -> set[int]:
        """Steps after which dead latents are resampled."""
        train = self.configs[0].train
        return {self.start + step for step in due_steps(train.resample_at, self.end - self.start)}


def stage_config(point: Config, index: int, steps: int) -> Config:
    """Return a point's settings in a stage: its share of latents, k, target L0 and steps, and seeds of its own.

    k is rounded so that the shares add up to `sae.k`, but each is at least 1. The first stage has the point's seeds.
    """
    sae, train = point.sae, point.train
    if not sae.grow:
        return point
    size, before = sae.grow[index], sum(sae.grow[:index])
    k = round(sae.k * (before + size) / sae.latents) - round(sae.k * before / sae.latents)
    seed, data_seed = (derive_seed(s, "stage", index) if index else s for s in (point.seed, train.data_seed))
    return replace(
        point,
        sae=replace(sae, latents=size, k=max(k, 1), grow=[]),
        sparsity=replace(point.sparsity, target_l0=point.sparsity.target_l0 * size / sae.latents),
        train=replace(train, tokens=steps * train.batch, data_seed=data_seed),
        seed=seed,
    )


def grow(stepper: Stepper, stage: Stage, rows: Callable[[], Tensor]) -> Stepper:
    """Freeze what `stepper` has trained and return the stepper of the next stage.

    `rows` gives scaled inputs (N, D); decoder_init=data draws directions from what is left of them. The new decoder
    bias starts at 0: what is left has the earlier ones taken off.
    """
    earlier = stepper.stack.freeze() if stepper.earlier is None else stepper.whole()
    from_data = stage.configs[0].sae.decoder_init == "data"
    x_ND = rows() if from_data else torch.empty(0)

    def left(member: int) -> Tensor:
        if stepper.frozen_K[member]:  # what is not finite leaves nothing that could be drawn from
            return x_ND
        return torch.cat([target(earlier, member, x_BD) for x_BD in x_ND.split(stage.configs[0].train.batch)])

    zeros_D = torch.zeros(earlier.b_dec_KD.shape[1])
    rows_ND = left if from_data else x_ND
    stack = SAEStack.initialise(stage.configs, zeros_D, stepper.device, rows_ND, stepper.ranks)
    stack.centre_KD = earlier.centre_KD
    after = Stepper(stack, stage.configs, stepper.device, earlier)
    # counters of firings count rows within a stage
    after.earlier_fired_KG = stepper.all_fired() - stepper.shared.train.tokens
    after.frozen_K, after.sums_KM = stepper.frozen_K, stepper.sums_KM
    return after
