"""Applies the steps of a history to a world."""

from collections.abc import Callable, Sequence

from tests.chaos.agent import Agent, Caller
from tests.chaos.history import AROUND_DEADLINE, JUMPS, STALLS, Interruption, Step
from tests.chaos.loop import Answer, Request
from tests.chaos.machine import Violation
from tests.chaos.world import World


def perform(world: World, step: Step) -> None:
    """Let a step happen."""
    world.note(f"[{step}]")
    around = _AROUND.get(step.kind)
    if around is not None:
        around(world, step)
        return
    agents = [agent for agent in world.agents if not agent.revoked]
    if agents:
        agent = agents[step.who % len(agents)]
        call = _caller(world, step)
        if agent.busy:  # it does one thing at a time, but what it sent before may come again at any moment
            _replay(world, agent, step, call)
            return
        agent.busy = True
        try:
            _AGENT[step.kind](world, agent, step, call)
        finally:
            agent.busy = False


def _caller(world: World, step: Step) -> Caller:
    """Calls with this step's faults, of which the first call alone gets them."""
    faults: list[tuple[str, Sequence[Interruption]]] = [(step.lost, step.during)]

    def call(request: Request) -> Answer | None:
        lost, during = faults.pop() if faults else ("", ())
        return world.call(request, step.who + step.arg, lost, during)

    return call


def _go(world: World, agent: Agent, step: Step, call: Caller) -> None:
    """The last of a few calls has the faults."""
    for _ in range(step.arg):
        agent.go(lambda request: world.call(request, step.who))
        if agent.task is None:  # asking again at once brings nothing new
            break
    agent.go(call)


def _replay(world: World, agent: Agent, step: Step, call: Caller) -> None:
    if not agent.log:
        return
    request = agent.log[-1 - (step.arg + step.who) % len(agent.log)]
    answer = call(request)
    if answer is not None and answer.status == 200 and request.path.endswith("/commit"):
        agent.heard(answer)


def _part(agent: Agent, call: Caller, shift: int = 0, cut: int | None = None, spoilt: str = "") -> Answer | None:
    draft = agent.draft
    if draft is None or draft.upload is None:
        return None
    return agent.part(call, max(0, draft.offset + shift), cut, spoilt)


def _cut(world: World, agent: Agent, step: Step, call: Caller) -> None:
    _part(agent, call, cut=[0, 1, 100, 200][step.arg])


def _wrong_offset(world: World, agent: Agent, step: Step, call: Caller) -> None:
    _part(agent, call, shift=[-300, -1, 1, 64][step.arg])


def _wrong_digest(world: World, agent: Agent, step: Step, call: Caller) -> None:
    draft = agent.draft
    if draft is None or draft.upload is None or draft.offset >= len(draft.update.data):
        return
    answer = _part(agent, call, spoilt="digest")
    if answer is not None and answer.status == 204:
        raise Violation("a part with another digest than its own was taken")


def _corrupt(world: World, agent: Agent, step: Step, call: Caller) -> None:
    if agent.draft is not None and agent.draft.upload is not None:
        world.oracle.spoilt.add(agent.draft.upload)
        _part(agent, call, spoilt="bytes")


def _conflict(world: World, agent: Agent, step: Step, call: Caller) -> None:
    """Announce other bytes for a round in which an update is under way, or was accepted."""
    if agent.task is not None:
        agent.announce(call, other=True)
    elif agent.last is not None:
        last = {"round": agent.last.round, "rank": agent.last.update.rank, "hold_rank": agent.last.hold_rank}
        before, agent.task = agent.task, last
        answer = agent.announce(call, other=True)
        agent.task, agent.draft = before, None
        if answer is not None and answer.status == 201:
            raise Violation(f"{agent.name} has a receipt for round {agent.last.round}, and may upload other bytes")


def _repeat(world: World, agent: Agent, step: Step, call: Caller) -> None:
    """A commit once more; it must find the same receipt as long as there is one."""
    if agent.last is None:
        return
    answer = agent.commit(call, agent.last)
    if (
        answer is not None
        and answer.status >= 400
        and answer.code not in {"unavailable", "storage-full", "upload-busy"}
    ):
        raise Violation(f"the commit of an accepted update was refused: {answer.body.decode()}")


