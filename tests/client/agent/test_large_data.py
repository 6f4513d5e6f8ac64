"""A round over data that is larger than the memory it takes: read, evaluated, trained on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_models import make_llama, make_run, make_slice

PROGRAM = """
import sys
from pathlib import Path
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.slice_cache import request_for_round
from flexlora_client.agent.work_folder import compute_basis
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.data.loading import load_data
from flexlora_client.training.evaluation.sample import SampleSize
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec

def peak():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10

folder, models = Path(sys.argv[1]), Models()
spec = RunSpec.model_validate_json((folder / "spec.json").read_text())

def round_of(name, out):
    data = load_data(DataOptions((folder / name,), heldout_fraction=0.5), spec.model, folder=folder)
    compute_basis("me", data.train)
    local = LocalTrainer(StandardTrainer(models, 0.0), models, data.train, data.heldout, 2, "cpu", None)
    local.evaluate(spec, folder / "served", most=SampleSize(20, 20, 2))
    (folder / out).mkdir()
    around = {"checkpoints": folder / out / "checkpoints"}
    outcome = local.fit(request_for_round(spec, 0, 4, {}), 1, folder / "served", folder / out, lambda *_: None, **around)
    assert outcome.metrics["train_steps"] == 3
    return len(data.train) + len(data.heldout)

round_of("small.jsonl", "first")  # libraries and the model take what they take
before = peak()
print(round_of("large.jsonl", "second"), peak() - before)
"""


@pytest.mark.slow
def test_a_round_takes_little_memory_beside_the_model(tmp_path: Path) -> None:
    rows = 200_000
    for name, count in (("small", 100), ("large", rows)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(count):
                file.write(json.dumps({"prompt": f"{number} is {'long ' * 300}", "completion": "yes " * 20}) + "\n")
    assert (tmp_path / "large.jsonl").stat().st_size > 300 << 20
    llama = make_llama(tmp_path / "base")
    spec = make_run(llama)
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"max_steps": 3})})
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    make_slice(tmp_path / "served", llama, spec)
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, mebibytes = map(int, done.stdout.split())
    print(f"{rows} examples in a round: {mebibytes} MiB more than a hundred")
    assert read == rows
    assert mebibytes < 150, "64 MiB of examples, and about a hundred bytes for each"
