"""What the coordinator's processes are before they do anything: on one thread each, and where they are asked to be."""

from functools import partial
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.worker.process import run_worker
from flexlora_server.worker.supervisor import check_device
from tests.support.kit import served_on_sqlite


def test_who_serves_computes_on_one_thread(tmp_path: Path) -> None:
    """Whatever the environment says: inspections run side by side."""
    with threadpool_limits(2):
        assert 2 in {pool["num_threads"] for pool in threadpool_info()}
        with served_on_sqlite(tmp_path):
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_told_before_any_round() -> None:
    check_device(Settings(aggregation_device="cpu"))
    for start in (check_device, partial(run_worker, attached=False)):
        with pytest.raises(StartupError, match=r"DEVICE is cuda, but PyTorch finds no CUDA device here: set it to cpu"):
            start(Settings(aggregation_device="cuda"))
