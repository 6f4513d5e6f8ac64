"""Loads plug-ins: entry points of other packages, one group for each kind.

    flexlora.strategies   aggregation strategies   flexlora_server.aggregation.strategies.registry.Strategy
    flexlora.filters      robust filters           flexlora_server.aggregation.filters.plugin.FilterPlugin
    flexlora.trainers     training loops           a class as flexlora_client.training.contract tells
    flexlora.workloads    workloads                a class as flexlora_simulation.workloads.contract tells

A package names them in its pyproject.toml, `[project.entry-points."flexlora.strategies"]`, and is installed where they are used.
"""

from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")
STRATEGY_GROUP = "flexlora.strategies"
FILTER_GROUP = "flexlora.filters"
TRAINER_GROUP = "flexlora.trainers"
WORKLOAD_GROUP = "flexlora.workloads"


class PluginFault(Exception):
    """An installed plug-in that cannot be used; the message says which and why, without a full stop."""


def plugin_names(group: str) -> tuple[str, ...]:
    """The names that installed packages offer, sorted; nothing is imported."""
    return tuple(sorted(entry_points(group=group).names))


def plugin_versions(*groups: str) -> tuple[str, ...]:
    """The packages that offer plug-ins of these groups, each as `NAME VERSION`, sorted."""
    packages = {entry.dist for group in groups for entry in entry_points(group=group) if entry.dist is not None}
    return tuple(sorted({f"{package.name} {package.version}" for package in packages}))


def load_plugin(group: str, name: str, kind: type[T]) -> T:
    """Load the plug-in of this name, an instance of `kind`.

    Raises:
        LookupError: no installed package offers it.
        PluginFault: two packages offer different things under the name, it cannot be imported, or it is something else.
    """
    offered = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if not offered:
        raise LookupError(name)
    if len(offered) > 1:
        raise PluginFault(f"{name!r} is offered as {' and as '.join(sorted(offered))}: uninstall one of the packages")
    [(value, entry)] = offered.items()
    try:
        plugin = entry.load()
    except Exception as error:  # importing runs another package's code, which may raise anything
        raise PluginFault(
            f"{name!r} is offered as {value}, which cannot be loaded ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(plugin, kind):
        raise PluginFault(f"{name!r} is offered as {value}, which is no {kind.__name__}")
    return plugin


def require_module(module: str) -> None:
    """Check that a module can be imported, without importing it. Raises: PluginFault."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError) as error:  # its package does not import, or its name is invalid
        raise PluginFault(f"the module {module} cannot be looked for: {error}") from error
    if spec is None or spec.name != module:  # `__main__` is another module in every program
        raise PluginFault(f"there is no module {module}")
