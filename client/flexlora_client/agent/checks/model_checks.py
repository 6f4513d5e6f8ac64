"""Checks of the base model with its tokenizer, and of what the participant's examples become with them."""

from collections import Counter

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.checks.trial_slice import write_trial_slice
from flexlora_client.errors import DataError, ModelError
from flexlora_client.training.data.examples import Chat, Example
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import LoadedModel

SAMPLE = 1000  # examples encoded, evenly spread over the file
MANY_CUT = 0.1  # a share of examples cut that deserves a word


def loads_model(subject: Subject) -> bool:
    """Whether training or evaluation loads the run's base model here; a training loop of somebody else's may load its own."""
    local = subject.local_trainer
    return isinstance(local.trainer, StandardTrainer) or bool(local.heldout)


def _model(subject: Subject) -> str:
    local, spec = subject.local_trainer, subject.spec
    write_trial_slice(subject.request, subject.trial)
    if not loads_model(subject):
        return "the training loop of --trainer loads what it needs by itself"
    subject.loaded = local.place(spec, subject.trial)
    parameters = sum(
        parameter.numel() for parameter in subject.loaded.model.parameters() if not parameter.requires_grad
    )
    kind = str(subject.loaded.dtype).removeprefix("torch.")
    return f"{parameters:,} parameters in {kind} on {subject.loaded.device}, {len(spec.modules)} modules as the run names them"


def _tokenizer(subject: Subject) -> str:
    if subject.loaded is None:
        return "not used here"
    loaded = subject.loaded
    return f"{len(loaded.tokenizer)} tokens, all known to the model; examples have up to {loaded.max_length}"


def _template(subject: Subject) -> str | Doubt:
    if subject.loaded is None:
        return "not used here"
    has = subject.loaded.tokenizer.chat_template is not None
    if subject.spec.training.prompt_format == "chat-template":
        if not has:
            raise ModelError(
                "the run formats prompts with the tokenizer's chat template, and this tokenizer has none; "
                "use the run's own base model, with all files of its folder."
            )
        return "the tokenizer has the one that the run asks for"
    if not has and any(isinstance(example, Chat) for example in subject.local_trainer.train):
        return Doubt(
            "the tokenizer has none: turns of conversations are joined as plain lines, which the model may not know"
        )
    return "as the examples need it"


def _encoding(subject: Subject) -> str | Doubt:
    if subject.loaded is None:
        return "not used here"
    examples = subject.local_trainer.train or subject.local_trainer.heldout
    sample = examples[:: max(1, -(-len(examples) // SAMPLE))]
    found = Counter(_length(example, subject.loaded) for example in sample)
    which = f"of {len(sample)} examples tried" if len(sample) < len(examples) else f"of {len(examples)} examples"
    share = found["cut"] / len(sample)
    if share > MANY_CUT:
        return Doubt(
            f"{share:.0%} {which} are longer than {subject.loaded.max_length} tokens and are cut; "
            "shorten or split them, or ask the operator for a larger max_length"
        )
    return f"{share:.1%} {which} are cut at {subject.loaded.max_length} tokens"


def _length(example: Example, loaded: LoadedModel) -> str:
    """Whether the example is "cut" or "whole". Raises: DataError, where nothing of it is left to learn."""
    encoded = Encoder(loaded.tokenizer, loaded.max_length).encode(example)
    if len(encoded.ids) < loaded.max_length:
        return "whole"
    try:
        longer = Encoder(loaded.tokenizer, loaded.max_length + 1).encode(example)
    except DataError:
        return "whole"
    return "cut" if len(longer.ids) > loaded.max_length else "whole"


MODEL_CHECKS = (
    Check("model", _model, needs=("rank", "data", "memory")),
    Check("tokenizer", _tokenizer, needs=("model",)),
    Check("template", _template, needs=("model",)),
    Check("encoding", _encoding, needs=("model",)),
)
