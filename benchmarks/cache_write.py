"""Tokens per second of `sae cache`, text to disk, against the bare forward pass to the same hook, in turn in one process.

The bare forward passes see the same contexts, tokenised beforehand, at the same precision and batch, end at the same
layer and keep its activation: one is transformers' own model, the other TransformerLens' bridge around it. Ours is all
of the command but loading: tokenising, forward pass, selection, cast, shuffle, SHA-256, write and fsync.
Models: one of GPT-2's width with random weights, so that the forward pass dominates as it does in use, and the bundled one.
Usage: OMP_NUM_THREADS=2 python benchmarks/cache_write.py [--rounds N] [--tokens N] [--out FILE]
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from publish import publish
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sae_cli.assets import TINY
from sae_cli.config.compose import compose
from sae_cli.config.schema import Config
from sae_cli.sources.language_model import LanguageModelRows
from sae_cli.store.writer import write_caches

WIDTH, LAYERS, HEADS = 768, 6, 12
BATCH, CONTEXT = 16, 128


class Stop(Exception):
    """Ends a forward pass at the layer that is wanted."""


def wide_model(folder: Path) -> Path:
    """Write a model of GPT-2 small's width with random weights and the bundled tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_positions=256, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def bare_transformers(config: Config) -> Callable[[Tensor], Tensor]:
    path = str(TINY) if config.model.path.startswith("bundled") else config.model.path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.model.dtype)).eval()
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept[:] = [output if isinstance(output, Tensor) else output[0]]
        raise Stop

    layers[int(config.model.hook.split(".")[1])].register_forward_hook(keep)

    def run(tokens_CT: Tensor) -> Tensor:
        with torch.inference_mode(), suppress(Stop):
            model(tokens_CT, use_cache=False)
        return kept[0]

    return run


def measure(name: str, path: str, layer: int, dtype: str, arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Return tokens per second of each way, and ours over the bare ones, turn by turn."""
    passes = -(-arguments.tokens // (BATCH * CONTEXT))
    tokens = passes * BATCH * CONTEXT
    words = [f"model.path={path}", f"model.hook=blocks.{layer}.hook_out", f"model.dtype={dtype}"]
    words += [f"model.batch={BATCH}", f"model.context={CONTEXT}", f"cache.dtype={dtype}"]
    config = compose([*words, "text=wiki", f"cache.tokens={passes * BATCH * (CONTEXT - 1)}"])
    cache = replace(config.cache, validation_tokens=0)
    source, bare, seeds = LanguageModelRows(config, "cpu"), bare_transformers(config), count()
    contexts = [batch.tokens_CT for batch in islice(source.model.contexts(config.text, "train"), passes)]

    def ours() -> None:
        folder = root / "cache"
        write_caches(source, replace(cache, seed=next(seeds)), {config.model.hook: folder})
        shutil.rmtree(folder)

    def over(run: Callable[[Tensor], Any]) -> Callable[[], None]:
        def each() -> None:
            for tokens_CT in contexts:
                run(tokens_CT)

        return each

    bridge = source.model.read
    ways = {
        "transformers": over(bare),
        "bridge": over(lambda tokens_CT: bridge(tokens_CT, [config.model.hook])),
        "sae cache": ours,
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(arguments.rounds):
        for way in [*ways][:: 1 - turn % 2 * 2]:
            start = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - start)
    ratios = {
        way: round(statistics.median(a / b for a, b in zip(seconds[way], seconds["sae cache"], strict=True)), 3)
        for way in ("transformers", "bridge")
    }
    return {
        "model": name,
        "dtype": dtype,
        "tokens_per_second": {way: round(tokens / statistics.median(found)) for way, found in seconds.items()},
        "sae cache / bare": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = {"wide": (str(wide_model(root / "wide")), LAYERS - 1), "tiny": ("bundled:tiny", 1)}
        rows = [
            measure(name, *model, dtype, arguments, root)
            for name, model in models.items()
            for dtype in ("float32", "bfloat16")
        ]
    what = f"tokens per second of sae cache and of the bare forward pass, {BATCH} contexts of {CONTEXT}, turn by turn"
    publish(
        {"what": what, "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1), "rows": rows},
        arguments.out,
    )


if __name__ == "__main__":
    main()
