"""How much memory is free: of the machine, of its control group, under a limit of the process."""

import resource
from pathlib import Path

import pytest
import torch

from flexlora_client.training.fitting import memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        (
            ".",
            {
                "memory.max": GIB,
                "memory.current": GIB // 2,
                "memory.stat": "inactive_anon 5\ninactive_file 1000\nactive_file 24",
            },
        ),
        (
            "memory",
            {
                "memory.limit_in_bytes": GIB,
                "memory.usage_in_bytes": GIB // 2,
                "memory.stat": "total_inactive_file 1024",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_control_group_leaves_its_limit_less_what_cannot_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, files: dict[str, object]
) -> None:
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_cgroup_entries", lambda: ["0::/some/group", "4:memory:/some/group"])
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, content in files.items():
        (tmp_path / folder / name).write_text(f"{content}\n")
    assert memory.free_memory(CPU) == GIB // 2 + 1024


def test_a_control_group_without_a_limit_leaves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    for name, content in {"memory.max": "max", "memory.current": "5", "memory.stat": ""}.items():
        (tmp_path / name).write_text(content)
    assert memory.free_memory(CPU) > 0


def test_a_limit_of_the_process_counts_and_ends_with_its_context() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.at_most(64 * 2**20, CPU):
        assert memory.free_memory(CPU) <= 64 * 2**20
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(512 * 2**20)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_peak_is_the_most_that_was_held() -> None:
    before = memory.used_memory(CPU)
    with memory.PeakMemory(CPU) as peak:
        for _ in range(5):
            torch.ones(16 * 2**20).sum().item()  # 64 MiB, freed at once
    assert 50 * 2**20 < peak.bytes - before < 100 * 2**20
