"""One federated fine-tune from start to end: a coordinator and two agents of different ranks, all real processes."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from demo.cluster import Cluster, cluster
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.models.describe_model import describe, skeleton
from flexlora_client.training.models.load_model import Models
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import module_ranks
from tests.support.data_files import load
from tests.support.processes import Watched, watching
from tests.system.conftest import write_questions

RUN = "together"
pytestmark = (
    pytest.mark.slow
)  # scripts/demo shows the same; an agent as a process: tests/client/cli/test_participant.py
RANKS = (2, 8)
ROUNDS = 2


def definition(model: Path) -> dict[str, object]:
    return {
        "name": RUN,
        **skeleton(describe(str(model))),
        "ranks": list(RANKS),
        "scaling": {"alpha_per_rank": 2.0},
        "rounds": ROUNDS,
        "min_clients": len(RANKS),
        "min_updates": len(RANKS),
        "training": {"learning_rate": 0.01, "epochs": 3, "batch_size": 4, "max_length": 48},
    }


@contextmanager
def taking_part(made: Cluster, folder: Path) -> Iterator[list[Watched]]:
    """An agent of each rank, enrolled and started, each with its own answer to learn."""
    started = []
    for rank, word in zip(RANKS, ("Paris", "bird"), strict=True):
        name = f"rank-{rank}"
        made.enroll(name)
        data = write_questions(folder / f"{name}.jsonl", word)
        given = ("--rank", str(rank), "--data", str(data), "--heldout-fraction", "0.25", "--answers", "2")
        started.append(made.agent(name, RUN, *given, "--evaluation-share", "1000"))
    with watching(started) as watched:
        yield watched


def check_told(agent: Watched) -> None:
    """Every round was downloaded, trained and accepted once, and every adapter was evaluated, the last one too."""
    counted = Counter(event["event"] for event in agent.events)
    assert counted["declared"] == counted["completed"] == 1
    assert counted["task"] == counted["trained"] == counted["accepted"] == ROUNDS
    assert [event["round"] for event in agent.told("evaluated")] == [0, 1, 2]
    assert all(event["bytes"] > 0 for event in agent.told("accepted"))
    assert not {"retrying", "lost", "evaluation-refused"} & counted.keys()
    assert "Traceback" not in agent.log()


def check_light(made: Cluster) -> None:
    """Who serves has inspected uploads and cut slices without PyTorch, which would more than double its memory."""
    assert made.process is not None
    mapped = {Path(one.path).name for one in psutil.Process(made.process.pid).memory_maps()}
    assert any(name.startswith("_multiarray_umath") for name in mapped), "NumPy's library is seen there"
    assert not any("torch" in name for name in mapped)


def test_a_run_from_start_to_exported_adapters(llama: Path, tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster") as made:
        made.create_run(definition(llama))
        with taking_part(made, tmp_path) as agents:
            assert [agent.finish() for agent in agents] == [0, 0]
        for agent in agents:
            check_told(agent)
        detail = json.loads(made.client("runs", "show", RUN, "--json"))
        for rank in RANKS:
            made.client("export", RUN, "--rank", str(rank), "-o", str(tmp_path / f"exported-{rank}"))
        assert "Traceback" not in (made.folder / "coordinator.log").read_text()
        check_light(made)
    assert (detail["status"]["state"], detail["status"]["rounds_published"]) == ("COMPLETED", ROUNDS)
    spec = RunSpec.model_validate_json(json.dumps(detail["spec"]))
    models = Models()
    for agent, rank in zip(agents, RANKS, strict=True):
        folder = tmp_path / f"exported-{rank}"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["peft_type"]) == (rank, rank, "LORA")
        tensors = load_file(folder / "adapter_model.safetensors")
        ranks = module_ranks(spec.modules, rank, {})
        assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == adapter_shapes(spec.modules, (), ranks)
        before, *_, after = (event["metrics"]["loss"] for event in agent.told("evaluated"))
        assert after < before, "the global adapter answers this participant's held-out questions better than none"
        heldout = load(tmp_path / f"rank-{rank}.jsonl", spec.model)
        found = evaluate(spec, folder, heldout, device="cpu", models=models, answers=0)
        assert found["loss"] < before, "so does the exported one"
