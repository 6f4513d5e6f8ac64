"""Reads the record of a published round: what `worker.replay` needs, beside the files, to aggregate it again."""

from collections.abc import Sequence

from flexlora_server.adapter_files.weights import Counted, WeightRule, update_weights
from flexlora_server.database.queries import adapters, inputs, rounds, runs
from flexlora_server.database.schema import RoundModules
from flexlora_server.database.transactions import Tx
from flexlora_shared.messages.records import RecordedInput, RoundRecord
from flexlora_shared.messages.uploads import UploadCreate


def read_record(tx: Tx, run: str, number: int) -> RoundRecord:
    """The record of a round.

    Raises:
        Refusal: RUN_NOT_FOUND, ROUND_NOT_FOUND, ADAPTER_NOT_PUBLISHED.
    """
    spec, round_ = runs.spec_of(runs.get(tx, run)), rounds.latest(tx, run, number)
    published = adapters.get_published(tx, run, number).sha256
    figures = tx.session.get(RoundModules, round_.id)
    software = figures.updates.get("software", {}) if figures is not None and figures.updates is not None else {}
    return RoundRecord(
        spec=spec,
        round=number,
        inputs=tuple(_inputs(tx, run, WeightRule.of(spec), inputs.list_counted(tx, round_))),
        previous=_published(tx, run, number - 1),
        before=adapters.before(tx, run, number),
        past_norms=rounds.change_norms(tx, run, number),
        software=software,
        published=published,
        restored=adapters.restored(tx, run, number),
    )


def _inputs(tx: Tx, run: str, rule: WeightRule, counted: Sequence[inputs.FrozenInput]) -> list[RecordedInput]:
    announced = [UploadCreate.model_validate(item.upload.announced) for item in counted]
    counts = [
        Counted(update.examples, item.staleness, item.upload.client_id)
        for update, item in zip(announced, counted, strict=True)
    ]
    weights = update_weights(counts, rule)
    return [
        RecordedInput(
            update=update.model_copy(update={"metrics": {}}),
            staleness=item.staleness,
            base=_published(tx, run, item.round - 1) if item.staleness else None,
            weight=weight,
        )
        for update, item, weight in zip(announced, counted, weights, strict=True)
    ]


def _published(tx: Tx, run: str, number: int) -> str | None:
    return None if number < 0 else adapters.get_published(tx, run, number).sha256
