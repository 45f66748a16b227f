"""The one training loop: teacher, student, plain twin and healing after pruning all run through ``fit``.

What differs between them is the objective, the labels and the model. The loop owns order, schedule, accumulation,
validation, checkpoints and resume; a run killed at any point and started again ends in the same bytes.

Shapes: B rows of a batch, T tokens, P scored positions of a batch, D model width, V vocabulary.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import Interrupted, QualityGateError
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.sequences import PackedSequences, epoch_order
from potstill.distill.chunks import positions_at_once
from potstill.distill.hidden import HiddenMatching
from potstill.distill.objective import TOTAL, Objective, objective_from_hidden
from potstill.distill.observe import observe
from potstill.labels.store import LabelStore
from potstill.model.anatomy import hidden_states, logits_of, output_head, watched_blocks
from potstill.train.checkpoint import Checkpoint
from potstill.train.parallel import Parallel
from potstill.train.schedule import learning_rate_at
from potstill.train.settings import ParallelKind, Precision, TrainingSettings, default_learning_rate
from potstill.train.validation import measured_as, validate, validated_quantity

__all__ = ["Training", "TrainingText", "fit"]

_SECONDS_BETWEEN_CHECKPOINTS = 120.0
_MOST_TIME_ON_CHECKPOINTS = 0.03
_SECONDS_BETWEEN_PROGRESS = 0.25
_LOSS_POINTS_PER_EPOCH = 20


@dataclass(frozen=True)
class TrainingText:
    """A split to learn from or to validate on, with the teacher's labels of it where there are any."""

    sequences: PackedSequences
    labels: LabelStore | None = None


@dataclass
class _Progress:
    """Where the loop stands; everything but the tensors that a checkpoint holds."""

    step: int
    epoch_loss_nats: float
    epoch_positions: int
    epoch_seconds: float
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """Who learns what, from which text, and how: all that the result depends on.

    ``who`` names the model in the trace ("teacher", "student", "twin", "pruned"); ``model`` is trained in place,
    and so is ``matching``, which compares its hidden states with a teacher's.
    """

    who: str
    model: PreTrainedModel
    text: TrainingText
    validation: TrainingText
    objective: Objective
    settings: TrainingSettings
    seed: int
    precision: Precision
    parallel: ParallelKind = "ddp"
    matching: HiddenMatching | None = None

    @property
    def learner(self) -> nn.Module:
        """All that learns: the model, and beside it the projections of its hidden states where they are matched."""
        return self.model if self.matching is None else nn.ModuleDict({"model": self.model, "matching": self.matching})


def fit(
    training: Training, directory: Path, trace: Trace, *, checkpoint_seconds: float = _SECONDS_BETWEEN_CHECKPOINTS
) -> list[dict[str, Any]]:
    """Train the model and return its history, one entry per epoch; the best epoch's weights are left in it.

    ``directory`` keeps the checkpoint; call again with an equal training to go on from it. Several processes that have
    joined (``core.world``) call it together, with equal models and one directory, and do the work of one.

    Raises: QualityGateError: the loss is no finite number. Interrupted: a signal came; the checkpoint is written.
    """
    run = _Fit(training, trace)
    run.train(Checkpoint(directory), checkpoint_seconds)
    if run.world.leads:
        write_json(directory / "history.json", run.progress.history)
    return run.progress.history


