"""What defines a run: the base model, the tensors trained, the ranks allowed, how rounds are held and how agents train."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flexlora_shared.messages.base import (
    Alpha,
    Count,
    Dimension,
    Message,
    Rank,
    RunName,
    Sha256,
    TensorName,
    Tuple,
    omitted_if_default,
)
from flexlora_shared.messages.robust import Filter
from flexlora_shared.messages.strategy_options import StrategyOptions

Dtype = Literal["float32", "float16", "bfloat16"]
TaskType = Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "IMAGE_CLASSIFICATION"]
ProblemType = Literal["single-label", "multi-label", "regression"]
PromptFormat = Literal["as-is", "chat-template", "chatml", "alpaca"]
Weighting = Literal["examples", "equal", "capped"]
RunState = Literal["DRAFT", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "FAILED"]


class ModuleSpec(Message):
    """One linear layer that gets a LoRA adapter, by its name in the base model's `named_modules()`."""

    name: Annotated[TensorName, Field(description="Name of the layer in the base model")]
    out_features: Annotated[Dimension, Field(description="Rows of its weight")]
    in_features: Annotated[Dimension, Field(description="Columns of its weight")]


class ExtraTensor(Message):
    """A tensor trained in full beside LoRA (a classification head; PEFT `modules_to_save`): averaged, never factored."""

    name: Annotated[TensorName, Field(description="Name of the parameter in the base model")]
    shape: Annotated[Tuple[Dimension], Field(min_length=1, max_length=8, description="Its shape")]
    init: Annotated[
        Literal["zeros", "ones", "normal"],
        Field(description="Its values in round 0; normal has standard deviation 0.02"),
    ] = "normal"


class Fingerprint(Message):
    """What identifies a base model beside its name: digests of a few frozen weights and of what turns inputs into numbers."""

    weights: Annotated[Sha256, Field(description="SHA-256 over a few frozen weights")]
    tokenizer: Annotated[Sha256, Field(description="SHA-256 over the tokenizer, or the image processor")]


class ModelSpec(Message):
    """The base model every participant loads itself; the coordinator never does."""

    id: Annotated[
        str, Field(min_length=1, max_length=512, description="Model hub id, or a path that every participant has")
    ]
    revision: Annotated[
        Annotated[str, Field(min_length=1, max_length=128)] | None,
        Field(description="Revision of the model on its hub; null: its main branch"),
    ] = None
    task_type: Annotated[TaskType, Field(description="What the model is fine-tuned for")] = "CAUSAL_LM"
    labels: Annotated[
        Tuple[str],
        Field(max_length=10_000, description="Classes in the order of the logits; empty for tasks that generate text"),
    ] = ()
    problem_type: Annotated[
        ProblemType,
        Field(
            description="What SEQ_CLS predicts: one label, any number of them, or a number for each label",
            exclude_if=omitted_if_default("single-label"),
        ),
    ] = "single-label"
    fingerprint: Annotated[
        Fingerprint | None,
        Field(
            description="Digests that every participant's base model must have; null: any of the same shapes takes part",
            exclude_if=omitted_if_default(None),
        ),
    ] = None


