"""An agent that holds more than it trains beside one that trains all, as real processes; killed once, it goes on."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from demo.cluster import cluster
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_shared.layout import key_A
from flexlora_shared.messages.runs import RunSpec
from tests.support.processes import watching
from tests.system.conftest import write_questions

RUN, ROUNDS = "together", 3
pytestmark = pytest.mark.slow
PARTICIPANTS = {"small": ("--rank", "2", "--hold-rank", "8"), "large": ("--rank", "8")}


def definition(model: Path) -> dict[str, object]:
    return {
        "name": RUN,
        **skeleton(describe(str(model))),
        "strategy": "flexlora-residual",
        "ranks": [2, 4, 8],
        "scaling": {"alpha": 16.0},
        "rounds": ROUNDS,
        "min_clients": 2,
        "min_updates": 2,
        "training": {"learning_rate": 0.01, "epochs": 3, "batch_size": 4, "max_length": 48},
    }


def test_a_small_participant_holds_what_the_large_one_learns(llama: Path, tmp_path: Path) -> None:
    homes, given = {}, {}
    with cluster(tmp_path / "cluster") as made:
        made.create_run(definition(llama))
        for (name, ranks), word in zip(PARTICIPANTS.items(), ("Paris", "bird"), strict=True):
            homes[name] = made.enroll(name)
            data = str(write_questions(tmp_path / f"{name}.jsonl", word))
            given[name] = (RUN, *ranks, "--data", data, "--heldout-fraction", "0.25", "--answers", "0")
        with watching([made.agent(name, *options) for name, options in given.items()]) as (small, large):
            small.expect("training", round=2)
            small.kill()
            with watching([made.agent("small", *given["small"])]) as (again,):
                assert (again.finish(), large.finish()) == (0, 0)
        spec = RunSpec.model_validate_json(json.dumps(json.loads(made.client("runs", "show", RUN, "--json"))["spec"]))
        shown = made.client("rounds", RUN, "2")
        assert "1 of rank 2 (holding 8)" in " ".join(shown.split())
        made.client("export", RUN, "--from", "own", "-o", str(tmp_path / "own"), home=homes["small"])
        made.client("export", RUN, "--rank", "8", "-o", str(tmp_path / "whole"))
        assert "Traceback" not in (made.folder / "coordinator.log").read_text()
    assert [event["hold_rank"] for event in again.told("declared")] == [8]
    own, whole = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "whole"))
    assert {key: tensor.shape for key, tensor in own.items()} == {key: tensor.shape for key, tensor in whole.items()}
    assert len(own[key_A(spec.modules[0].name)]) == 8
    sent = [agent.told("accepted")[-1]["bytes"] for agent in (again, large)]
    assert sent[0] < sent[1] / 2, "it sends what it trains"
    losses = [event["metrics"]["loss"] for event in again.told("evaluated")]
    assert losses[-1] < small.told("evaluated")[0]["metrics"]["loss"]
