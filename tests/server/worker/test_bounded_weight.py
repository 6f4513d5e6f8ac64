"""What one participant can do to a round of a run with the settings that a new run gets: claim, length, both."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.weights import WeightRule
from flexlora_server.lifecycle.new_run import NORM_CLIP, with_defaults
from flexlora_server.lifecycle.validation import check_spec
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate, write_initial
from flexlora_server.worker.metrics import summarize
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import AggregationMetrics
from tests.server.worker.test_aggregate_round import told
from tests.support.kit import encode, spec

RANK, CLAIM, BOOST = 4, 10**12, 7000.0
CAPS = {4: 0.3, 10: 0.3, 20: 0.15}


def new_run(strategy: str) -> RunSpec:
    """As the coordinator stores it, of a definition that says nothing of weights and filters."""
    modules = [{"name": "layer", "out_features": 40, "in_features": 48}]
    given = spec(modules=modules, ranks=[RANK], strategy=strategy)
    run = with_defaults(RunSpec.model_validate({k: v for k, v in given.items() if k not in {"weighting", "robust"}}))
    check_spec(run)
    return run


def changes(participants: int, *, opposed: bool) -> list[Tensor]:
    """lora_B of each, all as long; the honest ones' have cosines of about 1/2. The last is the poison: random or opposed."""
    generator = torch.Generator().manual_seed(participants)
    shared, *own = torch.randn(participants + 1, 40, RANK, generator=generator, dtype=torch.float64)
    honest = [shared / shared.norm() + one / one.norm() for one in own[:-1]]
    poison = -torch.stack(honest).mean(dim=0) if opposed else own[-1]
    return [(B / B.norm()).float() for B in (*honest, poison)]


def published(
    run: RunSpec, folder: Path, participants: int, claim: int, boost: float, *, opposed: bool
) -> tuple[float, AggregationMetrics]:
    """The cosine of the round's change with the poison, and its figures. The served B is 0, so a change is its upload."""
    previous, result = folder / "previous", folder / "result"
    with previous.open("w+b") as file:
        write_initial(run, file)
    A = TorchGlobalAdapter(previous).factors("layer").A[:RANK].float()
    *honest, poison = made = changes(participants, opposed=opposed)
    given = []
    for index, B in enumerate(made):
        hostile = index == len(honest)
        path = folder / f"upload-{index}"
        path.write_bytes(encode({key_A("layer"): A, key_B("layer"): B * (boost if hostile else 1.0)}))
        given.append(
            InputUpdate(path, told(path, RANK, claim if hostile else 100 + 10 * (index % 5)), f"client-{index}")
        )
    with result.open("w+b") as file:
        modules, figures = write_aggregate(
            RoundWork(run, with_weights(given, WeightRule.of(run)), previous), file, lambda: None
        )
    assert summarize(modules, figures, 0).capped == (claim == CLAIM and run.weighting == "capped")
    change, poisoned = dense(result), (poison @ A).flatten().double()
    return float(torch.nn.functional.cosine_similarity(change, poisoned, dim=0)), figures


def dense(path: Path) -> Tensor:
    factors = TorchGlobalAdapter(path).factors("layer")
    return (factors.B.double() @ factors.A.double()).flatten()


@pytest.mark.parametrize(("claim", "boost"), [(CLAIM, 1.0), (120, BOOST), (CLAIM, BOOST)])
@pytest.mark.parametrize("participants", [4, 10, 20])
@pytest.mark.parametrize("opposed", [False, True])
def test_one_participant_does_not_decide_a_round(
    tmp_path: Path, participants: int, claim: int, boost: float, opposed: bool
) -> None:
    cosine, figures = published(new_run("flexlora"), tmp_path, participants, claim, boost, opposed=opposed)
    assert cosine < 0.5
    poison = figures.updates[-1]
    assert poison.weight <= CAPS[participants] + 1e-12
    assert bool(poison.notes) == (claim == CLAIM or boost == BOOST)
    if claim == CLAIM:
        assert poison.uncapped == pytest.approx(1.0, abs=1e-8)
        assert poison.notes[0].startswith(f"weighs {CAPS[participants]:.3g} by the run's cap, not 1 ")


@pytest.mark.parametrize("strategy", ["flexlora-residual", "fedavg", "flora"])
def test_nor_under_other_strategies(tmp_path: Path, strategy: str) -> None:
    cosine, _ = published(new_run(strategy), tmp_path, 10, CLAIM, BOOST, opposed=False)
    assert cosine < 0.5


def test_without_a_bound_it_does(tmp_path: Path) -> None:
    """The rule of runs that an earlier version stored: what the tests above would find without the bound."""
    stored = new_run("flexlora").model_copy(update={"weighting": None, "robust": ()})
    cosine, figures = published(stored, tmp_path, 10, CLAIM, 1.0, opposed=True)
    assert cosine > 0.99
    assert figures.updates[-1].weight > 0.99


def test_a_stored_definition_keeps_its_rule_and_a_new_one_is_filled_in() -> None:
    assert with_defaults(RunSpec.model_validate(spec())).weighting == "examples"
    assert with_defaults(RunSpec.model_validate(spec())).robust == ()
    assert new_run("flexlora").weighting == "capped"
    assert new_run("flexlora").robust == (NORM_CLIP,)
    assert new_run("hetlora").robust == ()  # weighs by norms: what a clip takes it gives back
