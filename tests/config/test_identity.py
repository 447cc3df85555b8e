"""Run ids follow content; stack keys leave out what members may differ in."""

import pytest

from sae_cli.config.compose import compose
from sae_cli.config.identity import run_id, semantic, stack_key
from sae_cli.config.schema import PER_MEMBER

BASE = ["orthogonality=chunked"]


def identity(function, *words, source="source"):
    return function(compose([*BASE, *words]), source)


@pytest.mark.parametrize("word", ["device=cpu", "tracker=jsonl", "runs_dir=elsewhere", "name=x", "train.log_every=7"])
def test_where_and_how_a_run_is_watched_does_not_name_it(word):
    assert identity(run_id) == identity(run_id, word)


@pytest.mark.parametrize("word", ["seed=1", "sae=relu", "sae.latents=512", "train.lr=3e-4", "train.precision=fp32"])
def test_what_decides_the_weights_names_the_run(word):
    assert identity(run_id, "sae=prolu_ste") != identity(run_id, "sae=prolu_ste", word)


@pytest.mark.parametrize("word", ["train.parallel=latents", "train.memory_bytes=1000000", "train.sparse=dense"])
def test_how_the_work_is_done_names_no_run_but_separates_stacks(word):
    assert identity(run_id) == identity(run_id, word)
    assert identity(stack_key) != identity(stack_key, word)


def test_the_source_names_the_run():
    assert identity(run_id) != identity(run_id, source="another")


@pytest.mark.parametrize("key", PER_MEMBER)
def test_per_member_keys_share_a_stack_and_differ_in_id(key):
    words = [f"{key}=9" if key in ("seed", "sae.k") else f"{key}=0.125"]
    assert identity(stack_key) == identity(stack_key, *words)
    assert identity(run_id) != identity(run_id, *words)


@pytest.mark.parametrize("word", ["sae=relu", "sae.latents=512", "train.batch=512", "train.data_seed=1", "device=cpu"])
def test_other_keys_separate_stacks(word):
    assert identity(stack_key, "sae=prolu_ste") != identity(stack_key, "sae=prolu_ste", word)


def test_frozen_directions_separate_stacks():
    words = ["orthogonality.weight=0", "sae.freeze_decoder=true"]
    assert identity(stack_key, words[0]) != identity(stack_key, *words)


def test_a_later_key_at_its_first_value_leaves_the_id_alone():
    plain = "orthogonality=none"
    assert "freeze_decoder" not in semantic(compose([plain]), "source")["sae"]
    assert identity(run_id, plain, "sae.freeze_decoder=true") != identity(run_id, plain)
