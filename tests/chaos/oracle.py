"""Checks a world's invariants: after every commit, after every step, and at the end."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.agent import Agent
from tests.chaos.machine import Violation
from tests.chaos.moves import ROUND, RUN, UPLOAD
from tests.chaos.onehot import RANKS, SIZE, OneHot, counted, one_hot, product
from tests.chaos.plain import Plain


@dataclass(frozen=True)
class Known:
    """Whose an update is, and for which round it was made."""

    update: OneHot
    client: str
    round: int


@dataclass
class Oracle:
    """What agents were told, what the database said, and whether both hold."""

    plain: Plain
    blob: Callable[[str], Path]
    data: Path
    note: Callable[[str], None]
    holds_more: bool = False
    drafts: dict[str, Known] = field(default_factory=dict)  # by SHA-256
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by upload
    offsets: dict[str, int] = field(default_factory=dict)  # acknowledged, by upload
    spoilt: set[str] = field(default_factory=set)  # uploads that were sent other bytes than announced
    states: dict[tuple[str, Any], str] = field(default_factory=dict)
    frozen: dict[int, tuple[str, ...]] = field(default_factory=dict)  # SHA-256 of a round's inputs when it was frozen
    counted_in: dict[str, int] = field(default_factory=dict)  # the published round that counts an update, by SHA-256
    published: int = -1
    defects: list[str] = field(default_factory=list)  # that the product has logged
    _hashed: dict[tuple[Path, int, int, int], str] = field(default_factory=dict)

    # -- what agents tell (`agent.Ledger`)

    def draft(self, agent: Agent, round_: int, rank: int) -> OneHot:
        """A new update of this agent."""
        update = one_hot(len(self.drafts), rank)
        self.drafts[update.sha256] = Known(update, agent.client_id, round_)
        return update

    def received(self, receipt: dict[str, Any]) -> None:
        """An agent holds this receipt."""
        before = self.receipts.setdefault(receipt["upload_id"], receipt)
        if before != receipt:
            raise Violation(f"two receipts for one upload: {before} and {receipt}")

    def offset(self, upload: str, offset: int) -> None:
        """An agent was told that so many bytes have arrived."""
        before = self.offsets.get(upload, 0)
        if offset < before:
            raise Violation(f"upload {upload} was acknowledged up to {before}, and now only to {offset}")
        self.offsets[upload] = offset

    # -- after every commit

    def committed(self) -> None:
        """States move as they may, and no other way."""
        self._moved("run", RUN, [("run", state) for (state,) in self._ask("SELECT state FROM runs")])
        rounds = self._ask("SELECT id, state FROM rounds ORDER BY id")
        for number, state in rounds:
            if state == "AGGREGATING" and self.states.get(("round", number)) != state:
                self._freeze(number)
        self._moved("round", ROUND, [(row[0], row[1]) for row in rounds])
        self._moved("upload", UPLOAD, [(row[0], row[1]) for row in self._ask("SELECT id, state FROM uploads")])
        going = [number for number, state in rounds if state in {"OPEN", "COLLECTING", "AGGREGATING"}]
        if len(going) > 1:
            raise Violation(f"{len(going)} rounds go on at once")

    def _moved(self, what: str, allowed: frozenset[tuple[str, str]], now: list[tuple[Any, str]]) -> None:
        for key, state in now:
            before = self.states.get((what, key), "DRAFT" if what == "run" else "")
            if before != state and (before, state) not in allowed:
                raise Violation(f"{what} {key} went from {before or 'nothing'} to {state}")
            self.states[what, key] = state

    def _freeze(self, number: int) -> None:
        self.frozen[number] = self._inputs(number)

    def _inputs(self, number: int) -> tuple[str, ...]:
        """SHA-256 of what a round aggregates, in order, but for what the operator excluded."""
        wanted = f"""SELECT u.sha256 FROM round_inputs i JOIN uploads u ON u.id = i.upload_id
                     WHERE i.round_id = {number} AND NOT i.excluded ORDER BY i.position"""
        return tuple(sha256 for (sha256,) in self._ask(wanted))

    # -- after every step

    def check(self) -> None:
        """Everything that must hold while nothing is under way."""
        if self.defects:
            raise Violation(f"the product logged a defect: {self.defects[0]}")
        self.committed()
        accepted = self._uploads()
        for upload, receipt in self.receipts.items():
            if self.states.get(("upload", upload)) != "ACCEPTED":
                raise Violation(f"upload {upload} has a receipt, but is not accepted")
            if receipt["sha256"] not in accepted:
                raise Violation(f"the receipt of upload {upload} names other bytes than its row")
        for table in ("adapters", "slices"):
            for (sha256,) in self._ask(f"SELECT DISTINCT sha256 FROM {table}"):
                self._whole(sha256, table)
        self._publications()

    def _uploads(self) -> set[str]:
        accepted: set[str] = set()
        places: set[tuple[str, int]] = set()
        for id_, client, state, sha256, offset in self._ask(
            'SELECT id, client_id, state, sha256, "offset" FROM uploads'
        ):
            known = self.drafts[sha256]
            if state == "OPEN":
                self._arrived(id_, known.update, offset)
            if state != "ACCEPTED":
                continue
            self._whole(sha256, f"upload {id_}")
            accepted.add(sha256)
            if (client, known.round) in places:
                raise Violation(f"two updates of client {client} were accepted in round {known.round}")
            places.add((client, known.round))
        return accepted

    def _arrived(self, upload: str, update: OneHot, offset: int) -> None:
        """The bytes that the row says have arrived are there; a commit that was cut short may have moved them."""
        if offset < self.offsets.get(upload, 0):
            raise Violation(f"upload {upload} was acknowledged up to {self.offsets[upload]}, its row says {offset}")
        path = self.data / "partial" / upload
        if offset == 0 or upload in self.spoilt:
            return
        if not path.exists():
            path = self.blob(update.sha256)
        found = path.read_bytes() if path.exists() else b""
        if found[:offset] != update.data[:offset]:
            raise Violation(f"{offset} bytes of upload {upload} were acknowledged, of which {len(found)} are there")

    def _whole(self, sha256: str, whose: str) -> None:
        path = self.blob(sha256)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise Violation(f"the blob of {whose} is gone") from None
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._hashed:
            self._hashed[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        if self._hashed[key] != sha256:
            raise Violation(f"the blob of {whose} has other bytes than its row says")

    def _publications(self) -> None:
        wanted = f"""SELECT r.id, r.number, a.sha256 FROM rounds r JOIN adapters a ON a.number = r.number
                    WHERE r.state = 'PUBLISHED' AND r.number > {self.published} ORDER BY r.number"""
        for id_, number, sha256 in self._ask(wanted):
            if number != self.published + 1:
                raise Violation(f"round {number} was published after round {self.published}")
            if number > 0:
                self._published(id_, number, self.blob(sha256))
            self.published = number

    def _published(self, id_: int, number: int, stored: Path) -> None:
        """The result is the function of the inputs that were frozen: each once, at its weight."""
        inputs = [self.drafts[sha256] for sha256 in self._inputs(id_)]
        if not set(self._inputs(id_)) <= set(self.frozen.get(id_, ())):
            raise Violation(f"the inputs of round {number} changed after they were frozen")
        weights = [one.update.examples / math.sqrt(1 + number - one.round) for one in inputs]
        shares = [weight / sum(weights) for weight in weights]
        if self.holds_more:
            self._changed(inputs, shares, number, stored)
        else:
            self._counts(inputs, shares, number, stored)
        for one in inputs:
            twice = self.counted_in.setdefault(one.update.sha256, number)
            if twice != number or inputs.count(one) > 1:
                raise Violation(f"update {one.update.direction} counts in round {twice} and again in round {number}")

    def _counts(self, inputs: list[Known], shares: list[float], number: int, stored: Path) -> None:
        expected = np.zeros(SIZE)
        for one, share in zip(inputs, shares, strict=True):
            expected[one.update.direction % SIZE] += share
        found = counted(stored)
        if np.abs(found - expected).max() > 1e-5:
            raise Violation(f"round {number} counts {_told(found)}, its frozen inputs give {_told(expected)}")

    def _changed(self, inputs: list[Known], shares: list[float], number: int, stored: Path) -> None:
        """What each changed in the directions that it was served to train: the rest that it held stays."""
        expected = product(self._adapter(number - 1))
        for one, share in zip(inputs, shares, strict=True):
            expected[one.update.direction % SIZE, one.update.direction % SIZE] += share
            expected -= share * product(self._adapter(one.round - 1), one.update.rank)
        tail = np.linalg.svd(expected, compute_uv=False)[RANKS[-1] :]
        if np.linalg.norm(product(stored) - expected) > np.linalg.norm(tail) + 1e-5:
            raise Violation(f"round {number} is not what its frozen inputs changed")

    def _adapter(self, number: int) -> Path:
        ((sha256,),) = self._ask(f"SELECT sha256 FROM adapters WHERE number = {number}")
        return self.blob(sha256)

    # -- at the end

    def account(self) -> None:
        """Every acknowledged update was counted, in the round that its receipt names."""
        for receipt in self.receipts.values():
            named = receipt["counts_in"]
            found = self.counted_in.get(receipt["sha256"])
            if found is None and receipt["upload_id"] in self._excluded():
                continue
            if found != named:
                direction = self.drafts[receipt["sha256"]].update.direction
                where = "nowhere" if found is None else f"in round {found}"
                raise Violation(f"the receipt of update {direction} says round {named}; it was counted {where}")

    def _excluded(self) -> set[str]:
        return {row[0] for row in self._ask("SELECT upload_id FROM round_inputs WHERE excluded")}

    def _ask(self, wanted: str) -> list[tuple[Any, ...]]:
        return self.plain.ask(wanted)


def _told(shares: Any) -> str:
    return ", ".join(f"{direction}: {share:.3f}" for direction, share in enumerate(shares) if abs(share) > 1e-6)
