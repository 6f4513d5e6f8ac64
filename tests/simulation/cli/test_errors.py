"""What is wrong with a command line or an experiment is one sentence and an exit code."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flexlora_client.errors import Exit
from flexlora_simulation.cli import INTERRUPTED, main
from flexlora_simulation.cli.extra import LIBRARIES
from flexlora_simulation.cli.options import ChangeOptions, default_folder, load_changed
from flexlora_simulation.results.tables import read_rows
from tests.support.command import call
from tests.support.processes import PATIENCE
from tests.support.simulated import tiny_experiment

WITHOUT = f"import sys; sys.modules |= dict.fromkeys({LIBRARIES}); from flexlora_simulation.cli import main; main()"
INTERRUPT = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            signal.raise_signal(signal.SIGTERM)
sys.meta_path.insert(0, Finder())
from flexlora_simulation.cli import main
main()
"""
CAN_GO_ON = "interrupted; nothing that was finished is lost, and the same command goes on\n"
EXPERIMENT = {
    "name": "one",
    "workload": {"name": "banking77", "data": "data", "model": "model"},
    "resources": [{"rank": 1}, {"rank": 8}],
    "run": {"rounds": 2},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return tmp_path / "one.yaml"


def test_fields_are_changed_for_one_call(file: Path) -> None:
    changes = [
        "run.rounds=5", "run.training.learning_rate=1e-3", "resources.1.rank=16", "evaluation.on=[]",
        "workload.options.text=a=b", "seed=1",
    ]  # fmt: skip
    changed = load_changed(file, ChangeOptions(seed=3, data="other", model="hub/model", changes=changes))
    assert changed.run == {"rounds": 5, "training": {"learning_rate": 0.001}}
    assert [resource.rank for resource in changed.resources] == [1, 16]
    assert changed.evaluation.on == ()
    assert (changed.workload.data, changed.workload.model) == ("other", "hub/model")
    assert changed.workload.options == {"text": "a=b"}
    assert default_folder(changed) == Path("runs/one/seed-3")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("rounds", Exit.USAGE, "'rounds' is not of the form FIELD=VALUE"),
        ("resources.first.rank=1", Exit.USAGE, "resources.first.rank is no field of the experiment"),
        ("resources.7.rank=1", Exit.USAGE, "resources.7.rank is no field of the experiment"),
        ("name.of=1", Exit.USAGE, "name.of is no field of the experiment"),
        ("evaluation.colour=red", Exit.BAD_INPUT, "error: evaluation.colour: "),
        ("workload.name=none", Exit.BAD_INPUT, "error: workload.name: there is no workload 'none'; there are "),
        ("workload.data=null", Exit.BAD_INPUT, "error: workload.data: banking77 needs a folder"),
    ],
)
def test_a_wrong_change_is_named(file: Path, change: str, code: Exit, said: str) -> None:
    done = call("check", file, "--set", change, program=main)
    assert (done.code, done.out) == (code, "")
    assert said in " ".join(done.err.replace("│", "").split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "0.5"], "it is for --ray; without, --device says where to train"),
        (["--ray", "auto", "--device", "cuda"], "on a Ray cluster --gpus says where to train"),
    ],
)
def test_where_to_train_is_said_once(file: Path, options: list[str], said: str) -> None:
    done = call("run", file, *options, program=main)
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert said in " ".join(done.err.replace("│", "").split())


def test_ray_and_tensorboard_are_extras(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("ray", "tensorboard"):
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "flexlora_simulation.engine.ray_cluster", raising=False)
    for options, extras in ((["--ray", "auto"], "simulation,ray"), (["--tensorboard"], "tensorboard")):
        done = call("run", file, *options, program=main)
        assert (done.code, done.out) == (Exit.BAD_INPUT, "")
        assert done.err.endswith(f": pip install 'flexlora[{extras}]'\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = call("run", tmp_path / "none.yaml", program=main)
    assert (done.code, done.out) == (Exit.BAD_INPUT, "")
    assert "none.yaml" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "compare"])
def test_files_are_read_before_pytorch(tmp_path: Path, command: str) -> None:
    """It takes seconds to import, which nobody waits for who mistyped a field."""
    (tmp_path / "wrong.yaml").write_text("nmae: x\n")
    program = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    done = subprocess.run(
        [sys.executable, "-c", program + "from flexlora_simulation.cli import main; main()", command, "wrong.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (Exit.BAD_INPUT, "False\n")
    assert "name: it is missing" in done.stderr


def test_a_folder_without_an_experiment(tmp_path: Path) -> None:
    for more in ((), ("--metric", "loss")):
        done = call("show", tmp_path, *more, program=main)
        assert (done.code, done.out) == (Exit.BAD_INPUT, "")
        assert done.err.startswith(f"error: {tmp_path} holds no ")


def test_workloads_are_listed() -> None:
    done = call("workloads", program=main)
    assert done.code == Exit.OK
    assert re.search(r"^banking77 +accuracy +\S", done.out, re.MULTILINE)


@pytest.mark.parametrize("command", [["run", "x.yaml"], ["workloads"]])
def test_a_missing_extra_is_named(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.BAD_INPUT, "")
    lacks = f"error: this command needs {', '.join(LIBRARIES)}, which this installation lacks: "
    assert done.stderr == f"{lacks}pip install 'flexlora[simulation]'\n"


def test_an_interrupt_while_importing() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPT, "run", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", CAN_GO_ON)
    assert INTERRUPTED == Exit.INTERRUPTED


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """With processes of its own, as at a terminal."""
    experiment = tiny_experiment(tmp_path, run={"rounds": 12})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    command = [str(Path(sys.executable).parent / "flexlora-sim"), "run", "tiny.yaml", "--processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("round 2 of 12: "):
                running.send_signal(signal.SIGINT)
                break
        rest = running.stderr.read()
    assert running.returncode == Exit.INTERRUPTED
    assert rest.endswith(CAN_GO_ON)
    assert "Traceback" not in rest
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert "round 2 of 12: " not in done.stderr
    assert "\nround 12 of 12: " in done.stderr
    rounds = [row.round for row in read_rows(tmp_path / "runs" / "tiny" / "seed-0") if row.table == "rounds"]
    assert rounds == list(range(13))
