"""Every method makes runs that the coordinator takes, of participants that it takes."""

import pytest

from benchmarks.lib.rules.rule import rules
from flexlora_server.aggregation.strategies.registry import strategies
from flexlora_server.lifecycle.validation import check_declaration, check_spec
from flexlora_shared.messages.clients import Declaration
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.catalogue import method, method_names
from flexlora_simulation.methods.definition import drawn, spec_of


@pytest.mark.parametrize("name", method_names())
def test_the_coordinator_takes_every_method(experiment: Experiment, name: str) -> None:
    plan = method(name)(experiment)
    stages = plan.stages[:2]  # participants alone are alike
    assert len({stage.name for stage in plan.stages}) == len(plan.stages)
    for stage in stages:
        spec = spec_of(stage)
        check_spec(spec)
        for one in (one for one in drawn(stage) if one.part.seen):
            told = Declaration(
                rank=one.resource.rank,
                hold_rank=one.resource.hold_rank,
                examples=len(one.part.train),
                fingerprint=spec.model.fingerprint,
            )
            check_declaration(spec, told)
        assert Experiment.model_validate(stage.model_dump(mode="json")) == stage


def test_no_strategy_and_no_row_of_the_benchmark_is_left_out(experiment: Experiment) -> None:
    used = {method(name)(experiment).stages[0].run["strategy"] for name in method_names()}
    assert used >= set(strategies())
    assert {rule.name for rule in rules()} <= set(method_names())


def test_ranks_of_methods(experiment: Experiment) -> None:
    def ranks(name: str) -> list[tuple[int, int | None]]:
        [stage] = method(name)(experiment).stages
        return [(one.rank, one.hold_rank) for one in stage.resources]

    assert ranks("flexlora") == [(1, None), (4, None)]
    assert ranks("bucket") == [(1, None), (1, None)]
    assert ranks("oracle") == [(4, None), (4, None)]
    assert ranks("view, leak 0.1") == [(1, 4), (4, 4)]
    [bucket] = method("bucket")(experiment).stages
    assert [one.speed for one in bucket.resources] == [1.0, 2.0], "what is not of ranks stays"


def test_a_pattern_counts_as_what_its_participants_afford(experiment: Experiment) -> None:
    pattern = experiment.resources[1].model_copy(update={"rank_pattern": {"value": 8}})
    [oracle] = method("oracle")(experiment.model_copy(update={"resources": (pattern,)})).stages
    assert [(one.rank, one.rank_pattern) for one in oracle.resources] == [(8, {})]


def test_options_of_the_experiment_give_way_to_those_of_the_method(experiment: Experiment) -> None:
    leaking = experiment.model_copy(update={"run": {**experiment.run, "strategy_options": {"leak": 0.5}}})
    assert method("leak 0.1")(leaking).stages[0].run["strategy_options"] == {"leak": 0.1}
    assert "strategy_options" not in method("flexlora")(leaking).stages[0].run


@pytest.mark.parametrize("host", ["fedavg", "fedit", "slora"])
def test_hosts_have_one_rank_or_with_flexlora_everybodys_own(experiment: Experiment, host: str) -> None:
    alone, mixed = (method(name)(experiment).stages[-1] for name in (host, f"{host}, flexlora"))
    assert [one.rank for one in alone.resources] == [1, 1]
    assert [one.rank for one in mixed.resources] == [1, 4]
    assert (alone.run["strategy"], mixed.run["strategy"]) == ("fedavg", "flexlora")
    assert spec_of(alone).training.optimizer == spec_of(mixed).training.optimizer == ("adamw", "sgd")[host == "fedavg"]


def test_an_unknown_method_is_told_with_those_there_are() -> None:
    with pytest.raises(ExperimentError, match=r"no method 'flexlore'; there are .*'flexlora'"):
        method("flexlore")