def _delete(world: World, agent: Agent, step: Step, call: Caller) -> None:
    if agent.draft is not None and agent.draft.upload is not None:
        agent.ask(call, "DELETE", f"/v1/uploads/{agent.draft.upload}")
        agent.draft.unsure = True


def _change_rank(world: World, agent: Agent, step: Step, call: Caller) -> None:
    agent.change_rank(call, step.arg)


def _fail(world: World, agent: Agent, step: Step, call: Caller) -> None:
    if agent.task is not None and "attempt" in agent.task:
        agent.fail(call, gives_up=step.arg % 2 == 0)


def _clock(world: World, step: Step) -> None:
    _pass(world, JUMPS[step.who + step.arg])


def _deadline(world: World, step: Step) -> None:
    """Time passes until a round's deadline is near, or has just passed: what comes then decides what becomes of it."""
    left = world.until_deadline()
    if left is not None:
        _pass(world, max(0.0, left + AROUND_DEADLINE[step.who + step.arg]))


def _pass(world: World, seconds: float) -> None:
    world.here.disk.observe(world.clock())
    world.clock.advance(seconds)
    world.note(f"{seconds:g} s pass")


def _stall(world: World, step: Step) -> None:
    """Whatever runs stands still for a while, and everybody else goes on."""
    _pass(world, STALLS[step.arg])
    for number in range(len(world.processes)):
        world.tick(number)
    for agent in [agent for agent in world.agents if not (agent.revoked or agent.busy)][: step.who]:
        agent.go(world.call)
    world.work(step.who)


def _kill(world: World, step: Step) -> None:
    everyone = [*world.processes, *world.workers]
    process = everyone[(step.who + step.arg) % len(everyone)]
    world.note(f"{process.name} is killed")
    process.kill()


def _revoke(world: World, step: Step) -> None:
    """One in four: there must be somebody left to do the work."""
    agents = [agent for agent in world.agents if not agent.revoked]
    if len(agents) > 1 and step.arg == 0:
        agent = agents[step.who % len(agents)]
        agent.revoked = True  # it may have been, whatever the answer
        world.command("DELETE", f"/v1/clients/{agent.client_id}", number=step.who, lost=step.lost, during=step.during)


def _enroll(world: World, step: Step) -> None:
    if len(world.agents) < 5 and not world.machine.frames:
        world.enroll()


def _pause(world: World, step: Step) -> None:
    action = ("pause", "resume")[step.arg % 2]
    world.command("POST", f"/v1/runs/run/{action}", number=step.who, lost=step.lost, during=step.during)


def _cancel(world: World, step: Step) -> None:
    """Rarely: little happens afterwards."""
    if (step.who, step.arg) == (3, 3):
        world.cancelled = True
        world.command("POST", "/v1/runs/run/cancel", number=step.who, lost=step.lost, during=step.during)


def _retry(world: World, step: Step) -> None:
    world.retry(step.who, step.lost, step.during)


_AGENT: dict[str, Callable[[World, Agent, Step, Caller], None]] = {
    "go": _go,
    "replay": _replay,
    "cut-part": _cut,
    "wrong-offset": _wrong_offset,
    "wrong-digest": _wrong_digest,
    "conflict": _conflict,
    "corrupt": _corrupt,
    "repeat-commit": _repeat,
    "delete": _delete,
    "change-rank": _change_rank,
    "fail": _fail,
}
_AROUND: dict[str, Callable[[World, Step], None]] = {
    "tick": lambda world, step: world.tick(step.who, step.during),
    "work": lambda world, step: world.work(step.who, step.during),
    "garbage": lambda world, step: world.collect_garbage(step.who, step.during),
    "clock": _clock,
    "deadline": _deadline,
    "stall": _stall,
    "kill": _kill,
    "cut-power": lambda world, step: world.cut_power(),
    "revoke": _revoke,
    "enroll": _enroll,
    "pause-resume": _pause,
    "cancel": _cancel,
    "retry": _retry,
    "break": lambda world, step: None,  # outside of anything there is nothing to break
    "beat": lambda world, step: None,
    "kill-me": _kill,
}
