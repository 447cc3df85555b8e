"""The parts of the training script: packing, the measure, and a short run that ends in a folder with a card."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import train_tiny
from tools.train_tiny import BOS, held_out, loss_of, new_model, pack


def test_pack_cuts_joined_documents_into_contexts_that_begin_with_bos():
    contexts = pack([[5, 6, 7], [8], [9, 10]], 5)
    assert contexts.tolist() == [[0, 5, 6, 7, 0], [0, 8, 0, 9, 10], [0, 0, -1, -1, -1]]


def test_held_out_counts_every_token_once_and_no_filling():
    torch.manual_seed(0)
    model = new_model()
    documents = [[1 + (7 * i) % 4095 for i in range(n)] for n in (30, 3, 50)]
    nats, count = held_out(model, documents, positions=32)
    assert count == 30 + 3 + 50 + 3
    contexts = pack(documents, 32)
    parts = [float(loss_of(model, row[None, : int((row >= 0).sum())], "sum").detach()) for row in contexts]
    assert abs(nats - sum(parts)) < 1e-3 * nats


def test_short_run_writes_a_loadable_folder_and_its_card(tmp_path, monkeypatch):
    words = ["the", "a", "of", "in", "and", "city", "river", "war", "king", "queen", "music", "science", "history"]
    text = [" ".join(words[(i * j + j) % len(words)] for j in range(60)) + f" {i}." for i in range(150)]
    records = {str(i): {"title": f"T{i}", "extract": document} for i, document in enumerate(text)}
    (tmp_path / "summaries.json").write_text(json.dumps(records))
    monkeypatch.setattr(train_tiny, "BATCH", 4)
    command = ["train_tiny", "--json", str(tmp_path / "summaries.json"), "--out", str(tmp_path / "tiny")]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "1", "--threads", str(torch.get_num_threads())])
    train_tiny.main()

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "tiny").bos_token == BOS
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert 0 < float(card.split("**")[1]) < 9
    assert "1 epochs, seed 0" in card
    assert (tmp_path / "wiki.jsonl.gz").exists()
