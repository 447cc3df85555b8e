"""Commands that give SAEs to other libraries and take theirs: export and import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_cli.commands_run import Json
from sae_cli.console import emit, facts
from sae_cli.errors import UserError

if TYPE_CHECKING:
    from sae_cli.dictionary.artifact import SAE

FIGURE = "training.svg"
AGREE = 1e-4
"""Largest difference, in units of the largest value, that rounding may make between an SAE and its export."""


def export(
    path: Annotated[Path, typer.Argument(help="A finished run, or the folder of an SAE of any library.")],
    to: Annotated[str, typer.Option(help="saelens | dictionary_learning | sparsify.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: a folder of that name in PATH.")] = None,
    unit: Annotated[bool, typer.Option("--unit", help="Scale directions to norm 1, as SAEBench wants them.")] = False,
    push_to_hub: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Upload the folder to this Hugging Face repository.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: Json = False,
) -> None:
    """Write an SAE for SAELens, dictionary_learning or sparsify, with a model card.

    What is written is read again and compared on random rows: latents and reconstructions must agree.
    """
    from sae_cli.files import replace_atomically
    from sae_cli.interop.card import model_card, training_figure
    from sae_cli.interop.reading import load_foreign
    from sae_cli.interop.writing import save_foreign
    from sae_cli.library import load_sae

    sae, folder = load_sae(path), out or path / to
    if folder.resolve() == path.resolve():
        raise UserError(f"--out {folder} is what is exported; give another folder")
    save_foreign(folder, sae, to, unit)
    difference = compared(sae, load_foreign(folder), unit)
    if difference > AGREE:
        raise UserError(f"{folder} was written but does not agree with {path} (by {difference:.1e} of the largest)")
    command, config_yaml, evaluation, figure = f"sae export {path.name} --to {to}", "", None, ""
    if (path / "config.yaml").exists():
        from sae_cli.runs.directory import RunDirectory

        run = RunDirectory(path)
        command, evaluation = " ".join(["sae train", *run.overrides]), run.evaluation
        config_yaml, figure = (path / "config.yaml").read_text(), training_figure(run.metrics())
    replace_atomically(folder / FIGURE, figure.encode()) if figure else None
    card = model_card(path.resolve().name, to, command, config_yaml, evaluation, FIGURE if figure else "")
    replace_atomically(folder / "README.md", card.encode())
    result = {"folder": str(folder), "library": to, "difference": difference}
    if push_to_hub:
        from sae_cli.interop.hub import push

        result["url"] = push(folder, push_to_hub, private)
    emit(result) if as_json else facts(list(result.items()))


def import_(
    path: Annotated[Path, typer.Argument(help="A folder of SAELens, dictionary_learning or sparsify.")],
    out: Annotated[Path, typer.Option(help="Folder to write sae.safetensors and cfg.json into.")],
    as_json: Json = False,
) -> None:
    """Turn another library's SAE into ours; `sae eval` and the rest also read it where it is."""
    from sae_cli.dictionary.artifact import save_sae
    from sae_cli.library import load_sae

    if (out / "config.yaml").exists() or (out / "cfg.json").exists():
        raise UserError(f"--out {out} already holds an SAE or a run; give a new folder")
    sae = load_sae(path)
    out.mkdir(parents=True, exist_ok=True)
    save_sae(out, sae)
    width, latents = sae.W_enc_DF.shape
    result = {"folder": str(out), "nonlinearity": sae.nonlinearity, "d_in": width, "d_sae": latents}
    emit(result) if as_json else facts(list(result.items()))


def compared(sae: "SAE", other: "SAE", unit: bool) -> float:
    """Return the largest difference of latents and reconstructions on random rows, relative to the largest value.

    In double precision, so that only what was rounded when weights were folded can put a latent on the other side of
    its threshold; the tenth of the rows that differ most is left out for that.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    width = len(sae.b_dec_D)
    # rows of a length at which latents fire
    reach = float(sae.b_dec_D.norm() + 1 / sae.W_enc_DF.norm(dim=0).clamp(min=1e-6).median())
    x_BD = sae.b_dec_D.double() + torch.randn(64, width, generator=generator, dtype=torch.double) * reach
    acts_BF, x_hat_BD = in_double(sae).forward(x_BD)
    if unit:
        norm_F = sae.W_dec_FD.norm(dim=1)
        acts_BF = acts_BF * torch.where(norm_F > 0, norm_F, 1)
    pairs = zip((acts_BF, x_hat_BD), in_double(other).forward(x_BD), strict=True)
    worst_PB = torch.stack([(a - b).abs().amax(1) / a.abs().max().clamp(min=1e-12) for a, b in pairs])
    return float(worst_PB.amax(0).quantile(0.9))


def in_double(sae: "SAE") -> "SAE":
    """Return a copy in double precision."""
    from dataclasses import replace

    from sae_cli.dictionary.artifact import SHAPES

    tensors = {name: getattr(sae, name).double() for name in SHAPES}
    return replace(sae, **tensors, stored={name: tensor.double() for name, tensor in sae.stored.items()})
