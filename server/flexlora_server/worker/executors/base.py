"""Who works on the modules of a round: the threads of this process here, the machines of a Ray cluster in `ray_pool`."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.worker.aggregate_module import Opened
from flexlora_server.worker.executors.side_by_side import side_by_side
from flexlora_shared.messages.runs import ModuleSpec

R = TypeVar("R")


class Pool(Protocol):
    """Spreads the modules of one aggregation over whatever can factor them."""

    def over_modules(
        self, opened: Opened, task: Callable[[Opened, ModuleSpec], R], alive: Callable[[], None]
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """`task` of every module, in the run's order, a bounded number at a time; the same bytes whoever made them.

        `alive` is called before each result is handed on, and while others are waited for; it raises to stop the work.
        `task` must be picklable: a function of a module, a method of `Opened`, or a `partial` of one.
        """


def pool_of(settings: Settings) -> Pool:
    """The pool that the settings ask for.

    Raises:
        StartupError: Ray is asked for, but not installed.
    """
    if settings.ray_address is None:
        return Threads()
    try:
        from flexlora_server.worker.executors.ray_cluster import RayPool
    except ModuleNotFoundError as error:
        raise StartupError(
            f"FLEXLORA_RAY_ADDRESS is set, but {error.name} is not installed here: pip install 'flexlora[ray]'"
        ) from error
    return RayPool(settings.ray_address, settings.blobs_url)


class Threads:
    """`work.threads` modules side by side, in this process."""

    def over_modules(
        self, opened: Opened, task: Callable[[Opened, ModuleSpec], R], alive: Callable[[], None]
    ) -> Iterator[tuple[ModuleSpec, R]]:
        """See `Pool`."""
        work = opened.work
        for done in side_by_side(lambda module: task(opened, module), work.spec.modules, work.threads):
            alive()
            yield done
