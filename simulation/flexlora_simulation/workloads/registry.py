"""Finds a workload by its name: built in, or offered by an installed package."""

from collections.abc import Mapping

from flexlora_shared.plugins import PluginFault, load_plugin, plugin_names
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.banking77 import Banking77
from flexlora_simulation.workloads.cifar100 import Cifar100
from flexlora_simulation.workloads.commonsense import Commonsense
from flexlora_simulation.workloads.contract import Workload
from flexlora_simulation.workloads.digits import Digits
from flexlora_simulation.workloads.domainnet import DomainNet
from flexlora_simulation.workloads.extractive import Extractive
from flexlora_simulation.workloads.gsm8k import Gsm8k
from flexlora_simulation.workloads.sni import Sni
from flexlora_simulation.workloads.teacher import TeacherStudent

WORKLOAD_GROUP = "flexlora.workloads"
BUILT_IN: Mapping[str, type[Workload]] = {
    "banking77": Banking77,
    "teacher-student": TeacherStudent,
    "commonsense": Commonsense,
    "extractive": Extractive,
    "gsm8k": Gsm8k,
    "sni": Sni,
    "cifar100": Cifar100,
    "digits": Digits,
    "domainnet": DomainNet,
}


def workload_names() -> tuple[str, ...]:
    """All names, the built-in ones first."""
    return (*BUILT_IN, *plugin_names(WORKLOAD_GROUP))


def open_workload(options: WorkloadOptions) -> Workload:
    """The workload that the options name.

    Raises:
        ExperimentError: there is none of this name, it cannot be loaded, or its options are wrong.
    """
    return find_workload(options.name)(options)


def find_workload(name: str) -> type[Workload]:
    """The class of a workload.

    Raises:
        ExperimentError: there is none of this name, or it cannot be loaded.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        offered: type[Workload] = load_plugin(WORKLOAD_GROUP, name, type)
    except LookupError:
        known = ", ".join(workload_names())
        raise ExperimentError(f"workload.name: there is no workload {name!r}; there are {known}") from None
    except PluginFault as fault:
        raise ExperimentError(f"workload.name: {fault}") from fault
    return offered
