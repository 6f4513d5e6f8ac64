"""What an agent does of its own in a round: train the slice served, record the update, measure it, keep the adapter."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from flexlora_client.agent.local_parts import LocalParts
from flexlora_client.agent.local_trainer import LocalTrainer, sendable_metrics
from flexlora_client.agent.reporter import HELDOUT_PREFIX, Reporter, format_metrics, format_trained
from flexlora_client.agent.results import own_adapter
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.slice_cache import CachedSlice, SliceRequest
from flexlora_client.agent.stop_signals import stop_signals
from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder
from flexlora_client.errors import AdapterError, BadInput, Stopped, TrainingError
from flexlora_client.files import sha256_of
from flexlora_client.training.contract import ADAPTER_FILE, Compute, Outcome
from flexlora_client.training.evaluation.evaluate import Measured
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_client.training.models.held_slice import join_slice, split_slice
from flexlora_client.training.models.slice_files import read_config
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import held_ranks


class _Alphas(TypedDict):
    alpha: float
    alpha_pattern: dict[str, float]


@dataclass(frozen=True)
class _Start:
    """What a round's training starts from.

    served: the slice. request: the ranks that are trained. folder: what is trained. frozen: what acts beside it, if anything.
    """

    served: CachedSlice
    request: SliceRequest
    folder: Path
    frozen: Path | None = None

    @property
    def alphas(self) -> _Alphas:
        """What the update was trained with: of a part of the slice, what gives it the slice's scaling."""
        if self.frozen is None:
            return {"alpha": self.request.alpha, "alpha_pattern": self.request.alpha_pattern}
        config = read_config(self.folder, self.request.spec)
        return {"alpha": config.lora_alpha, "alpha_pattern": config.alpha_pattern}


