"""Robust filters from other packages: what must be known of one before a worker applies it. No PyTorch here.

A module with a function `rule`, say `mine/trimming.py`, which workers import,

    def rule(options: TrimOptions) -> Rule: ...   # see `rule.Rule`

what must be known of it, say in `mine/__init__.py`,

    class TrimOptions(Message):                   # flexlora_shared.messages.base.Message
        share: float

    trim = FilterPlugin("trim", module="mine.trimming", options=TrimOptions)

and an entry point in its pyproject.toml, which coordinator and workers look up:

    [project.entry-points."flexlora.filters"]
    trim = "mine:trim"

A run asks for it with `"robust": [{"kind": "trim", "options": {"share": 0.1}}]`.
"""

import re
from dataclasses import dataclass
from functools import cache

from pydantic import ValidationError

from flexlora_server.errors import AggregationError, PluginUnusable
from flexlora_shared.messages.base import Message
from flexlora_shared.messages.robust import BUILT_IN, KIND_PATTERN, CustomFilter
from flexlora_shared.plugins import FILTER_GROUP, PluginFault, load_plugin, plugin_names, require_module


@dataclass(frozen=True)
class FilterPlugin:
    """A filter by its `kind`. module: has the function `rule`, from `options` to a `Rule`."""

    kind: str
    module: str
    options: type[Message]


def check_filter(defined: CustomFilter) -> tuple[FilterPlugin, Message]:
    """The package's filter that a run's definition asks for, and the options in the package's own form.

    Raises:
        AggregationError: there is none of that kind, it cannot be used, or it has no such options.
    """
    plugin = _offered(defined.kind)
    try:
        return plugin, plugin.options.model_validate(defined.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "options"
        raise AggregationError(
            f"the filter {defined.kind!r} does not take these options: {where}: {first['msg']}"
        ) from None


@cache
def _offered(kind: str) -> FilterPlugin:
    try:
        offered = load_plugin(FILTER_GROUP, kind, FilterPlugin)
        require_module(offered.module)
    except LookupError:
        offered_kinds = (name for name in plugin_names(FILTER_GROUP) if re.match(KIND_PATTERN, name))
        known = ", ".join(sorted({*BUILT_IN, *offered_kinds}))
        raise PluginUnusable(f"there is no filter {kind!r}: choose one of {known}") from None
    except PluginFault as fault:
        raise PluginUnusable(f"the filter {kind!r} cannot be used: {fault}") from fault
    if offered.kind != kind:
        raise PluginUnusable(f"the entry point {kind!r} offers a filter of kind {offered.kind!r}: name both alike")
    return offered
