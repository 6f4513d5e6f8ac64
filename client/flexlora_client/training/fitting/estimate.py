"""Memory and times of any rank and micro-batch, from a few probes: linear in the tokens, and between two ranks in their size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexlora_client.training.fitting.probes import Answering, Probe

# Of a rank beside the one that was measured, where only one was: weights, gradients and two moments in float32 and a copy
BYTES_PER_PARAMETER = 20


@dataclass(frozen=True)
class Measured:
    """The probes of one rank, of few and of many tokens or questions; `parameters` is the size of its adapter."""

    parameters: int
    probes: Sequence[Probe]
    answering: Sequence[Answering] = ()  # none where nothing is answered


@dataclass(frozen=True)
class Estimate:
    """What a micro-batch takes, by size of the adapter and padded tokens."""

    measured: Sequence[Measured]  # of one or two ranks

    def peak(self, parameters: int, tokens: float) -> float:
        """Bytes at the most."""
        return self._at(parameters, tokens, lambda probe: probe.peak, BYTES_PER_PARAMETER)

    def backward(self, parameters: int, tokens: float) -> float:
        """Seconds of a forward and a backward pass."""
        return self._at(parameters, tokens, lambda probe: probe.backward)

    def forward(self, parameters: int, tokens: float) -> float:
        """Seconds of a forward pass."""
        return self._at(parameters, tokens, lambda probe: probe.forward)

    def update(self, parameters: int) -> float:
        """Seconds of clipping and of the optimizer."""
        return self._at(parameters, self.measured[0].probes[0].tokens, lambda probe: probe.update)

    def answers(self, parameters: int, questions: int, tokens: int) -> float:
        """Seconds to generate so many tokens of the answers to so many questions at once."""
        first = [line([(a.questions, a.first) for a in rank.answering], questions) for rank in self.measured]
        token = [line([(a.questions, a.token) for a in rank.answering], questions) for rank in self.measured]
        return self._between(parameters, first) + max(0, tokens - 1) * self._between(parameters, token)

    def _at(
        self, parameters: int, tokens: float, quantity: Callable[[Probe], float], slope_alone: float = 0.0
    ) -> float:
        values = [line([(p.tokens, quantity(p)) for p in rank.probes], tokens) for rank in self.measured]
        return self._between(parameters, values, slope_alone)

    def _between(self, parameters: int, values: Sequence[float], slope_alone: float = 0.0) -> float:
        sizes = [rank.parameters for rank in self.measured]
        if len(sizes) == 1:
            return values[0] + slope_alone * (parameters - sizes[0])
        return line(list(zip(sizes, values, strict=True)), parameters)


def line(points: Sequence[tuple[float, float]], x: float) -> float:
    """The line through the first and the last point, at x. It never falls: where it would, noise was larger than the slope."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    if x1 == x0:
        return max(y0, y1)
    return y0 + max(0.0, (y1 - y0) / (x1 - x0)) * (x - x0)
