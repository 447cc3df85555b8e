"""How SAELens, dictionary_learning and sparsify lay out an SAE: files, and tensors by their names and ours."""

from pathlib import Path

PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
THRESHOLD = PLAIN | {"threshold": "threshold"}
ENCODER = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc"}
LINEAR = ENCODER | {"decoder.weight": "W_dec.T"}
CENTRED = LINEAR | {"b_dec": "b_dec", "k": ""}
GATED = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec", "b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"}
SAE_LENS = {
    "standard": ("relu", PLAIN),
    "jumprelu": ("jumprelu", THRESHOLD),
    "topk": ("topk", PLAIN),
    "batchtopk": ("jumprelu", PLAIN | {"topk_threshold": "threshold"}),
    "gated": ("gated", GATED),
}
"""Nonlinearity and tensors (theirs to ours) by architecture. BatchTopK fires above its threshold, as JumpReLU does."""
DICTIONARY_LEARNING = {
    "AutoEncoder": ("relu", LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": ("relu", LINEAR | {"decoder.bias": "b_dec"}),
    "JumpReluAutoEncoder": ("jumprelu", THRESHOLD),
    "AutoEncoderTopK": ("topk", CENTRED | {"threshold": ""}),
    "BatchTopKSAE": ("jumprelu", CENTRED | {"threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", THRESHOLD | {"k": "", "group_sizes": ""}),
    "GatedAutoEncoder": (
        "gated",
        {"encoder.weight": "W_enc.T", "decoder.weight": "W_dec.T", "decoder_bias": "b_dec"}
        | {"gate_bias": "b_enc", "mag_bias": "b_mag", "r_mag": "r_mag"},
    ),
}
"""Nonlinearity and tensors (theirs to ours, .T transposed, empty unused) by dict_class."""
NOT_CENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
"""Classes that do not take the decoder bias off x."""
SPARSIFY = {"topk": ("topk", ENCODER | {"W_dec": "W_dec", "b_dec": "b_dec"})}
SIZES = (("d_in", "activation_dim"), ("d_sae", "dict_size", "num_latents"))
"""What configurations call D and F."""
AXES = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}


def recognise(folder: Path) -> str | None:
    """Return the library whose layout a folder has, None for other folders."""
    if (folder / "ae.pt").exists():
        return "dictionary_learning"
    if (folder / "cfg.json").is_file() and (folder / "sae_weights.safetensors").exists():
        return "SAELens"
    if (folder / "cfg.json").is_file() and (folder / "sae.safetensors").exists():
        return None if b'"nonlinearity"' in (folder / "cfg.json").read_bytes() else "sparsify"
    return None
