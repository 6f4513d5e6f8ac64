"""Finds the published adapter that a new run starts from, and checks that it is one of the same tensors and base model."""

from flexlora_server.database.queries import adapters, runs
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.messages.runs import ModelSpec, RunSpec, StartFrom
from flexlora_shared.problems import Code


def with_start(tx: Tx, spec: RunSpec) -> RunSpec:
    """The definition with the round and the digest of what it starts from; as it is where it starts from nothing.

    Runs and what they published are never deleted, so what is found now is there when the run starts.

    Raises:
        Refusal: RUN_NOT_FOUND, ADAPTER_NOT_PUBLISHED; INVALID_RUN where the adapter is not one of this run's tensors, or is not
            the one of the digest given.
    """
    if spec.start_from is None:
        return spec
    wanted, source = spec.start_from, runs.spec_of(runs.get(tx, spec.start_from.run))
    if fault := _fault(spec, source):
        raise Refusal(Code.INVALID_RUN, f"The run cannot start from run {wanted.run!r}: {fault}.")
    number = adapters.latest_number(tx, wanted.run) if wanted.round is None else wanted.round
    published = adapters.get_published(tx, wanted.run, number or 0)
    if wanted.sha256 not in {None, published.sha256}:
        raise Refusal(
            Code.INVALID_RUN,
            f"Round {published.number} of run {wanted.run!r} published {published.sha256}, not the start_from.sha256 given; "
            "leave that out, or name another round.",
        )
    found = StartFrom(run=wanted.run, round=published.number, sha256=published.sha256)
    return spec.model_copy(update={"start_from": found})


def _fault(spec: RunSpec, source: RunSpec) -> str | None:
    if {module.name: module for module in spec.modules} != {module.name: module for module in source.modules}:
        return "it trains other modules, or some of other shapes; name the same modules"
    own, others = ({extra.name: extra.shape for extra in one.extra} for one in (spec, source))
    if own != others:
        return "it has other extra tensors, or some of other shapes; name the same ones"
    return _model_fault(spec.model, source.model)


def _model_fault(model: ModelSpec, other: ModelSpec) -> str | None:
    """Two names may mean one model, and fingerprints tell; without them the names have to."""
    if (model.task_type, model.labels, model.problem_type) != (other.task_type, other.labels, other.problem_type):
        return "its model has another task type, other labels or another problem type"
    if model.fingerprint is not None and other.fingerprint is not None:
        same = model.fingerprint.weights == other.fingerprint.weights
    else:
        same = (model.id, model.revision) == (other.id, other.revision)
    return None if same else f"it adapts another base model, {other.id}; name the same model and revision"
