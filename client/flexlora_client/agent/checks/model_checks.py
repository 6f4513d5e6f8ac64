"""Checks of the base model with its tokenizer, and of what the participant's examples become with them."""

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.errors import DataError, ModelError, UsageError
from flexlora_client.training.data.examples import Chat
from flexlora_client.training.data.store import of_kinds
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.encoding.survey import survey
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.describe_model import check_of_model
from flexlora_client.training.models.fingerprint import check_fingerprint
from flexlora_client.training.models.trial_slice import trial_slice, write_trial_slice
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable

SAMPLE = 1000  # examples encoded, evenly spread over the file
IMAGES = "IMAGE_CLASSIFICATION"
AGENTS_TRAIN: dict[
    str, tuple[Trainable, ...]
] = {  # by strategy, as the coordinator's tasks say, from round 1 on and in turn
    "fedavg": ("slice",),
    "fedsvd": ("B",),
    "ffa": ("B",),
    "flexlora": ("slice",),
    "flexlora-residual": ("slice",),
    "flora": ("fresh",),
    "hetlora": ("slice",),
    "raflora": ("slice",),
    "rolora": ("B", "A"),
}
MAY_HOLD_MORE = frozenset(
    ["flexlora-residual"]
)  # strategies that see what an update changed; others refuse a larger hold_rank
MANY_CUT = 0.1  # a share of examples cut that deserves a word


def loads_model(subject: Subject) -> bool:
    """Whether training or evaluation loads the run's base model here; a training loop of somebody else's may load its own."""
    local = subject.local_trainer
    return isinstance(local.trainer, StandardTrainer) or bool(local.heldout)


def trained_by(spec: RunSpec) -> tuple[Trainable, ...]:
    """What participants of the run train, round by round, which its tasks say; (): of a strategy that is not built in."""
    return AGENTS_TRAIN.get(spec.strategy, ())


def may_hold_more(spec: RunSpec) -> bool:
    """Whether participants of the run may hold more than they train, so far as it is known before they declare."""
    return spec.strategy in MAY_HOLD_MORE


def _trainer(subject: Subject) -> str:
    """Look whether the training loop can train what the run's strategy asks for. Raises: BadInput."""
    if not subject.local_trainer.train:
        return "an evaluator does not train"
    kinds = trained_by(subject.spec)
    if subject.holds_more and kinds and not may_hold_more(subject.spec):
        raise UsageError(
            f"--hold-rank: runs of {subject.spec.strategy} count an update by what it is, so nothing can be held beside it; "
            "leave it out"
        )
    if subject.holds_more:
        kinds = ("prefix",)
    if not kinds:
        return f"what the strategy {subject.spec.strategy} trains is known with the first task"
    for trainable in kinds:
        subject.local_trainer.check(trainable)
    asked = "--hold-rank asks for" if subject.holds_more else f"the strategy {subject.spec.strategy} asks for"
    return f"trains what {asked}: {' and '.join(kinds)}"


def _definition(subject: Subject) -> str:
    """Compare the run's modules and tensors with the base model's, before memory is taken for them."""
    if not loads_model(subject):
        return "the training loop of --trainer says what it trains"
    kept = [tensor.name for tensor in subject.spec.extra] if subject.keeps_extra else []
    check_of_model(subject.spec, subject.local_trainer.model_path, {*subject.allowed_extra, *kept})
    return "its modules are the base model's, and in full it trains nothing but a head, or what is allowed"


def _model(subject: Subject) -> str:
    local, spec = subject.local_trainer, subject.spec
    write_trial_slice(trial_slice(spec, *subject.held), spec, subject.trial)
    if not loads_model(subject):
        return "the training loop of --trainer loads what it needs by itself"
    subject.loaded = local.place(spec, subject.trial)
    parameters = sum(
        parameter.numel() for parameter in subject.loaded.model.parameters() if not parameter.requires_grad
    )
    kind = str(subject.loaded.dtype).removeprefix("torch.")
    where = ", ".join(str(replica.device) for replica in subject.loaded.all_replicas)
    return f"{parameters:,} parameters in {kind} on {where}, {len(spec.modules)} modules as the run names them"


def _fingerprint(subject: Subject) -> str:
    """Compare the base model's digests with the run's: weights of the same shapes may be others."""
    if subject.spec.model.fingerprint is None:
        return "the run names none: a base model of the same shapes takes part"
    subject.fingerprint = check_fingerprint(subject.spec.model, subject.local_trainer.model_path)
    return "weights and tokenizer are the run's"


def _tokenizer(subject: Subject) -> str:
    if subject.loaded is None or subject.spec.model.task_type == IMAGES:
        return "not used here"
    loaded = subject.loaded
    return f"{len(loaded.tokenizer)} tokens, all known to the model; examples have up to {loaded.max_length}"


def _template(subject: Subject) -> str | Doubt:
    if subject.loaded is None or subject.spec.model.task_type == IMAGES:
        return "not used here"
    has = subject.loaded.tokenizer.chat_template is not None
    if subject.spec.training.prompt_format == "chat-template":
        if not has:
            raise ModelError(
                "the run formats prompts with the tokenizer's chat template, and this tokenizer has none; "
                "use the run's own base model, with all files of its folder."
            )
        return "the tokenizer has the one that the run asks for"
    if not has and of_kinds(subject.local_trainer.train, (Chat,)):
        return Doubt(
            "the tokenizer has none: turns of conversations are joined as plain lines, which the model may not know"
        )
    return "as the examples need it"


def _encoding(subject: Subject) -> str | Doubt:
    if subject.loaded is None:
        return "not used here"
    loaded, local = subject.loaded, subject.local_trainer
    examples = local.train or local.heldout  # an evaluator trains on nothing
    sample = examples[:: max(1, -(-len(examples) // SAMPLE))]
    subject.encoder = Encoder.of(subject.spec, loaded.preprocessor, loaded.max_length)
    found = survey(subject.encoder, sample)
    if found.empty == found.examples:
        raise DataError(found.reason)
    which = f"of {found.examples} examples" if len(sample) == len(examples) else f"of {found.examples} examples tried"
    if subject.spec.model.task_type == IMAGES:
        return f"{which.removeprefix('of ')}: all are images that can be read"
    told = f"{found.cut / found.examples:.1%} {which} are cut at {loaded.max_length} tokens, {found.empty} are left out"
    if found.cut + found.empty > MANY_CUT * found.examples:
        return Doubt(f"{told}; shorten or split them, or ask the operator for a larger max_length")
    return told


MODEL_CHECKS = (
    Check("trainer", _trainer, needs=("data",)),
    Check("fingerprint", _fingerprint, needs=("data",)),
    Check("definition", _definition, needs=("data",)),
    Check("model", _model, needs=("rank", "data", "memory", "fingerprint", "definition")),
    Check("tokenizer", _tokenizer, needs=("model",)),
    Check("template", _template, needs=("model",)),
    Check("encoding", _encoding, needs=("template",)),
)
