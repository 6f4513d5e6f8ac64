"""Training in a process whose memory really ends."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.tiny_models import make_llama, make_run, make_slice

PROGRAM = """
    import resource, sys
    from pathlib import Path
    import torch
    from flexlora_client.training.data.examples import Plain
    from flexlora_client.training.loop.standard import StandardTrainer
    from flexlora_shared.messages.runs import RunSpec
    from tests.support.tiny_models import make_job

    torch.set_num_threads(1)
    spec = RunSpec.model_validate_json(Path(sys.argv[1]).read_text())
    examples = [Plain("long " * 300) for _ in range(256)] + [Plain("short")] * 256

    def limit(step, total, loss):  # after a short step, so that the model is loaded and a long one meets the limit
        if step == 1:
            used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData"))
            resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (64 << 20),) * 2)

    job = make_job(spec, Path(sys.argv[2]), examples, Path(sys.argv[3]), progress=limit)
    print(StandardTrainer().train(job).compute)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of data are Linux's")
def test_under_a_limit_of_the_process_training_goes_on_with_smaller_micro_batches(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base")
    spec = make_run(base)
    training = spec.training.model_copy(update={"batch_size": 256, "max_length": 128, "epochs": 1})
    (tmp_path / "spec.json").write_text(spec.model_copy(update={"training": training}).model_dump_json())
    served = make_slice(tmp_path / "served", base, spec)
    paths = [str(tmp_path / "spec.json"), str(served), str(tmp_path / "out")]
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *paths]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "micro_batch=" in ended.stdout
    assert "micro_batch=None" not in ended.stdout
