"""SAEs in the files of SAELens, dictionary_learning and sparsify, as ours with the same function; no pickle is run.

The formulas are those of the peers' `encode` and `decode`. What this file does not know is refused by name.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_cli.dictionary.artifact import SAE, load_sae
from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.interop.layouts import AXES, DICTIONARY_LEARNING, NOT_CENTRED, SAE_LENS, SIZES, SPARSIFY, recognise
from sae_cli.pickles import is_whole, load_plain


def open_sae(folder: Path) -> SAE:
    """Return the SAE in a folder of any library's layout, ours included; UserError if there is none that is sound."""
    return load_foreign(folder) if recognise(folder) else load_sae(folder)


def load_foreign(folder: Path) -> SAE:
    """Return the SAE in a folder that `recognise` knows; UserError names what has no equal here."""
    library = recognise(folder)
    readers = {"SAELens": _sae_lens, "dictionary_learning": _dictionary_learning, "sparsify": _sparsify}
    try:
        sae = readers[library or ""](folder)
    except (UserError, SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as problem:
        raise UserError(f"{folder}: {library}: {problem}") from problem
    sae.metadata["library"] = library
    return sae


def _sae_lens(folder: Path) -> SAE:
    cfg, tensors = read_json(folder / "cfg.json"), load_file(folder / "sae_weights.safetensors")
    cfg = (cfg.get("metadata") or {}) | cfg  # before version 6 there was no metadata
    name = cfg.get("architecture", "standard")
    function = cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    if function == "topk":
        name, cfg["k"] = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k", cfg.get("k"))
    elif function != "relu":
        raise UserError(f"activation_fn {function} is unknown")
    if not bool((tensors.pop("scaling_factor", torch.ones(1)) == 1).all()):
        raise UserError("finetuning_scaling_factor scales latents after the nonlinearity, which no SAE here does")
    cfg.setdefault("hook_name", cfg.get("hook_point"))
    scale, norm = 1.0, cfg.get("normalize_activations") or "none"
    if norm in ("expected_average_only_in", True):
        file = folder / "activation_scaler.json"
        scale = read_json(file).get("scaling_factor") if file.exists() else 0.0
        if not (type(scale) in (int, float) and 0 < scale < 1e30):
            raise UserError(f"normalize_activations {norm} needs scaling_factor in {file.name}; or fold it in SAELens")
    elif norm not in ("none", "constant_norm_rescale"):
        raise UserError(f"normalize_activations {norm} cannot be folded into the weights")
    return _convert(
        *(SAE_LENS, "architecture", name, tensors, cfg),
        centred=cfg.get("apply_b_dec_to_input", True),
        unit=name in ("topk", "batchtopk") and cfg.get("rescale_acts_by_decoder_norm", False),
        scale=float(scale),
        input_norm="row" if norm == "constant_norm_rescale" else "scalar",
    )


def _dictionary_learning(folder: Path) -> SAE:
    cfg = read_json(folder / "config.json").get("trainer", {})
    name = cfg.get("dict_class")
    try:
        tensors = {key: torch.as_tensor(value) for key, value in load_plain(folder / "ae.pt").items()}
        if not all(map(is_whole, tensors.values())):
            raise ValueError("larger than what is stored")
    except Exception as error:  # zip, pickle and tensor errors share no base class
        raise UserError(f"ae.pt is not tensors by name alone ({type(error).__name__}); no pickle is run") from error
    if "k" in tensors and int(tensors["k"]) != cfg.setdefault("k", int(tensors["k"])):
        raise UserError(f"k is {int(tensors['k'])} in ae.pt and {cfg['k']} in config.json")
    layer = re.fullmatch(r"resid_post_layer_(\d+)", cfg.get("submodule_name") or "")
    cfg |= {"model_name": cfg.get("lm_name"), "hook_name": f"blocks.{layer[1]}.hook_out" if layer else None}
    return _convert(
        *(DICTIONARY_LEARNING, "dict_class", name, tensors, cfg),
        centred=name not in NOT_CENTRED,
        unit=name == "AutoEncoder",  # its loader makes directions unit vectors
    )


def _sparsify(folder: Path) -> SAE:
    cfg = read_json(folder / "cfg.json")
    for key in ("transcode", "skip_connection", "signed"):
        if cfg.get(key):
            raise UserError(f"{key} has no equal here")
    tensors = load_file(folder / "sae.safetensors")
    return _convert(SPARSIFY, "activation", cfg.get("activation", "topk"), tensors, cfg)


def _convert(
    table: dict[str, Any],
    kind: str,
    name: Any,
    theirs: dict[str, Tensor],
    cfg: dict[str, Any],
    centred: bool = True,
    unit: bool = False,
    scale: float = 1.0,
    input_norm: str = "scalar",
) -> SAE:
    """Return our SAE of tensors under their names, which `table` translates for the `name` of their `kind`.

    centred: the encoder sees x - b_dec, as ours does; if it sees x, b_dec W_enc is added to its bias (gated: to both,
    to the magnitude's times exp(r_mag)). unit: latents are in units of their direction's norm. scale: it sees scale x.
    """
    if name not in table:
        raise UserError(f"{kind} {name} is not one of {', '.join(table)}")
    nonlinearity, names = table[name]
    if wrong := names.keys() ^ theirs.keys():
        raise UserError(f"tensors missing or unknown: {', '.join(sorted(wrong))}")
    wanted = {ours: theirs[key].float() for key, ours in names.items() if ours}
    tensors = {ours.removesuffix(".T"): value.T if ours.endswith(".T") else value for ours, value in wanted.items()}
    sizes = [next((cfg[key] for key in keys if cfg.get(key)), None) for keys in SIZES]
    width, latents = (told or found for told, found in zip(sizes, tensors["W_enc"].shape, strict=True))
    shapes = {"W_enc": (width, latents), "W_dec": (latents, width), "b_dec": (width,)}
    if "threshold" in tensors:  # peers take max(z, 0) where z is above it, ours z
        tensors["threshold"] = tensors["threshold"].clamp(min=0).expand(latents).clone()
    for ours, tensor in tensors.items():
        if tuple(tensor.shape) != (shape := shapes.get(ours, (latents,))):
            raise UserError(f"{ours} has shape {tuple(tensor.shape)}, expected {shape}")
    k: Any = cfg.get("k") if nonlinearity == "topk" else 0
    if nonlinearity == "topk" and not (type(k) is int and 1 <= k <= latents):
        raise UserError(f"k is {k}, not a whole number from 1 to {latents}")
    if unit:
        norm_F = tensors["W_dec"].norm(dim=1)
        norm_F[norm_F == 0] = 1
        tensors |= {"W_enc": tensors["W_enc"] * norm_F, "b_enc": tensors["b_enc"] * norm_F}
        tensors["W_dec"] = tensors["W_dec"] / norm_F[:, None]
    if not centred:
        shift_F = (tensors["b_dec"].double() @ tensors["W_enc"].double()).float()
        tensors["b_enc"] = tensors["b_enc"] + shift_F
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] + tensors["r_mag"].exp() * shift_F
    weights: dict[str, Any] = {f"{ours}_{axes}": tensors.pop(ours).contiguous() for ours, axes in AXES.items()}
    origin = {key: cfg.get(key) for key in ("model_name", "hook_name")}
    return SAE(nonlinearity, **weights, k=k, stored=tensors, input_norm=input_norm, metadata=origin).on_raw(scale)
