"""What the coordinator fills into the definition of a new run where its operator says nothing.

It is stored with the run, so that a run that an earlier version stored keeps what that version did.
"""

from flexlora_shared.messages.robust import NormClip
from flexlora_shared.messages.runs import RunSpec

NORM_CLIP = NormClip(median_factor=2.0, history=3, by_weight=True)


def with_defaults(spec: RunSpec) -> RunSpec:
    """The definition with a bounded weight for each participant and a bound on the length of changes.

    `robust: []` in the definition means no filter. hetlora weighs by norms, which undoes a clip: it gets no filter.
    """
    filled: dict[str, object] = {}
    if spec.weighting is None:
        filled["weighting"] = "capped"
    if "robust" not in spec.model_fields_set and spec.strategy != "hetlora":
        filled["robust"] = (NORM_CLIP,)
    return spec.model_copy(update=filled)
