"""One training step of a stack: losses, gradients, update; the loss itself is in loss.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_cli.config.schema import Config
from sae_cli.dictionary.stack import SAEStack
from sae_cli.sparse.functions import operators
from sae_cli.training.adam import StackAdam
from sae_cli.training.loss import Losses, Weights
from sae_cli.training.memory import rows_per_piece
from sae_cli.training.pieces import batch_gradients
from sae_cli.training.profile import phase
from sae_cli.training.schedules import due_steps, learning_rate, per_member, ramp, total_steps

METRICS = ("loss", "mse", "sparsity", "orthogonality", "auxiliary", "l0", "grad_norm")

TARGET_BAND = 0.1
"""Relative distance from the target L0 at which lambda moves at its full rate; nearer it moves in proportion."""


class Stepper:
    """Trains the members of a stack on one batch at a time, without a host sync."""

    def __init__(
        self, stack: SAEStack, configs: Sequence[Config], device: str, earlier: SAEStack | None = None
    ) -> None:
        self.stack, self.configs, self.device, self.ranks = stack, configs, device, stack.ranks
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # where Triton launches
        self.earlier = earlier
        """Latents of finished stages; the stack reconstructs what they leave."""
        self.train, self.shared = configs[0].train, configs[0]
        self.steps = total_steps(self.train)
        self.lambda_K = per_member([c.sparsity.weight for c in configs], device)
        self.gamma_K = per_member([c.orthogonality.weight for c in configs], device)
        self.lambda_warmup_K = per_member([c.sparsity.warmup for c in configs], device)
        self.gamma_warmup_K = per_member([c.orthogonality.warmup for c in configs], device)
        self.target_l0_K = per_member([c.sparsity.target_l0 for c in configs], device)
        self.penalised = [c.orthogonality.weight != 0 for c in configs]
        self.lambda_scale_K = torch.ones(stack.members, device=device)
        self.penalty_states: list[dict[str, Tensor]] = [{} for _ in configs]
        self.frozen_K = torch.zeros(stack.members, dtype=torch.bool, device=device)
        self.last_fired_KF = torch.zeros(stack.b_enc_KF.shape, dtype=torch.int64, device=device)
        self.fired_KF = torch.zeros_like(self.last_fired_KF)
        self.earlier_fired_KG = self.last_fired_KF[:, :0]
        self.sums_KM = torch.zeros(stack.members, len(METRICS), dtype=torch.float64, device=device)
        self.adam = StackAdam(stack.tensors(), (self.train.beta1, self.train.beta2), device)
        # A batched product of several members is slower than a loop on a CPU: K B F latents leave its cache.
        size = stack.members if device.startswith("cuda") else 1
        self.parts = [slice(start, start + size) for start in range(0, stack.members, size)]
        self.piece = rows_per_piece(self.train, stack, earlier, size)

    def penalty_weights(self, step: int) -> tuple[Tensor, Tensor]:
        """Return lambda (K,) and gamma (K,) at `step`, warm-ups included."""
        lam_K = self.lambda_K * self.lambda_scale_K * ramp(step, self.lambda_warmup_K, self.steps)
        gamma_K = self.gamma_K * ramp(step, self.gamma_warmup_K, self.steps)
        return lam_K, gamma_K

    def dead(self, rows_seen: int) -> Tensor:
        """Return which latents (K, F) have not fired on the last `train.dead_after` rows."""
        return rows_seen - self.last_fired_KF > self.train.dead_after

    def resampled(self, rows_seen: int) -> Tensor:
        """Return which latents (K, F) are replaced at a resampling: the dead, or those that fire too rarely."""
        if not self.train.dead_frequency:
            return self.dead(rows_seen)
        window = min(rows_seen, self.train.dead_after)
        return self.fired_KF < self.train.dead_frequency * window

    def _count_firings(self, members: slice, counts_KF: Tensor, step: int) -> None:
        """Count on how many of the last `dead_after` rows before each resampling a latent fires."""
        batches = -(-self.train.dead_after // self.train.batch)
        if step in {due - batches for due in due_steps(self.train.resample_at, self.steps)}:
            self.fired_KF[members] = 0
        self.fired_KF[members] += counts_KF.long()

    def all_fired(self) -> Tensor:
        """Return after how many rows each latent fired last (K, G + F), those of earlier stages first."""
        return torch.cat([self.earlier_fired_KG, self.last_fired_KF], 1)

    def whole(self) -> SAEStack:
        """Return the stack with the latents of earlier stages."""
        return self.stack if self.earlier is None else self.earlier.join(self.stack)

    def step(self, step: int, x_BD: Tensor) -> None:
        """Update every member that is not frozen on scaled activations (B, D)."""
        lam_K, gamma_K = self.penalty_weights(step)
        every = self.shared.orthogonality.every
        dead_KF = self.dead(step * len(x_BD))
        for members in self.parts:
            part = self.stack.part(members)
            weights = Weights(
                lam_K[members],
                gamma_K[members] * every,
                [penalised and step % every == 0 for penalised in self.penalised[members]],
            )
            earlier = None if self.earlier is None else self.earlier.part(members)
            states = self.penalty_states[members]
            dead, stopped = dead_KF[members], self.frozen_K[members]
            found, gradients = batch_gradients(
                part, self.shared, x_BD, dead, weights, step, states, earlier, self.piece, stopped
            )
            with torch.no_grad():
                fired_K = self.ranks.total(found.counts_KF.sum(1))
                self._update(members, gradients, found, fired_K, step, len(x_BD))
                part.nonlinearity.observe(found.acts, part.parameters())
                self.last_fired_KF[members].masked_fill_(found.counts_KF > 0, (step + 1) * len(x_BD))
                if self.train.dead_frequency:
                    self._count_firings(members, found.counts_KF, step)
                self.earlier_fired_KG[members].masked_fill_(found.frozen_KG > 0, (step + 1) * len(x_BD))
                self._move_lambda(members, fired_K / len(x_BD), step)

    def _move_lambda(self, members: slice, l0_K: Tensor, step: int) -> None:
        """Raise lambda where L0 is above its target and lower it where it is below, once its warm-up is over."""
        target_K = self.target_l0_K[members]
        if not any(config.sparsity.target_l0 for config in self.configs[members]):
            return
        distance_K = ((l0_K - target_K) / (TARGET_BAND * target_K).clamp(min=1e-9)).clamp(-1, 1)
        due_K = (target_K > 0) & (ramp(step, self.lambda_warmup_K[members], self.steps) == 1)
        self.lambda_scale_K[members] *= 1 + self.shared.sparsity.target_rate * distance_K * due_K

    @phase("optimiser")
    def _update(
        self, members: slice, gradients: dict[str, Tensor], found: Losses, fired_K: Tensor, step: int, rows: int
    ) -> None:
        """Project, clip, freeze what is not finite, and apply Adam; keep unit directions."""
        unit = self.shared.sae.decoder_norm == "unit" and "W_dec_KFD" in gradients
        if unit:
            grad_KFD = gradients["W_dec_KFD"]
            operators(self.device, grad_KFD.numel()).project(grad_KFD, self.stack.W_dec_KFD[members])
        norm_K = self._norm({name: g.flatten(1).norm(dim=1) for name, g in gradients.items()})
        l0_K = (fired_K + found.frozen_KG.sum(1)) / rows
        measured = (found.loss_K, found.mse_K, found.sparsity_K, found.omega_K, found.auxiliary_K, l0_K, norm_K)
        self.frozen_K[members] |= ~torch.isfinite(norm_K + found.loss_K)
        shrink_K = (norm_K / self.train.clip).clamp(min=1) if self.train.clip > 0 else torch.ones_like(norm_K)
        configs = self.configs[members]
        rates = [learning_rate(step, config.train.lr, config.train.warmup, self.train) for config in configs]
        self.adam.step(members, gradients, rates, shrink_K, self.frozen_K[members], unit)
        self.sums_KM[members] += torch.stack(measured, 1).detach()

    def _norm(self, norms: dict[str, Tensor]) -> Tensor:
        """Return the norm (K,) of the whole gradient from those of its tensors; each rank has those of its latents."""
        if not self.ranks.sharded:
            return torch.stack(list(norms.values())).norm(dim=0)
        shared_K = norms.pop("b_dec_KD").square()
        return (self.ranks.add(torch.stack(list(norms.values())).square().sum(0)) + shared_K).sqrt()

    def take_metrics(self, count: int) -> Tensor:
        """Return the METRICS (K, M) averaged over the last `count` steps and start a new average."""
        means_KM = self.sums_KM / count
        self.sums_KM = torch.zeros_like(self.sums_KM)
        return means_KM
