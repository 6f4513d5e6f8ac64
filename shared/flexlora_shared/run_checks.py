"""Checks of a run's definition beyond its schema, the same where it is written and where it is created."""

from collections import Counter
from collections.abc import Iterable

from flexlora_shared.messages.runs import ModelSpec, RunSpec, TrainingSpec
from flexlora_shared.ranks import capped

LABELLED = frozenset(["SEQ_CLS", "TOKEN_CLS", "IMAGE_CLASSIFICATION"])  # task types that predict labels
ALPHA_MAX = 1e6  # of UploadCreate.alpha: a slice served with a larger alpha could not be announced
LARGEST_SERVED = 512  # of vLLM's `--max-lora-rank`; what others load is less
MAX_CAPPED = 2048  # modules that are named one by one in an adapter's patterns, which hold 4096 names


def faults(spec: RunSpec) -> list[str]:
    """What of the definition cannot work, as sentences; without those that only the coordinator knows of its strategies."""
    return [
        *_tensor_faults(spec),
        *_rank_faults(spec),
        *_round_faults(spec),
        *_weight_faults(spec),
        *_model_faults(spec.model),
        *_text_faults(spec),
    ]


def warnings(spec: RunSpec) -> tuple[str, ...]:
    """What of the definition works and yet may not be what its operator wants, as sentences."""
    return warnings_of_ranks(spec.ranks)


def warnings_of_ranks(ranks: Iterable[int]) -> tuple[str, ...]:
    """A sentence where a rank is larger than what serving programs load."""
    large = sorted(rank for rank in ranks if rank > LARGEST_SERVED)
    if not large:
        return ()
    listed = f"rank {large[0]} is" if len(large) == 1 else f"ranks {', '.join(map(str, large))} are"
    return (
        f"{listed} above {LARGEST_SERVED}, the largest that a serving program loads (vLLM); an adapter of that rank has to be "
        "merged into the model to be served.",
    )


def _tensor_faults(spec: RunSpec) -> list[str]:
    tensors = Counter([*(module.name for module in spec.modules), *(extra.name for extra in spec.extra)])
    found = [f"{name!r} is named {n} times; name each tensor once." for name, n in tensors.items() if n > 1]
    for extra in spec.extra:
        if "." not in extra.name:
            found.append(f"extra tensor {extra.name!r} must be named MODULE.PARAMETER, for example classifier.weight.")
        if extra.name.endswith((".lora_A.weight", ".lora_B.weight")):
            found.append(
                f"extra tensor {extra.name!r} has the name of a LoRA factor; name its module under modules instead."
            )
    return found


def _rank_faults(spec: RunSpec) -> list[str]:
    found, largest = [], spec.largest_rank
    if len(set(spec.ranks)) < len(spec.ranks):
        found.append(f"ranks {list(spec.ranks)} repeats a rank; name every allowed rank once.")
    smaller = [module for module in spec.modules if capped(module, largest) < largest]
    if len(smaller) == len(spec.modules):
        widest = max(capped(module, largest) for module in spec.modules)
        found.append(f"rank {largest} exceeds what any module can hold, which is {widest}; allow smaller ranks.")
    elif len(smaller) > MAX_CAPPED:
        found.append(
            f"rank {largest} exceeds what {len(smaller)} modules can hold, {smaller[0].name!r} first; "
            f"at most {MAX_CAPPED} may be smaller: allow smaller ranks or leave these modules out."
        )
    for rank in spec.ranks:
        if spec.scaling.alpha_of(rank) > ALPHA_MAX:
            found.append(
                f"rank {rank} would be served with alpha {spec.scaling.alpha_of(rank):g}, but no upload may have more than "
                f"{ALPHA_MAX:g}; lower alpha_per_rank."
            )
    return found


def _round_faults(spec: RunSpec) -> list[str]:
    found = []
    if not spec.min_updates <= spec.min_clients:
        found.append(
            f"the quorum min_updates {spec.min_updates} exceeds min_clients {spec.min_clients}; it could be missed for ever."
        )
    if spec.clients_per_round is not None and spec.clients_per_round < spec.min_clients:
        found.append(f"clients_per_round {spec.clients_per_round} is less than min_clients {spec.min_clients}.")
    if spec.over_selection and spec.clients_per_round is None:
        found.append("over_selection counts beyond clients_per_round; name clients_per_round too, or leave it out.")
    return found


def _weight_faults(spec: RunSpec) -> list[str]:
    found = []
    if spec.max_share is not None and spec.weighting not in {None, "capped"}:
        found.append(f"max_share is for weighting capped; leave it out of a run of weighting {spec.weighting}.")
    if spec.max_examples is not None and spec.weighting == "equal":
        found.append(
            "max_examples has no effect where all updates weigh alike; leave it out, or choose another weighting."
        )
    return found


def _model_faults(model: ModelSpec) -> list[str]:
    found = []
    if model.task_type in LABELLED and not model.labels:
        found.append(f"{model.task_type} needs model.labels.")
    if model.labels and model.task_type not in LABELLED:
        found.append(f"{model.task_type} takes no model.labels; leave them out, or choose a task type that classifies.")
    if len(set(model.labels)) < len(model.labels):
        found.append("model.labels names a label twice; name each class once.")
    if model.problem_type != "single-label" and model.task_type != "SEQ_CLS":
        found.append(f"problem_type {model.problem_type} is for SEQ_CLS; {model.task_type} has single labels alone.")
    return found


def _text_faults(spec: RunSpec) -> list[str]:
    """Fields about text that a decoder writes, in a run that trains on something else: agents would have to ignore them."""
    task, defaults = spec.model.task_type, TrainingSpec()
    return [
        f"training.{name} is for CAUSAL_LM; leave it out of a run of {task}."
        for name in ("packing", "prompt_format", "learn")
        if task != "CAUSAL_LM" and getattr(spec.training, name) != getattr(defaults, name)
    ]
