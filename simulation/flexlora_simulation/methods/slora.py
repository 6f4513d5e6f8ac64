"""SLoRA: a first stage of sparse full fine-tuning, whose SVD LoRA starts from (Babakniya et al. 2023, arXiv 2308.06522).

The first stage trains as many numbers of each participant as LoRA does at the smallest rank, at places that are the same for
all: see `engine.sparse_trainer`. The second is a federation that starts from the first one's last adapter, cut to its rank.
"""

from flexlora_shared.ranks import capped
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.changes import Change, smallest_rank, with_rank, with_run, with_training
from flexlora_simulation.methods.definition import rounds_of, spec_of
from flexlora_simulation.methods.plan import Method, Plan

FIRST_STAGE = 0.1  # of the rounds, as in the FlexLoRA authors' code: 5 of 50
LARGEST = 4096  # rank that a run may have


def slora(strategy: str, ranks: Change) -> Method:
    """The method whose second stage has this strategy, at these ranks; both stages together have the experiment's rounds."""

    def apply(experiment: Experiment) -> Plan:
        rounds = rounds_of(experiment)
        if rounds < 2:
            raise ExperimentError("run.rounds: SLoRA has two stages and needs two rounds at least")
        first = max(1, round(FIRST_STAGE * rounds))
        second = with_run(ranks(experiment), strategy=strategy, strategy_options=None, rounds=rounds - first)
        return Plan((_sparse(experiment, first), second))

    return apply


def _sparse(experiment: Experiment, rounds: int) -> Experiment:
    spec = spec_of(smallest_rank(experiment))
    whole = max(min(module.out_features, module.in_features) for module in spec.modules)
    if whole > LARGEST:
        raise ExperimentError(
            f"SLoRA's first stage needs rank {whole}, and a run's largest is {LARGEST}; take a smaller model"
        )
    shapes = [(one.out_features, one.in_features, capped(one, spec.largest_rank)) for one in spec.modules]
    density = min(1.0, sum(r * (d + k) for d, k, r in shapes) / sum(d * k for d, k, _ in shapes))
    full = with_training(with_rank(experiment, whole), weight_decay=0.0)
    run = with_run(full, strategy="flexlora", strategy_options=None, rounds=rounds, upload_dtype="float32")
    return run.model_copy(update={"name": f"{experiment.name[:56]}-sparse", "sparse_density": density})
