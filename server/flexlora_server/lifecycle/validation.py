"""Validates run definitions and upload announcements beyond their schemas."""

from flexlora_server.adapter_files.inspect_upload import MAX_CANCELLATION
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_server.aggregation.filters.plugin import check_filter
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.database.schema import Assignment
from flexlora_server.errors import AggregationError, Refusal, UnsupportedRun
from flexlora_server.lifecycle.serve_slice import check_keys
from flexlora_shared.layout import adapter_shapes, size_bounds
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.robust import CustomFilter
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.problems import Code
from flexlora_shared.ranks import capped, module_ranks
from flexlora_shared.run_checks import faults

FLOAT16_MAX = 65_504.0


def check_spec(spec: RunSpec) -> None:
    """Refuse a run that cannot work.

    Raises:
        Refusal: INVALID_RUN with the first thing to change.
    """
    try:
        for fault in _faults(spec):
            raise Refusal(Code.INVALID_RUN, fault)
        strategy(spec.strategy).check(spec.ranks, spec.strategy_options)
        for rule in spec.robust:
            if isinstance(rule, CustomFilter):
                check_filter(rule)
    except (AggregationError, UnsupportedRun) as error:
        raise Refusal(Code.INVALID_RUN, f"{error}.") from None


def _faults(spec: RunSpec) -> list[str]:
    """The faults of any run, then those that depend on its strategy."""
    found = faults(spec)
    counteracted = [rule.kind for rule in spec.robust if rule.kind in {"norm-clip", "geometric-median"}]
    if spec.strategy == "hetlora" and counteracted:
        found.append(
            f"hetlora weighs updates by their norm, which undoes {counteracted[0]}; "
            "use multi-krum or cosine, or another strategy."
        )
    if strategy(spec.strategy).in_even_rounds is not None:
        found += _alternation_faults(spec)
    if spec.upload_dtype == "float16" and _largest_served(spec) > FLOAT16_MAX:
        found.append(
            f"an update within norm_bound {spec.norm_bound:g} may not fit into float16 (values up to "
            f"{_largest_served(spec):g}); lower norm_bound, or serve bfloat16 or float32."
        )
    return found


def _alternation_faults(spec: RunSpec) -> list[str]:
    """What compares a round with the one before it, in a run whose rounds train another factor each."""
    name, found = spec.strategy, []
    if any(rule.kind == "cosine" for rule in spec.robust):
        found.append(f"{name} changes one factor in each round, at right angles to the last change; leave cosine out.")
    if spec.late_updates == "next-round":
        found.append(f"{name} trains another factor in the next round; a late update cannot count there, discard it.")
    if spec.training.optimizer_state == "keep":
        found.append(
            f"{name} trains another factor in the next round; its optimizer starts fresh, do not keep the state."
        )
    return found


def _largest_served(spec: RunSpec) -> float:
    """The largest value in a slice of updates within the norm bound: of B, which is divided by the scaling, or unscaled."""
    rule = strategy(spec.strategy)
    added = spec.rounds if rule.agents_train == "fresh" else 1  # each round's fresh adapters are added to all before
    ranks = {capped(module, rank) for module in spec.modules for rank in spec.ranks}
    if spec.strategy == "raflora":  # weighs apart what may cancel in an upload's product
        added *= int(MAX_CANCELLATION)
    B = added * spec.norm_bound / min(served_scaling(spec, rank) for rank in ranks)
    averages_A = rule.averages_factors and rule.trained_in(2) != "B"  # else A has rows of norm 1, or stays round 0's
    unscaled = bool(spec.extra) or averages_A
    return max(B, spec.norm_bound) if unscaled else B


def check_fingerprint(spec: RunSpec, declaration: Declaration) -> None:
    """Refuse a participant with another base model than the run's, where the run names one.

    Raises:
        Refusal: MODEL_MISMATCH.
    """
    wanted, found = spec.model.fingerprint, declaration.fingerprint
    if wanted is None or wanted == found:
        return
    name = spec.model.id if spec.model.revision is None else f"{spec.model.id} at revision {spec.model.revision}"
    if found is None:
        raise Refusal(
            Code.MODEL_MISMATCH,
            f"This run takes only participants whose agent compares its base model with {name}; yours does not, update it.",
        )
    differing = [part for part in ("weights", "tokenizer") if getattr(wanted, part) != getattr(found, part)]
    raise Refusal(
        Code.MODEL_MISMATCH,
        f"Your base model is not the run's {name}: other {' and other '.join(differing)}; load exactly that.",
        differing=differing,
    )


def check_announcement(spec: RunSpec, number: int, assignment: Assignment, announcement: UploadCreate) -> None:
    """Refuse an upload that cannot be the one assigned in this round.

    Raises:
        Refusal: RANK_MISMATCH, INVALID_REQUEST or SIZE_IMPOSSIBLE.
    """
    if (announcement.rank, announcement.rank_pattern) != (assignment.rank, assignment.rank_pattern):
        raise Refusal(
            Code.RANK_MISMATCH,
            f"This round assigned you rank {assignment.rank} with pattern {assignment.rank_pattern}; "
            "train and upload at exactly that.",
            rank=assignment.rank,
            rank_pattern=assignment.rank_pattern,
        )
    _check_trained(spec, number, announcement)
    check_keys(spec, announcement.alpha_pattern)
    ranks = module_ranks(spec.modules, announcement.rank, announcement.rank_pattern)
    smallest, largest = size_bounds(adapter_shapes(spec.modules, spec.extra, ranks))
    if not smallest <= announcement.size <= largest:
        raise Refusal(
            Code.SIZE_IMPOSSIBLE,
            f"An adapter of these ranks takes {smallest} to {largest} bytes, not {announcement.size}; "
            "send the trained slice as safetensors.",
            least=smallest,
            most=largest,
        )


def _check_trained(spec: RunSpec, number: int, announcement: UploadCreate) -> None:
    """Refuse an update of other factors than the round trains: the tensors of a slice and of a fresh adapter look alike."""
    expected = strategy(spec.strategy).trained_in(number)
    if announcement.trainable != expected:
        raise Refusal(
            Code.INVALID_REQUEST,
            f"This round asks for updates that trained {expected!r} (`trainable` of the task), not {announcement.trainable!r}; "
            f"train what the task asks and announce it as trainable {expected!r}.",
            trainable=expected,
        )
