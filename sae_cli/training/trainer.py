"""The training loop."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema import Config, OrthogonalityConfig
from sae_cli.device import on_device
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.orthogonality import APPROXIMATE, neighbour_recall
from sae_cli.losses.sharded import nearest_cosines
from sae_cli.ranks import ALONE, Ranks
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.tracking import Tracker
from sae_cli.sources import ActivationSource
from sae_cli.sources.language_model import model_fingerprint
from sae_cli.training.checkpoint import load_checkpoint, save_checkpoint
from sae_cli.training.dead_latents import collect_rows, resample
from sae_cli.training.loss import directions_of, has_auxiliary
from sae_cli.training.profile import phase
from sae_cli.training.progress import TrainingProgress
from sae_cli.training.schedules import learning_rate, total_steps
from sae_cli.training.stages import Stage, grow
from sae_cli.training.step import METRICS, Stepper

log = logging.getLogger(__name__)

HISTOGRAM_EVERY = 10
"""Log lines between histograms of nearest cosines and biases."""
BIAS_PERCENTILES = (5, 50, 95)
"""Percentiles of the encoder biases that are logged with them."""


@dataclass
class Member:
    """One point being trained: where it is written and tracked."""

    config: Config
    run: RunDirectory
    run_id: str
    tracker: Tracker
    error: str = ""
    last: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains the members of one stack on one source."""

    def __init__(self, members: Sequence[Member], source: ActivationSource, device: str, ranks: Ranks = ALONE) -> None:
        self.members, self.source, self.device, self.ranks = members, source, device, ranks
        self.configs = [member.config for member in members]
        self.train = self.configs[0].train
        self.steps = total_steps(self.train)
        self.stage = Stage.of(self.configs, 0)
        from_data = self.configs[0].sae.decoder_init == "data"
        rows_ND = self.rows(0) if from_data else torch.empty(0)
        stack = SAEStack.initialise(self.stage.configs, source.mean_D * source.scale, device, rows_ND, ranks)
        self.stepper = Stepper(stack, self.stage.configs, device)
        self.seconds = 0.0
        self.logged_step = 0
        self.waited, self.logged_seconds = 0.0, 0.0

    def run(
        self,
        start: int,
        progress: TrainingProgress,
        stopped: "StopFlag",
        after_step: Callable[[], None] = lambda: None,
    ) -> int:
        """Train from step `start` to the end or until `stopped`; return the number of finished steps."""
        steps, train = self.steps, self.train
        self.resume(start)
        began = time.monotonic() - self.seconds
        step = start
        batches = self.scaled_batches(start)
        ends = self.ranks.any(bool(stopped))
        while step < steps and not ends:
            if step == self.stage.end:
                self.grow()
                log.info("step %d: stage %d of %d begins", step, self.stage.index + 1, self.stage.count)
            asked = time.monotonic()
            with phase("data"):
                x_BD = next(batches)
            self.waited += time.monotonic() - asked
            self.stepper.step(step - self.stage.start, x_BD)
            step += 1
            if step in self.stage.resampling:
                counts = resample(self.stepper, self.rows(step), step, (step - self.stage.start) * train.batch)
                self.equalise()
                log.info("step %d: resampled dead latents per member: %s", step, counts)
            if step % train.log_every == 0 or step == steps:
                self.seconds = time.monotonic() - began
                self.log_metrics(step, progress)
            due = train.checkpoint_every and step % train.checkpoint_every == 0
            ends = self.ranks.any(bool(stopped))
            if due or step == steps or ends:
                self.seconds = time.monotonic() - began
                self.checkpoint(step)
            after_step()
        return step

    def scaled_batches(self, start: int) -> Iterator[Tensor]:
        """Yield batches from `start` on the training device in fp32, scaled so that E||x||^2 = D."""
        for x_BD in on_device(self.source.batches(start, self.train.batch), self.device):
            yield x_BD.float() * self.source.scale

    def rows(self, step: int) -> Tensor:
        """Return scaled inputs (N, D) to draw directions from: those that training will see after `step`."""
        return collect_rows(self.scaled_batches(step), self.train.resample_rows)

    def grow(self) -> None:
        """Freeze the latents of the stage that ended and begin the next one."""
        end = self.stage.end
        self.stage = Stage.of(self.configs, self.stage.index + 1)
        self.stepper = grow(self.stepper, self.stage, lambda: self.rows(end))

    def resume(self, step: int) -> None:
        """Restore every member's state after `step` steps; 0 leaves the fresh initialisation.

        After the last step of a stage its latents are not frozen yet: the next step does that.
        """
        while self.stage.end < step:
            self.grow()
        self.logged_step = step - step % self.train.log_every
        for index, member in enumerate(self.members):
            if self.ranks.first:
                member.run.truncate_metrics(step)
            if step:
                extra = load_checkpoint(member.run.checkpoint, self.stepper, index, step)
                self.seconds = max(self.seconds, extra["seconds"])
            if bool(self.stepper.frozen_K[index]):
                member.error = f"went non-finite before step {step}"
        self.logged_seconds = self.seconds
        self.equalise()

    def equalise(self) -> None:
        """Give ranks that hold all latents the same, where each has computed them for itself."""
        if self.ranks.row_shares > 1:
            adam = self.stepper.adam
            moments = [moment for pair in adam.moments.values() for moment in pair]
            self.ranks.equalise([*self.stepper.stack.state().values(), *moments, adam.steps_KT])

    @phase("checkpoint")
    def checkpoint(self, step: int) -> None:
        """Write the state of every member and its status."""
        for index, member in enumerate(self.members):
            extra = {"seconds": self.seconds, "tracker": member.tracker.state()}
            save_checkpoint(member.run.checkpoint, self.stepper, index, step, extra)
            if self.ranks.first:
                member.run.set_status("running", step, self.steps, member.run_id, member.error)

    @phase("log")
    def log_metrics(self, step: int, progress: TrainingProgress) -> None:
        """Bring the metrics to the host once and write them to every member's run and tracker."""
        count = step - self.logged_step
        self.logged_step = step
        data_wait = round(self.waited / max(self.seconds - self.logged_seconds, 1e-9), 4)
        self.waited, self.logged_seconds = 0.0, self.seconds
        train, rows = self.train, step * self.train.batch
        stage_step = step - self.stage.start
        means_KM = self.stepper.take_metrics(count).tolist()
        lam_K, gamma_K = (weights.tolist() for weights in self.stepper.penalty_weights(stage_step - 1))
        dead_K = self.ranks.mean(stage_step * train.batch - self.stepper.all_fired() > train.dead_after).tolist()
        whole = self.stepper.whole()
        negative_K = self.ranks.mean(whole.b_enc_KF < 0).tolist()
        frozen_K = self.stepper.frozen_K.tolist()
        variance = self.source.variance * self.source.scale**2
        with_histograms = step % (train.log_every * HISTOGRAM_EVERY) == 0 or step == self.steps
        for index, member in enumerate(self.members):
            config = member.config
            values = dict(zip(METRICS, means_KM[index], strict=True))
            omega = values.pop("orthogonality") * config.orthogonality.every
            if config.orthogonality.weight:
                values["orthogonality"] = omega
                values["orthogonality_weighted"] = gamma_K[index] * self.source.d_model * omega
            if not has_auxiliary(config.sae):
                values.pop("auxiliary")
            values |= {
                "step": step,
                "tokens": rows,
                "seconds": round(self.seconds, 3),
                "fvu": values["mse"] / variance,
                "sparsity_weighted": lam_K[index] * values["sparsity"],
                "lambda": lam_K[index],
                "gamma": gamma_K[index],
                "lr": learning_rate(stage_step - 1, config.train.lr, config.train.warmup, self.stepper.train),
                "dead": dead_K[index],
                "negative_biases": negative_K[index],
                "tokens_per_second": rows / max(self.seconds, 1e-9),
                "data_wait": data_wait,
            }
            if frozen_K[index] and not member.error:
                member.error = f"went non-finite before step {step}: lower train.lr or set train.clip"
                log.warning("%s %s; it is frozen, the other members go on", member.run.path, member.error)
            if with_histograms and not frozen_K[index]:
                values |= self.log_histograms(index, step, member, whole)
            if self.ranks.first:
                member.run.append_metrics(values)
            member.tracker.log(step, values)
            member.last = values
        if self.ranks.first:
            progress.update(step, [member.last for member in self.members])

    @torch.no_grad()
    def log_histograms(self, index: int, step: int, member: Member, stack: SAEStack) -> dict[str, float]:
        """Send a member's nearest cosines and biases to its tracker; return what they say in numbers.

        nearest_cosine: the mean (self-MMCS). bias_p05, _p50, _p95: quantiles of the encoder biases. Approximate
        penalties: their `neighbour_recall` and `neighbour_gap`.
        """
        config = self.stage.configs[index]
        if config.sae.latents < 2 and self.stepper.earlier is None:
            return {"nearest_cosine": 0.0}
        cosines_F = nearest_cosines(stack.W_dec_KFD[index], OrthogonalityConfig(kind="nearest"), self.ranks)
        member.tracker.histogram(step, "nearest_cosine_histogram", cosines_F.cpu().numpy())
        biases_F = self.ranks.every(stack.b_enc_KF[index]).cpu().numpy()
        member.tracker.histogram(step, "bias_histogram", biases_F)
        values = {"nearest_cosine": float(cosines_F.mean())}
        values |= {f"bias_p{q:02d}": float(np.percentile(biases_F, q)) for q in BIAS_PERCENTILES}
        approximate = config.orthogonality.weight and config.orthogonality.kind in APPROXIMATE
        if approximate and not self.ranks.sharded:
            rows, state = (step - self.stage.start) * self.train.batch, self.stepper.penalty_states[index]
            active_F, alive_F = self.stepper.last_fired_KF[index] == rows, ~self.stepper.dead(rows)[index]
            now = step - self.stage.start - 1
            new, earlier = self.stepper.stack, self.stepper.earlier
            seen = directions_of(new, index, config, None, active_F, alive_F, now, state, earlier)
            values |= neighbour_recall(seen, config.orthogonality)
        return values

    def artefact_metadata(self, member: Member) -> dict[str, Any]:
        """Return what an artefact says about where it comes from."""
        config = member.config
        metadata: dict[str, Any] = {"run_id": member.run_id, "source": config.source.kind, "input_scale_folded": True}
        if config.source.kind == "language_model":
            metadata |= {
                "model_name": config.model.path,
                "model_fingerprint": model_fingerprint(config.model),
                "model_processing": config.model.processing,
                "hook_name": config.model.hook,
                "context_size": config.model.context,
                "prepend_bos": config.model.prepend_bos,
                "drop_bos": config.model.drop_bos,
            }
        return metadata


class StopFlag:
    """True once a signal asked for the end; the loop finishes its step and saves."""

    def __init__(self) -> None:
        self.signal = 0
        self.training = False

    def __bool__(self) -> bool:
        return self.signal != 0
