"""The work folder: what survives a killed agent, and what is thrown away."""

import hashlib
from pathlib import Path

import pytest

from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder, compute_basis
from flexlora_client.errors import BadInput
from flexlora_client.training.data.examples import Plain
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.messages.uploads import UploadCreate

ADAPTER = "a" * 64
DATA = b"trained tensors"


def train(work: WorkFolder, round_: int = 3, adapter: str = ADAPTER) -> TrainedUpdate:
    """Leave a trained update in the folder, as an agent does before it uploads."""
    (work.clear_output() / "adapter.safetensors").write_bytes(DATA)
    announced = UploadCreate(rank=4, alpha=8.0, examples=5, size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    trained = TrainedUpdate(
        run="run",
        round=round_,
        attempt=1,
        adapter=adapter,
        file="adapter.safetensors",
        upload=announced,
        basis=work.basis,
    )
    work.save_trained(trained)
    return trained


def test_a_trained_update_outlives_the_agent(tmp_path: Path) -> None:
    trained = train(WorkFolder(tmp_path, "run"))
    work = WorkFolder(tmp_path, "run")
    assert work.find_trained(3, ADAPTER) == trained
    assert (work.output / trained.file).read_bytes() == DATA


@pytest.mark.parametrize(("round_", "adapter"), [(4, ADAPTER), (3, "b" * 64)])
def test_an_update_of_another_round_or_slice_does_not_count(tmp_path: Path, round_: int, adapter: str) -> None:
    train(WorkFolder(tmp_path, "run"))
    assert WorkFolder(tmp_path, "run").find_trained(round_, adapter) is None


@pytest.mark.parametrize("trainable", ["B", "fresh"])
def test_an_update_that_was_trained_otherwise_does_not_count(tmp_path: Path, trainable: Trainable) -> None:
    train(WorkFolder(tmp_path, "run"))
    assert WorkFolder(tmp_path, "run").find_trained(3, ADAPTER, trainable) is None


@pytest.mark.parametrize("content", [None, b"trained tensorz", b""])
def test_an_update_whose_file_is_gone_or_changed_does_not_count(tmp_path: Path, content: bytes | None) -> None:
    trained = train(WorkFolder(tmp_path, "run"))
    path = WorkFolder(tmp_path, "run").output / trained.file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert WorkFolder(tmp_path, "run").find_trained(3, ADAPTER) is None


def test_an_update_of_another_participant_or_other_data_does_not_count(tmp_path: Path) -> None:
    mine = compute_basis("me", [Plain("one")])
    others = [
        compute_basis("you", [Plain("one")]),
        compute_basis("me", [Plain("two")]),
        compute_basis("me", [Plain("one")] * 2),
    ]
    trained = train(WorkFolder(tmp_path, "run", mine))
    assert WorkFolder(tmp_path, "run", mine).find_trained(3, ADAPTER) == trained
    assert [WorkFolder(tmp_path, "run", basis).find_trained(3, ADAPTER) for basis in others] == [None] * 3


def test_training_anew_forgets_what_lay_there(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path, "run")
    train(work)
    assert list(work.clear_output().iterdir()) == []
    assert WorkFolder(tmp_path, "run").state.trained is None


def test_after_the_receipt_nothing_is_left(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path, "run")
    work.set_evaluated(ADAPTER)
    train(work)
    work.drop_trained()
    assert not work.output.exists()
    assert WorkFolder(tmp_path, "run").state.evaluated == ADAPTER
    assert WorkFolder(tmp_path, "run").state.trained is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"evaluated": 7}', b"\xff\xfe"])
def test_a_damaged_state_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    work = WorkFolder(tmp_path, "run")
    train(work)
    (work.folder / "state.json").write_bytes(content)
    assert WorkFolder(tmp_path, "run").find_trained(3, ADAPTER) is None


def test_two_agents_never_share_a_folder(tmp_path: Path) -> None:
    first, second = WorkFolder(tmp_path, "run"), WorkFolder(tmp_path, "run")
    first.lock()
    with pytest.raises(BadInput, match="another agent is at work"):
        second.lock()
    first.release()
    second.lock()
    second.release()
