"""Adam over a stack, with a learning rate for each member; it never waits for the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sae_cli.sparse.functions import operators

EPSILON = 1e-8


class StackAdam:
    """Adam's moments of all members (K, ...): one launch per parameter where operators take stacks, else torch's."""

    def __init__(self, tensors: Mapping[str, Tensor], betas: tuple[float, float], device: str) -> None:
        self.tensors, self.betas, self.device = tensors, betas, device
        self.members = len(next(iter(tensors.values())))
        self.moments = {name: (torch.zeros_like(tensor), torch.zeros_like(tensor)) for name, tensor in tensors.items()}
        self.steps_KT = torch.zeros(self.members, len(tensors), device=device)
        self.optimisers: list[torch.optim.Adam] = []
        if not operators(device, 0).stacks:
            self.optimisers = [self._optimiser(k) for k in range(self.members)]

    def _optimiser(self, member: int) -> torch.optim.Adam:
        """Return torch's Adam over one member's storage and its moments."""
        leaves = [tensor[member : member + 1].detach() for tensor in self.tensors.values()]
        optimiser = torch.optim.Adam(leaves, betas=self.betas, eps=EPSILON, fused=True)
        optimiser.state.update(zip(leaves, self.state(member).values(), strict=True))
        return optimiser

    def state(self, member: int) -> dict[str, dict[str, Tensor]]:
        """Return the live state of a member by parameter name (leading axis 1)."""
        return {
            name: {
                "step": self.steps_KT[member, index],
                "exp_avg": mean[member : member + 1],
                "exp_avg_sq": square[member : member + 1],
            }
            for index, (name, (mean, square)) in enumerate(self.moments.items())
        }

    def step(
        self,
        members: slice,
        gradients: Mapping[str, Tensor],
        rates: Sequence[float],
        shrink_K: Tensor,
        frozen_K: Tensor,
        unit: bool,
    ) -> None:
        """Update members by their gradients (K, ...) divided by `shrink_K`, but not the frozen (bool).

        `unit`: directions end with norm 1. Which member is frozen stays on the device.
        """
        if self.optimisers:
            for offset, k in enumerate(range(members.start, members.stop)):
                optimiser = self.optimisers[k]
                group = optimiser.param_groups[0]
                group["lr"] = rates[offset]
                for tensor, gradient in zip(group["params"], gradients.values(), strict=True):
                    tensor.grad = gradient[offset : offset + 1]
                # attributes that torch's GradScaler sets, to divide gradients and to skip; the class declares none
                optimiser.grad_scale = shrink_K[offset]  # type: ignore[attr-defined]
                optimiser.found_inf = frozen_K[offset].float()  # type: ignore[attr-defined]
                optimiser.step()
                optimiser.zero_grad()
            if unit:
                W_dec_KFD = self.tensors["W_dec_KFD"][members]
                operators(self.device, W_dec_KFD.numel()).unit(W_dec_KFD)
            return
        from sae_cli.sparse.triton_operators import adam

        trained_K = ~frozen_K
        self.steps_KT[members] += trained_K.unsqueeze(1)
        steps_K, (beta1, beta2) = self.steps_KT[members, 0].double(), self.betas
        rates_K = torch.tensor(rates, pin_memory=frozen_K.is_cuda).to(self.device, non_blocking=True)
        factors = rates_K / (1 - beta1**steps_K), (1 - beta2**steps_K).rsqrt(), 1 / shrink_K, trained_K
        factors_K4 = torch.stack([factor.float() for factor in factors], 1)
        for name, gradient in gradients.items():
            mean, square = self.moments[name]
            to_unit = unit and name == "W_dec_KFD"
            values = self.tensors[name][members], gradient, mean[members], square[members]
            adam(*values, factors_K4, self.betas, EPSILON, to_unit)
