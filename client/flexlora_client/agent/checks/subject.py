"""What the checks look at: the options, and what earlier checks found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.slice_cache import SliceRequest, request_for_round
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http_messages import Probe
from flexlora_client.errors import Refused
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_shared.messages.runs import Fingerprint, RunDetail, RunSpec
from flexlora_shared.ranks import held_ranks, holds_more


@dataclass
class Subject:
    """One participant about to take part in a run. Attributes without a default are set by the checks that others need."""

    home: Path
    run: str
    asked_rank: int | None  # None: --rank auto
    rank_pattern: Mapping[str, int]
    folder: Path  # for what the checks write; deleted by whoever made it
    hold_rank: int | None = None  # None: as it trains
    allowed_extra: tuple[str, ...] = ()  # tensors that the run may train in full
    keeps_extra: bool = False  # whether those stay here
    api: Api = field(init=False)
    probe: Probe = field(init=False)
    answer: RunDetail | Refused = field(init=False)
    spec: RunSpec = field(init=False)
    devices: Sequence[torch.device] = field(init=False)  # one, or several that training is dealt to
    local_trainer: LocalTrainer = field(init=False)
    fingerprint: Fingerprint | None = None  # of the base model, where the run names one
    loaded: LoadedModel | None = None  # None: this training loop loads no model of ours
    encoder: Encoder | None = None  # None: likewise

    @property
    def rank(self) -> int:
        """The rank to check with: where it is not chosen yet, the lowest of the run."""
        return min(self.spec.ranks) if self.asked_rank is None else self.asked_rank

    @property
    def held(self) -> tuple[int, dict[str, int]]:
        """The rank and pattern of the slice that this participant would be served."""
        return held_ranks(self.rank, self.rank_pattern, self.hold_rank)

    @property
    def holds_more(self) -> bool:
        """Whether it would train a part of that slice alone."""
        return holds_more(self.spec.modules, self.rank, self.rank_pattern, self.hold_rank)

    @property
    def request(self) -> SliceRequest:
        """The slice that this participant would be served."""
        return request_for_round(self.spec, 0, *self.held)

    @property
    def trained(self) -> SliceRequest:
        """The slice of what it would train: that one, or its first directions."""
        return request_for_round(self.spec, 0, self.rank, self.rank_pattern)

    @property
    def trial(self) -> Path:
        """Where a slice of these ranks lies that no coordinator served."""
        return self.folder / f"slice-{self.held[0]}"