class Scaling(Message):
    """How the served slices are scaled: one `alpha` for every rank, or `alpha_per_rank * rank` (a constant scaling)."""

    alpha: Annotated[Alpha | None, Field(description="`lora_alpha` of every rank")] = None
    alpha_per_rank: Annotated[
        Alpha | None, Field(description="`lora_alpha` divided by the rank, the same for every rank")
    ] = None
    use_rslora: Annotated[
        bool, Field(description="Whether the scaling is `alpha / sqrt(rank)` (rsLoRA) instead of `alpha / rank`")
    ] = False

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

    learning_rate: Annotated[
        float, Field(gt=0, le=10, description="Learning rate of the optimizer; with a schedule, its peak")
    ] = 2e-4
    epochs: Annotated[int, Field(ge=1, le=1000, description="Passes over the participant's examples in each round")] = 1
    max_steps: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="Most optimizer steps in a round; null: as many as the epochs have"),
    ] = None
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="Examples in a batch")] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65_536, description="Batches in an optimizer step")] = 1
    max_length: Annotated[
        int, Field(ge=8, le=1_048_576, description="Most tokens of an example; longer ones are cut")
    ] = 512
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Weight decay of the optimizer")] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, description="Norm at which gradients are clipped")] = 1.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout in front of lora_A")] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of shuffling and dropout")] = 0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(
            description="How the learning rate goes from its peak to the end of the run, over all rounds",
            exclude_if=omitted_if_default("constant"),
        ),
    ] = "constant"
    warmup: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the run in which the learning rate rises from 0 to its peak",
            exclude_if=omitted_if_default(0.0),
        ),
    ] = 0.0
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        Field(
            description="What takes the steps: AdamW, or plain SGD without momentum",
            exclude_if=omitted_if_default("adamw"),
        ),
    ] = "adamw"
    optimizer_state: Annotated[
        Literal["fresh", "keep"],
        Field(
            description="The optimizer's state at a round's start: fresh, or as the participant ended the round before",
            exclude_if=omitted_if_default("fresh"),
        ),
    ] = "fresh"
    select: Annotated[
        Literal["last", "best-epoch"],
        Field(
            description="What a round uploads: the last step, or the epoch of the least held-out loss",
            exclude_if=omitted_if_default("last"),
        ),
    ] = "last"
    prompt_format: Annotated[
        PromptFormat,
        Field(
            description="How rows become text: joined as they are, by the tokenizer's chat template, as ChatML, or as Alpaca's",
            exclude_if=omitted_if_default("as-is"),
        ),
    ] = "as-is"
    learn: Annotated[
        Literal["completions", "all"],
        Field(
            description="Which tokens count in the loss: the completions, or all",
            exclude_if=omitted_if_default("completions"),
        ),
    ] = "completions"
    packing: Annotated[
        bool,
        Field(
            description="Whether plain texts are joined into examples of max_length tokens",
            exclude_if=omitted_if_default(False),
        ),
    ] = False


class StartFrom(Message):
    """The published adapter of an earlier run on the same coordinator, with which a run begins."""

    run: Annotated[RunName, Field(description="Name of the earlier run")]
    round: Annotated[
        Annotated[int, Field(ge=0, le=100_000)] | None,
        Field(description="Which of its rounds; null: the last one published when the new run is created"),
    ] = None
    sha256: Annotated[
        Sha256 | None,
        Field(description="SHA-256 of the global update it published; the coordinator fills it in, or compares it"),
    ] = None


