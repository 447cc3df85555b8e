"""What a notebook needs: trained SAEs, cached activations, and functions for a model's hooks.

from sae_cli import load_sae, steer
sae = load_sae("runs/demo/0f3a2b1c9d")
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_out", steer(sae, 12, 8.0))])
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sae_cli.config.compose import compose
from sae_cli.dictionary.artifact import SAE, row_scale
from sae_cli.errors import UserError
from sae_cli.files import user_path
from sae_cli.interop.reading import open_sae
from sae_cli.runs.subjects import is_sae
from sae_cli.sources.registry import open_source

Hook = Callable[..., Tensor]
"""hook(value, hook=None) -> value: what TransformerLens calls at a hook point, value (B, T, D), or (B, T, H, D / H)."""


def load_sae(path: str | Path) -> SAE:
    """Return the SAE of a run, of an exported folder, or of SAELens, dictionary_learning or sparsify, on the CPU.

    Its encode takes activations (..., D) in the model's own units. A folder that holds one run stands for it. Raises
    UserError if there is none or it is damaged.
    """
    folder = user_path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder; give a run or the folder of an SAE")
    inside = [file.parent for file in sorted(folder.glob("*/cfg.json"))]
    if inside and not (folder / "config.yaml").exists() and not is_sae(folder):
        if len(inside) > 1:
            raise UserError(f"{path} holds {len(inside)} runs; give one of them, such as {inside[0]}")
        folder = inside[0]
    return open_sae(folder)


class ActivationStore:
    """Activations of a language model, of files or of a toy, described by overrides as on the command line.

    `ActivationStore("model=tiny", "text=wiki")`; where there is no cache yet, it is written first, by the model on
    `device`. Raises UserError for overrides that are not sound.
    """

    def __init__(self, *overrides: str, device: str = "cpu", config_dir: str | None = None) -> None:
        self.config = compose(list(overrides), config_dir)
        self.source = open_source(self.config, device)
        self.d_model: int = self.source.d_model
        self.mean_D: Tensor = self.source.mean_D

    def batches(self, size: int, start: int = 0) -> Iterator[Tensor]:
        """Yield mixed training batches `start`, `start + 1`, ... (size, D), raw units, on the CPU, without end."""
        return self.source.batches(start, size)

    def validation(self, size: int) -> Iterator[Tensor]:
        """Yield the validation rows in batches of at most `size` rows (B, D), raw units, on the CPU."""
        return self.source.validation(size)


def steer(sae: SAE, latent: int | Tensor, strength: float, first: int | None = None) -> Hook:
    """Return a hook that adds `strength` times a latent's direction at each position from `first` on (`_hook`)."""
    (chosen,) = _indices(sae, latent)
    return _hook(sae, first, lambda x: x + strength * sae.W_dec_FD[chosen].to(x))


def ablate(sae: SAE, latents: int | Sequence[int] | Tensor, first: int | None = None) -> Hook:
    """Return a hook that takes off what latents write, f_i W_dec[i], and leaves all else, the SAE's error too.

    `first`: see `_hook`.
    """
    chosen = _indices(sae, latents)

    def without(x_BTD: Tensor) -> Tensor:
        written_BTD = sae.encode(x_BTD)[..., chosen] @ sae.W_dec_FD[chosen]
        if sae.input_norm == "row":
            written_BTD = written_BTD * row_scale(x_BTD.to(written_BTD))
        return x_BTD - written_BTD.to(x_BTD)

    return _hook(sae, first, without)


def reconstruct(sae: SAE, first: int | None = None) -> Hook:
    """Return a hook that puts the SAE's reconstruction in the place of activations from position `first` on (`_hook`).

    So spliced, a model's cross-entropy is the ce_sae of eval.json.
    """
    return _hook(sae, first, lambda x: sae.forward(x)[1])


def _hook(sae: SAE, first: int | None, change: Callable[[Tensor], Tensor]) -> Hook:
    """Return a hook that changes activations from position `first` of each context on.

    first: None: 1 if the SAE was trained without the rows of BOS, as runs are by default, else 0. A value of one
    position is a later step of generation with a cache, and is changed. The model's dtype and device are kept.
    """
    if first is None:
        first = int(bool(sae.metadata.get("prepend_bos") and sae.metadata.get("drop_bos", True)))

    def hook(value: Tensor, hook: object = None) -> Tensor:
        x_BTD = value.flatten(2) if value.ndim > 3 else value
        if x_BTD.shape[-1] != len(sae.b_dec_D):
            at = sae.metadata.get("hook_name") or "another hook or model"
            raise UserError(f"activations have width {x_BTD.shape[-1]}, the SAE, of {at}, has {len(sae.b_dec_D)}")
        kept = first if x_BTD.ndim == 3 and x_BTD.shape[1] > 1 else 0
        changed_BTD = change(x_BTD[..., kept:, :]).to(x_BTD)
        return torch.cat([x_BTD[..., :kept, :], changed_BTD], dim=-2).reshape(value.shape)

    return hook


def _indices(sae: SAE, latents: int | Sequence[int] | Tensor) -> list[int]:
    given: list[int] = torch.as_tensor(latents).flatten().tolist()
    for latent in given:
        if not 0 <= latent < len(sae.b_enc_F):
            raise UserError(f"latent {latent}: this SAE has latents 0 to {len(sae.b_enc_F) - 1}")
    return given
