"""What is kept of one's own training: the last and the best adapter, whole or not there."""

import json
from pathlib import Path

import pytest

from flexlora_client.agent.results import KeptAdapter, Results, own_adapter
from flexlora_client.errors import BadInput, NotAgreed
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import spec


def keep(
    results: Results, folder: Path, round_: int, loss: float | None, basis: str = "mine", sample: int = 10
) -> KeptAdapter:
    """Keep an adapter that this round trained."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / ADAPTER_FILE).write_bytes(b"round %d" % round_)
    (made / CONFIG_FILE).write_text("{}")
    kept = own_adapter(made, round_, 4, {}, {} if loss is None else {"loss": loss}, basis, sample)
    results.keep_own(made, kept)
    return kept


def served(folder: Path, loss: float | None) -> KeptAdapter:
    """A slice in the cache."""
    kept = own_adapter(folder / "made", 9, 4, {}, {} if loss is None else {"loss": loss}, "mine", 10)
    (folder / "slices").mkdir(exist_ok=True)
    (folder / "made").replace(folder / "slices" / kept.sha256)
    return kept.model_copy(update={"own": False, "folder": f"slices/{kept.sha256}"})


def test_the_last_and_the_best_are_kept_and_no_more(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for round_, loss in enumerate([3.0, 1.0, 2.0, 2.5], 1):
        keep(results, tmp_path, round_, loss)
    again = Results(tmp_path)  # as after a restart
    assert again.kept.last is not None
    assert again.kept.best is not None
    assert (again.kept.last.round, again.kept.best.round) == (4, 2)
    assert sorted(path.name[:8] for path in (tmp_path / "own").iterdir()) == ["round-2-", "round-4-"]
    chosen, folder = again.choose("own")
    assert (chosen.round, (folder / ADAPTER_FILE).read_bytes()) == (2, b"round 2")


def test_without_held_out_data_the_last_is_the_best(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for round_ in (1, 2):
        keep(results, tmp_path, round_, None)
    assert results.choose("own")[0].round == 2


def test_losses_on_other_data_do_not_compare(tmp_path: Path) -> None:
    results = Results(tmp_path)
    keep(results, tmp_path, 1, 0.1, "before")
    keep(results, tmp_path, 2, 5.0, "after")
    assert results.choose("own")[0].round == 2


def test_losses_over_more_examples_do_not_compare(tmp_path: Path) -> None:
    results = Results(tmp_path)
    keep(results, tmp_path, 1, 0.1, sample=5)
    keep(results, tmp_path, 2, 5.0)
    assert results.choose("own")[0].round == 2


@pytest.mark.parametrize(("basis", "sample"), [("before", 10), ("mine", 5)])
def test_which_is_better_is_not_said_of_losses_on_other_data(tmp_path: Path, basis: str, sample: int) -> None:
    results = Results(tmp_path)
    keep(results, tmp_path, 1, 1.0, basis, sample)
    results.note_served(served(tmp_path, 2.0))
    with pytest.raises(BadInput, match="measured on different examples"):
        results.choose("best")


@pytest.mark.parametrize(("own", "other", "better"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_the_better_of_ones_own_and_the_one_served(tmp_path: Path, own: float, other: float, better: bool) -> None:
    results = Results(tmp_path)
    keep(results, tmp_path, 1, own)
    results.note_served(served(tmp_path, other))
    assert results.choose("best")[0].own is better
    assert results.choose("global")[0].round == 9
    keep(results, tmp_path, 2, None, "other")
    with pytest.raises(BadInput, match="nothing was measured"):
        results.choose("best")


def test_what_is_missing_is_a_sentence(tmp_path: Path) -> None:
    results = Results(tmp_path / "run")
    with pytest.raises(BadInput, match="no run's definition"):
        results.spec()
    for source in ("own", "best", "global"):
        with pytest.raises(BadInput, match="yet; take part in the run first"):
            results.choose(source)
    results = Results(tmp_path)
    kept = keep(results, tmp_path, 1, 1.0)
    (tmp_path / kept.folder / ADAPTER_FILE).write_bytes(b"half")
    with pytest.raises(BadInput, match="gone or damaged"):
        results.choose("own")


def test_a_cut_while_keeping_leaves_the_adapter_before(tmp_path: Path) -> None:
    results = Results(tmp_path)
    keep(results, tmp_path, 1, 1.0)
    made = tmp_path / "made"
    (made / ADAPTER_FILE).write_bytes(b"round 2")
    kept = own_adapter(made, 2, 4, {}, {"loss": 0.5}, "mine")
    (made / ADAPTER_FILE).unlink()  # the configuration is copied, the tensors are not
    with pytest.raises(FileNotFoundError):
        results.keep_own(made, kept)
    assert Results(tmp_path).choose("own")[0].round == 1
    keep(results, tmp_path, 3, 0.5)
    assert [path.name[:8] for path in (tmp_path / "own").iterdir()] == ["round-3-"]


def test_the_definition_is_kept_and_no_other_takes_its_place(tmp_path: Path) -> None:
    run = RunSpec.model_validate(spec(), strict=False)
    assert Results(tmp_path).agree(run)
    assert not Results(tmp_path).agree(run)
    with pytest.raises(
        NotAgreed, match=r"run run is not the one .* joined: rounds is '9' instead of '\d+'; ask .* move .*run\.json"
    ):
        Results(tmp_path).agree(run.model_copy(update={"rounds": 9}))
    assert Results(tmp_path).spec() == run


def test_an_update_of_the_agent_takes_fields_over_that_the_older_one_did_not_know(tmp_path: Path) -> None:
    run = RunSpec.model_validate(spec(), strict=False)
    training = run.training.model_copy(update={"optimizer": "sgd"})
    whole = run.model_copy(update={"training": training, "max_share": 0.25})
    older = whole.model_dump(mode="json")
    del older["max_share"], older["training"]["optimizer"]
    (tmp_path / "run.json").write_text(json.dumps(older))
    with pytest.raises(NotAgreed, match="rounds is"):
        Results(tmp_path).agree(whole.model_copy(update={"rounds": 9}))
    assert not Results(tmp_path).agree(whole)
    assert Results(tmp_path).spec() == whole
    with pytest.raises(NotAgreed, match=r"max_share is .*0\.5.* instead of .*0\.25"):
        Results(tmp_path).agree(whole.model_copy(update={"max_share": 0.5}))
