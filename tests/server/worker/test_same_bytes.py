"""Two coordinators that got the same uploads publish the same bytes: nothing random of theirs reaches them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from flexlora_server.aggregation.strategies.registry import strategies
from flexlora_server.database.queries import presence
from flexlora_server.database.transactions import Store
from tests.support.databases import ON_SQLITE, create_database, drop_database
from tests.support.kit import Clock, Served, served, served_on_sqlite
from tests.support.playing import NAMES, play


@contextmanager
def on_postgresql(url: URL, folder: Path) -> Iterator[Served]:
    """A coordinator whose workers factor three modules at once."""
    clock = Clock()
    store = Store(url, clock)
    with served(store, folder, clock, aggregation_threads=3) as running:
        yield running
    store.close()


def on_two(first: Served, second: Served, rule: str) -> None:
    assert play(first, NAMES, rule) == play(second, ("eve", "cem", "ada", "dot", "bob"), rule)


@ON_SQLITE
def test_other_ids_and_another_order_of_commits(coordinator: Served, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with served_on_sqlite(tmp_path / "other") as other:
        on_two(coordinator, other, "flexlora-residual")


@ON_SQLITE
@pytest.mark.slow
@pytest.mark.parametrize("rule", strategies())
def test_every_strategy_on_another_database_with_other_threads(
    coordinator: Served, tmp_path: Path, postgres_socket: Path, rule: str
) -> None:
    url = create_database(postgres_socket, f"same-{rule}", "migrated")
    with on_postgresql(url, tmp_path / "other") as other:
        on_two(coordinator, other, rule)
    drop_database(postgres_socket, f"same-{rule}")


def test_clients_of_one_name_are_told_apart_by_their_enrollment() -> None:
    clients = [("3f", "lab"), ("07", "site"), ("aa", "lab"), ("01", "lab")]
    assert presence.distinct_names(clients) == {"3f": "lab", "07": "site", "aa": "lab (2)", "01": "lab (3)"}
