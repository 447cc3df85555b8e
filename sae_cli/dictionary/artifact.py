"""A trained SAE as files: sae.safetensors and cfg.json, readable without this package.

The input scale is folded in, so it acts on raw activations:
f = nonlinearity((x - b_dec) W_enc, b_enc, ...); x_hat = f W_dec + b_dec. The formulas, by the nonlinearity's name, are
those of `dictionary/nonlinearities`; some need further vectors (F,), stored beside the four tensors, or k. With
`input_norm: row` each x is first brought to norm sqrt(D), and x_hat back to the norm of x.
"""

import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.errors import UserError
from sae_cli.files import open_new, read_json, refuse_newer, replace_atomically, sha256_of, write_json
from sae_cli.ranks import Ranks

ARTIFACT_VERSION = 1
SHAPES = {"W_enc_DF": ("D", "F"), "b_enc_F": ("F",), "W_dec_FD": ("F", "D"), "b_dec_D": ("D",)}


@dataclass
class SAE:
    """One sparse autoencoder in raw units."""

    nonlinearity: str
    W_enc_DF: Tensor
    b_enc_F: Tensor
    W_dec_FD: Tensor
    b_dec_D: Tensor
    k: int = 0
    """Latents per row of nonlinearities that count them."""
    stored: dict[str, Tensor] = field(default_factory=dict)
    """What the nonlinearity needs beside b_enc, (F,) by name."""
    input_norm: str = "scalar"
    """scalar: acts on raw x | row: acts on x brought to norm sqrt(D)."""
    metadata: dict[str, Any] = field(default_factory=dict)

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents (..., F) and reconstructions (..., D) of activations (..., D), raw units in and out."""
        acts_BF = self.encode(x_BD)
        x_hat_BD = self.decode(acts_BF)
        return acts_BF, x_hat_BD if self.input_norm == "scalar" else x_hat_BD * row_scale(x_BD.to(x_hat_BD))

    def encode(self, x_BD: Tensor) -> Tensor:
        """Return latents (..., F) of activations (..., D) in raw units, on the device and in the precision of the SAE.

        Each vector is encoded by itself, so the leading axes may be rows, or sequences and their positions.
        """
        rows_ND = x_BD.to(self.W_enc_DF).reshape(-1, x_BD.shape[-1])
        if self.input_norm == "row":
            rows_ND = rows_ND / row_scale(rows_ND)
        m_NF = (rows_ND - self.b_dec_D) @ self.W_enc_DF
        acts_NF = NONLINEARITIES[self.nonlinearity].infer(m_NF, {"b_enc": self.b_enc_F, **self.stored}, self.k)
        return acts_NF.view(*x_BD.shape[:-1], acts_NF.shape[-1])

    def decode(self, acts_BF: Tensor) -> Tensor:
        """Return reconstructions (..., D), raw units; with input_norm=row in units in which ||x||^2 = D."""
        return acts_BF @ self.W_dec_FD + self.b_dec_D

    def to(self, device: str | torch.device) -> "SAE":
        """Return a copy on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in SHAPES}
        stored = {name: tensor.to(device) for name, tensor in self.stored.items()}
        return replace(self, **tensors, stored=stored)

    def on_raw(self, scale: float) -> "SAE":
        """Return the SAE that acts on raw x as this one acts on scale * x; latents keep their values."""
        W_dec_FD, b_dec_D = self.W_dec_FD / scale, self.b_dec_D / scale
        return replace(self, W_enc_DF=self.W_enc_DF * scale, W_dec_FD=W_dec_FD, b_dec_D=b_dec_D)


def row_scale(x_BD: Tensor) -> Tensor:
    """Return ||x|| / sqrt(D) of each row (B, 1); 1 for rows of zeros."""
    norm_B1 = x_BD.norm(dim=-1, keepdim=True) / x_BD.shape[-1] ** 0.5
    return torch.where(norm_B1 > 0, norm_B1, 1)


def save_sae(folder: Path, sae: SAE) -> None:
    """Write sae.safetensors, then cfg.json, each atomically."""
    replace_atomically(folder / "sae.safetensors", save(_tensors(sae)))
    _save_settings(folder, sae, sae.W_enc_DF.shape[1])


