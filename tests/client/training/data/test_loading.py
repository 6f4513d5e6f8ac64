"""The two parts of a participant's data: nothing leaks, whatever the kind of file and wherever the examples are kept."""

import gc
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexlora_client.agent.work_folder import compute_basis
from flexlora_client.errors import DataError
from flexlora_client.training.data import store
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.examples import Chat, Example, Instructed, Plain, Prompted, Turn
from flexlora_client.training.data.loading import LoadedData, load_data
from flexlora_client.training.data.of_task import check_task
from flexlora_client.training.data.store import ExampleStore, Selection, by_key, digest_of, key_of, lengths_of, of_kinds
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import FLAT, NESTED, Writer, as_csv, as_jsonl

CAUSAL = ModelSpec(id="model")


def plain(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {n}"} for n in range(count)]


def loaded(*data: Path, heldout: tuple[Path, ...] = (), fraction: float = 0.0, seed: int = 0) -> LoadedData:
    return load_data(DataOptions(data, heldout, fraction), CAUSAL, seed=seed)


def test_the_split_is_that_by_content(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", plain(200))
    data, examples = loaded(path, fraction=0.2, seed=3), [Plain(f"text {n}") for n in range(200)]
    assert list(data.heldout) == [one for one in examples if key_of(one, 3) / 2**64 < 0.2]
    assert list(data.train) == [one for one in examples if one not in set(data.heldout)]
    assert (data.rows, data.skipped, data.duplicates, data.leaked, data.notes) == (200, 0, 0, 0, ())
    assert data.lines() == [f"{len(data.train)} examples to train on, {len(data.heldout)} held out"]


def test_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    train = [as_jsonl(tmp_path / "one", plain(5)), as_csv(tmp_path / "two", plain(8))]
    heldout = as_csv(tmp_path / "heldout", [{"text": "text 1"}, {"text": "text 7"}, {"text": "other"}])
    data = loaded(*train, heldout=(heldout,), fraction=0.5)
    assert [example.text for example in data.heldout if isinstance(example, Plain)] == ["text 1", "text 7", "other"]
    assert set(data.train).isdisjoint(data.heldout)
    assert (len(data.train), data.leaked, data.duplicates, data.rows) == (10, 3, 5, 16)
    assert "in --heldout too, and left out of training: 3" in data.lines()
    with pytest.raises(DataError, match="every example of --data is in --heldout too"):
        loaded(train[0], heldout=(train[0],))


def test_bad_rows_are_told_with_their_places(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", [{"text": ""}] * 7 + plain(2))
    heldout = as_jsonl(tmp_path / "heldout", [{"text": "a"}, {"txt": "b"}])
    data = load_data(DataOptions((path,), (heldout,), bad_rows="skip"), CAUSAL)
    assert (data.rows, data.skipped, len(data.train), len(data.heldout)) == (11, 8, 2, 1)
    lines = data.lines()
    assert lines[1] == "bad rows, skipped: 8 of 11"
    assert lines[2].startswith(f"  {heldout}, line 2: its fields are txt")
    assert lines[-1] == "  and 3 more"


def test_of_many_notes_the_first_are_told(tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.csv").write_text(f"text;id\na;{n}\n")
    lines = loaded(tmp_path).lines()
    assert lines[1:3] == ["equal to an earlier example, and kept: 8", f"{tmp_path / '0.csv'} is separated by ;"]
    assert lines[-1] == "and 4 more like it"


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", plain(1))
    with pytest.raises(DataError, match="leaves none to train on"):
        loaded(path, fraction=0.999999)
    with pytest.raises(DataError, match="give a number from 0 to below 1"):
        loaded(path, fraction=1)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=12).map(
    lambda t: f"t{t}"
)


@pytest.mark.parametrize("write", FLAT)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_a_table_reads_the_same_from_every_kind_of_file(
    tmp_path: Path, write: Writer, pairs: list[tuple[str, str]], seed: int
) -> None:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    rows += [{"prompt": f"{n}", "completion": "\n\r\n,;|\t\"'"} for n in range(9)]  # so that some are left to train on
    data = load_data(DataOptions((write(tmp_path / "data", rows),), heldout_fraction=0.3), CAUSAL, seed=seed)
    expected = load_data(DataOptions((as_jsonl(tmp_path / "expected", rows),), heldout_fraction=0.3), CAUSAL, seed=seed)
    assert (tuple(data.train), tuple(data.heldout)) == (tuple(expected.train), tuple(expected.heldout))
    assert set(data.train).isdisjoint(data.heldout)
    assert data.duplicates == len(rows) - len({(row["prompt"], row["completion"]) for row in rows})


@pytest.mark.parametrize("write", NESTED)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(talks=st.lists(st.lists(TEXTS, min_size=2, max_size=5), min_size=1, max_size=5))
def test_conversations_read_the_same_from_every_kind_of_file(
    tmp_path: Path, write: Writer, talks: list[list[str]]
) -> None:
    turns = [[(("user", "assistant")[n % 2], text) for n, text in enumerate(talk)] for talk in talks]
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in turns]
    expected = [Chat(tuple(Turn(role, text) for role, text in talk)) for talk in turns]
    assert list(loaded(write(tmp_path / "data", rows)).train) == expected


def filled(examples: list[Example], folder: Path, in_memory: int) -> ExampleStore:
    kept = ExampleStore(0, folder, in_memory)
    for example in examples:
        kept.add(example)
    return kept


@pytest.mark.parametrize("in_memory", [1, 1 << 20])
def test_examples_come_in_any_order_from_memory_and_from_a_file(tmp_path: Path, in_memory: int) -> None:
    examples: list[Example] = [Plain("é" * n) for n in range(1, 50)]
    kept = filled(examples, tmp_path, in_memory)
    assert [kept[n] for n in (48, 0, 7, 7)] == [examples[n] for n in (48, 0, 7, 7)]
    assert list(kept.lengths) == list(range(1, 50))
    assert list(tmp_path.iterdir()) == []  # a file without a name: nothing is left behind, whatever ends the process
    with pytest.raises(IndexError):
        kept[49]
    del kept
    gc.collect()  # closes the file; one left open would be a warning, and so an error


def test_a_part_is_a_sequence(tmp_path: Path) -> None:
    data = loaded(as_jsonl(tmp_path / "data", plain(9)), fraction=0.4)
    everything = list(data.train)
    assert everything[1:3] == list(data.train[1:3])
    assert data.train[-1] == everything[-1]
    assert Plain("text 100") not in data.train
    assert lengths_of(data.train) == lengths_of(everything) == [6] * len(everything)
    assert compute_basis("me", data.train) == compute_basis("me", everything)


def test_what_is_known_of_examples_takes_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[Example] = [Plain("a"), Prompted("b", "c"), Plain("d"), Instructed("e", "f", "g"), Plain("a")]
    kept, picked = filled(mixed, tmp_path, 1), np.array([4, 3, 1, 0])
    part, same = Selection(kept, picked), [mixed[n] for n in picked]
    ordered, asked = by_key(same), [example for example in same if isinstance(example, Prompted | Instructed)]
    monkeypatch.setattr(ExampleStore, "__getitem__", None)
    digests, chosen, sample = digest_of(part), of_kinds(part, (Prompted, Instructed)), by_key(part)
    check_task(part, CAUSAL)
    monkeypatch.undo()
    assert digests == digest_of(same)
    assert digests != digest_of(same[::-1])
    assert list(chosen) == asked == of_kinds(same, (Prompted, Instructed))
    assert list(sample) == ordered


def test_a_full_disk_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(store, "SpooledTemporaryFile", lambda **_: Full())
    with pytest.raises(DataError, match=r"cannot be kept in a temporary file \(No space left on device\); make room"):
        ExampleStore(0).add(Plain("a"))


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data of 12 MB, a part is held once examples go to a file."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "{n} {"x" * 40_000}"}}\n' for n in range(300)))
    monkeypatch.setattr(store, "IN_MEMORY", 1 << 16)
    tracemalloc.start()
    data = load_data(DataOptions((path,), heldout_fraction=0.1), CAUSAL, folder=tmp_path)
    compute_basis("me", data.train)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.train) + len(data.heldout) == 300
    assert peak < 4 << 20


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from flexlora_client.agent.work_folder import compute_basis
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.loading import load_data
from flexlora_shared.messages.runs import ModelSpec

resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))
data = load_data(DataOptions((Path(sys.argv[1]),)), ModelSpec(id="model"), folder=Path(sys.argv[2]))
compute_basis("me", data.train)
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(len(data.train) + len(data.heldout), int(peak) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_two_gigabytes_are_read_in_little_memory(tmp_path: Path, kind: str) -> None:
    path, rows = tmp_path / f"data.{kind}", 1 << 18
    opened, between, closed = ("[", ",\n", "]") if kind == "json" else ("", "\n", "\n")
    with path.open("w") as file:
        file.write(opened)
        for number in range(rows):
            file.write((between if number else "") + f'{{"prompt": "{number}", "completion": "{"word " * 1640}"}}')
        file.write(closed)
    assert path.stat().st_size > 2 << 30
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(path), str(tmp_path)]
    read, mebibytes = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert read == rows
    assert mebibytes < 300
