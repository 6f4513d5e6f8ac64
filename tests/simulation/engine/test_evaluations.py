"""What published adapters are measured at, and that no figure is lost where a simulation dies between two of them."""

from pathlib import Path

import pytest
from safetensors import safe_open

from flexlora_simulation.engine.jobs import Evaluated, EvaluationJob
from flexlora_simulation.engine.participant_process import ParticipantProcess
from flexlora_simulation.results.tables import EvaluationRow, Row
from tests.simulation.engine.conftest import Run
from tests.support.simulated import Nudging


class Ranks(Nudging):
    """Measures how many ranks the query and the value layers of the slice have, beside the loss."""

    def evaluate(self, job: EvaluationJob) -> Evaluated:
        served = self._served(job.slice, job.spec, job.rank, dict(job.rank_pattern))
        with safe_open(served.folder / "adapter_model.safetensors", "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        figures = {f"rank_{name}": float(shape[0]) for name in NAMES for key, shape in shapes.items() if name in key}
        return Evaluated({"loss": 1.0, **figures}, 1, 0.0)


NAMES = ("query.lora_A", "value.lora_A")


class Stopped(Exception):
    """Ends a simulation from within."""


def test_held_out_examples_are_measured_at_what_their_participant_is_served(run: Run) -> None:
    resources = [
        {"rank": 2, "rank_pattern": {"query": 4}},
        {"rank": 2, "hold_rank": 8, "attention_rank": 3},
    ]
    results, _ = run(
        Ranks,
        partition={"participants": 2, "heldout": 0.2},
        resources=resources,
        evaluation={"on": ["heldout"]},
        run={"rounds": 1, "clients_per_round": 2, "strategy": "flexlora-residual"},
    )
    last = results.evaluations[results.evaluations["round"] == 1]
    found = last.pivot(index="rank", columns="metric", values="value")
    assert found.loc[2].to_dict() == {"loss": 1, "rank_query.lora_A": 4, "rank_value.lora_A": 2}
    assert found.loc[8].to_dict() == {"loss": 1, "rank_query.lora_A": 8, "rank_value.lora_A": 8}


def test_participants_train_and_are_measured_in_the_dtype_of_the_experiment(run: Run) -> None:
    """bfloat16 rounds the base model: other figures than float32's, and near them; on a processor auto is float32."""
    losses = []
    for dtype in ("auto", "float32", "bfloat16"):
        results, _ = run(ParticipantProcess, folder=dtype, dtype=dtype, evaluation={"on": ["test"]}, run={"rounds": 1})
        table = results.evaluations
        losses.append(table[table.metric == "loss"].value.tolist())
        losses[-1].append(float(results.participants.train_loss.iloc[0]))
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[1], rel=0.02)
    assert all(rounded != exact for rounded, exact in zip(losses[2], losses[1], strict=True))


def test_a_figure_that_was_not_recorded_is_measured_again_also_where_the_folder_was_moved(
    run: Run, tmp_path: Path
) -> None:
    def stop(row: Row) -> None:
        if isinstance(row, EvaluationRow):
            raise Stopped

    changes = {"evaluation": {"on": ["test"]}, "run": {"rounds": 1}}
    whole, _ = run(Ranks, folder="whole", **changes)
    with pytest.raises(Stopped):
        run(Ranks, on_row=stop, **changes)
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed, _ = run(Ranks, folder="moved", **changes)
    assert resumed.evaluations.equals(whole.evaluations)


def test_held_out_examples_of_those_whose_data_one_has_are_measured_at_their_ranks(run: Run) -> None:
    results, executor = run(
        Ranks,
        partition={"participants": 2, "heldout": 0.2},
        resources=[{"rank": 2}, {"rank": 4}],
        pooled=True,
        evaluation={"on": ["heldout"]},
        run={"rounds": 1},
    )
    assert [job.task.rank for job in executor.trained] == [4]
    assert set(results.evaluations["rank"]) == {2, 4}
