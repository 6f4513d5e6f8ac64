"""The record of a published round, written by `export --record`: `flexlora-server replay` aggregates the round again."""

import json
import sys
from pathlib import Path

import typer

from flexlora_client.cli.options import ConnectionOptions, as_operator
from flexlora_client.files import make_folder, write_whole


def save_record(
    connection: ConnectionOptions, run: str, number: int | None, source: str, file: Path, *, as_json: bool
) -> None:
    """Write the record of a round, of the last published one where no number is given.

    as_json: stdout gets one line of JSON; else stderr a sentence, since an adapter may be exported as well.
    """
    if source != "global":
        raise typer.BadParameter(f"--record is of a published round, not of --from {source}; give it without --from")
    with as_operator(connection) as api:
        published = api.run(run).status.rounds_published if number is None else number
        record = json.loads(api.record(run, published))
    make_folder(file.parent)
    write_whole(file, json.dumps(record, indent=2).encode() + b"\n")
    if as_json:
        print(json.dumps({"run": run, "round": published, "sha256": record["published"], "record": str(file)}))
    else:
        print(f"the record of round {published} of {run} is in {file}", file=sys.stderr)
