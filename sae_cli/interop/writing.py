"""An SAE as the files of SAELens, dictionary_learning or sparsify, with the same function there.

Every nonlinearity here but TLin is one of four forms there: ReLU, JumpReLU, TopK, Gated. ProLU fires where m > max(0,
-b), which is a JumpReLU without a bias; BatchTopK's artefact has a threshold.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sae_cli.dictionary.artifact import SAE
from sae_cli.errors import UserError
from sae_cli.files import replace_atomically, write_json
from sae_cli.interop.layouts import DICTIONARY_LEARNING, NOT_CENTRED, SAE_LENS, SPARSIFY

LAYOUT_OF = "6.0.0"
"""Release of SAELens from which its cfg.json has the keys written here."""
ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "gated": "gated"}
"""SAELens's names of the four forms."""
CLASSES = {
    "relu": "AutoEncoderNew",  # AutoEncoder's loader would bring its directions to norm 1
    "jumprelu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "gated": "GatedAutoEncoder",
}
"""dictionary_learning's."""


def save_foreign(folder: Path, sae: SAE, library: str, unit: bool = False) -> None:
    """Write an SAE into a folder in the layout of a library of WRITERS.

    unit: directions get norm 1 and latents the units that go with them (SAEBench wants this); else both are kept.
    Raises UserError if the library has no SAE that does the same.
    """
    if library not in WRITERS:
        raise UserError(f"--to {library}: not one of {', '.join(WRITERS)}")
    form, tensors = canonical(sae)
    if unit:
        tensors = with_unit_directions(form, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[library](folder, sae, form, tensors)


def canonical(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """Return relu | jumprelu | topk | gated and the tensors of this form: f of z = (x - b_dec) W_enc + b_enc.

    jumprelu: z where z > threshold (F,) >= 0.
    """
    b, stored, name = sae.b_enc_F, sae.stored, sae.nonlinearity
    tensors = {"W_enc": sae.W_enc_DF, "b_enc": b, "W_dec": sae.W_dec_FD, "b_dec": sae.b_dec_D}
    zeros = torch.zeros_like(b)
    if name in ("relu", "topk", "gated", "jumprelu"):
        return name, tensors | stored
    if name in ("prolu_relu", "prolu_ste", "prolu_mixed"):
        return "jumprelu", tensors | {"b_enc": zeros, "threshold": (-b).clamp(min=0)}
    if name == "prolu_hybrid":
        return "jumprelu", tensors | {"b_enc": b.clamp(min=0), "threshold": (-b).clamp(min=0)}
    if name == "trec":
        return "jumprelu", tensors | {"b_enc": zeros, "threshold": stored["threshold"]}
    if name == "batchtopk":  # it fires at the threshold too
        below = torch.nextafter(stored["threshold"], torch.full_like(b, -torch.inf))
        return "jumprelu", tensors | {"threshold": below.clamp(min=0)}
    raise UserError(f"no other library has {name}, and its latents are not those of relu, jumprelu, topk or gated")


def with_unit_directions(form: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the same reconstruction whose latents are in units of their direction's norm.

    Raises UserError for TopK if norms differ: other latents would then be the largest.
    """
    norm_F = tensors["W_dec"].norm(dim=1)
    norm_F = torch.where(norm_F > 0, norm_F, 1)
    if form == "topk" and norm_F.max() > norm_F.min() * (1 + 1e-3):
        raise UserError("--unit: norms of directions differ, and TopK would choose other latents; leave --unit out")
    scaled = {name: tensors[name] * norm_F for name in ("W_enc", "b_enc", "threshold", "b_mag") if name in tensors}
    return tensors | scaled | {"W_dec": tensors["W_dec"] / norm_F[:, None]}


def _sae_lens(folder: Path, sae: SAE, form: str, tensors: dict[str, Tensor]) -> None:
    architecture = ARCHITECTURES[form]
    width, latents = sae.W_enc_DF.shape
    hook = str(sae.metadata.get("hook_name") or "")
    for ours, theirs in (("hook_out", "hook_resid_post"), ("hook_in", "hook_resid_pre")):
        hook = hook.replace(f".{ours}", f".{theirs}")  # what TransformerLens called them up to version 3
    cfg = {
        "architecture": architecture,
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none" if sae.input_norm == "scalar" else "constant_norm_rescale",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": LAYOUT_OF,
            "model_name": sae.metadata.get("model_name"),
            "hook_name": hook or None,
            "context_size": sae.metadata.get("context_size"),
            "prepend_bos": sae.metadata.get("prepend_bos", True),
        },
    }
    if form == "topk":
        cfg |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    replace_atomically(folder / "sae_weights.safetensors", save(_named(SAE_LENS[architecture][1], tensors)))
    write_json(folder / "cfg.json", cfg)


def _dictionary_learning(folder: Path, sae: SAE, form: str, tensors: dict[str, Tensor]) -> None:
    _refuse_row_norm(sae, "dictionary_learning")
    name = CLASSES[form]
    if name in NOT_CENTRED:
        shift_F = (tensors["b_dec"].double() @ tensors["W_enc"].double()).float()
        tensors = tensors | {"b_enc": tensors["b_enc"] - shift_F}
    state = _named(DICTIONARY_LEARNING[name][1], tensors)
    if form == "topk":
        state |= {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    width, latents = sae.W_enc_DF.shape
    trainer = {
        "dict_class": name,
        "activation_dim": width,
        "dict_size": latents,
        "lm_name": sae.metadata.get("model_name"),
        "submodule_name": sae.metadata.get("hook_name"),
    }
    stream = io.BytesIO()
    torch.save(state, stream)
    replace_atomically(folder / "ae.pt", stream.getvalue())
    write_json(folder / "config.json", {"trainer": trainer | ({"k": sae.k} if form == "topk" else {})})


def _sparsify(folder: Path, sae: SAE, form: str, tensors: dict[str, Tensor]) -> None:
    _refuse_row_norm(sae, "sparsify")
    if form != "topk":
        raise UserError(f"sparsify has TopK only, not {sae.nonlinearity}; export to saelens or dictionary_learning")
    width, latents = sae.W_enc_DF.shape
    replace_atomically(folder / "sae.safetensors", save(_named(SPARSIFY["topk"][1], tensors)))
    cfg = {"activation": "topk", "d_in": width, "num_latents": latents, "k": sae.k, "normalize_decoder": False}
    write_json(folder / "cfg.json", cfg | {"multi_topk": False, "skip_connection": False, "transcode": False})


WRITERS: dict[str, Callable[[Path, SAE, str, dict[str, Tensor]], None]] = {
    "saelens": _sae_lens,
    "dictionary_learning": _dictionary_learning,
    "sparsify": _sparsify,
}


def _named(names: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return our tensors under the names (theirs to ours, .T transposed, empty unused) of a layout."""
    wanted = {key: ours for key, ours in names.items() if ours}
    return {
        key: (tensors[ours.removesuffix(".T")].T if ours.endswith(".T") else tensors[ours]).contiguous().float().cpu()
        for key, ours in wanted.items()
    }


def _refuse_row_norm(sae: SAE, library: str) -> None:
    if sae.input_norm == "row":
        raise UserError(f"{library} has no SAE that normalises each row (sae.input_norm=row); export to saelens")
