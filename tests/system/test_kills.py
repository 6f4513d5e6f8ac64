"""`kill -9` of the coordinator, its worker and an agent, each at a chosen moment: the run completes as if nothing had been."""

from pathlib import Path

import pytest
import torch
from sqlalchemy import URL
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.databases import create_database
from tests.support.kit import part_head, raw_request
from tests.support.processes import Watched, gone, until, watching, worker_of
from tests.support.site import AGENTS, RUN, Site, enroll_everybody, site
from tests.support.tiny_models import make_tokenizer

pytestmark = pytest.mark.slow
PUBLISHED = dict[int, str]  # digests of the global updates by round


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody enrolled, and a model of many modules: aggregating its adapters takes a good part of a second."""
    folder = tmp_path_factory.mktemp("template")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    return enroll_everybody(folder / "enrolled", folder / "base")


def begin(running: Site) -> None:
    """Everybody declares, round 1 begins."""
    running.declare()
    running.start_run()


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> PUBLISHED:
    """What two rounds publish where nobody is killed."""
    with site(template, tmp_path_factory.mktemp("undisturbed") / "site") as running, running.agents() as agents:
        begin(running)
        for number in (1, 2):
            running.take_part(number)
        return running.finish(agents)


def check_untouched(agents: list[Watched]) -> None:
    """The agents did each round's work once and were never restarted: no update was trained or accepted twice."""
    for agent in agents:
        assert [len(agent.told(kind)) for kind in ("declared", "completed")] == [1, 1]
        for kind in ("trained", "accepted"):
            assert [event["round"] for event in agent.told(kind)] == [1, 2]
        assert not agent.told("lost")


def test_gathering(template: Path, undisturbed: PUBLISHED, tmp_path: Path) -> None:
    """Killed while two of three participants wait in long polls."""
    with site(template, tmp_path / "site") as running, running.agents() as agents:
        running.start_run()
        until(lambda: running.adapters(), "round 0 is published")
        assert running.round(1).state == "OPEN"
        running.kill()
        for agent in agents:
            agent.expect("retrying")
        running.restart()
        assert running.round(1).state == "OPEN"
        running.declare()
        for number in (1, 2):
            running.take_part(number)
        assert running.finish(agents) == undisturbed
        check_untouched(agents)


def test_mid_upload(template: Path, undisturbed: PUBLISHED, tmp_path: Path) -> None:
    """Killed while the second part of an upload is half way: the first part counts, and the upload goes on behind it."""
    with site(template, tmp_path / "site") as running, running.agents() as agents:
        begin(running)
        task, data = running.task(1), running.update(1)
        upload = running.hand.announce(task, data)["id"]
        first, half, second = 1_000_000, 1_400_000, 2_000_000
        running.send(upload, data, 0, first)
        partial = running.folder / "coordinator" / "partial" / upload
        head = part_head(upload, data[first:second], first)
        with raw_request(running.cluster.url, head, running.hand.key) as connection:
            connection.sendall(data[first:half])
            running.kill()
        running.restart()
        assert first <= partial.stat().st_size < len(data)
        headers = running.hand.call("HEAD", f"/v1/uploads/{upload}").headers
        assert (headers["upload-offset"], headers["upload-complete"]) == (str(first), "?0")
        assert running.hand.announce(task, data)["id"] == upload
        running.hand.send(upload, data, first)
        running.hand.commit(upload)
        running.take_part(2)
        assert running.finish(agents) == undisturbed
        check_untouched(agents)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> URL | None:
    """None for the coordinator's own SQLite file, else a migrated PostgreSQL database."""
    if request.param == "sqlite":
        return None
    return create_database(request.getfixturevalue("postgres_socket"), "killed", "migrated")


def test_aggregating(template: Path, undisturbed: PUBLISHED, database: URL | None, tmp_path: Path) -> None:
    """Killed while the worker writes the global update: nothing of it counts but the attempt, the next worker begins anew."""
    with site(template, tmp_path / "site", database) as running, running.agents() as agents:
        begin(running)
        upload = running.upload(running.task(1))
        running.wait_for_agents(1)
        running.hand.commit(upload)
        worker = running.suspend_aggregation(1)
        before = running.blobs()
        running.kill(worker)
        assert (running.round(1).state, running.round(1).lease_token) == ("AGGREGATING", 1)
        assert running.blobs() == before, "the result was not finished"
        running.restart()
        running.take_part(2)
        assert running.finish(agents) == undisturbed
        assert (running.round(1).lease_token, running.round(1).failures) == (2, 1)
        check_untouched(agents)


