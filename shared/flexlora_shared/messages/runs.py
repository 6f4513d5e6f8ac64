"""What defines a run: the base model, the tensors trained, the ranks allowed, how rounds are held and how agents train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flexlora_shared.messages.base import Alpha, Dimension, Message, Rank, RunName, TensorName, Tuple
from flexlora_shared.messages.robust import Filter

Dtype = Literal["float32", "float16", "bfloat16"]
TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
RunState = Literal["DRAFT", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "FAILED"]


class ModuleSpec(Message):
    """One linear layer that gets a LoRA adapter, by its name in the base model's `named_modules()`."""

    name: TensorName
    out_features: Dimension
    in_features: Dimension


class ExtraTensor(Message):
    """A tensor trained in full beside LoRA (a classification head; PEFT `modules_to_save`): averaged, never factored."""

    name: TensorName
    shape: Annotated[Tuple[Dimension], Field(min_length=1, max_length=8)]
    init: Literal["zeros", "ones", "normal"] = "normal"  # of round 0; normal has standard deviation 0.02


class ModelSpec(Message):
    """The base model every participant loads itself; the coordinator never does."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    task_type: TaskType = "CAUSAL_LM"
    labels: Annotated[Tuple[str], Field(max_length=10_000)] = ()  # SEQ_CLS: the classes, in the order of the logits


class Scaling(Message):
    """How the served slices are scaled: one `alpha` for every rank, or `alpha_per_rank * rank` (a constant scaling)."""

    alpha: Alpha | None = None
    alpha_per_rank: Alpha | None = None
    use_rslora: bool = False

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.alpha is None) == (self.alpha_per_rank is None):
            raise ValueError("give exactly one of alpha and alpha_per_rank")
        return self

    def alpha_of(self, rank: int) -> float:
        """`lora_alpha` of a slice of this rank."""
        if self.alpha is not None:
            return self.alpha
        assert self.alpha_per_rank is not None  # by _one_rule
        return self.alpha_per_rank * rank


class TrainingSpec(Message):
    """Hyper-parameters of local training, passed through to every agent."""

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None  # optimizer steps; ends training before the epochs do
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536)] = 1
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 512  # tokens; longer examples are cut
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class RunSpec(Message):
    """A run as its operator defines it; fixed for the run's life."""

    name: RunName
    model: ModelSpec
    modules: Annotated[Tuple[ModuleSpec], Field(min_length=1, max_length=20_000)]
    extra: Annotated[Tuple[ExtraTensor], Field(max_length=1_000)] = ()
    ranks: Annotated[Tuple[Rank], Field(min_length=1, max_length=256)]
    scaling: Scaling = Scaling(alpha_per_rank=1.0)
    strategy: Annotated[str, Field(max_length=64)] = "flexlora"
    robust: Annotated[Tuple[Filter], Field(max_length=8)] = ()  # filters of a round's updates, applied in this order
    error_bound: Annotated[float, Field(ge=1, le=2)] = (
        1.02  # a truncation's error may be this many times the smallest possible, certified; 1: always exact
    )
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    clients_per_round: Annotated[int, Field(ge=1, le=100_000)] | None = None  # None: everyone present
    over_selection: Annotated[int, Field(ge=0, le=100_000)] = (
        0  # participants assigned beyond clients_per_round; a round ends as soon as clients_per_round updates are in
    )
    min_clients: Annotated[int, Field(ge=1, le=100_000)] = 1  # participants present before a round begins
    min_updates: Annotated[int, Field(ge=1, le=100_000)] = 1  # the quorum: uploads a round needs at its deadline
    gather_timeout: Annotated[float, Field(ge=0, le=86_400)] = (
        10.0  # seconds a round waits for more than min_clients to come
    )
    round_timeout: Annotated[float, Field(gt=0, le=2_592_000)] = 3600.0  # seconds from assignment to deadline
    grace: Annotated[float, Field(ge=0, le=2_592_000)] = (
        0.0  # seconds after the deadline in which an update announced before it may still arrive
    )
    late_updates: Literal["discard", "next-round"] = (
        "discard"  # next-round: a late update counts, less, in the next round
    )
    training: TrainingSpec = TrainingSpec()
    upload_dtype: Dtype = "float32"  # of the slices served and the uploads agents send
    norm_bound: Annotated[float, Field(gt=0, le=1e15)] = (
        1e4  # largest Frobenius norm of an update of a module or extra tensor
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0  # of round 0 and of the sampling of participants

    @property
    def largest_rank(self) -> int:
        """The rank the global update is kept at."""
        return max(self.ranks)


class RunStatus(Message):
    """A run at a glance."""

    name: RunName
    state: RunState | str  # a newer coordinator may know states that its reader does not
    strategy: str
    model: str
    ranks: tuple[int, ...]
    rounds: int  # to be published in all
    rounds_published: int
    current_round: int | None  # None before the start and after the end
    round_state: str | None
    waiting_for: str  # one sentence, for people
    participants: int  # that declared a rank
    created_at: str  # RFC 3339, UTC
    reason: str | None  # why a run failed or was cancelled


class RunDetail(Message):
    """A run's definition with its status."""

    status: RunStatus
    spec: RunSpec


class RunList(Message):
    """Every run, newest first."""

    runs: tuple[RunStatus, ...]
