"""Cross-entropy with an SAE in a layer's place, from transformers alone: the reference for `spliced_losses`."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM

from sae_cli.dictionary.artifact import SAE


@torch.no_grad()
def plain_losses(
    folder: Path | str,
    layer: int,
    tokens_NT: Tensor,
    sae: SAE,
    mean_D: Tensor | None = None,
    keep_first: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Return ce_clean, ce_sae, ce_zero, ce_mean and kl (nats per prediction) of contexts (N, T), one at a time.

    The output of a decoder layer (its blocks.LAYER.hook_out) is replaced by a forward hook on the Hugging Face module;
    keep_first leaves the first row (BOS) as it is. mean_D: what the mean ablation puts there; None: zeros.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    count = model.config.num_hidden_layers
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    offset_D = torch.zeros_like(sae.b_dec_D) if mean_D is None else mean_D
    replacements: dict[str, Callable[[Tensor], Tensor]] = {
        "sae": lambda x_TD: sae.decode(sae.encode(x_TD)),
        "zero": torch.zeros_like,
        "mean": lambda x_TD: offset_D.expand_as(x_TD),
    }

    def log_probabilities(tokens_T: Tensor, replacement: Callable[[Tensor], Tensor] | None) -> Tensor:
        def splice(module: nn.Module, arguments: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            if replacement is None:
                return None
            x_1TD = output[0] if isinstance(output, tuple) else output
            new_TD = replacement(x_1TD[0].float()).to(x_1TD.dtype).clone()
            if keep_first:
                new_TD[0] = x_1TD[0, 0]
            return (new_TD[None], *output[1:]) if isinstance(output, tuple) else new_TD[None]

        handle = layers[layer].register_forward_hook(splice)
        try:
            return model(tokens_T[None].long()).logits[0, :-1].float().log_softmax(-1)
        finally:
            handle.remove()

    sums = dict.fromkeys(["ce_clean", *(f"ce_{name}" for name in replacements), "kl"], 0.0)
    for tokens_T in tokens_NT:
        target_T = tokens_T[1:].long()
        clean_TV = log_probabilities(tokens_T, None)
        sums["ce_clean"] += float(cross_entropy(clean_TV, target_T))
        for name, replacement in replacements.items():
            spliced_TV = log_probabilities(tokens_T, replacement)
            sums[f"ce_{name}"] += float(cross_entropy(spliced_TV, target_T))
            if name == "sae":
                sums["kl"] += float(kl_div(spliced_TV, clean_TV, log_target=True, reduction="batchmean"))
    return {name: value / len(tokens_NT) for name, value in sums.items()}
