"""Artefacts: round trip, folded input scale, damage."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_cli.config.schema import Config, SAEConfig
from sae_cli.dictionary.artifact import SAE, load_sae, save_sae
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.stack import SAEStack
from sae_cli.errors import UserError
from sae_cli.files import read_json, sha256_of, write_json


def make_stack(nonlinearity="prolu_ste"):
    generator = torch.Generator().manual_seed(1)
    sae = SAEConfig(nonlinearity=nonlinearity, latents=9, k=3)
    stack = SAEStack.initialise([Config(sae=sae)] * 2, torch.zeros(6), "cpu", torch.empty(0))
    for tensor in stack.state().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return stack


@pytest.mark.parametrize("nonlinearity", sorted(NONLINEARITIES.keys() - {"batchtopk"}))
def test_saved_member_acts_on_raw_rows_as_the_stack_on_scaled_rows(tmp_path, nonlinearity):
    stack, scale = make_stack(nonlinearity), 0.37
    x_BD = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    save_sae(tmp_path, stack.member(1, scale, {"run_id": "abc"}))
    sae = load_sae(tmp_path)
    acts_KBF = stack.encode(x_BD * scale)
    torch.testing.assert_close(sae.encode(x_BD), acts_KBF[1])
    torch.testing.assert_close(sae.decode(sae.encode(x_BD)), stack.decode(acts_KBF)[1] / scale)
    assert sae.metadata == {"run_id": "abc"}


def test_row_normalised_members_act_on_raw_rows(tmp_path):
    stack = make_stack("prolu_relu")
    stack.settings = [replace(sae, input_norm="row") for sae in stack.settings]
    x_BD = torch.randn(20, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 30, 20).unsqueeze(1)
    save_sae(tmp_path, stack.member(0, 1.0, {}))
    acts_BF, x_hat_BD = load_sae(tmp_path).forward(x_BD)
    scale_B1 = x_BD.norm(dim=1, keepdim=True) / 6**0.5
    expected_KBF = stack.encode(x_BD / scale_B1)
    torch.testing.assert_close(acts_BF, expected_KBF[0])
    torch.testing.assert_close(x_hat_BD, stack.decode(expected_KBF)[0] * scale_B1)


def test_batchtopk_is_saved_with_its_threshold_in_scaled_units(tmp_path):
    stack, scale = make_stack("batchtopk"), 0.37
    stack.buffers_KF["threshold"].fill_(0.8)
    x_BD = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    save_sae(tmp_path, stack.member(1, scale, {}))
    sae = load_sae(tmp_path)
    z_BF = stack.pre_activations(stack.centred(x_BD * scale))[1] + stack.b_enc_KF[1]
    torch.testing.assert_close(sae.encode(x_BD), torch.where(z_BF >= 0.8, z_BF, 0))
    assert sae.k == 3


STORED = {"trec": {"threshold"}, "tlin": {"threshold"}, "jumprelu": {"threshold"}, "batchtopk": {"threshold"}}
STORED["gated"] = {"r_mag", "b_mag"}


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_an_artefact_holds_the_tensors_its_formula_needs(tmp_path, nonlinearity):
    save_sae(tmp_path, make_stack(nonlinearity).member(0, 1.0, {}))
    saved = load_file(tmp_path / "sae.safetensors")
    assert set(saved) == {"W_enc", "b_enc", "W_dec", "b_dec"} | STORED.get(nonlinearity, set())


def test_a_missing_threshold_is_named(tmp_path):
    save_sae(tmp_path, make_stack("jumprelu").member(0, 1.0, {}))
    tensors = load_file(tmp_path / "sae.safetensors")
    tensors.pop("threshold")
    save_file(tensors, tmp_path / "sae.safetensors")
    cfg = read_json(tmp_path / "cfg.json")
    write_json(tmp_path / "cfg.json", cfg | {"weights_sha256": sha256_of(tmp_path / "sae.safetensors")})
    with pytest.raises(UserError, match="threshold must have shape"):
        load_sae(tmp_path)


def test_encode_of_a_stack_equals_its_members_alone():
    stack = make_stack()
    x_BD = torch.randn(20, 6)
    for k in range(2):
        torch.testing.assert_close(stack.encode(x_BD)[k], stack.part(slice(k, k + 1)).encode(x_BD)[0])


def damaged(folder, kind):
    if kind == "missing":
        (folder / "sae.safetensors").unlink()
    elif kind == "truncated":
        file = folder / "sae.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
    else:
        cfg = read_json(folder / "cfg.json")
        cfg |= {"d_sae": 10} if kind == "shape" else {"nonlinearity": "gelu"}
        (folder / "cfg.json").write_text(json.dumps(cfg))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("missing", "is missing"), ("truncated", "damaged"), ("shape", "W_enc must have shape"), ("name", "gelu")],
)
def test_damage_is_named(tmp_path, kind, message):
    save_sae(tmp_path, make_stack().member(0, 1.0, {}))
    damaged(tmp_path, kind)
    with pytest.raises(UserError, match=message):
        load_sae(tmp_path)


def test_sae_copies_to_a_device():
    sae = make_stack().member(0, 1.0, {"a": 1}).to("cpu")
    assert isinstance(sae, SAE)
    assert sae.metadata == {"a": 1}
