"""Finds a workload by its name: built in, or offered by an installed package."""

from collections.abc import Mapping

from flexlora_shared.plugins import WORKLOAD_GROUP, PluginFault, load_plugin, plugin_names
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.banking77 import Banking77
from flexlora_simulation.workloads.contract import Workload
from flexlora_simulation.workloads.teacher import TeacherStudent

BUILT_IN: Mapping[str, type[Workload]] = {
    "banking77": Banking77,
    "teacher-student": TeacherStudent,
}


def workload_names() -> tuple[str, ...]:
    """All names, the built-in ones first."""
    return (*BUILT_IN, *plugin_names(WORKLOAD_GROUP))


def open_workload(options: WorkloadOptions) -> Workload:
    """The workload that the options name.

    Raises:
        ExperimentError: there is none of this name, it cannot be loaded, or its options are wrong.
    """
    built_in = BUILT_IN.get(options.name)
    if built_in is not None:
        return built_in(options)
    try:
        offered: type[Workload] = load_plugin(WORKLOAD_GROUP, options.name, type)
    except LookupError:
        known = ", ".join(workload_names())
        raise ExperimentError(f"workload.name: there is no workload {options.name!r}; there are {known}") from None
    except PluginFault as fault:
        raise ExperimentError(f"workload.name: {fault}") from fault
    return offered(options)
