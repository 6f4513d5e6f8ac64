"""From the filters of a run's definition to the rules that apply them."""

from collections.abc import Sequence
from importlib import import_module

from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound
from flexlora_server.aggregation.filters.plugin import check_filter
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_shared.messages import robust
from flexlora_shared.messages.robust import Filter


def rules(filters: Sequence[Filter]) -> tuple[Rule, ...]:
    """One rule for each filter, in their order."""
    return tuple(rule(one) for one in filters)


def rule(defined: Filter) -> Rule:
    """What applies this filter."""
    match defined:
        case robust.NormClip(bound=None, median_factor=float(factor), history=history, by_weight=by_weight):
            return RunningBound(factor, history, by_weight)
        case robust.NormClip(bound=float(bound)):
            return FixedBound(bound)
        case robust.MultiKrum(byzantine_share=share):
            return MultiKrum(share)
        case robust.GeometricMedian():
            return GeometricMedian()
        case robust.Cosine(minimum=minimum):
            return Cosine(minimum)
        case robust.CustomFilter():
            plugin, options = check_filter(defined)
            made: Rule = import_module(plugin.module).rule(options)
            return made
    raise AssertionError(f"the message allows no such filter: {defined}")
