"""SAEs of other libraries: activations and reconstructions against each peer's formula, written out; refusals."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, relu

from sae_cli.dictionary.artifact import save_sae
from sae_cli.errors import UserError
from sae_cli.interop.layouts import recognise
from sae_cli.interop.reading import load_foreign
from tests.evaluation.saes import random_sae

Forward = Callable[[dict[str, Tensor], Tensor, dict[str, Any]], tuple[Tensor, Tensor]]
SIZES = [(6, 15), (9, 9)]
"""D and F; where they are equal a wrong orientation would pass a check of shapes."""


def draw(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def rows(width: int) -> Tensor:
    return torch.randn(50, width, generator=torch.Generator().manual_seed(4)) * 2 + 0.5


def top(z: Tensor, k: int) -> Tensor:
    kept = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, kept.indices, kept.values)


def check(folder: Path, x: Tensor, acts: Tensor, x_hat: Tensor) -> None:
    ours_acts, ours_x_hat = load_foreign(folder).forward(x)
    assert 0.02 < float((acts > 0).float().mean()) < 0.98
    torch.testing.assert_close(ours_acts, acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours_x_hat, x_hat, atol=1e-5, rtol=1e-5)


# --- SAELens: sae_in = scale x - apply_b_dec_to_input * b_dec; x_hat = f W_dec + b_dec, in its units


def lens_acts(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> Tensor:
    z = x @ P["W_enc"]
    norm = P["W_dec"].norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else 1
    match cfg["architecture"]:
        case "standard":
            return relu(z + P["b_enc"])
        case "jumprelu":
            return relu(z + P["b_enc"]) * (z + P["b_enc"] > P["threshold"])
        case "topk":
            return relu(top((z + P["b_enc"]) * norm, cfg["k"]))
        case "batchtopk":
            return (z + P["b_enc"]) * norm * ((z + P["b_enc"]) * norm > P["topk_threshold"])
        case _:
            gate = (z + P["b_gate"] > 0).float()
            return gate * relu(x @ (P["W_enc"] * P["r_mag"].exp()) + P["b_mag"])


LENS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"architecture": "standard"}, {"b_enc": "F"}),
    ({"architecture": "jumprelu"}, {"b_enc": "F", "threshold": "F"}),
    ({"architecture": "topk", "k": 4}, {"b_enc": "F"}),
    ({"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}, {"b_enc": "F"}),
    ({"architecture": "batchtopk", "k": 4.5}, {"b_enc": "F", "topk_threshold": ""}),
    (
        {"architecture": "batchtopk", "k": 4, "rescale_acts_by_decoder_norm": True},
        {"b_enc": "F", "topk_threshold": ""},
    ),
    ({"architecture": "gated"}, {"b_gate": "F", "b_mag": "F", "r_mag": "F"}),
]


def write_lens(folder: Path, cfg: dict[str, Any], vectors: dict[str, str], width: int, latents: int) -> dict:
    P = draw(
        W_enc=(width, latents),
        W_dec=(latents, width),
        b_dec=(width,),
        **{name: (latents,) * len(axes) for name, axes in vectors.items()},
    )
    if "topk_threshold" in P:
        P["topk_threshold"] = torch.tensor(1.3, dtype=torch.float64)
    save_file(P, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": width, "d_sae": latents, "dtype": "float32", **cfg}))
    return P


@pytest.mark.parametrize(("width", "latents"), SIZES)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("cfg", "vectors"), LENS)
def test_sae_lens(
    tmp_path: Path, cfg: dict[str, Any], vectors: dict[str, str], centred: bool, width: int, latents: int
) -> None:
    P = write_lens(tmp_path, cfg | {"apply_b_dec_to_input": centred}, vectors, width, latents)
    x = rows(width)
    acts = lens_acts(P, x - P["b_dec"] * centred, cfg)
    unit = P["W_dec"] / P["W_dec"].norm(dim=-1, keepdim=True)
    x_hat = acts @ (unit if cfg.get("rescale_acts_by_decoder_norm") else P["W_dec"]) + P["b_dec"]
    check(tmp_path, x, acts, x_hat)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("cfg", "vectors"), [LENS[1], LENS[-1]])
def test_sae_lens_with_normalised_inputs(tmp_path: Path, cfg: dict[str, Any], vectors: Any, centred: bool) -> None:
    cfg = cfg | {"apply_b_dec_to_input": centred}
    x, scale = rows(6), 0.4
    P = write_lens(tmp_path, cfg | {"normalize_activations": "expected_average_only_in"}, vectors, 6, 15)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    acts = lens_acts(P, x * scale - P["b_dec"] * centred, cfg)
    check(tmp_path, x, acts, (acts @ P["W_dec"] + P["b_dec"]) / scale)
    P = write_lens(tmp_path, cfg | {"normalize_activations": "constant_norm_rescale"}, vectors, 6, 15)
    factor = 6**0.5 / x.norm(dim=-1, keepdim=True)
    acts = lens_acts(P, x * factor - P["b_dec"] * centred, cfg)
    check(tmp_path, x, acts, (acts @ P["W_dec"] + P["b_dec"]) / factor)


def test_sae_lens_before_version_6(tmp_path: Path) -> None:
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_point": "blocks.3.hook_resid_pre"}
    P = write_lens(tmp_path, old | {"normalize_activations": False, "model_name": "gpt2-small"}, {"b_enc": "F"}, 6, 15)
    x = rows(6)
    acts = relu(top((x - P["b_dec"]) @ P["W_enc"] + P["b_enc"], 3))
    check(tmp_path, x, acts, acts @ P["W_dec"] + P["b_dec"])
    metadata = load_foreign(tmp_path).metadata
    assert metadata == {"library": "SAELens", "model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_pre"}


# --- dictionary_learning: nn.Linear weights are (out, in)


def dl_auto(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    f = relu(linear(x - P["bias"], P["encoder.weight"], P["encoder.bias"]))
    # from_pretrained makes decoder columns unit vectors, which scales the latents by their norms
    return f * P["decoder.weight"].norm(dim=0), linear(f, P["decoder.weight"]) + P["bias"]


def dl_new(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    f = relu(linear(x, P["encoder.weight"], P["encoder.bias"]))
    return f, linear(f, P["decoder.weight"], P["decoder.bias"])


def dl_jump(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    z = x @ P["W_enc"] + P["b_enc"]
    f = relu(z * (z > P["threshold"]))
    return f, f @ P["W_dec"] + P["b_dec"]


def dl_topk(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    f = top(relu(linear(x - P["b_dec"], P["encoder.weight"], P["encoder.bias"])), cfg["k"])
    return f, linear(f, P["decoder.weight"]) + P["b_dec"]


def dl_batch(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    f = relu(linear(x - P["b_dec"], P["encoder.weight"], P["encoder.bias"]))
    f = f * (f > P["threshold"])
    return f, linear(f, P["decoder.weight"]) + P["b_dec"]


def dl_matryoshka(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    f = relu((x - P["b_dec"]) @ P["W_enc"] + P["b_enc"])
    f = f * (f > P["threshold"])
    return f, f @ P["W_dec"] + P["b_dec"]


def dl_gated(P: dict[str, Tensor], x: Tensor, cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    z = linear(x - P["decoder_bias"], P["encoder.weight"])
    f = (z + P["gate_bias"] > 0) * relu(P["r_mag"].exp() * z + P["mag_bias"])
    return f, linear(f, P["decoder.weight"]) + P["decoder_bias"]


LINEAR = {"encoder__weight": "FD", "encoder__bias": "F", "decoder__weight": "DF"}
PLAIN = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
DICTIONARIES: dict[str, tuple[dict[str, str], Forward]] = {
    "AutoEncoder": ({**LINEAR, "bias": "D"}, dl_auto),
    "AutoEncoderNew": ({**LINEAR, "decoder__bias": "D"}, dl_new),
    "JumpReluAutoEncoder": ({**PLAIN, "threshold": "F"}, dl_jump),
    "AutoEncoderTopK": ({**LINEAR, "b_dec": "D"}, dl_topk),
    "BatchTopKSAE": ({**LINEAR, "b_dec": "D"}, dl_batch),
    "MatryoshkaBatchTopKSAE": (PLAIN, dl_matryoshka),
    "GatedAutoEncoder": (
        {"encoder__weight": "FD", "decoder__weight": "DF", "decoder_bias": "D"}
        | {"gate_bias": "F", "mag_bias": "F", "r_mag": "F"},
        dl_gated,
    ),
}


def write_dictionary(folder: Path, name: str, width: int = 6, latents: int = 15, threshold: float = 0.8) -> tuple:
    axes, forward = DICTIONARIES[name]
    P = draw(**{key: tuple({"D": width, "F": latents}[axis] for axis in value) for key, value in axes.items()})
    cfg: dict[str, Any] = {"dict_class": name, "activation_dim": width, "dict_size": latents, "lm_name": "EleutherAI/x"}
    if "TopK" in name:
        cfg["k"] = 4
        P |= {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(threshold)}
    if name.startswith("Matryoshka"):
        P["group_sizes"] = torch.tensor([latents - 3, 3])
    torch.save(P, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": cfg, "buffer": {}}))
    return P, cfg, forward


@pytest.mark.parametrize(("width", "latents"), SIZES)
@pytest.mark.parametrize("threshold", [0.8, -1.0])  # -1: no training step has set it
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(tmp_path: Path, name: str, threshold: float, width: int, latents: int) -> None:
    P, cfg, forward = write_dictionary(tmp_path, name, width, latents, threshold)
    x = rows(width)
    check(tmp_path, x, *forward(P, x, cfg))


# --- sparsify: topk(relu(linear(x - b_dec))); W_dec is (F, D)


@pytest.mark.parametrize(("width", "latents"), SIZES)
def test_sparsify(tmp_path: Path, width: int, latents: int) -> None:
    F, D = latents, width
    P = draw(encoder__weight=(F, D), encoder__bias=(F,), W_dec=(F, D), b_dec=(D,))
    save_file(P, tmp_path / "sae.safetensors")
    cfg = {"activation": "topk", "num_latents": 0, "k": 4, "d_in": D, "multi_topk": True, "transcode": False}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    assert recognise(tmp_path) == "sparsify"
    x = rows(width)
    acts = top(relu(linear(x - P["b_dec"], P["encoder.weight"], P["encoder.bias"])), 4)
    check(tmp_path, x, acts, acts @ P["W_dec"] + P["b_dec"])
    for key, value in {"activation": "groupmax", "transcode": True, "skip_connection": True, "d_in": 5}.items():
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | {key: value}))
        with pytest.raises(UserError, match=f"sparsify: ({key}|W_enc has shape)"):
            load_foreign(tmp_path)


# --- refusals


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "temporal"}, "architecture temporal is not one of standard, jumprelu"),
        ({"normalize_activations": "layer_norm"}, "layer_norm cannot be folded"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening cannot be folded"),
        ({"normalize_activations": "expected_average_only_in"}, "scaling_factor in activation_scaler.json"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn tanh-relu"),
        ({"architecture": "gated"}, "missing or unknown: b_enc, b_gate, b_mag, r_mag"),
        ({"architecture": "topk"}, "k is None, not a whole number from 1 to 15"),
        ({"architecture": "topk", "k": 16}, "k is 16"),
        ({"d_sae": 14}, r"W_enc has shape \(6, 15\), expected \(6, 14\)"),
    ],
)
def test_what_has_no_equal_here_is_refused_by_name(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    write_lens(tmp_path, {"architecture": "standard"} | change, {"b_enc": "F"}, 6, 15)
    with pytest.raises(UserError, match=f"SAELens: .*{reason}"):
        load_foreign(tmp_path)


def test_finetuned_and_damaged_sae_lens_weights_are_refused(tmp_path: Path) -> None:
    P = write_lens(tmp_path, {"architecture": "standard"}, {"b_enc": "F"}, 6, 15)
    save_file(P | {"scaling_factor": torch.ones(15)}, tmp_path / "sae_weights.safetensors")
    load_foreign(tmp_path)
    save_file(P | {"scaling_factor": torch.full((15,), 1.1)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(UserError, match="finetuning_scaling_factor"):
        load_foreign(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_foreign(tmp_path)


def test_a_transposed_file_is_refused(tmp_path: Path) -> None:
    P, _, _ = write_dictionary(tmp_path, "AutoEncoder")
    torch.save(P | {"encoder.weight": P["encoder.weight"].T.contiguous()}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match="W_enc has shape"):
        load_foreign(tmp_path)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_pickles_are_refused_and_never_run(tmp_path: Path) -> None:
    P, cfg, _ = write_dictionary(tmp_path, "AutoEncoder")
    for content in ({**P, "x": Harmful(tmp_path / "ran")}, Harmful(tmp_path / "ran")):
        torch.save(content, tmp_path / "ae.pt")
        with pytest.raises(UserError, match="no pickle is run"):
            load_foreign(tmp_path)
        (tmp_path / "ae.pt").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(UserError, match="no pickle is run"):
            load_foreign(tmp_path)
    assert not (tmp_path / "ran").exists()
    write_dictionary(tmp_path, "AutoEncoder")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": cfg | {"dict_class": "CrossCoder"}}))
    with pytest.raises(UserError, match="dict_class CrossCoder is not one of AutoEncoder"):
        load_foreign(tmp_path)
    write_dictionary(tmp_path, "BatchTopKSAE")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": 5}}))
    with pytest.raises(UserError, match=r"k is 4 in ae.pt and 5 in config.json"):
        load_foreign(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_foreign(tmp_path)


def test_our_own_artefact_and_other_folders_are_not_foreign(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None
    save_sae(tmp_path, random_sae(6, 15))
    assert recognise(tmp_path) is None
