"""`--rank auto`: the rank that this machine affords, measured before it is declared and again when a round shows otherwise."""

from dataclasses import dataclass, replace

from flexlora_client.agent.checks.model_checks import may_hold_more
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.reporter import Reporter
from flexlora_client.training.contract import Compute
from flexlora_client.training.fitting.choice import Option
from flexlora_client.training.fitting.measure import TIME_SHARE, Participant, choose_rank, refused
from flexlora_shared.messages.runs import RunSpec

MUCH_LONGER = 1.25  # times the predicted seconds


@dataclass
class RankChoice:
    """Chooses the rank, and how a round is computed with it, for one participant in one run."""

    spec: RunSpec
    local_trainer: LocalTrainer
    asked: Compute  # what the participant asks for
    reporter: Reporter
    chosen: Option | None = None

    def choose(self, below: tuple[int, int] | None = None) -> Option:
        """Measure, report why in a table, and compute rounds as chosen; what was chosen.

        `below`: the ranks trained and held for which memory was too small; see `choose_rank`.

        Raises:
            OutOfMemory: no rank (below `below`) fits the memory.
            DeviceError: none fits the round's time.
        """
        own = self.local_trainer
        self.reporter.step("measuring", "measuring memory and speed with the base model, to choose a rank")
        participant = Participant(own.train, own.heldout, own.answers, own.device, own.model_path, self.asked)
        choice = choose_rank(self.spec, participant, own.models, below, holds_more=may_hold_more(self.spec))
        rank = None if choice.chosen is None else choice.chosen.rank
        sentence = "no rank fits" if choice.chosen is None else f"{choice.chosen.ranks()} is the largest that fits"
        self.reporter.step("rank-chosen", f"{sentence}\n{choice.table()}", rank=rank, options=choice.rows())
        if choice.chosen is None:
            raise refused(choice)
        self.chosen = choice.chosen
        own.compute = replace(
            self.asked,
            micro_batch=self.chosen.micro_batch,
            gradient_checkpointing=self.chosen.gradient_checkpointing,
        )
        return self.chosen

    def keep(self, seconds: float) -> None:
        """Go on with the choice, and expect rounds of so many seconds."""
        assert self.chosen is not None
        self.chosen = replace(self.chosen, seconds=seconds)

    def is_outdated(self, seconds: float) -> bool:
        """Whether a round of so many seconds shows that the choice was wrong: the deadline is near, and it was not predicted."""
        assert self.chosen is not None  # a round comes after a choice
        near = seconds > TIME_SHARE * self.spec.round_timeout
        return near and seconds > MUCH_LONGER * self.chosen.seconds
