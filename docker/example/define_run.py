"""The example's operator, by the commands a person would give: defines and starts the run, lets two agents in.

Leaves in its volume what each agent starts from: the tasks' files in `data/`, an enrollment token in `tokens/NAME`.
Started again it finds everything done.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from demo.tasks import write_tasks

RUN = "example"
RANKS = {"agent-2": 2, "agent-8": 8}
STATE = Path("/state")
MODEL = Path(__file__).parent / "demo" / "model"
OPERATOR = ("--key-file", "/run/secrets/flexlora_operator_key", "--json")
ROUNDS = os.environ.get("ROUNDS", "2")  # of one epoch: a minute on one processor
STEPS = int(os.environ.get("STEPS", "0"))  # of the optimiser in a round; 0: the whole epoch
RULES = {
    "min_clients": len(RANKS),
    "min_updates": len(RANKS),
    "scaling": {"alpha_per_rank": 2.0},
    "training": {"learning_rate": 1e-2, "batch_size": 16, "max_length": 64} | ({"max_steps": STEPS} if STEPS else {}),
}


def client(*arguments: str) -> Any:
    """The JSON that a command of `flexlora-client` prints; its own words end the job where it fails."""
    done = subprocess.run(["flexlora-client", *arguments], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def define() -> None:
    """Define the run from what the model's configuration says, unless it is there."""
    if any(run["name"] == RUN for run in client("runs", "list", *OPERATOR)["runs"]):
        return
    allowed = [option for rank in RANKS.values() for option in ("--rank", str(rank))]
    spec = client("describe", str(MODEL), "--json", "--name", RUN, "--rounds", ROUNDS, *allowed)
    path = STATE / "run.json"
    path.write_text(json.dumps({**spec, **RULES}, indent=2))
    client("runs", "create", str(path), *OPERATOR)


def let_in(name: str) -> None:
    """Leave an enrollment token for an agent, unless it got one."""
    path = STATE / "tokens" / name
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    token = client("tokens", "create", "--note", name, *OPERATOR)["token"]
    partial = path.with_suffix(".new")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
        file.write(token)
    partial.replace(path)


def main() -> None:
    """Prepare everything, then start the run."""
    write_tasks(STATE / "data", seed=0)
    for name in RANKS:
        let_in(name)
    define()
    status = client("runs", "show", RUN, *OPERATOR)["status"]
    if status["state"] == "DRAFT":
        status = client("runs", "start", RUN, *OPERATOR)
    print(f"run {status['name']} is {status['state']}: {status['waiting_for']}")


if __name__ == "__main__":
    main()