class _Fit:
    """The state of one call of ``fit``: model and optimiser, and how far they are."""

    def __init__(self, training: Training, trace: Trace) -> None:
        settings = training.settings
        self.training = training
        self.trace = trace
        self.world = current()
        self.parallel = Parallel(training.model.float(), training.parallel, self.world)  # type: ignore[no-untyped-call]
        self.model = self.parallel.model
        self.peak_rate = settings.learning_rate or default_learning_rate(self.model.num_parameters())
        self.learner = self.model if training.matching is None else training.learner
        self.optimizer = _optimizer(self.learner, settings.weight_decay)
        self.steps_per_epoch = math.ceil(len(training.text.sequences) / settings.batch_sentences)
        self.num_steps = self.steps_per_epoch * settings.epochs
        self.num_tokens = int(training.text.sequences.lengths_N.sum()) * settings.epochs
        self.progress = _Progress(0, 0.0, 0, 0.0, [])
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def train(self, checkpoint: Checkpoint, checkpoint_seconds: float) -> None:
        """Run the steps that are left, with checkpoints in between."""
        saved = checkpoint.restore(self.learner, self.optimizer)
        if saved is not None:
            self.progress = _Progress(**{name: saved[name] for name in vars(self.progress)})
            self.trace.note(
                "resume", f"{self.training.who}: goes on at step {self.progress.step:,} of {self.num_steps:,}"
            )
        if self.world.size > 1 or self.training.parallel == "fsdp":
            self.trace.note("parallel", f"{self.training.who}: {self.parallel.in_words}")
        self.trace.metric("peak_learning_rate", self.peak_rate, "1", model=self.training.who)
        saved_at = shown_at = time.perf_counter()
        spacing_s = checkpoint_seconds
        while self.progress.step < self.num_steps and not self._out_of_patience():
            self._one_step()
            if self.progress.step % self.steps_per_epoch == 0:
                self._end_epoch(checkpoint)
                saved_at = time.perf_counter()
            now = time.perf_counter()
            if now - shown_at > _SECONDS_BETWEEN_PROGRESS:
                share = self.progress.step / self.num_steps
                self.trace.progress(self.training.who, share * self.num_tokens, self.num_tokens, "tokens")
                shown_at = now
            signal_number, due = self.world.largest([interrupt.received(), now - saved_at > spacing_s])
            if signal_number or due:
                checkpoint.save(self.learner, self.optimizer, vars(self.progress))
                saved_at = time.perf_counter()
                spacing_s = max(checkpoint_seconds, (saved_at - now) / _MOST_TIME_ON_CHECKPOINTS)
            if signal_number:
                raise Interrupted(int(signal_number))
        checkpoint.load_best(self.training.learner)

    def _one_step(self) -> None:
        start = time.perf_counter()
        progress, settings = self.progress, self.training.settings
        epoch, step_in_epoch = divmod(progress.step, self.steps_per_epoch)
        rate = learning_rate_at(
            progress.step,
            self.num_steps,
            peak=self.peak_rate,
            warmup_share=settings.warmup_share,
            final_share=settings.final_learning_rate_share,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        first = step_in_epoch * settings.batch_sentences
        rows_B = self._order_of(epoch)[first : first + settings.batch_sentences]
        self.model.train()
        loss_sum, num_positions = self._accumulate_gradients(rows_B)
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss_sum):
            raise QualityGateError(
                f"the {self.training.who}'s loss is {loss_sum} at step {progress.step:,}",
                next_step=f"lower the learning rate; it was {rate:.2g}",
            )
        progress.step += 1
        progress.epoch_loss_nats += loss_sum
        progress.epoch_positions += num_positions
        progress.epoch_seconds += time.perf_counter() - start
        if progress.step % max(self.steps_per_epoch // _LOSS_POINTS_PER_EPOCH, 1) == 0:
            self.trace.metric(
                "step_loss_nats", loss_sum / max(num_positions, 1), "nats", model=self.training.who, step=progress.step
            )

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.training.seed, epoch, len(self.training.text.sequences)))
        return self._order[1]

    def _accumulate_gradients(self, rows_B: NDArray[np.int64]) -> tuple[float, int]:
        """Backward over a batch; the gradient is that of the mean over all its positions."""
        lengths_B = self.training.text.sequences.lengths_N[rows_B]
        by_length_B = rows_B[np.argsort(lengths_B, kind="stable")]  # alike lengths together: little padding to compute
        num_positions = int(self.training.text.sequences.scored_of(rows_B).sum())
        loss_sum = self.parallel.accumulate_gradients(
            self._loss_sum,
            by_length_B,
            most_rows=self.training.settings.micro_batch_sentences or len(rows_B),
            num_positions=num_positions,
        )
        return loss_sum, num_positions

    def _loss_sum(self, rows_B: NDArray[np.int64]) -> Tensor:
        """The weighted loss summed over the scored positions of these rows."""
        device = self.model.device
        tokens, scored = self.training.text.sequences.rows(rows_B)
        tokens_BT, scored_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)
        labels = self.training.text.labels.read(rows_B).to(device) if self.training.text.labels is not None else None
        matching = self.training.matching
        watched = matching.student_blocks if matching is not None else ()
        with _autocast(device.type, self.training.precision), watched_blocks(self.model, watched) as states:
            hidden_PD = hidden_states(self.model, tokens_BT)[scored_BT]
            matched = 0.0 if matching is None else matching(states, tokens_BT, scored_BT)
        sums = objective_from_hidden(
            self.training.objective,
            hidden_PD,
            self._logits,
            labels,
            tokens_BT.roll(-1, dims=1)[scored_BT],
            head_parameters=output_head(self.model).parameters(),
            chunk=positions_at_once(self.model.config.vocab_size),
        )
        return sums[TOTAL] + matched

    def _logits(self, hidden_PD: Tensor) -> Tensor:
        with _autocast(hidden_PD.device.type, self.training.precision):
            return logits_of(self.model, hidden_PD)

    def _end_epoch(self, checkpoint: Checkpoint) -> None:
        progress = self.progress
        epoch = progress.step // self.steps_per_epoch
        with self.parallel.evaluating():
            measured = validate(
                self.model,
                self.training.validation.sequences,
                self.training.validation.labels,
                divergences=self.training.objective.divergences,
                precision=self.training.precision,
            )
        validated_by = validated_quantity(self.training.objective)
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": " + ".join(self.training.objective.names),
            "train_loss_nats": progress.epoch_loss_nats / max(progress.epoch_positions, 1),
            "validation_loss": validated_by,
            "validation_loss_nats": measured[measured_as(validated_by)],
            **measured,
            "tokens_per_s": self.num_tokens / self.training.settings.epochs / max(progress.epoch_seconds, 1e-9),
            "seconds": progress.epoch_seconds,
        }
        if "validation_kl_nats" in measured and "validation_agreement" not in measured and epoch == 1:
            self.trace.note("validation", "agreement isn't measured: draws don't tell the teacher's likeliest token")
        progress.history.append(entry)
        entry["observation"] = observe(progress.history, epoch)
        progress.epoch_loss_nats, progress.epoch_positions, progress.epoch_seconds = 0.0, 0, 0.0
        if best_epoch(progress.history) == epoch:
            checkpoint.save_best(self.learner)
        checkpoint.save(self.learner, self.optimizer, vars(progress))
        self._tell(entry)

    def _tell(self, entry: Mapping[str, Any]) -> None:
        for name, value in entry.items():
            if isinstance(value, float):
                unit = "nats" if name.endswith("nats") else "tokens/s" if name == "tokens_per_s" else "1"
                tags = {"quantity": entry["validation_loss"]} if name == "validation_loss_nats" else {}
                self.trace.metric(name, value, unit, model=self.training.who, epoch=entry["epoch"], **tags)
        self.trace.note("observation", entry["observation"], model=self.training.who, epoch=entry["epoch"])

    def _out_of_patience(self) -> bool:
        patience, history = self.training.settings.patience, self.progress.history
        return patience is not None and bool(history) and history[-1]["epoch"] - best_epoch(history) >= patience


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch with the lowest validation loss, the first of equals."""
    return int(min(history, key=lambda entry: entry["validation_loss_nats"])["epoch"])


def _optimizer(learner: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms don't."""
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=True)


def _autocast(device: str, precision: Precision) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")
