"""Sparse probing: on planted rows, and rows collected from the bundled model and text."""

from dataclasses import replace

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.evaluation.labels import TASKS, token_labels
from sae_cli.evaluation.probing import Task, probing_tasks, sparse_probing
from sae_cli.evaluation.words import texts
from sae_cli.sources.language_model import LanguageModel
from tests.evaluation.saes import identity_sae, zero_sae


def planted(count: int = 300, width: int = 40) -> Task:
    """A label that is the sign of one coordinate."""
    x_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    y_N = torch.arange(count) % 2 == 0
    x_ND[:, 3] = torch.where(y_N, 2.0, -2.0) + 0.3 * x_ND[:, 3]
    return Task(x_ND, y_N, torch.arange(count) % 6 < 2)


def test_one_latent_that_knows_is_enough_and_controls_are_chance() -> None:
    task = planted()
    (section,) = sparse_probing([identity_sae(40)], {"sign": task})
    found = section["tasks"]["sign"]
    assert (found["rows"], found["held_out"]) == (200, 100)
    assert found["majority"] == {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}
    assert list(found["sae"]) == ["1", "2", "5", "16"]
    for scores in (found["dense"], *found["sae"].values()):
        assert scores["accuracy"] > 0.97
        assert scores["f1"] > 0.97
    for scores in (found["dense_permuted"], *found["permuted"].values()):
        assert 0.3 < scores["accuracy"] < 0.7
    assert found["random"]["1"]["accuracy"] < 0.9
    assert section["mean"] == found


def test_means_are_over_tasks_and_every_sae_has_its_own() -> None:
    task = planted()
    tasks = {"sign": task, "noise": task._replace(x_ND=task.x_ND.roll(1, 1)[:, :3].repeat(1, 14)[:, :40])}
    good, silent = sparse_probing([identity_sae(40), zero_sae(40)], tasks)
    both = [good["tasks"][name]["sae"]["2"]["accuracy"] for name in tasks]
    assert good["mean"]["sae"]["2"]["accuracy"] == pytest.approx(sum(both) / 2)
    assert silent["mean"]["sae"]["16"]["accuracy"] == silent["mean"]["random"]["16"]["accuracy"] == 0.5
    assert silent["tasks"]["sign"]["dense"] == good["tasks"]["sign"]["dense"]
    assert sparse_probing([zero_sae(40)], {}) == [{"tasks": {}, "mean": None}]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(compose(["model=tiny", "model.context=64"]).model, "cpu")


def test_rows_are_balanced_and_those_of_labelled_tokens_in_documents_of_their_part(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["model=tiny", "model.context=64"])
    batches = list(model.contexts(config.text, "validation"))
    tokens_CT, document_CT = (torch.cat([getattr(b, name) for b in batches]) for name in ("tokens_CT", "document_CT"))
    numbers = {tuple(tokens_T.tolist()): i for i, tokens_T in enumerate(tokens_CT)}

    def where(part_CT: torch.Tensor, hooks: list[str]) -> dict[str, torch.Tensor]:
        """Activations that tell where they come from: context and position."""
        context_C = torch.tensor([numbers[tuple(tokens_T.tolist())] for tokens_T in part_CT])
        return {hooks[0]: torch.stack(torch.meshgrid(context_C, torch.arange(64), indexing="ij"), dim=2)}

    monkeypatch.setattr(model, "read", where)
    tasks = probing_tasks(model, config.text, "hook", 480)
    assert set(tasks) >= set(TASKS) - {"quotation", "parentheses"}
    for name, task in tasks.items():
        for held, most in ((True, 160), (False, 320)):
            label_N = task.y_N[task.held_N == held]
            assert 40 <= len(label_N) <= most
            assert label_N.sum() * 2 == len(label_N)
        assert len({tuple(x_D.tolist()) for x_D in task.x_ND}) == len(task.x_ND)
        for (context, place), y, held in zip(task.x_ND.int().tolist(), task.y_N, task.held_N, strict=True):
            assert context < 120
            assert bool(held) == (int(document_CT[context, place]) % 3 == 0)
            assert int(y) == _labels(model, tokens_CT[context], document_CT[context], name)[place]


def _labels(model: LanguageModel, tokens_T: torch.Tensor, document_T: torch.Tensor, name: str) -> list[int]:
    pieces, labels = texts(model.tokenizer, tokens_T.tolist()), []
    for document in document_T.unique().tolist():
        part = (document_T == document).nonzero().squeeze(1).tolist()
        labels += token_labels([pieces[i] for i in part], begins=part[0] > 0)[TASKS.index(name)].tolist()
    return labels


def test_rows_do_not_depend_on_the_batch_of_the_model(model: LanguageModel) -> None:
    config = compose(["model=tiny", "model.context=64"])
    tasks = probing_tasks(model, config.text, config.model.hook, 130)
    model.settings = replace(model.settings, batch=7)
    again = probing_tasks(model, config.text, config.model.hook, 130)
    assert list(tasks) == list(again)
    for task, other in zip(tasks.values(), again.values(), strict=True):
        torch.testing.assert_close(task.x_ND, other.x_ND, rtol=1e-4, atol=1e-4)
        assert torch.equal(task.y_N, other.y_N)
        assert torch.equal(task.held_N, other.held_N)


def test_too_few_rows_are_no_task(model: LanguageModel) -> None:
    config = compose(["model=tiny", "model.context=64"])
    assert probing_tasks(model, config.text, config.model.hook, 100) == {}
