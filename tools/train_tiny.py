"""Trains the bundled tiny language model and its tokenizer, measures both and writes the model card.

    python -m tools.train_tiny                                                # from the bundled text
    python -m tools.train_tiny --json summaries_en-us.json --out FOLDER/tiny  # packs FOLDER/wiki.jsonl.gz too

Takes about 15 minutes on one free core with AVX512-BF16. Needs torch >= 2.9 (Muon). The same seed and number of threads
on the same kind of machine give the same weights.
"""

import argparse
import logging
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_cli.assets import TINY, WIKI
from sae_cli.config.schema_data import TextConfig
from sae_cli.sources.text import documents
from tools.card import write_card
from tools.wiki import write_wiki

log = logging.getLogger(__name__)

VOCABULARY = 4096
POSITIONS = 256
BATCH = 16
BOS = "<|endoftext|>"
DROPOUT = 0.1


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 4,096 tokens, token 0 being BOS, EOS and the separator of documents."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=BOS, clean_up_tokenization_spaces=False
    )


def new_model() -> LlamaForCausalLM:
    """Return the untrained model: 2 Llama layers of width 256 with tied embeddings, 3.15M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def pack(documents_tokens: list[list[int]], positions: int) -> Tensor:
    """Return contexts (C, positions): documents joined by the separator and cut, every context beginning with BOS.

    The last context is filled up with -1, which no loss counts.
    """
    stream = [token for document in documents_tokens for token in [*document, 0]]
    width = positions - 1
    stream += [-1] * (-len(stream) % width)
    return F.pad(torch.tensor(stream).reshape(-1, width), (1, 0), value=0)


def loss_of(model: nn.Module, contexts_CT: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy in nats of every token after the first, given those before it in its context."""
    with torch.autocast("cpu", torch.bfloat16):
        logits_CTV = model(contexts_CT[:, :-1].clamp(min=0), use_cache=False).logits
    return F.cross_entropy(
        logits_CTV.float().flatten(0, 1), contexts_CT[:, 1:].flatten(), ignore_index=-1, reduction=reduction
    )


@torch.no_grad()
def held_out(model: nn.Module, documents_tokens: list[list[int]], positions: int = POSITIONS) -> tuple[float, int]:
    """Return the total nats of all tokens of the documents, each separator included, and their number."""
    model.eval()
    contexts = pack(documents_tokens, positions)
    total = sum(float(loss_of(model, part, "sum")) for part in contexts.split(BATCH))
    return total, int((contexts[:, 1:] >= 0).sum())


def add_dropout(model: LlamaForCausalLM) -> None:
    """Drop a share of what the embedding and each layer's two parts write to the residual stream, in training only."""
    writers = [model.model.embed_tokens]
    for layer in model.model.layers:
        writers += [layer.self_attn.o_proj, layer.mlp.down_proj]
    for writer in writers:
        writer.register_forward_hook(lambda module, _, out: F.dropout(out, DROPOUT, module.training))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if "layers" in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not ("layers" in name and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]


def train(
    model: LlamaForCausalLM, parts: dict[str, list[list[int]]], epochs: int, seed: int, save: Callable[[], None]
) -> None:
    """Train on the documents of parts["train"], each epoch in a new order and with new cuts.

    After each epoch it measures the loss on parts["validation"] and calls `save()`.
    """
    add_dropout(model)
    optimizer_list = optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizer_list]
    train_tokens = list(parts["train"])
    steps = epochs * (len(pack(train_tokens, POSITIONS)) // BATCH)
    step, begin = 0, time.monotonic()
    for epoch in range(epochs):
        order = random.Random(seed + epoch)
        order.shuffle(train_tokens)
        contexts = pack(train_tokens, POSITIONS)[:-1]
        contexts = contexts[torch.tensor(order.sample(range(len(contexts)), len(contexts)))]
        for part in contexts.split(BATCH)[: steps // epochs]:
            model.train()
            share = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for optimizer, peak in zip(optimizer_list, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * share
                optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model, part)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizer_list:
                optimizer.step()
            step += 1
            if step % 50 == 0:
                log.info("step %d/%d loss %.3f %.0f s", step, steps, loss.detach(), time.monotonic() - begin)
        total, count = held_out(model, parts["validation"])
        log.info("epoch %d held-out %.4f nats/token %.0f s", epoch + 1, total / count, time.monotonic() - begin)
        save()


def save_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the Hugging Face folder, weights in bfloat16, readable for everyone, replaced as a whole."""
    new = out.with_name(f".{out.name}.new")
    rounded = new_model()
    rounded.load_state_dict(model.state_dict())
    rounded.bfloat16()
    rounded.save_pretrained(new)
    tokenizer.save_pretrained(new)
    for path in new.iterdir():
        path.chmod(0o644)
    if out.exists():
        shutil.rmtree(out)
    new.rename(out)


def main() -> None:
    """Make the text if asked to, train, measure the saved folder, write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="summaries_en-us.json; default: the text that is already packed")
    parser.add_argument("--out", type=Path, default=TINY, help="model folder; --json writes its text beside it")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    wiki = args.out.parent / WIKI.name if args.json else WIKI
    if args.json:
        log.info("%d documents in %s", write_wiki(args.json, wiki), wiki)
    text = TextConfig(name="wiki", path=str(wiki))
    texts = {split: list(documents(text, split)) for split in ("train", "validation")}
    tokenizer = train_tokenizer(texts["train"])
    parts = {split: tokenizer(texts[split], add_special_tokens=False)["input_ids"] for split in texts}
    model = new_model()
    begin = time.monotonic()
    train(model, parts, args.epochs, args.seed, lambda: save_folder(model, tokenizer, args.out))
    seconds = time.monotonic() - begin

    # The published number is that of the folder as a user loads it, not that of the float32 weights in memory.
    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(args.out)(texts["validation"], add_special_tokens=False)["input_ids"]
    write_card(
        args.out,
        held_out={length: held_out(saved, tokens, length) for length in (POSITIONS, 128)},
        validation_bytes=sum(len(text.encode()) for text in texts["validation"]),
        seconds=seconds,
        args=args,
        config=saved.config,
        dropout=DROPOUT,
        documents=len(texts["train"]),
        validation_documents=len(texts["validation"]),
        train_tokens=sum(len(tokens) + 1 for tokens in parts["train"]),
        parameters=sum(p.numel() for p in saved.parameters()),
    )


if __name__ == "__main__":
    main()