def test_before_publishing(template: Path, undisturbed: PUBLISHED, tmp_path: Path) -> None:
    """Killed when the last round's result and slices are on the disk and no row names them."""
    with site(template, tmp_path / "site") as running, running.agents() as agents:
        begin(running)
        running.take_part(1)
        upload = running.upload(running.task(2))
        running.wait_for_agents(2)
        running.hand.commit(upload)
        worker = running.suspend_aggregation(2)
        before = running.blobs()
        made = 1 + len(AGENTS) + 1  # the global update, and a slice of each rank
        with running.locked():
            worker.resume()
            until(
                lambda: len(running.blobs() - before) == made and not running.being_written(), "the result is written"
            )
            running.kill(worker)
        assert undisturbed[2] in running.blobs() - before
        assert (running.round(2).state, sorted(running.adapters())) == ("AGGREGATING", [0, 1])
        running.restart()
        assert running.finish(agents) == undisturbed
        assert len(running.blobs() - before) == made, "the second attempt wrote the same bytes"
        check_untouched(agents)


def test_the_worker_alone(template: Path, undisturbed: PUBLISHED, tmp_path: Path) -> None:
    """The coordinator starts another worker, which takes the round over when the dead one's lease expires."""
    with site(template, tmp_path / "site") as running, running.agents() as agents:
        begin(running)
        upload = running.upload(running.task(1))
        running.wait_for_agents(1)
        running.hand.commit(upload)
        worker = running.suspend_aggregation(1)
        lease = running.round(1).lease_until
        assert lease is not None
        worker.kill()
        until(lambda: gone(worker), "the worker is dead")
        running.take_part(2)
        assert worker_of(running.cluster).pid != worker.pid
        assert running.finish(agents) == undisturbed
        published = running.round(1).published_at
        assert published is not None
        assert published >= lease
        assert running.round(1).lease_token == 2
        check_untouched(agents)
        assert not any(agent.told("retrying") for agent in agents), "the coordinator itself never went away"


def test_an_agent_that_comes_back(template: Path, undisturbed: PUBLISHED, tmp_path: Path) -> None:
    """Killed in training and started again, it takes its place in the round and does the same work."""
    with site(template, tmp_path / "site") as running, running.agents() as (small, middle):
        begin(running)
        middle.expect("training", round=1)
        middle.kill()
        assert not middle.told("trained")
        with watching([running.agent("middle")]) as (again,):
            for number in (1, 2):
                running.take_part(number)
            assert running.finish([small, again]) == undisturbed
        check_untouched([small, again])
        assert again.expect("downloaded", round=1)["bytes"] == 0, "the slice was kept"
        assert running.round(1).attempt == 1


def test_an_agent_that_stays_away(template: Path, tmp_path: Path) -> None:
    """Killed in training for good: the round meets its deadline with the others' quorum, the next begins without it."""
    quorum = {"clients_per_round": 3, "min_clients": 2, "min_updates": 2, "gather_timeout": 1.0, "round_timeout": 30.0}
    with site(template, tmp_path / "site", changes=quorum) as running, running.agents() as (small, middle):
        begin(running)
        middle.expect("training", round=1)
        middle.kill()
        for number in (1, 2):
            running.take_part(number)
        assert sorted(running.finish([small])) == [0, 1, 2]
        check_untouched([small])
        row = running.round(1)
        assert row.deadline is not None
        assert row.published_at is not None
        assert row.published_at > row.deadline, "the dead agent was waited for"
        for number, assigned in ((1, 3), (2, 2)):
            summary = running.operator.expect(200, "GET", f"/v1/runs/{RUN}/rounds/{number}")["summary"]
            counts = summary["participants"]
            assert (summary["attempt"], counts["assigned"], counts["accepted"]) == (1, assigned, 2)
