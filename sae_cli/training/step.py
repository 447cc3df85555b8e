"""One training step of a stack: loss, gradient, update.

L = mean_B ||x - x_hat||^2 + lambda mean_B P(f) + gamma D Omega(W_dec), per member; x is scaled to E||x||^2 = D.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_cli.config.schema import Config
from sae_cli.dictionary.stack import NAMES, SAEStack
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.sparsity import SPARSITY
from sae_cli.randomness import derive_seed
from sae_cli.training.schedules import learning_rate, per_member, ramp, total_steps

METRICS = ("loss", "mse", "sparsity", "orthogonality", "l0", "grad_norm")


EXACT_ROWS = 256
"""Rows whose firings bf16 counts exactly."""


def firing_counts(acts_KBF: Tensor) -> Tensor:
    """Return on how many rows each latent fires (K, F), fp32 and exact, by products over blocks of rows."""
    B = acts_KBF.shape[1]
    rows = torch.arange(B, device=acts_KBF.device) // EXACT_ROWS
    blocks = torch.arange(-(-B // EXACT_ROWS), device=acts_KBF.device)
    membership = (rows == blocks.unsqueeze(1)).to(acts_KBF.dtype)
    return (membership @ acts_KBF.sign()).float().sum(1)


class Stepper:
    """Trains the members of a stack on one batch at a time, without a host sync."""

    def __init__(self, stack: SAEStack, configs: Sequence[Config], device: str) -> None:
        self.stack, self.configs, self.device = stack, configs, device
        self.train, self.shared = configs[0].train, configs[0]
        self.steps = total_steps(self.train)
        self.lambda_K = per_member([c.sparsity.weight for c in configs], device)
        self.gamma_K = per_member([c.orthogonality.weight for c in configs], device)
        self.lambda_warmup_K = per_member([c.sparsity.warmup for c in configs], device)
        self.gamma_warmup_K = per_member([c.orthogonality.warmup for c in configs], device)
        self.penalised = [c.orthogonality.weight != 0 for c in configs]
        self.frozen_K = torch.zeros(stack.members, dtype=torch.bool, device=device)
        self.last_fired_KF = torch.zeros(stack.b_enc_KF.shape, dtype=torch.int64, device=device)
        self.sums_KM = torch.zeros(stack.members, len(METRICS), dtype=torch.float64, device=device)
        self.optimisers = [self._optimiser(stack.part(slice(k, k + 1))) for k in range(stack.members)]
        # A batched product of several members is slower than a loop on a CPU: K B F latents leave its cache.
        size = stack.members if device.startswith("cuda") else 1
        self.parts = [slice(start, start + size) for start in range(0, stack.members, size)]

    def _optimiser(self, member: SAEStack) -> torch.optim.Adam:
        """Return an Adam over one member's storage, its state made at once so that a checkpoint can fill it."""
        optimiser = torch.optim.Adam(
            list(member.tensors().values()), betas=(self.train.beta1, self.train.beta2), fused=True
        )
        for tensor in member.tensors().values():
            optimiser.state[tensor] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
        return optimiser

    def adam_state(self, member: int) -> dict[str, dict[str, Tensor]]:
        """Return the live optimiser state of a member by parameter name (leading axis 1)."""
        optimiser = self.optimisers[member]
        tensors = optimiser.param_groups[0]["params"]
        return {name: optimiser.state[tensor] for name, tensor in zip(NAMES, tensors, strict=True)}

    def penalty_weights(self, step: int) -> tuple[Tensor, Tensor]:
        """Return lambda (K,) and gamma (K,) at `step`, warm-ups included."""
        lam_K = self.lambda_K * ramp(step, self.lambda_warmup_K, self.steps)
        gamma_K = self.gamma_K * ramp(step, self.gamma_warmup_K, self.steps)
        return lam_K, gamma_K

    def step(self, step: int, x_BD: Tensor) -> None:
        """Update every member that is not frozen on scaled activations (B, D)."""
        lam_K, gamma_K = self.penalty_weights(step)
        for members in self.parts:
            part = self.stack.part(members)
            due = any(self.penalised[members]) and step % self.shared.orthogonality.every == 0
            loss_K, measured_KM, counts_KF = self._losses(part, x_BD, step, lam_K[members], gamma_K[members], due)
            gradients = torch.autograd.grad(loss_K.sum(), list(part.tensors().values()))
            with torch.no_grad():
                self._update(members, dict(zip(NAMES, gradients, strict=True)), measured_KM, step)
                self.last_fired_KF[members].masked_fill_(counts_KF > 0, (step + 1) * len(x_BD))

    def _losses(
        self, part: SAEStack, x_BD: Tensor, step: int, lam_K: Tensor, gamma_K: Tensor, penalise: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss (K,), the METRICS (K, M) with a 0 for the gradient norm, and firing counts (K, F)."""
        D = x_BD.shape[1]
        device_type = x_BD.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.train.precision == "bf16"):
            acts_KBF = part.encode(x_BD)
            x_hat_KBD = part.decode(acts_KBF)
            omega_K = self._orthogonality(part, step) if penalise else torch.zeros_like(lam_K)
        mse_K = (x_BD - x_hat_KBD).float().square().sum(2).mean(1)
        sparsity_K = SPARSITY[self.shared.sparsity.kind](acts_KBF, self.shared.sparsity)
        loss_K = mse_K + lam_K * sparsity_K + gamma_K * D * self.shared.orthogonality.every * omega_K
        with torch.no_grad():
            counts_KF = firing_counts(acts_KBF)
            l0_K = counts_KF.sum(1) / len(x_BD)
            measured_KM = torch.stack([loss_K, mse_K, sparsity_K, omega_K, l0_K, torch.zeros_like(l0_K)], 1).detach()
        return loss_K, measured_KM, counts_KF

    def _orthogonality(self, part: SAEStack, step: int) -> Tensor:
        """Return Omega (K,) of the directions."""
        settings = self.shared.orthogonality
        penalty = ORTHOGONALITY[settings.kind]
        assert penalty is not None, "orthogonality=none has weight 0"
        return penalty(part.W_dec_KFD, settings, derive_seed(self.train.data_seed, "orthogonality", step))

    def _update(self, members: slice, gradients: dict[str, Tensor], measured_KM: Tensor, step: int) -> None:
        """Project, clip, freeze what is not finite, and apply Adam; keep unit directions."""
        directions_KFD = self.stack.W_dec_KFD[members]
        grad_KFD = gradients["W_dec_KFD"]
        grad_KFD -= (grad_KFD * directions_KFD).sum(-1, keepdim=True) * directions_KFD
        norm_K = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        measured_KM[:, METRICS.index("grad_norm")] = norm_K
        self.frozen_K[members] |= ~torch.isfinite(norm_K + measured_KM[:, 0])
        # Adam divides gradients by grad_scale and skips the update where found_inf is 1: both stay on the device.
        shrink_K = (norm_K / self.train.clip).clamp(min=1) if self.train.clip > 0 else torch.ones_like(norm_K)
        for offset, k in enumerate(range(members.start, members.stop)):
            optimiser, config = self.optimisers[k], self.configs[k]
            group = optimiser.param_groups[0]
            group["lr"] = learning_rate(step, config.train.lr, config.train.warmup, self.train)
            for tensor, gradient in zip(group["params"], gradients.values(), strict=True):
                tensor.grad = gradient[offset : offset + 1]
            # attributes that torch's GradScaler sets; the class does not declare them
            optimiser.grad_scale = shrink_K[offset]  # type: ignore[attr-defined]
            optimiser.found_inf = self.frozen_K[k].float()  # type: ignore[attr-defined]
            optimiser.step()
            optimiser.zero_grad()
            self.stack.part(slice(k, k + 1)).normalise_decoder()
        self.sums_KM[members] += measured_KM

    def take_metrics(self, count: int) -> Tensor:
        """Return the METRICS (K, M) averaged over the last `count` steps and start a new average."""
        means_KM = self.sums_KM / count
        self.sums_KM = torch.zeros_like(self.sums_KM)
        return means_KM
