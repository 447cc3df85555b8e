"""Tokens per second of `sae cache`, from text to disk, against bare forward passes to the same hook, in turn.

The bare passes see the same contexts, tokenised beforehand, at the same precision and batch, end at the same layer and
keep its activation: through transformers' own model, and through TransformerLens' bridge around it, which `sae` reads.
`sae cache` is all of the command but loading: tokenising, forward pass, selection, cast, shuffle, SHA-256, write and
fsync.
Models: a Llama of GPT-2 small's width with random weights, whose forward pass dominates as in use; the bundled one.
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
from transformers import LlamaConfig, LlamaForCausalLM

from sae_cli.assets import TINY
from sae_cli.config.compose import compose
from sae_cli.config.schema import Config
from sae_cli.sources.language_model import LanguageModelRows
from sae_cli.store import writer

WIDTH, LAYERS, HEADS, HIDDEN = 768, 6, 12, 2048
BATCH, CONTEXT = 16, 128


class Stop(Exception):
    """Ends a forward pass at the layer that is wanted."""


def wide_model(folder: Path) -> Path:
    """Write a Llama of GPT-2 small's width with random weights and the bundled tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, **sizes)).save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def bare_transformers(config: Config) -> Callable[[Tensor], Tensor]:
    path = str(TINY) if config.model.path.startswith("bundled") else config.model.path
    model = LlamaForCausalLM.from_pretrained(path, dtype=getattr(torch, config.model.dtype)).eval()
    kept: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept[:] = [output if isinstance(output, Tensor) else output[0]]
        raise Stop

    model.model.layers[int(config.model.hook.split(".")[1])].register_forward_hook(keep)

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
        """Write the cache anew."""
        folder = root / "cache"
        writer.write_caches(source, replace(cache, seed=next(seeds)), {config.model.hook: folder})
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
    parser.add_argument("--rounds", type=int, default=5)
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
    result = {
        "what": f"tokens per second of sae cache and bare forward passes, {BATCH} contexts of {CONTEXT}, turn by turn",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "rows": rows,
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
