"""The agent's loop: declare, wait for a task, download, evaluate, train (`train_round`), upload; until the run is over.

An error is retried (the coordinator does not answer), loses this round's update only (late, not assigned), or ends the
agent with a sentence.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flexlora_client.agent.agreement import Ranks, check_task
from flexlora_client.agent.deliver_update import USELESS_UPDATE_CODES, Sender
from flexlora_client.agent.local_parts import EVERYTHING_SHARED, LocalParts
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.report_failure import report_failure
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.slice_cache import CachedSlice, SliceRequest, request_for_round, request_for_task
from flexlora_client.agent.train_round import TrainRound
from flexlora_client.agent.waiting import Waiting
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api, NoTask
from flexlora_client.errors import (
    BadInput,
    ClientError,
    Corrupted,
    OutOfMemory,
    Refused,
    RunEnded,
    TrainingError,
)
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.problems import Code
from flexlora_shared.ranks import held_ranks

LONG_POLL_RANGE_S = 45, 55  # each wait is drawn from it, so that thousands of agents do not poll in bursts
FIRST_POLL_S = 1.0
# Pauses between polls in a round that takes no update of this agent any more; they double. With longer ones the coordinator
# would count the agent as gone when the next round begins.
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 8.0


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

    @property
    def _training(self) -> TrainRound:
        return TrainRound(
            self.spec,
            self.work_folder,
            self.local_trainer,
            self.reporter,
            self.local_parts,
            self.round_time,
            self.api.http.clock_ahead,
        )

    def run(self) -> None:
        """Take part until the run completes, or `max_rounds` updates are accepted.

        Raises:
            RunEnded: the run was cancelled or failed.
            Refused: the coordinator refuses this participant or its update for good.
            TrainingError, BadInput: something on this side cannot be used.
            KeyboardInterrupt: the participant ended it; the next start goes on from there.
        """
        self.work_folder.results.agree(self.spec)
        try:
            self._declare()
            self._rounds()
        except Refused as error:
            if error.code is not Code.RUN_OVER:
                raise
            self._finish()

    def _declare(self) -> None:
        self.work_folder.add_declared(Ranks.of(self.declaration))
        answer = self.api.declare(self.spec.name, self.declaration)
        rank, examples = self.declaration.rank, self.declaration.examples
        held = self.declaration.hold_rank or rank
        sentence = f"declared rank {_ranks(rank, held)} and {examples} examples"
        self.reporter.step("declared", sentence, rank=rank, hold_rank=held, examples=examples)
        if answer.replaced is not None:
            at, device = answer.replaced.declared_at, answer.replaced.hardware.device or "an unnamed device"
            sentence = (
                f"this agent replaces the one with the same key that declared at {at} on {device}; if that one still runs, "
                "it ends now: enroll a second machine with a token of its own"
            )
            self.reporter.step("replaced", sentence, declared_at=at, device=device)

    def _rounds(self) -> None:
        accepted, waiting = int(self._sender.send_kept()), Waiting(self.api, self.spec.name, self.reporter)
        # The coordinator names it again until the round is over; at another rank, declared since, it is a task anew.
        lost: tuple[int | None, ...] | None = None
        pause = FIRST_PAUSE_S
        while self.max_rounds is None or accepted < self.max_rounds:
            # a short poll first: whoever watches learns at once that there is nothing to do, and what is waited for
            task = self._next(self.api.retry.uniform(*LONG_POLL_RANGE_S) if waiting.begun else FIRST_POLL_S)
            if isinstance(task, Task) and _identity(task) != lost:
                waiting.end()
                pause = FIRST_PAUSE_S
                with self._reporting(task):
                    accepted += self._sender.send_kept(task.round)
                if self._attempt(task):
                    accepted += 1
                else:
                    lost = _identity(task)
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
            task = self.api.task(self.spec.name, round(wait))
        except Refused as error:
            if error.code is Code.NOT_DECLARED:  # the coordinator lost what it knew
                self._declare()
                return NoTask(0.0)
            raise
        if isinstance(task, Task):
            check_task(task, self.spec, self.work_folder.state.declared)
        return task

    def _attempt(self, task: Task) -> bool:
        """Do one task; returns whether its update was accepted, False too where only this round is lost."""
        began = time.monotonic()
        try:
            with self._reporting(task):
                accepted = self._round(task)
        except Refused as error:
            if error.code is not Code.INVALID_TENSOR:
                raise
            return False
        except OutOfMemory as error:
            if self.rank_choice is None:
                raise
            self.reporter.step("out-of-memory", f"round {task.round}: {error}", round=task.round, rank=task.rank)
            self._choose_anew(below=(task.rank, task.hold_rank or task.rank))
            return False
        self._look_at_rank(time.monotonic() - began)
        return accepted

    @contextmanager
    def _reporting(self, task: Task) -> Iterator[None]:
        """Report what fails on this side, so that the round does not wait for it."""
        try:
            yield
        except (Refused, TrainingError, BadInput, Corrupted, OSError) as error:
            if isinstance(error, Refused) and error.code not in USELESS_UPDATE_CODES:
                raise
            unreported = report_failure(self.api, task, error)
            told = "told the coordinator" if unreported is None else f"could not tell the coordinator: {unreported}"
            sentence = f"round {task.round}: failed; {told}"
            self.reporter.step("failed", sentence, round=task.round, told=unreported is None)
            raise

    def _round(self, task: Task) -> bool:
        """Do one task; returns whether its update was accepted."""
        step, number = self.reporter.step, task.round
        ranks = _ranks(task.rank, task.hold_rank or task.rank)
        sentence = f"round {number} of {self.spec.rounds}: rank {ranks}, until {task.deadline}"
        step("task", sentence, round=number, rounds=self.spec.rounds, attempt=task.attempt, deadline=task.deadline)
        self.local_trainer.check(task.trainable)  # before a useless download and evaluation
        request = request_for_task(task)
        start = self._measuring.download(request, number)
        self._report(start, number - 1, request)
        ranks_assigned = task.rank, task.rank_pattern, task.hold_rank
        trained = self.work_folder.find_trained(number, start.sha256, task.trainable, ranks_assigned)
        if trained is not None:
            step("kept", f"round {number}: sending the update trained before", round=number)
        trained = trained or self._training.train(task, request, start)
        self._training.keep_own(trained)
        with self.round_time.uploading():
            return self._sender.send(trained)

    def _look_at_rank(self, seconds: float) -> None:
        """Choose the rank anew after a round that took much longer than predicted; it stays where nothing fits now."""
        if self.rank_choice is None or not self.rank_choice.is_outdated(seconds):
            return
        try:
            self._choose_anew()
        except TrainingError as error:  # the round counts, and so may the next one
            self.rank_choice.keep(seconds)
            rank = self.declaration.rank
            self.reporter.step("rank-kept", f"rank {rank} stays declared: {error}", rank=rank)

    def _choose_anew(self, below: tuple[int, int] | None = None) -> None:
        """Measure again and declare the ranks; a task that failed is then given again at them."""
        assert self.rank_choice is not None
        chosen = self.rank_choice.choose(below)
        ranks = {"rank": chosen.rank, "hold_rank": chosen.held}
        declared = self.declaration.model_copy(update=ranks)
        if declared != self.declaration:
            self.declaration = declared
            self._declare()

    def _report(self, served: CachedSlice, published: int, request: SliceRequest) -> None:
        seconds = self.local_trainer.evaluation_seconds(self.work_folder.state.training_seconds)
        try:
            with self.round_time.evaluating():
                self._measuring.report(served, published, request, seconds)
        except (TrainingError, BadInput) as error:  # figures are for people; what is trained counts without them
            sentence = f"the adapter of round {published} was not evaluated: {error}"
            self.reporter.step("evaluation-failed", sentence, round=published)

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
            held = held_ranks(declared.rank, declared.rank_pattern, declared.hold_rank)
            request = request_for_round(self.spec, last, *held)
            try:
                self._report(self._measuring.download(request, last), last, request)
            except (ClientError, TrainingError) as error:  # the run is complete without this participant's figures
                sentence = f"the final adapter was not evaluated: {error}"
                self.reporter.step("evaluation-failed", sentence, round=last)
        self.reporter.step("completed", f"the run is complete after {last} rounds", rounds=last)


def _identity(task: Task) -> tuple[int | None, ...]:
    """What a task is: declared at other ranks, it is another one."""
    return task.round, task.attempt, task.rank, task.hold_rank


def _ranks(rank: int, held: int) -> str:
    return str(rank) if rank == held else f"{rank} (holding {held})"