@dataclass(frozen=True)
class TrainRound:
    """One participant's trainings of one run."""

    spec: RunSpec
    work_folder: WorkFolder
    local_trainer: LocalTrainer
    reporter: Reporter
    local_parts: LocalParts
    round_time: RoundTime
    clock_ahead: float  # seconds that the coordinator's clock is ahead of this machine's
    max_steps: int | None = None  # steps after which training ends as at the deadline; None: by the clock alone

    def train(self, task: Task, request: SliceRequest, served: CachedSlice) -> TrainedUpdate:
        """The round's update, recorded: from then on it is not trained again.

        Raises:
            KeyboardInterrupt: the participant stopped it; what is trained is kept, or a checkpoint of it.
            TrainingError, BadInput: it cannot be trained.
        """
        number, start = task.round, self._start(task, request, served)
        with stop_signals(lambda: self._tell_stopping(number)) as stop:
            outcome = self._fit(task, start, stop)
        own = self._own(task, start, outcome)
        trained = self._record(task, start, outcome, own)
        if stop():  # asked for in the last step, or the training loop does not ask
            raise KeyboardInterrupt
        measured = None if own is None else self._measure_trained(task, start, own)
        if measured is not None:
            heldout = {f"{HELDOUT_PREFIX}{name}": value for name, value in measured.metrics.items()}
            metrics = sendable_metrics({**trained.upload.metrics, **heldout})
            upload = trained.upload.model_copy(update={"metrics": metrics})
            trained = trained.model_copy(update={"upload": upload, "sample": measured.sample.examples})
            self.work_folder.save_trained(trained)
        metrics = dict(trained.upload.metrics)
        self.reporter.step("trained", f"round {number}: {format_trained(metrics)}", round=number, metrics=metrics)
        return trained

    def _start(self, task: Task, request: SliceRequest, served: CachedSlice) -> "_Start":
        """What is trained of the slice served: all, or its first directions with the rest frozen beside them."""
        if task.trainable != "prefix":
            return _Start(served, request, served.folder)
        ranks = task.rank, task.rank_pattern
        trained, frozen = split_slice(served.folder, task.spec, *ranks, request.rank, self.work_folder.folder / "held")
        return _Start(served, replace(request, rank=task.rank, rank_pattern=task.rank_pattern), trained, frozen)

    def _fit(self, task: Task, start: "_Start", stop: Callable[[], bool]) -> Outcome:
        number, work = task.round, self.work_folder
        examples = len(self.local_trainer.train)
        size = (start.folder / ADAPTER_FILE).stat().st_size  # the update's will be the same
        deadline = self.round_time.training_deadline(task.deadline, self.clock_ahead, size)
        output = work.clear_output()
        start_from = self.local_parts.start_from(start.folder, work.results.last_own(), work.folder / "start")
        self.reporter.step("training", f"round {number}: training on {examples} examples", round=number)
        began = time.monotonic()
        try:
            with self.reporter.steps_bar("training") as on_progress:

                def progress(step: int, total: int, loss: float) -> None:
                    on_progress(step, total)
                    self.reporter.loss(number, step, total, loss)

                outcome = self.local_trainer.fit(
                    start.request,
                    number,
                    start_from,
                    output,
                    progress,
                    task.trainable,
                    start.frozen,
                    deadline=deadline,
                    max_steps=self.max_steps,
                    stop=stop,
                    checkpoints=work.checkpoints,
                    state=work.optimizer,
                    notice=lambda sentence: self.reporter.step("notice", f"round {number}: {sentence}", round=number),
                )
        except Stopped as stopped:
            self.reporter.step("training-stopped", f"round {number}: {stopped}", round=number)
            raise KeyboardInterrupt from stopped
        seconds = time.monotonic() - began
        work.set_training_seconds(outcome.metrics.get("train_seconds", seconds))  # its own is without loading
        if outcome.compute is not None:
            self._report_saving(number, outcome.compute)
        steps, planned = (outcome.metrics.get(name, 0.0) for name in ("train_steps", "train_steps_planned"))
        if steps < planned:
            sentence = f"round {number}: its deadline ended training after {steps:.0f} of {planned:.0f} steps"
            self.reporter.step("shortened", sentence, round=number, steps=steps, planned=planned)
        return outcome

    def _own(self, task: Task, start: "_Start", outcome: Outcome) -> Path | None:
        """The folder of the whole adapter that was trained; None where the disk has no room for it."""
        trained = outcome.adapter.parent
        if start.frozen is None:
            return trained
        try:
            return join_slice(trained, start.frozen, start.served.folder, self.work_folder.output / "whole")
        except AdapterError as error:  # the update is finished and counts without it
            self._report_not_kept(task.round, error)
            return None

    def _record(self, task: Task, start: "_Start", outcome: Outcome, own: Path | None) -> TrainedUpdate:
        """Keep the update: from here on it is not trained again."""
        output, trained_in = self.work_folder.output, outcome.adapter.parent
        adapter = self.local_parts.shared(trained_in, start.folder, output / "shared") / ADAPTER_FILE
        trained = TrainedUpdate(
            run=task.run,
            basis=self.work_folder.basis,
            round=task.round,
            attempt=task.attempt,
            adapter=start.served.sha256,
            file=str(adapter.resolve().relative_to(output.resolve())),
            own="" if own is None else str(own.resolve().relative_to(output.resolve())),
            upload=UploadCreate(
                rank=task.rank,
                rank_pattern=task.rank_pattern,
                hold_rank=task.hold_rank,
                **start.alphas,
                use_rslora=self.spec.scaling.use_rslora,
                trainable=task.trainable,
                examples=outcome.examples,
                size=adapter.stat().st_size,
                sha256=sha256_of(adapter),
                metrics=sendable_metrics(
                    {**outcome.metrics, **(_settings(outcome.compute) if outcome.compute else {})}
                ),
            ),
        )
        self.work_folder.save_trained(trained)
        return trained

    def _tell_stopping(self, number: int) -> None:
        sentence = f"round {number}: stopping after this step; Ctrl-C again stops at once"
        self.reporter.step("stopping", sentence, round=number)

    def _measure_trained(self, task: Task, start: "_Start", own: Path) -> Measured | None:
        """Metrics of what was trained, on the examples that the slice served was measured on; None where that fails."""
        if not self.local_trainer.heldout:
            return None
        sample, state = None, self.work_folder.state
        if state.sample is not None and state.evaluated == start.served.sha256:
            sample = SampleSize(**state.sample.model_dump())
        seconds = None if sample else self.local_trainer.evaluation_seconds(state.training_seconds)
        base_adapter = start.folder if task.trainable == "fresh" else None
        try:
            return self.local_trainer.evaluate(self.spec, own, most=sample, seconds=seconds, base_adapter=base_adapter)
        except (TrainingError, BadInput) as error:  # the update is finished and counts without its figures
            sentence = f"round {task.round}: the adapter trained here was not evaluated: {error}"
            self.reporter.step("evaluation-failed", sentence, round=task.round)
            return None

    def _report_saving(self, number: int, compute: Compute) -> None:
        """Tell that training went on with settings that take less memory."""
        settings = _settings(compute)
        sentence = f"round {number}: memory ended; training went on with {format_metrics(settings)}"
        self.reporter.step("memory-saved", sentence, round=number, settings=settings)

    def keep_own(self, trained: TrainedUpdate) -> None:
        """Keep the participant's own adapter before its update is sent: after the receipt the output folder is emptied."""
        update, prefix = trained.upload, HELDOUT_PREFIX
        if update.trainable == "fresh":  # it means nothing without the slice below it
            return
        if (
            update.trainable == "prefix" and not trained.own
        ):  # nor does this without the rest, for which there was no room
            return
        ranks = held_ranks(update.rank, update.rank_pattern, update.hold_rank)
        metrics = {name.removeprefix(prefix): v for name, v in update.metrics.items() if name.startswith(prefix)}
        folder, sample = self.work_folder.own_adapter(trained), trained.sample
        try:
            kept = own_adapter(folder, trained.round, *ranks, metrics, trained.basis, sample)
            self.work_folder.results.keep_own(folder, kept)
        except (OSError, BadInput) as error:  # a full disk; the round counts without it
            self._report_not_kept(trained.round, error)

    def _report_not_kept(self, number: int, error: Exception) -> None:
        sentence = f"round {number}: the adapter trained here is not kept: {error}"
        self.reporter.step("own-not-kept", sentence, round=number)


def _settings(compute: Compute) -> dict[str, float]:
    """What memory forced, as metrics of the update."""
    return {
        "micro_batch": float(compute.micro_batch or 0),
        "gradient_checkpointing": float(compute.gradient_checkpointing),
    }
