"""Dead latents: error-proportional resampling (ProLU author's recipe, after Anthropic 2023)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.dictionary.stack import SAEStack
from sae_cli.randomness import derive_seed
from sae_cli.training.loss import left_over
from sae_cli.training.step import Stepper


def collect_rows(batches: Iterator[Tensor], count: int) -> Tensor:
    """Return at least the next `count` rows (N, D), one batch or more; training's own stream is not advanced."""
    parts = [next(batches)]
    while sum(map(len, parts)) < count:
        parts.append(next(batches))
    return torch.cat(parts)


def target(earlier: SAEStack | None, member: int, x_BD: Tensor) -> Tensor:
    """Return what a member reconstructs (B, D) of scaled rows: what earlier stages leave of them."""
    part = None if earlier is None else earlier.part(slice(member, member + 1))
    return left_over(part, x_BD)[0][0]


@torch.no_grad()
def squared_errors(stepper: Stepper, member: int, x_ND: Tensor) -> Tensor:
    """Return the squared reconstruction error (N,) of a member on scaled rows, in batches of the training size."""
    part = stepper.stack.part(slice(member, member + 1))
    return torch.cat(
        [
            (target(stepper.earlier, member, x_BD) - part.decode(part.encode(x_BD))[0]).square().sum(1)
            for x_BD in x_ND.split(stepper.train.batch)
        ]
    )


@torch.no_grad()
def resample(stepper: Stepper, x_ND: Tensor, step: int, rows_seen: int) -> list[int]:
    """Point each member's dead latents at inputs it reconstructs badly; return how many it was for each member.

    A dead latent gets the direction of x - b_dec (x less what earlier stages give) of an input drawn with probability
    proportional to its squared error, an encoder of its nonlinearity's share of the mean live norm, bias 0, the other
    parameters of its nonlinearity as a bias of 0 starts them, and a fresh Adam state. Draws depend on the member's seed
    and the step alone.
    """
    stack, counts, ranks = stepper.stack, [], stepper.ranks
    dead_KF = stepper.resampled(rows_seen)
    for k in range(stack.members):
        dead_F = dead_KF[k]
        all_dead = ranks.every(dead_F)
        dead = int(all_dead.sum())
        counts.append(dead)
        if not dead or bool(stepper.frozen_K[k]):
            continue
        generator = torch.Generator().manual_seed(derive_seed(stepper.configs[k].seed, "resample", step))
        chances = squared_errors(stepper, k, x_ND).double().cpu()
        if not chances.sum() > 0:
            continue
        chosen = torch.multinomial(chances, dead, replacement=dead > len(chances), generator=generator)
        before = int(all_dead[: ranks.own(len(all_dead)).start].sum())
        chosen = chosen[before : before + int(dead_F.sum())]
        inputs = target(stepper.earlier, k, x_ND[chosen.to(x_ND.device)])
        directions = normalize(inputs - stack.b_dec_KD[k], dim=1)
        norms = ranks.every(stack.W_enc_KDF[k].norm(dim=0))
        norm = norms[~all_dead].mean() if dead < len(norms) else norms.mean()
        stack.W_dec_KFD[k, dead_F] = directions
        stack.W_enc_KDF[k, :, dead_F] = directions.T * norm * stack.nonlinearity.resampled_norm
        stack.b_enc_KF[k, dead_F] = 0
        for name, value in stack.nonlinearity.start(replace(stack.settings[k], bias_init=0.0)).items():
            if name in stack.learned_KF:
                stack.learned_KF[name][k, dead_F] = value
        for name, state in stepper.adam.state(k).items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if name == "W_enc_KDF":
                    state[moment][0, :, dead_F] = 0
                elif name != "b_dec_KD":
                    state[moment][0, dead_F] = 0
        stepper.last_fired_KF[k, dead_F] = rows_seen
    return counts
