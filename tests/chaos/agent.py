"""A simulated participant: one call at a time; it remembers the answers and goes on after every failure."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from flexlora_shared.messages.uploads import PART_MEDIA_TYPE
from tests.chaos.loop import Answer, Request
from tests.chaos.machine import Violation
from tests.chaos.onehot import RANKS, SCALING, OneHot

GONE = frozenset({"round-closed", "not-assigned", "rank-mismatch", "round-not-collecting", "run-over"})
AGAIN = frozenset({"upload-busy", "unavailable", "storage-full", "offset-mismatch", "upload-incomplete", "round-state"})
REMEMBERED = 12  # requests, for replay


Caller = Callable[[Request], Answer | None]  # how an agent reaches the coordinator: None is an answer that never came


class Ledger(Protocol):
    """Who keeps what agents were told."""

    def draft(self, agent: "Agent", round_: int, rank: int) -> OneHot: ...
    def received(self, receipt: dict[str, Any]) -> None: ...
    def offset(self, upload: str, offset: int) -> None: ...


@dataclass
class Draft:
    """An update on its way."""

    update: OneHot
    round: int
    hold_rank: int | None = None
    upload: str | None = None
    offset: int = 0
    unsure: bool = False  # about the offset
    spoilt: bool = False  # other bytes than announced were sent


@dataclass
class Agent:
    """One participant."""

    name: str
    client_id: str
    key: str
    ledger: Ledger
    rank: int = 1
    hold_rank: int | None = None
    revoked: bool = False
    busy: bool = False  # in a call
    declared: bool = False
    over: bool = False
    task: dict[str, Any] | None = None
    draft: Draft | None = None
    last: Draft | None = None  # the last one that was accepted
    log: list[Request] = field(default_factory=list)

    def ask(
        self, call: Caller, method: str, path: str, body: bytes = b"", cut: int | None = None, **headers: str
    ) -> Answer | None:
        """Make a call with the agent's key, and remember it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(method, path, self.key, body, named, cut)
        self.log = [*self.log[-REMEMBERED:], request]
        answer = call(request)
        if answer is not None and answer.code == "unauthenticated" and not self.revoked:
            raise Violation(f"{self.name} is enrolled, but was refused: {answer.body.decode()}")
        return answer

    def go(self, call: Caller) -> None:
        """Make the next call that an agent makes."""
        if not self.declared:
            answer = self._json(call, "PUT", "/v1/runs/run/declaration", self._declaration())
            self.declared = answer is not None and answer.status == 200
        elif self.task is None:
            self._poll(call)
        elif self.draft is None or self.draft.upload is None:
            self.announce(call)
        elif self.draft.unsure:
            self._look(call, self.draft)
        elif self.draft.offset < len(self.draft.update.data):
            self.part(call, self.draft.offset)
        else:
            self.commit(call)

    def _json(self, call: Caller, method: str, path: str, told: dict[str, Any]) -> Answer | None:
        return self.ask(call, method, path, json.dumps(told).encode(), content_type="application/json")

    def _poll(self, call: Caller) -> None:
        answer = self.ask(call, "GET", "/v1/runs/run/task?wait=0")
        if answer is None:
            return
        self.over = answer.code == "run-over"
        if answer.status == 200:
            self.task = answer.json
            self._download(call)

    def _download(self, call: Caller) -> None:
        assert self.task is not None
        answer = self.ask(call, "GET", self.task["adapter"]["href"])
        if answer is not None and answer.status == 200:
            found = hashlib.sha256(answer.body).hexdigest()
            if found != self.task["adapter"]["sha256"]:
                raise Violation(f"the slice served has SHA-256 {found}, not the task's")

    def announce(self, call: Caller, other: bool = False) -> Answer | None:
        """Announce an update for the task: the one begun, or (`other`) one of other bytes."""
        assert self.task is not None
        draft = self.draft
        round_, rank, hold_rank = self.task["round"], self.task["rank"], self.task.get("hold_rank")
        if draft is None or other or (draft.round, draft.update.rank, draft.hold_rank) != (round_, rank, hold_rank):
            draft = Draft(self.ledger.draft(self, round_, rank), round_, hold_rank)
        answer = self._json(call, "POST", f"/v1/runs/run/rounds/{draft.round}/uploads", _announcement(draft))
        if answer is None or answer.status != 201:
            if draft is self.draft or self.draft is None:
                self.draft = draft  # the coordinator may have heard of it
                self._refused(answer)
            elif answer is None:
                self.draft.upload = None  # the other one may have replaced it
            return answer
        told = answer.json
        self.draft, draft.upload = draft, told["id"]
        self._at(draft, told["offset"])
        return answer

    def fail(self, call: Caller, *, gives_up: bool) -> None:
        """Report that the task cannot be finished; who gives up declares anew, the others go on as if nothing were."""
        assert self.task is not None
        told = {"attempt": self.task["attempt"], "kind": "memory", "reason": "it does not fit"}
        answer = self._json(call, "PUT", f"/v1/runs/run/rounds/{self.task['round']}/failure", told)
        if answer is not None and answer.status != 204 and answer.code not in AGAIN and not self.revoked:
            raise Violation(f"a failure was refused: {answer.body.decode()}")
        if gives_up:
            self.task, self.draft, self.declared = None, None, False

    def part(self, call: Caller, offset: int, cut: int | None = None, spoilt: str = "") -> Answer | None:
        """Send a part from `offset`; `spoilt`: with the wrong "digest", or wrong "bytes"."""
        draft = self.draft
        assert draft is not None
        assert draft.upload is not None
        half = len(draft.update.data) // 2 + 1
        data = draft.update.data[offset : offset + half]
        if spoilt == "bytes" and data:
            data, draft.spoilt = data[:-1] + bytes([data[-1] ^ 1]), True
        digest = base64.b64encode(hashlib.sha256(data + spoilt.encode() * (spoilt == "digest")).digest()).decode()
        complete = "?1" if offset + len(data) == len(draft.update.data) else "?0"
        answer = self.ask(
            call, "PATCH", f"/v1/uploads/{draft.upload}", data, cut, content_type=PART_MEDIA_TYPE,
            upload_offset=str(offset), upload_complete=complete, content_digest=f"sha-256=:{digest}:",
        )  # fmt: skip
        if answer is not None and answer.status == 204:
            self._at(draft, int(answer.headers["upload-offset"]))
        else:
            self._refused(answer)
        return answer

    def _look(self, call: Caller, draft: Draft) -> None:
        answer = self.ask(call, "HEAD", f"/v1/uploads/{draft.upload}")
        if answer is not None and answer.status == 204:
            self._at(draft, int(answer.headers["upload-offset"]))
        elif answer is not None and answer.status == 404:
            draft.upload = None

    def _at(self, draft: Draft, offset: int) -> None:
        assert draft.upload is not None
        draft.offset, draft.unsure = offset, False
        self.ledger.offset(draft.upload, offset)

    def commit(self, call: Caller, draft: Draft | None = None) -> Answer | None:
        """Commit the update, or one that was committed before once more."""
        wanted = draft or self.draft
        assert wanted is not None
        answer = self.ask(call, "PUT", f"/v1/uploads/{wanted.upload}/commit")
        if answer is not None and answer.status == 200:
            self.heard(answer)
            if wanted is self.draft:
                self.last, self.draft, self.task = wanted, None, None
        elif draft is None:
            self._refused(answer)
        return answer

    def heard(self, answer: Answer) -> None:
        """A receipt came."""
        self.ledger.received(answer.json)

    def _refused(self, answer: Answer | None) -> None:
        """Go on as the refusal says."""
        draft, code = self.draft, "" if answer is None else answer.code
        assert draft is not None
        draft.unsure = draft.upload is not None
        if code in GONE:
            self.task = self.draft = None
        elif code == "already-accepted":
            self._counts_already(draft)
        elif code == "upload-not-found" or (code == "digest-mismatch" and draft.spoilt):
            draft.upload, draft.spoilt = None, False
        elif code and code not in AGAIN and code != "part-digest-mismatch" and not self.revoked:
            assert answer is not None
            raise Violation(f"an update that is right was refused: {answer.body.decode()}")

    def _counts_already(self, draft: Draft) -> None:
        """The upload itself was accepted (commit for its receipt), or another one was."""
        draft.unsure = False
        if draft.upload is None or draft.offset == len(draft.update.data):
            self.task = self.draft = None
        else:
            draft.offset = len(draft.update.data)

    def change_rank(self, call: Caller, rank: int) -> None:
        """Declare another rank, and hold another where more than that is held."""
        self.rank = RANKS[rank % 3]
        if self.hold_rank is not None:
            self.hold_rank = RANKS[min(3, rank % 3 + rank // 2)]
        self._json(call, "PUT", "/v1/runs/run/declaration", self._declaration())

    def _declaration(self) -> dict[str, Any]:
        return {"rank": self.rank, "hold_rank": self.hold_rank, "examples": 10**6}


def _announcement(draft: Draft) -> dict[str, Any]:
    update = draft.update
    more = draft.hold_rank is not None and draft.hold_rank > update.rank
    return {
        "rank": update.rank,
        "hold_rank": draft.hold_rank,
        "trainable": "prefix" if more else "slice",
        "alpha": SCALING * update.rank,
        "examples": update.examples,
        "size": len(update.data),
        "sha256": update.sha256,
    }
