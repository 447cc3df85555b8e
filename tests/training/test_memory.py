"""Memory: what a step may take, and what is said when there is not enough."""

import pytest
import torch

from sae_cli.dictionary.stack import SAEStack
from sae_cli.runs.directory import RunDirectory
from sae_cli.training import memory
from sae_cli.training.execute import execute
from sae_cli.training.memory import LATENT_BYTES, describe, rows_per_piece, training_memory
from sae_cli.training.step import Stepper
from tests.training.points import point


@pytest.mark.parametrize(("rows", "expected"), [(0, 80), (79, 40), (40, 40), (39, 27), (0.5, 1), (1000, 80)])
def test_pieces_are_even_and_fit(tmp_path, rows, expected):
    config = point(tmp_path, f"train.memory_bytes={int(rows * 32 * LATENT_BYTES)}")
    stack = SAEStack.initialise([config], torch.zeros(12), "cpu", torch.empty(0))
    assert rows_per_piece(config.train, stack, None, 1) == expected


def test_frozen_latents_and_members_count(tmp_path):
    config = point(tmp_path, f"train.memory_bytes={80 * 32 * LATENT_BYTES}")
    stack = SAEStack.initialise([config, config], torch.zeros(12), "cpu", torch.empty(0))
    assert rows_per_piece(config.train, stack, None, 2) == 40
    assert rows_per_piece(config.train, stack, stack, 1) == 40


def test_the_estimate_keeps_to_the_limit_and_is_one_process_s(tmp_path, monkeypatch):
    whole = training_memory(point(tmp_path), 12)
    weights = whole - LATENT_BYTES * 80 * 32
    assert training_memory(point(tmp_path, "train.memory_bytes=1000"), 12) == weights + 1000
    monkeypatch.setattr(memory, "world_size", lambda: 2)
    assert training_memory(point(tmp_path), 12) == weights + LATENT_BYTES * 40 * 32
    assert training_memory(point(tmp_path, "train.parallel=latents"), 12) == weights // 2 + LATENT_BYTES * 40 * 32


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_names_what_to_lower_and_the_run_goes_on(tmp_path, monkeypatch, error):
    config, step = point(tmp_path, "train.checkpoint_every=10"), Stepper.step

    def failing(self, index, x_BD):
        if index == 15:
            raise error
        step(self, index, x_BD)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", failing)
        (outcome,) = execute([config])
    assert outcome.state == RunDirectory(outcome.folder).status["state"] == "failed"
    half = LATENT_BYTES * 80 * 32 // 2
    assert outcome.error.startswith(f"out of memory: set train.memory_bytes={half} ")
    assert all(part in outcome.error for part in ("at step 10;", "train.batch", "sae.latents"))
    (resumed,) = execute([point(tmp_path, "train.checkpoint_every=10", f"train.memory_bytes={half}")])
    assert (resumed.state, resumed.folder) == ("done", outcome.folder)
    assert [line["step"] for line in RunDirectory(outcome.folder).metrics()] == [10, 20, 30, 40]


def test_the_advice_halves_a_limit_that_is_set(tmp_path):
    config = point(tmp_path, "train.memory_bytes=1000")
    assert "train.memory_bytes=500 " in describe(MemoryError(), config, 0)
    assert describe(ValueError("some\nother"), config, 0) == "some other"
