"""What federations are compared with: each participant alone, and everybody's examples in one place.

Both train as many examples in all as the federation does, at its learning rate, without resets of the optimizer.
"""

import math

from flexlora_simulation.experiment import Experiment, Timing
from flexlora_simulation.methods.changes import (
    largest_rank,
    nothing_held,
    ranks_of,
    with_run,
    with_training,
)
from flexlora_simulation.methods.definition import drawn, per_round, rounds_of
from flexlora_simulation.methods.plan import Plan


def local(experiment: Experiment) -> Plan:
    """Each participant that trains, alone, at its own rank: for as many rounds as it takes part in on average."""
    seen = [one for one in drawn(experiment) if one.part.seen]
    rounds = _alone_rounds(experiment, len(seen))
    stages = []
    for number, one in enumerate(seen):
        several = (
            len(ranks_of(one.resource)) > 1
        )  # then one participant's factors are taken apart, and put together alike
        single = _single(nothing_held(experiment), "flexlora" if several else "fedavg")
        update = {"name": f"{experiment.name[:50]}-alone-{number}", "only": one.name}
        stages.append(with_run(single, rounds=rounds).model_copy(update=update))
    return Plan(tuple(stages), alone=True)


def central(experiment: Experiment) -> Plan:
    """One participant with the examples of all that train, at the largest rank."""
    seen = sum(one.part.seen for one in drawn(experiment))
    single = _single(largest_rank(experiment), "fedavg").model_copy(update={"pooled": True})
    training = experiment.run.get("training")
    steps = training.get("max_steps") if isinstance(training, dict) else None
    if isinstance(steps, int):  # those of a round's participants together
        return Plan((with_training(single, max_steps=steps * per_round(experiment, seen)),))
    return Plan((with_run(single, rounds=_alone_rounds(experiment, seen)),))


def _alone_rounds(experiment: Experiment, seen: int) -> int:
    return math.ceil(rounds_of(experiment) * per_round(experiment, seen) / seen)


def _single(experiment: Experiment, strategy: str) -> Experiment:
    """Of one participant: nothing to select, to wait for or to aggregate."""
    changed = with_run(
        experiment,
        strategy=strategy,
        strategy_options=None,
        robust=None,
        clients_per_round=None,
        over_selection=None,
        min_clients=None,
        min_updates=None,
    )
    return with_training(changed, optimizer_state="keep").model_copy(update={"timing": Timing()})