def save_shares(folder: Path, sae: SAE, ranks: Ranks) -> None:
    """Write the same of an SAE whose latents are shared out to ranks; the first has two shares in memory at most."""
    shares, file, latents = _tensors(sae), folder / "sae.safetensors", sae.W_enc_DF.shape[1]
    begun = file.with_name(f".{file.name}.tmp")
    whole: dict[str, Any] = _begin(begun, shares, ranks.size) if ranks.first else {}
    for source in range(ranks.size):
        own = slice(source * latents, (source + 1) * latents)
        for name, share in shares.items():
            if (values := ranks.to_first(share, source)) is not None:
                whole[name][{"W_enc": (slice(None), own), "b_dec": slice(None)}.get(name, own)] = values.numpy()
    if ranks.first:
        for place in whole.values():
            place.flush()
        begun.replace(file)
        _save_settings(folder, sae, latents * ranks.size)


def _tensors(sae: SAE) -> dict[str, Tensor]:
    """Return what an artefact stores, on the CPU."""
    tensors = {name.rsplit("_", 1)[0]: getattr(sae, name).contiguous().cpu() for name in SHAPES}
    return tensors | {name: tensor.contiguous().cpu() for name, tensor in sae.stored.items()}


def _begin(file: Path, shares: dict[str, Tensor], count: int) -> dict[str, np.memmap]:
    """Begin a safetensors file for so many shares of fp32 latents; return its tensors as arrays that lie in it."""
    many = {"W_enc": (1, count), "W_dec": (count, 1), "b_dec": (1,)}
    shapes = {name: tuple(map(mul, share.shape, many.get(name, (count,)))) for name, share in shares.items()}
    ends = np.cumsum([4 * math.prod(shape) for shape in shapes.values()]).tolist()
    offsets = dict(zip(shapes, pairwise([0, *ends]), strict=True))
    header = {n: {"dtype": "F32", "shape": shapes[n], "data_offsets": offsets[n]} for n in shapes}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open_new(file) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + ends[-1])
    return {n: np.memmap(file, "<f4", "r+", 8 + len(text) + offsets[n][0], shapes[n]) for n in shapes}


def _save_settings(folder: Path, sae: SAE, latents: int) -> None:
    width = len(sae.b_dec_D)
    cfg = {"version": ARTIFACT_VERSION, "nonlinearity": sae.nonlinearity, "d_in": width, "d_sae": latents}
    weights = sha256_of(folder / "sae.safetensors")
    further = {"k": sae.k, "input_norm": sae.input_norm, "metadata": sae.metadata, "weights_sha256": weights}
    write_json(folder / "cfg.json", cfg | further)


def load_sae(folder: Path) -> SAE:
    """Read an artefact; UserError names what is missing or does not fit."""
    for name in ("cfg.json", "sae.safetensors"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; train the run to its end first")
    try:
        cfg = read_json(folder / "cfg.json")
        refuse_newer(folder / "cfg.json", cfg.get("version"), ARTIFACT_VERSION)
        tensors = load_file(folder / "sae.safetensors")
        sizes = {"D": cfg["d_in"], "F": cfg["d_sae"]}
        nonlinearity, metadata, k = cfg["nonlinearity"], cfg["metadata"], cfg.get("k", 0)
        input_norm = cfg.get("input_norm", "scalar")
        if cfg.get("weights_sha256", sha := sha256_of(folder / "sae.safetensors")) != sha:
            raise ValueError("sae.safetensors is not what cfg.json was written with")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds a damaged SAE artefact: {error}") from error
    if nonlinearity not in NONLINEARITIES:
        raise UserError(f"{folder / 'cfg.json'}: unknown nonlinearity {nonlinearity!r}; is it of a newer sae-cli?")
    shapes = {name.rsplit("_", 1)[0]: (name, axes) for name, axes in SHAPES.items()}
    shapes |= {name: (name, ("F",)) for name in NONLINEARITIES[nonlinearity].stored}
    named: dict[str, Tensor] = {}
    for key, (name, axes) in shapes.items():
        shape = tuple(sizes[axis] for axis in axes)
        if key not in tensors or tuple(tensors[key].shape) != shape or not tensors[key].is_floating_point():
            raise UserError(f"{folder / 'sae.safetensors'}: {key} must have shape {shape}, in floats")
        named[name] = tensors[key].float()
    sound = type(k) is int and k >= (nonlinearity == "topk") and isinstance(metadata, dict)
    if not sound or input_norm not in ("scalar", "row"):
        raise UserError(f"{folder / 'cfg.json'}: k={k}, input_norm={input_norm} or metadata is not sound")
    stored = {name: named.pop(name) for name in NONLINEARITIES[nonlinearity].stored}
    return SAE(nonlinearity, k=k, stored=stored, input_norm=input_norm, metadata=metadata, **named)
