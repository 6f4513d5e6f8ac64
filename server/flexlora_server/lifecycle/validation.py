"""Validates run definitions and upload announcements beyond their schemas."""

from typing import Any

from flexlora_server.adapter_files.inspect_upload import MAX_CANCELLATION
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_server.aggregation.filters.plugin import check_filter
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.database.schema import Assignment
from flexlora_server.errors import AggregationError, Refusal, UnsupportedRun
from flexlora_server.lifecycle.serve_slice import check_keys, check_ranks
from flexlora_shared.layout import adapter_shapes, size_bounds
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.robust import CustomFilter
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.problems import Code
from flexlora_shared.ranks import capped, holds_more, module_ranks
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


def check_declaration(spec: RunSpec, declaration: Declaration) -> None:
    """Refuse a declaration that the run cannot serve.

    Raises:
        Refusal: RANK_NOT_ALLOWED, MODEL_MISMATCH, or INVALID_REQUEST for a pattern key that names no module.
    """
    check_ranks(spec, declaration.rank, declaration.rank_pattern)
    _check_held(spec, declaration)
    check_fingerprint(spec, declaration)


def _check_held(spec: RunSpec, declaration: Declaration) -> None:
    rank, hold_rank = declaration.rank, declaration.hold_rank
    if hold_rank is None:
        return
    check_ranks(spec, hold_rank, {})
    if hold_rank < rank:
        raise Refusal(
            Code.RANK_NOT_ALLOWED,
            f"hold_rank {hold_rank} is less than rank {rank}, which is held too; declare at least {rank}, or leave it out.",
            allowed=sorted(allowed for allowed in spec.ranks if allowed >= rank),
        )
    if not strategy(spec.strategy).takes_prefix and holds_more(spec.modules, rank, declaration.rank_pattern, hold_rank):
        raise Refusal(
            Code.RANK_NOT_ALLOWED,
            f"hold_rank {hold_rank} is more than rank {rank}, and {spec.strategy} counts an update by what it is: what you hold "
            "and do not train would count as unlearned. Leave hold_rank out, or take part in a run of flexlora-residual.",
            allowed=[rank],
        )


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
    announced = (announcement.rank, announcement.rank_pattern, announcement.hold_rank)
    if announced != (assignment.rank, assignment.rank_pattern, assignment.hold_rank):
        held: dict[str, Any] = {} if assignment.hold_rank is None else {"hold_rank": assignment.hold_rank}
        holding = f", of a slice of hold_rank {assignment.hold_rank}," if held else ""
        raise Refusal(
            Code.RANK_MISMATCH,
            f"This round assigned you rank {assignment.rank} with pattern {assignment.rank_pattern}{holding}; "
            "train and upload at exactly that.",
            rank=assignment.rank,
            rank_pattern=assignment.rank_pattern,
            **held,
        )
    _check_trained(spec, number, assignment, announcement)
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


def check_examples(spec: RunSpec, declaration: Declaration, announcement: UploadCreate) -> None:
    """Refuse an upload that counts more examples than its participant declared last; fewer are a part of them.

    What is above `max_examples` counts for nothing. A run of an earlier version goes by what is announced.

    Raises:
        Refusal: EXAMPLES_MISMATCH.
    """
    if spec.weighting in {None, "equal"}:
        return
    declared, most = declaration.examples, spec.max_examples
    if announcement.examples <= declared or (most is not None and declared >= most):
        return
    raise Refusal(
        Code.EXAMPLES_MISMATCH,
        f"You declared {declared} examples in this run, and announce an update that was trained on {announcement.examples}; "
        "declare what you train on, and announce no more distinct examples than that.",
        declared=declared,
    )


def trained_part(spec: RunSpec, number: int, assignment: Assignment) -> Trainable:
    """What a participant trains of the slice it is served in that round."""
    if holds_more(spec.modules, assignment.rank, assignment.rank_pattern, assignment.hold_rank):
        return "prefix"
    return strategy(spec.strategy).trained_in(number)


def _check_trained(spec: RunSpec, number: int, assignment: Assignment, announcement: UploadCreate) -> None:
    """Refuse an update of other factors than the round trains: the tensors of a slice and of a fresh adapter look alike."""
    expected = trained_part(spec, number, assignment)
    if announcement.trainable != expected:
        raise Refusal(
            Code.INVALID_REQUEST,
            f"This round asks for updates that trained {expected!r} (`trainable` of the task), not {announcement.trainable!r}; "
            f"train what the task asks and announce it as trainable {expected!r}.",
            trainable=expected,
        )
