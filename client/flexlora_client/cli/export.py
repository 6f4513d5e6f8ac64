"""The command `export`: saves a published adapter as a PEFT folder, atomically."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from flexlora_client.agent.download import download
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.slice_cache import SliceCache, SliceRequest, request_for_round
from flexlora_client.cli.options import (
    ConnectionOptions,
    JsonOption,
    RankOption,
    RankPatternOption,
    RunArgument,
    as_anyone,
    parse_rank_pattern,
    with_connection,
)
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder
from flexlora_shared.messages.runs import RunSpec

LABELS_FILE = "labels.json"
CARD = """---
base_model: {model}
library_name: peft
---
A LoRA adapter of the run {name}, fine-tuned with FlexLoRA. The labels are in {labels}, in the order of the logits.

```python
import json

from peft import PeftModel
from transformers import {auto}

labels = dict(enumerate(json.load(open("{labels}", encoding="utf-8"))))
ids = {{label: number for number, label in labels.items()}}
base = {auto}.from_pretrained("{model}", id2label=labels, label2id=ids, ignore_mismatched_sizes=True)
model = PeftModel.from_pretrained(base, ".")
```
"""


@with_connection
def export(
    run: RunArgument,
    rank: RankOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; it must not hold anything yet.")],
    number: Annotated[int | None, typer.Option("--round", min=0, help="Round. [the last published]")] = None,
    rank_pattern_: RankPatternOption = None,
    *,
    connection: ConnectionOptions,
    as_json: JsonOption = False,
) -> None:
    """Save a published adapter as an ordinary PEFT folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output} exists and is not an empty folder; name another one")
    with as_anyone(connection) as api:
        detail = api.run(run)
        round_number = detail.status.rounds_published if number is None else number
        request = request_for_round(detail.spec, round_number, rank, parse_rank_pattern(rank_pattern_))
        sha256 = _save(api, request, output)
    if as_json:
        print(json.dumps({"run": run, "round": round_number, "rank": rank, "folder": str(output), "sha256": sha256}))
    else:
        print(f"round {round_number} of {run} at rank {rank} is in {output}")


def write_labels(spec: RunSpec, folder: Path) -> None:
    """Write a classifier's labels beside its adapter, as a list in the order of the logits and as how to load them."""
    labels = spec.model.labels
    if not labels:
        return
    auto = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}.get(
        spec.model.task_type, "ImageClassification"
    )
    (folder / LABELS_FILE).write_text(json.dumps(labels, ensure_ascii=False, indent=2) + "\n", "utf-8")
    (folder / "README.md").write_text(
        CARD.format(auto=f"AutoModelFor{auto}", model=spec.model.id, name=spec.name, labels=LABELS_FILE), "utf-8"
    )


def _save(api: Api, request: SliceRequest, output: Path) -> str:
    """Download into a temporary folder beside `output`, then rename it: a cut or a crash leaves no half folder under its name."""
    make_folder(output.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        with Reporter(request.spec.name).bytes_bar("downloading") as on_progress:
            fetched = download(api, SliceCache(temporary), request, on_progress)
        write_labels(request.spec, fetched.folder)
        fetched.folder.replace(output)
        return fetched.sha256
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
