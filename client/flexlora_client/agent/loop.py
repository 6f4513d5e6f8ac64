"""The agent's loop: declare, wait for a task, download, evaluate, train, upload; until the run is over.

An error is retried (the coordinator does not answer), loses this round's update only (late, not assigned), or ends the
agent with a sentence.
"""

from dataclasses import dataclass

from flexlora_client.agent.deliver_update import Sender
from flexlora_client.agent.download import download
from flexlora_client.agent.local_trainer import LocalTrainer, sendable_metrics
from flexlora_client.agent.reporter import Reporter, format_metrics
from flexlora_client.agent.slice_cache import CachedSlice, SliceRequest, request_for_round, request_for_task
from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder
from flexlora_client.coordinator_api.calls import Api, NoTask
from flexlora_client.errors import ClientError, Refused, RunEnded, TrainingError
from flexlora_client.files import sha256_of
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import Evaluation, UploadCreate
from flexlora_shared.problems import Code

LONG_POLL_RANGE_S = 45, 55  # each wait is drawn from it, so that thousands of agents do not poll in bursts
# Pauses between polls in a round that takes no update of this agent any more; they double. With longer ones the coordinator
# would count the agent as gone when the next round begins.
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 8.0


@dataclass(frozen=True)
class Agent:
    """One participant in one run."""

    api: Api
    spec: RunSpec
    work_folder: WorkFolder
    local_trainer: LocalTrainer
    declaration: Declaration
    reporter: Reporter
    max_rounds: int | None = None  # stop after this many accepted updates

    @property
    def _sender(self) -> Sender:
        return Sender(self.api, self.spec, self.work_folder, self.reporter)

    def run(self) -> None:
        """Take part until the run completes, or `max_rounds` updates are accepted.

        Raises:
            RunEnded: the run was cancelled or failed.
            Refused: the coordinator refuses this participant or its update for good.
            TrainingError, BadInput: something on this side cannot be used.
        """
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
        accepted, waiting = int(self._sender.send_kept()), False
        lost: tuple[int, int] | None = None  # the coordinator names it again until the round is over
        pause = FIRST_PAUSE_S
        while self.max_rounds is None or accepted < self.max_rounds:
            task = self._next()
            if isinstance(task, Task) and (task.round, task.attempt) != lost:
                waiting, pause = False, FIRST_PAUSE_S
                accepted += self._sender.send_kept(task.round)
                if self._round(task):
                    accepted += 1
                else:
                    lost = (task.round, task.attempt)
                continue
            if not waiting:
                self.reporter.step("waiting", "waiting for work")
            waiting = True
            if isinstance(task, NoTask):
                self.api.retry.sleep(task.retry_after)
            else:
                self.api.retry.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE_S)
        self.reporter.step("stopped", f"{accepted} updates accepted, stopping as asked", accepted=accepted)

    def _next(self) -> Task | NoTask:
        try:
            return self.api.task(self.spec.name, round(self.api.retry.uniform(*LONG_POLL_RANGE_S)))
        except Refused as error:
            if error.code is Code.NOT_DECLARED:  # the coordinator lost what it knew
                self._declare()
                return NoTask(0.0)
            raise

    def _round(self, task: Task) -> bool:
        """Do one task; returns whether its update was accepted."""
        step, number = self.reporter.step, task.round
        step("task", f"round {number}: rank {task.rank}, until {task.deadline}", round=number, attempt=task.attempt)
        self.local_trainer.check(task.trainable)  # before a useless download and evaluation
        request = request_for_task(task)
        start = self._download(request, number)
        self._report(start, number - 1, request)
        trained = self.work_folder.find_trained(number, start.sha256, task.trainable)
        if trained is not None:
            step("kept", f"round {number}: sending the update trained before", round=number)
        return self._sender.send(trained or self._train(task, request, start))

    def _download(self, request: SliceRequest, number: int) -> CachedSlice:
        if request.sha256 is not None:
            self.work_folder.slices.keep_only(request.sha256)
        with self.reporter.bytes_bar("downloading") as on_progress:
            fetched = download(self.api, self.work_folder.slices, request, on_progress)
        self.reporter.step(
            "downloaded",
            f"round {number}: adapter of {fetched.size} bytes, {fetched.fetched} over the network",
            round=number,
            sha256=fetched.sha256,
            bytes=fetched.fetched,
        )
        return fetched

    def _report(self, served: CachedSlice, published: int, request: SliceRequest) -> None:
        """Evaluate a served slice once and report the metrics to the round that published it."""
        heldout = len(self.local_trainer.heldout)
        if not heldout or self.work_folder.state.evaluated == served.sha256:
            return
        metrics = self.local_trainer.evaluate(self.spec, served.folder, generate=True)
        sentence = f"adapter of round {published} on {heldout} held-out examples: {format_metrics(metrics)}"
        self.reporter.step("evaluated", sentence, round=published, metrics=metrics)
        pattern = dict(request.rank_pattern)
        try:
            if metrics:
                evaluation = Evaluation(rank=request.rank, rank_pattern=pattern, examples=heldout, metrics=metrics)
                self.api.evaluate(self.spec.name, published, evaluation)
        except Refused as error:  # the figures are for people; the round goes on without them
            self.reporter.step("evaluation-refused", f"the evaluation was not taken: {error}", round=published)
        self.work_folder.set_evaluated(served.sha256)

    def _train(self, task: Task, request: SliceRequest, start: CachedSlice) -> TrainedUpdate:
        number, output = task.round, self.work_folder.clear_output()
        examples = len(self.local_trainer.train)
        self.reporter.step("training", f"round {number}: training on {examples} examples", round=number)
        with self.reporter.steps_bar("training") as on_progress:
            outcome = self.local_trainer.fit(
                request,
                number,
                start.folder,
                output,
                lambda step, total, loss: on_progress(step, total),
                task.trainable,
            )
        metrics = outcome.metrics
        if self.local_trainer.heldout:
            base_adapter = start.folder if task.trainable == "fresh" else None
            after = self.local_trainer.evaluate(
                self.spec, outcome.adapter.parent, generate=False, base_adapter=base_adapter
            )
            metrics = {**metrics, **{f"heldout_{name}": value for name, value in after.items()}}
        metrics = sendable_metrics(metrics)
        self.reporter.step("trained", f"round {number}: {format_metrics(metrics)}", round=number, metrics=metrics)
        trained = TrainedUpdate(
            run=task.run,
            basis=self.work_folder.basis,
            round=number,
            attempt=task.attempt,
            adapter=start.sha256,
            file=str(outcome.adapter.resolve().relative_to(output.resolve())),
            upload=UploadCreate(
                rank=task.rank,
                rank_pattern=task.rank_pattern,
                alpha=request.alpha,
                alpha_pattern=request.alpha_pattern,
                use_rslora=self.spec.scaling.use_rslora,
                trainable=task.trainable,
                examples=outcome.examples,
                size=outcome.adapter.stat().st_size,
                sha256=sha256_of(outcome.adapter),
                metrics=metrics,
            ),
        )
        self.work_folder.save_trained(trained)
        return trained

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
                self._report(self._download(request, last), last, request)
            except (ClientError, TrainingError) as error:  # the run is complete without this participant's figures
                sentence = f"the final adapter was not evaluated: {error}"
                self.reporter.step("evaluation-failed", sentence, round=last)
        self.reporter.step("completed", f"the run is complete after {last} rounds", rounds=last)