class RunSpec(Message):
    """A run as its operator defines it; fixed for the run's life."""

    name: Annotated[RunName, Field(description="Name of the run, unique on the coordinator")]
    model: Annotated[ModelSpec, Field(description="The base model")]
    modules: Annotated[
        Tuple[ModuleSpec],
        Field(min_length=1, max_length=20_000, description="The linear layers that get a LoRA adapter"),
    ]
    extra: Annotated[
        Tuple[ExtraTensor], Field(max_length=1_000, description="Tensors trained in full beside LoRA")
    ] = ()
    ranks: Annotated[
        Tuple[Rank], Field(min_length=1, max_length=256, description="LoRA ranks that participants may declare")
    ]
    scaling: Annotated[Scaling, Field(description="How the served slices are scaled")] = Scaling(alpha_per_rank=1.0)
    strategy: Annotated[str, Field(max_length=64, description="Aggregation strategy")] = "flexlora"
    strategy_options: Annotated[
        StrategyOptions,
        Field(description="Options of the strategy", exclude_if=omitted_if_default(StrategyOptions())),
    ] = StrategyOptions()
    robust: Annotated[
        Tuple[Filter],
        Field(
            max_length=8,
            description="Filters of a round's updates, applied in this order; left out of a new run: the coordinator fills in "
            "`norm-clip`",
        ),
    ] = ()
    weighting: Annotated[
        Weighting | None,
        Field(
            description="What updates weigh: by their examples, all alike, or by examples with a bound for each participant; "
            "null: the coordinator fills in `capped`, and a run of an earlier version goes by examples",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    max_examples: Annotated[
        Count | None,
        Field(
            description="Examples that count of one update at most; null: all that it announces",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    max_share: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="Largest share of one participant in a round where weights are capped; null: by the number of "
            "participants",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    error_bound: Annotated[
        float,
        Field(
            ge=1,
            le=2,
            description="A truncation's error may be this many times the smallest possible, certified; 1: always exact",
        ),
    ] = 1.02
    rounds: Annotated[int, Field(ge=1, le=100_000, description="Rounds to publish")]
    clients_per_round: Annotated[
        Annotated[int, Field(ge=1, le=100_000)] | None,
        Field(description="Participants whose updates a round takes; null: everyone present"),
    ] = None
    over_selection: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Participants assigned beyond clients_per_round; a round ends once clients_per_round updates are in",
        ),
    ] = 0
    min_clients: Annotated[
        int, Field(ge=1, le=100_000, description="Participants that must be present before a round begins")
    ] = 1
    min_updates: Annotated[
        int, Field(ge=1, le=100_000, description="The quorum: updates that a round needs at its deadline")
    ] = 1
    gather_timeout: Annotated[
        float, Field(ge=0, le=86_400, description="Seconds that a round waits for more than min_clients participants")
    ] = 10.0
    round_timeout: Annotated[float, Field(gt=0, le=2_592_000, description="Seconds from assignment to deadline")] = (
        3600.0
    )
    grace: Annotated[
        float,
        Field(
            ge=0,
            le=2_592_000,
            description="Seconds after the deadline in which an update announced before it may still arrive",
        ),
    ] = 0.0
    late_updates: Annotated[
        Literal["discard", "next-round"],
        Field(description="What becomes of a late update; next-round: it counts, less, in the next round"),
    ] = "discard"
    training: Annotated[TrainingSpec, Field(description="Hyper-parameters of local training")] = TrainingSpec()
    upload_dtype: Annotated[Dtype, Field(description="Data type of the slices served and of the uploads")] = "float32"
    norm_bound: Annotated[
        float, Field(gt=0, le=1e15, description="Largest Frobenius norm of an update of a module or extra tensor")
    ] = 1e4
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of round 0 and of the sampling of participants")] = 0
    start_from: Annotated[
        StartFrom | None,
        Field(
            description="The adapter that round 0 publishes; null: a random lora_A and lora_B = 0",
            exclude_if=omitted_if_default(None),
        ),
    ] = None

    @property
    def largest_rank(self) -> int:
        """The rank the global update is kept at."""
        return max(self.ranks)


class RunStatus(Message):
    """A run at a glance."""

    name: Annotated[RunName, Field(description="Name of the run")]
    state: Annotated[RunState | str, Field(description="DRAFT, RUNNING, PAUSED, COMPLETED, CANCELLED or FAILED")]
    strategy: Annotated[str, Field(description="Aggregation strategy")]
    strategy_options: Annotated[
        StrategyOptions,
        Field(description="Options of the strategy", exclude_if=omitted_if_default(StrategyOptions())),
    ] = StrategyOptions()
    model: Annotated[str, Field(description="Id of the base model")]
    ranks: Annotated[tuple[int, ...], Field(description="LoRA ranks allowed")]
    rounds: Annotated[int, Field(description="Rounds to be published in all")]
    rounds_published: Annotated[int, Field(description="Rounds published so far")]
    current_round: Annotated[int | None, Field(description="Round under way; null before the start and after the end")]
    round_state: Annotated[str | None, Field(description="State of the current round")]
    waiting_for: Annotated[str, Field(description="What the run waits for, one sentence for people")]
    participants: Annotated[int, Field(description="Participants that declared a rank")]
    created_at: Annotated[str, Field(description="RFC 3339, UTC")]
    reason: Annotated[str | None, Field(description="Why the run failed or was cancelled")]


class RunDetail(Message):
    """A run's definition with its status."""

    status: Annotated[RunStatus, Field(description="The run at a glance")]
    spec: Annotated[RunSpec, Field(description="The run's definition")]
    warnings: Annotated[
        Tuple[str],
        Field(
            description="What of the definition works and yet may not be wanted, sentences for people",
            exclude_if=omitted_if_default(()),
        ),
    ] = ()


class RunList(Message):
    """Every run, newest first."""

    runs: Annotated[tuple[RunStatus, ...], Field(description="The runs")]
