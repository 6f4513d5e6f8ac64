"""The state machine: how a round begins: who is present, how long others are waited for, who is drawn."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.state_machine import Begin, Wait, gather, sample
from flexlora_shared.messages.runs import RunState
from tests.support.round_views import NOW, OPENED, RUN_STATES, TICK, defined, seconds


def named(clients: Iterable[str]) -> dict[str, str]:
    """Clients whose names are their ids."""
    return {client: client for client in clients}


class TestGather:
    def test_too_few_wait_for_ever(self) -> None:
        decision = gather(defined(), OPENED, named(["a"]), seconds(1e6))
        assert decision == Wait("Waiting for participants: 1 of at least 2 are present.")

    def test_without_a_sample_size_all_who_are_present_begin(self) -> None:
        assert gather(defined(), OPENED, named(["b", "c", "a"]), NOW) == Begin(("a", "b", "c"), seconds(60))

    def test_a_sample_size_is_waited_for_until_patience_ends(self) -> None:
        spec = defined(clients_per_round=4)
        waiting = Wait("Waiting for participants: 3 of 4 are present.", seconds(10))
        assert gather(spec, OPENED, named(["a", "b", "c"]), NOW) == waiting
        assert gather(spec, OPENED, named(["a", "b", "c"]), seconds(10) - TICK) == waiting
        assert gather(spec, OPENED, named(["a", "b", "c"]), seconds(10)) == Begin(("a", "b", "c"), seconds(70))

    def test_a_full_sample_does_not_wait(self) -> None:
        decision = gather(defined(clients_per_round=2), OPENED, named(list("abcd")), NOW)
        assert isinstance(decision, Begin)
        assert len(decision.participants) == 2

    @pytest.mark.parametrize("state", [state for state in RUN_STATES if state != "RUNNING"])
    def test_only_a_running_run_begins_rounds(self, state: RunState) -> None:
        assert isinstance(gather(defined(), replace(OPENED, run_state=state), named(list("abcd")), seconds(1e6)), Wait)

    def test_over_selection_draws_more(self) -> None:
        decision = gather(defined(clients_per_round=2, over_selection=1), OPENED, named(list("abcdef")), NOW)
        assert isinstance(decision, Begin)
        assert len(decision.participants) == 3

    def test_whose_update_was_carried_takes_part_though_absent(self) -> None:
        decision = gather(defined(clients_per_round=2), OPENED, named(list("abcd")), NOW, ["x"])
        assert isinstance(decision, Begin)
        assert "x" in decision.participants
        assert len(decision.participants) == 2
        assert gather(defined(), OPENED, named(["a"]), seconds(10), ["x"]) == Begin(("a", "x"), seconds(70))

    def test_another_attempt_draws_another_sample(self) -> None:
        present = [f"client{n}" for n in range(40)]
        spec = defined(clients_per_round=5)
        draws = [gather(spec, replace(OPENED, attempt=n), named(present), NOW) for n in range(6)]
        assert len({draw.participants for draw in draws if isinstance(draw, Begin)}) == 6


clients = st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True)


@given(clients, st.integers(1, 20), st.text(max_size=5), st.randoms(use_true_random=False))
def test_a_sample_has_its_size_whatever_the_order(present: list[str], count: int, seed: str, shuffler: Any) -> None:
    drawn = sample(named(present), count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, len(present))
    assert set(drawn) <= set(present)
    shuffled = list(present)
    shuffler.shuffle(shuffled)
    assert sample(named(shuffled), count, seed) == drawn


def test_samples_are_uniform() -> None:
    """Of 10 clients 3 are drawn 2,000 times: each about 600 times, six standard deviations (20.5) allowed."""
    present = [f"client{n}" for n in range(10)]
    drawn = Counter(client for seed in range(2000) for client in sample(named(present), 3, str(seed)))
    assert set(drawn) == set(present)
    assert max(abs(count - 600) for count in drawn.values()) < 123


@given(clients, st.integers(1, 20), st.text(max_size=5), st.randoms(use_true_random=False))
def test_a_sample_is_of_names_whatever_their_ids(names: list[str], count: int, seed: str, shuffler: Any) -> None:
    """Two coordinators give the same participants other ids."""
    ids = [f"{n:016x}" for n in range(len(names))]
    one = dict(zip(ids, names, strict=True))
    shuffler.shuffle(ids)
    other = dict(zip(ids, names, strict=True))
    assert {one[client] for client in sample(one, count, seed)} == {other[c] for c in sample(other, count, seed)}
