"""Every text workload in a small federation: trained, aggregated, measured by its own metric."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexlora_simulation import simulate
from flexlora_simulation.experiment import parse
from tests.support.simulated import folder_with_database, here
from tests.support.text_data_sets import write_commonsense, write_gsm8k, write_sni, write_squad
from tests.support.tiny_models import make_bert, make_llama

Case = tuple[Callable[[Path], Path], dict[str, Any], list[str], str]
CASES: dict[str, Case] = {
    "gsm8k": (write_gsm8k, {"by": "uniform", "participants": 2}, ["test"], "exact_answer"),
    "sni": (write_sni, {"by": "group"}, ["unseen"], "rouge_l"),
    "commonsense": (write_commonsense, {"by": "group", "participants": 2}, ["test"], "choice_accuracy"),
    "extractive": (write_squad, {"by": "group"}, ["test"], "bertscore_f1"),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "sni" else pytest.mark.slow) for name in CASES]
)
def test_a_federation_of_two_rounds(tmp_path: Path, llama: Path, name: str) -> None:
    write, partition, on, metric = CASES[name]
    workload: dict[str, Any] = {"name": name, "data": str(write(tmp_path / "data")), "model": str(llama)}
    if name == "extractive":
        make_bert(tmp_path / "data" / "scorer")
        workload["options"] = {"scorer": "scorer"}
    experiment = parse(
        {
            "name": name,
            "workload": workload,
            "partition": partition,
            "resources": [{"rank": 2}, {"rank": 4}],
            "run": {
                "rounds": 2,
                "clients_per_round": 2,
                "training": {"max_steps": 1, "batch_size": 2, "max_length": 64},
            },
            "evaluation": {"on": on, "ranks": "largest", "every": 2, "examples": 2},
        }
    )
    results = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here)
    assert list(results.rounds["accepted"][1:]) == [2, 2]
    figures = results.evaluations[results.evaluations["metric"] == metric]
    assert list(figures["round"]) == [0, 2]
    assert figures["value"].between(-1, 1).all()
