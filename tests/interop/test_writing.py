"""Exported SAEs: latents and reconstructions by each library's own formula equal ours, and reading gives them back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, relu

from sae_cli.dictionary.artifact import SAE
from sae_cli.errors import UserError
from sae_cli.files import read_json
from sae_cli.interop.layouts import recognise
from sae_cli.interop.reading import load_foreign
from sae_cli.interop.writing import save_foreign
from tests.interop.test_reading import DICTIONARIES, lens_acts, rows, top

D, F, K = 6, 15, 4
KINDS = ("relu", "prolu_relu", "prolu_ste", "prolu_mixed", "prolu_hybrid", "trec", "jumprelu", "topk", "batchtopk")
THRESHOLDS = ("trec", "jumprelu", "batchtopk")


def example(kind: str, input_norm: str = "scalar") -> SAE:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stored = {"threshold": draw(F).abs()} if kind in THRESHOLDS else {}
    if kind == "batchtopk":
        stored["threshold"] = torch.full((F,), 0.7)
    if kind == "gated":
        stored = {"r_mag": draw(F) / 3, "b_mag": draw(F)}
    W_dec_FD = torch.nn.functional.normalize(draw(F, D), dim=1) * 2.5
    metadata = {"model_name": "gpt2", "hook_name": "blocks.3.hook_out", "context_size": 128, "prepend_bos": False}
    return SAE(kind, draw(D, F), draw(F), W_dec_FD, draw(D), K * (kind == "topk"), stored, input_norm, metadata)


def check(sae: SAE, x_BD: Tensor, theirs: tuple[Tensor, Tensor], folder: Path) -> None:
    ours = sae.forward(x_BD)
    assert 0.02 < float((ours[0] > 0).float().mean()) < 0.98
    for a, b, again in zip(ours, theirs, load_foreign(folder).forward(x_BD), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again, a, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["scalar", "row"])
@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_saelens(tmp_path: Path, kind: str, norm: str) -> None:
    sae, x_BD = example(kind, norm), rows(D)
    save_foreign(tmp_path, sae, "saelens")
    cfg, P = read_json(tmp_path / "cfg.json"), load_file(tmp_path / "sae_weights.safetensors")
    assert recognise(tmp_path) == "SAELens"
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert (cfg["metadata"]["model_name"], cfg["metadata"]["prepend_bos"]) == ("gpt2", False)
    factor = D**0.5 / x_BD.norm(dim=1, keepdim=True) if norm == "row" else torch.ones(len(x_BD), 1)
    acts_BF = lens_acts(P, x_BD * factor - P["b_dec"], cfg)
    check(sae, x_BD, (acts_BF, (acts_BF @ P["W_dec"] + P["b_dec"]) / factor), tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    sae, x_BD = example(kind), rows(D)
    save_foreign(tmp_path, sae, "dictionary_learning")
    cfg = json.loads((tmp_path / "config.json").read_text())["trainer"]
    P = torch.load(tmp_path / "ae.pt", weights_only=True)
    check(sae, x_BD, DICTIONARIES[cfg["dict_class"]][1](P, x_BD, cfg), tmp_path)


def test_sparsify(tmp_path: Path) -> None:
    sae, x_BD = example("topk"), rows(D)
    save_foreign(tmp_path, sae, "sparsify")
    P, cfg = load_file(tmp_path / "sae.safetensors"), read_json(tmp_path / "cfg.json")
    acts_BF = top(relu(linear(x_BD - P["b_dec"], P["encoder.weight"], P["encoder.bias"])), cfg["k"])
    check(sae, x_BD, (acts_BF, acts_BF @ P["W_dec"] + P["b_dec"]), tmp_path)


@pytest.mark.parametrize("kind", ["relu", "prolu_ste", "jumprelu", "topk", "gated"])
def test_unit_directions_change_units_only(tmp_path: Path, kind: str) -> None:
    sae, x_BD = example(kind), rows(D)
    save_foreign(tmp_path, sae, "saelens", unit=True)
    read = load_foreign(tmp_path)
    torch.testing.assert_close(read.W_dec_FD.norm(dim=1), torch.ones(F))
    (acts_BF, x_hat_BD), (read_BF, read_BD) = sae.forward(x_BD), read.forward(x_BD)
    torch.testing.assert_close(read_BF, acts_BF * 2.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read_BD, x_hat_BD, atol=1e-5, rtol=1e-5)


def uneven() -> SAE:
    sae = example("topk")
    sae.W_dec_FD[0] *= 3
    return sae


@pytest.mark.parametrize(
    ("sae", "library", "unit", "reason"),
    [
        (example("tlin"), "saelens", False, "no other library has tlin"),
        (example("relu"), "sparsify", False, "sparsify has TopK only, not relu"),
        (example("relu", "row"), "dictionary_learning", False, "input_norm=row"),
        (example("topk", "row"), "sparsify", False, "input_norm=row"),
        (uneven(), "saelens", True, "TopK would choose other latents"),
        (example("relu"), "keras", False, "--to keras: not one of saelens, dictionary_learning, sparsify"),
    ],
)
def test_what_has_no_equal_there_is_refused(tmp_path: Path, sae: SAE, library: str, unit: bool, reason: Any) -> None:
    with pytest.raises(UserError, match=reason):
        save_foreign(tmp_path / "out", sae, library, unit)
    assert not list(tmp_path.glob("out/*"))
