"""The agent's loop: declare, wait for a task, download, evaluate, train, upload; until the run is over.

An error is retried (the coordinator does not answer), loses this round's update only (late, not assigned), or ends the
agent with a sentence.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flexlora_client.agent.deliver_update import Sender
from flexlora_client.agent.local_parts import EVERYTHING_SHARED, LocalParts
from flexlora_client.agent.local_trainer import LocalTrainer, sendable_metrics
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.report_failure import report_failure
from flexlora_client.agent.reporter import Reporter, format_metrics
from flexlora_client.agent.results import own_adapter
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.slice_cache import CachedSlice, SliceRequest, request_for_round, request_for_task
from flexlora_client.agent.stop_signals import stop_signals
from flexlora_client.agent.waiting import Waiting
from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder
from flexlora_client.coordinator_api.calls import Api, NoTask
from flexlora_client.errors import (
    BadInput,
    ClientError,
    Corrupted,
    OutOfMemory,
    Refused,
    RunEnded,
    Stopped,
    TrainingError,
)
from flexlora_client.files import sha256_of
from flexlora_client.training.contract import ADAPTER_FILE, Compute, Outcome
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.problems import Code

LONG_POLL_RANGE_S = 45, 55  # each wait is drawn from it, so that thousands of agents do not poll in bursts
FIRST_POLL_S = 1.0
# Pauses between polls in a round that takes no update of this agent any more; they double. With longer ones the coordinator
# would count the agent as gone when the next round begins.
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 8.0
HELDOUT_PREFIX = "heldout_"  # of the metrics of what was trained, among those of training


@dataclass
class Agent:
    """One participant in one run. With `rank_choice`, the declaration changes when a round shows that it was wrong."""

    api: Api
    spec: RunSpec
    work_folder: WorkFolder
    local_trainer: LocalTrainer
    declaration: Declaration
    reporter: Reporter
    max_rounds: int | None = None  # stop after this many accepted updates
    local_parts: LocalParts = EVERYTHING_SHARED  # what the participant keeps to itself
    round_time: RoundTime = field(default_factory=RoundTime)
    rank_choice: RankChoice | None = None  # None: the participant gave the rank

    @property
    def _sender(self) -> Sender:
        return Sender(self.api, self.spec, self.work_folder, self.reporter)

    @property
    def _measuring(self) -> SliceMeasuring:
        return SliceMeasuring(self.api, self.spec, self.work_folder, self.local_trainer, self.reporter)

    def run(self) -> None:
        """Take part until the run completes, or `max_rounds` updates are accepted.

        Raises:
            RunEnded: the run was cancelled or failed.
            Refused: the coordinator refuses this participant or its update for good.
            TrainingError, BadInput: something on this side cannot be used.
            KeyboardInterrupt: the participant ended it; the next start goes on from there.
        """
        self.work_folder.results.save_spec(self.spec)
        try:
            self._declare()
            self._rounds()
        except Refused as error:
            if error.code is not Code.RUN_OVER:
                raise
            self._finish()

    def _declare(self) -> None:
        answer = self.api.declare(self.spec.name, self.declaration)
        rank, examples = self.declaration.rank, self.declaration.examples
        self.reporter.step("declared", f"declared rank {rank} and {examples} examples", rank=rank, examples=examples)
        if answer.replaced is not None:
            at, device = answer.replaced.declared_at, answer.replaced.hardware.device or "an unnamed device"
            sentence = (
                f"this agent replaces the one with the same key that declared at {at} on {device}; if that one still runs, "
                "it ends now: enroll a second machine with a token of its own"
            )
            self.reporter.step("replaced", sentence, declared_at=at, device=device)

    def _rounds(self) -> None:
        accepted, waiting = int(self._sender.send_kept()), Waiting(self.api, self.spec.name, self.reporter)
        lost: tuple[int, int] | None = None  # the coordinator names it again until the round is over
        pause = FIRST_PAUSE_S
        while self.max_rounds is None or accepted < self.max_rounds:
            # a short poll first: whoever watches learns at once that there is nothing to do, and what is waited for
            task = self._next(self.api.retry.uniform(*LONG_POLL_RANGE_S) if waiting.begun else FIRST_POLL_S)
            if isinstance(task, Task) and (task.round, task.attempt) != lost:
                waiting.end()
                pause = FIRST_PAUSE_S
                accepted += self._sender.send_kept(task.round)
                if self._attempt(task):
                    accepted += 1
                else:
                    lost = (task.round, task.attempt)
                continue
            waiting.go_on()
            if isinstance(task, NoTask):
                self.api.retry.sleep(task.retry_after)
            else:
                self.api.retry.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_S)
        self.reporter.step("stopped", f"{accepted} updates accepted, stopping as asked", accepted=accepted)

    def _next(self, wait: float) -> Task | NoTask:
        try:
            return self.api.task(self.spec.name, round(wait))
        except Refused as error:
            if error.code is Code.NOT_DECLARED:  # the coordinator lost what it knew
                self._declare()
                return NoTask(0.0)
            raise

    def _attempt(self, task: Task) -> bool:
        """Do one task; what fails on this side is reported, so that the round does not wait for it."""
        try:
            return self._round(task)
        except (TrainingError, BadInput, Corrupted, OSError) as error:
            unreported = report_failure(self.api, task, error)
            told = "told the coordinator" if unreported is None else f"could not tell the coordinator: {unreported}"
            sentence = f"round {task.round}: failed; {told}"
            self.reporter.step("failed", sentence, round=task.round, told=unreported is None)
            if not isinstance(error, OutOfMemory) or self.rank_choice is None:
                raise
            self.reporter.step("out-of-memory", f"round {task.round}: {error}", round=task.round, rank=task.rank)
            self._choose_anew(below=task.rank)
            return False

    def _round(self, task: Task) -> bool:
        """Do one task; returns whether its update was accepted."""
        step, number, began = self.reporter.step, task.round, time.monotonic()
        sentence = f"round {number} of {self.spec.rounds}: rank {task.rank}, until {task.deadline}"
        step("task", sentence, round=number, rounds=self.spec.rounds, attempt=task.attempt, deadline=task.deadline)
        self.local_trainer.check(task.trainable)  # before a useless download and evaluation
        request = request_for_task(task)
        start = self._measuring.download(request, number)
        self._report(start, number - 1, request)
        trained = self.work_folder.find_trained(number, start.sha256, task.trainable)
        if trained is not None:
            step("kept", f"round {number}: sending the update trained before", round=number)
        trained = trained or self._train(task, request, start)
        self._keep_own(trained)
        with self.round_time.uploading():
            accepted = self._sender.send(trained)
        if self.rank_choice is not None and self.rank_choice.is_outdated(time.monotonic() - began):
            self._choose_anew()
        return accepted

    def _choose_anew(self, below: int | None = None) -> None:
        """Measure again and declare the rank; it holds from the next round on."""
        assert self.rank_choice is not None
        rank = self.rank_choice.choose(below)
        if rank != self.declaration.rank:
            self.declaration = self.declaration.model_copy(update={"rank": rank})
            self._declare()

    def _report(self, served: CachedSlice, published: int, request: SliceRequest) -> None:
        seconds = self.local_trainer.evaluation_seconds(self.work_folder.state.training_seconds)
        with self.round_time.evaluating():
            self._measuring.report(served, published, request, seconds)

    def _keep_own(self, trained: TrainedUpdate) -> None:
        """Keep the participant's own adapter before its update is sent: after the receipt the output folder is emptied."""
        update, prefix = trained.upload, HELDOUT_PREFIX
        if update.trainable == "fresh":  # it means nothing without the slice below it
            return
        metrics = {name.removeprefix(prefix): v for name, v in update.metrics.items() if name.startswith(prefix)}
        folder = self.work_folder.own_adapter(trained)
        try:
            kept = own_adapter(folder, trained.round, update.rank, update.rank_pattern, metrics, trained.basis)
            self.work_folder.results.keep_own(folder, kept)
        except (OSError, BadInput) as error:  # a full disk; the round counts without it
            sentence = f"round {trained.round}: the adapter trained here is not kept: {error}"
            self.reporter.step("own-not-kept", sentence, round=trained.round)

    def _train(self, task: Task, request: SliceRequest, start: CachedSlice) -> TrainedUpdate:
        number = task.round
        with stop_signals(lambda: self._tell_stopping(number)) as stop:
            outcome = self._fit(task, request, start, stop)
        trained = self._record(task, request, start, outcome)
        if stop():  # asked for in the last step, or the training loop does not ask
            raise KeyboardInterrupt
        heldout = self._measure_trained(task, start, outcome)
        if heldout:
            metrics = sendable_metrics({**trained.upload.metrics, **heldout})
            trained = trained.model_copy(update={"upload": trained.upload.model_copy(update={"metrics": metrics})})
            self.work_folder.save_trained(trained)
        metrics = dict(trained.upload.metrics)
        self.reporter.step("trained", f"round {number}: {format_metrics(metrics)}", round=number, metrics=metrics)
        return trained

    def _fit(self, task: Task, request: SliceRequest, start: CachedSlice, stop: Callable[[], bool]) -> Outcome:
        number, work = task.round, self.work_folder
        examples = len(self.local_trainer.train)
        deadline = self.round_time.training_deadline(task.deadline, self.api.http.clock_ahead, start.size)
        output = work.clear_output()
        start_from = self.local_parts.start_from(start.folder, work.results.last_own(), work.folder / "start")
        self.reporter.step("training", f"round {number}: training on {examples} examples", round=number)
        began = time.monotonic()
        try:
            with self.reporter.steps_bar("training") as on_progress:
                outcome = self.local_trainer.fit(
                    request,
                    number,
                    start_from,
                    output,
                    lambda step, total, loss: on_progress(step, total),
                    task.trainable,
                    deadline=deadline,
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

    def _record(self, task: Task, request: SliceRequest, start: CachedSlice, outcome: Outcome) -> TrainedUpdate:
        """Keep the update: from here on it is not trained again."""
        output, own = self.work_folder.output, outcome.adapter.parent
        adapter = self.local_parts.shared(own, start.folder, output / "shared") / ADAPTER_FILE
        trained = TrainedUpdate(
            run=task.run,
            basis=self.work_folder.basis,
            round=task.round,
            attempt=task.attempt,
            adapter=start.sha256,
            file=str(adapter.resolve().relative_to(output.resolve())),
            own=str(own.resolve().relative_to(output.resolve())),
            upload=UploadCreate(
                rank=task.rank,
                rank_pattern=task.rank_pattern,
                alpha=request.alpha,
                alpha_pattern=request.alpha_pattern,
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

    def _measure_trained(self, task: Task, start: CachedSlice, outcome: Outcome) -> dict[str, float]:
        """Metrics of what was trained, on the examples that the slice served was measured on."""
        if not self.local_trainer.heldout:
            return {}
        sample, state = None, self.work_folder.state
        if state.sample is not None and state.evaluated == start.sha256:
            sample = SampleSize(**state.sample.model_dump())
        seconds = None if sample else self.local_trainer.evaluation_seconds(state.training_seconds)
        base_adapter = start.folder if task.trainable == "fresh" else None
        after = self.local_trainer.evaluate(
            self.spec, outcome.adapter.parent, most=sample, seconds=seconds, base_adapter=base_adapter
        )
        return {f"{HELDOUT_PREFIX}{name}": value for name, value in after.metrics.items()}

    def _report_saving(self, number: int, compute: Compute) -> None:
        """Tell that training went on with settings that take less memory."""
        settings = _settings(compute)
        sentence = f"round {number}: memory ended; training went on with {format_metrics(settings)}"
        self.reporter.step("memory-saved", sentence, round=number, settings=settings)

    def _finish(self) -> None:
        """Evaluate the final adapter after the end of the run.

        Raises:
            RunEnded: the run did not complete.
        """
        status = self.api.run(self.spec.name).status
        if status.state != "COMPLETED":
            raise RunEnded(f"run {status.name} is {status.state}: {status.reason or 'no reason was given'}")
        last, declared = status.rounds_published, self.declaration
        if self.local_trainer.heldout:
            request = request_for_round(self.spec, last, declared.rank, declared.rank_pattern)
            try:
                self._report(self._measuring.download(request, last), last, request)
            except (ClientError, TrainingError) as error:  # the run is complete without this participant's figures
                sentence = f"the final adapter was not evaluated: {error}"
                self.reporter.step("evaluation-failed", sentence, round=last)
        self.reporter.step("completed", f"the run is complete after {last} rounds", rounds=last)


def _settings(compute: Compute) -> dict[str, float]:
    """What memory forced, as metrics of the update."""
    return {
        "micro_batch": float(compute.micro_batch or 0),
        "gradient_checkpointing": float(compute.gradient_checkpointing),
    }
