"""Measures the real model on the participant's own examples, and chooses a rank by it: what `--rank auto` and `doctor` call."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from flexlora_client.errors import DataError, DeviceError, OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.store import by_key, lengths_of
from flexlora_client.training.encoding.encoder import Encoded, Encoder, Question
from flexlora_client.training.encoding.packing import learnable
from flexlora_client.training.evaluation.evaluate import asked_of, questions_of
from flexlora_client.training.evaluation.greedy_answers import most_tokens
from flexlora_client.training.fitting.choice import Bounds, Choice, Costs, choose
from flexlora_client.training.fitting.estimate import BYTES_PER_PARAMETER, Estimate, Measured
from flexlora_client.training.fitting.memory import free_memory, used_memory
from flexlora_client.training.fitting.probes import Answering, Probe, padded_tokens, probe, time_answers
from flexlora_client.training.fitting.workload import Workload, plan_workload
from flexlora_client.training.loop.sparing import can_checkpoint
from flexlora_client.training.models.devices import release_memory, resolve_devices
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.models.trial_slice import adapter_parameters, trial_slice, write_trial_slice
from flexlora_shared.messages.runs import RunSpec

MEMORY_SHARE = 0.9  # of the free memory that a round may be predicted to take
GIB = 2**30
TIME_SHARE = 0.8  # of the round's time
LARGEST_PROBE = 4  # examples in the larger micro-batch that is measured


@dataclass(frozen=True)
class Participant:
    """What decides on memory and time beside the run: data, model and machine."""

    train: Sequence[Example]
    heldout: Sequence[Example]
    answers: int  # held-out questions answered by generating text
    device: str
    model_path: str | None
    compute: Compute  # a micro-batch and checkpointing that it asks for are kept


def choose_rank(
    spec: RunSpec,
    participant: Participant,
    models: Models,
    below: tuple[int, int] | None = None,
    *,
    holds_more: bool = False,
) -> Choice:
    """The largest rank of the run whose round fits free memory and the round's time; with `holds_more` one to hold, too.

    `below`: the ranks trained and held for which memory was too small: less is held, or where no more than the trained rank
    was held, less is trained and no more is held.

    Loads the base model into `models`, where the first round finds it, and trains a trial adapter for some seconds.

    Raises:
        OutOfMemory: not even the model, or one example of the lowest rank, fits.
        DeviceError: the deadline leaves no rank, or none is below `below`.
    """
    ranks, held = sorted(set(spec.ranks)), sorted(set(spec.ranks)) if holds_more else []
    if below is not None and below[1] > below[0]:
        ranks, held = [r for r in ranks if r <= below[0]], [r for r in held if r < below[1]]
    elif below is not None:
        ranks, held = [r for r in ranks if r < below[0]], [r for r in held if r <= below[1]]
    if not ranks:
        assert below is not None, "a run has ranks"
        raise OutOfMemory(f"the run has no rank below {below[0]}; {REMEDY}.")
    return _Measurement(spec, participant, models, ranks, held).choice()


REMEDY = "load the base model smaller with --quantization nf4 or --dtype bfloat16, or take part on a larger machine"


def refused(choice: Choice) -> DeviceError:
    """Why a choice in which no rank fits is none."""
    least = choice.options[-1]
    memory, minutes = choice.bounds.memory / GIB, choice.bounds.seconds / 60
    if least.verdict == "too large":
        return OutOfMemory(
            f"the lowest rank, {least.rank}, would take {least.peak_bytes / GIB:.2f} GiB of {memory:.2f}; {REMEDY}."
        )
    return DeviceError(
        f"a round of the lowest rank, {least.rank}, would take {least.seconds / 60:.1f} minutes of {minutes:.1f}; give fewer "
        "examples or --answers, take part on a faster machine, or ask the operator for a longer round_timeout."
    )


class _Measurement:
    """The probes of one choice."""

    def __init__(
        self, spec: RunSpec, participant: Participant, models: Models, ranks: Sequence[int], held: Sequence[int]
    ) -> None:
        self._spec, self._participant, self._models = spec, participant, models
        self._devices = resolve_devices(participant.device)
        self._device = self._devices[0]  # which has the optimizer's state beside what all have
        self._sizes = {rank: adapter_parameters(spec, rank) for rank in ranks}
        self._held = {rank: adapter_parameters(spec, rank) for rank in held}
        self._placing: dict[int, float] = {}  # seconds by numbers of the adapter
        self._questions: list[Question] = []
        models.clear()
        release_memory(self._device)
        memory = min(used_memory(device) + MEMORY_SHARE * free_memory(device) for device in self._devices)
        self._bounds = Bounds(memory, TIME_SHARE * spec.round_timeout)

    def choice(self) -> Choice:
        self._check_weights()
        before = used_memory(self._device)
        loaded = self._place(min(self._sizes))
        self._reserve_mapped_weights(loaded, used_memory(self._device) - before)
        encoder = Encoder.of(self._spec, loaded.preprocessor, loaded.max_length)
        self._questions = self._asked(encoder)
        work = self._workload(encoder, [most_tokens(loaded, question) for question in self._questions])
        few, many = self._examples(encoder)
        own = self._participant.compute
        micro_batches = [min(own.micro_batch, work.batch_size)] if own.micro_batch else work.micro_batches
        estimates = {own.gradient_checkpointing: self._estimate(loaded, few, many, own)}
        costs = Costs(estimates, list(self._placing.items()))
        choice = choose(self._sizes, micro_batches, costs, work, self._bounds, self._held)
        too_large = any(option.verdict == "too large" for option in choice.options)
        if too_large and not own.gradient_checkpointing and can_checkpoint(loaded):
            sparing = replace(own, gradient_checkpointing=True)
            loaded = self._place(min(self._sizes))
            costs = replace(costs, estimates=estimates | {True: self._estimate(loaded, few, many, sparing)})
            choice = choose(self._sizes, micro_batches, costs, work, self._bounds, self._held)
        return choice

    def _check_weights(self) -> None:
        """Refuse a model whose adapted layers alone do not fit, before it is loaded."""
        compute = self._participant.compute
        size = {"int8": 1.0, "nf4": 0.5}.get(compute.quantization, 4.0 if compute.dtype in ("auto", "float32") else 2.0)
        weights = size * sum(module.in_features * module.out_features for module in self._spec.modules)
        memory = self._bounds.memory - used_memory(self._device)
        if self._device.type == "cpu" and weights > memory:
            raise OutOfMemory(
                f"the base model takes at least {weights / GIB:.2f} GiB, of {memory / GIB:.2f} free; {REMEDY}."
            )

    def _reserve_mapped_weights(self, loaded: LoadedModel, taken: int) -> None:
        """Leave room for weights that are pages of their file: those can be dropped, but then every step reads them anew."""
        weights = sum(parameter.nbytes for parameter in loaded.model.get_base_model().parameters())
        if self._device.type == "cpu":
            self._bounds = replace(self._bounds, memory=self._bounds.memory - max(0, weights - taken))

    def _place(self, rank: int) -> LoadedModel:
        with tempfile.TemporaryDirectory() as name:
            folder = write_trial_slice(trial_slice(self._spec, rank), self._spec, Path(name) / "trial")
            self._placed(folder)
            began = time.perf_counter()  # the model is loaded by now
            loaded = self._placed(folder)
            self._placing[self._sizes[rank]] = time.perf_counter() - began
        return loaded

    def _placed(self, folder: Path) -> LoadedModel:
        own, served = self._participant, read_slice(folder, self._spec)
        return self._models.with_slice(served, self._spec, own.device, own.model_path, compute=own.compute)

    def _asked(self, encoder: Encoder) -> list[Question]:
        own = self._participant
        return list(questions_of(encoder, asked_of(by_key(own.heldout), own.answers)))

    def _workload(self, encoder: Encoder, answers: Sequence[int]) -> Workload:
        own = self._participant
        return plan_workload(encoder, own.train, own.heldout, answers, self._spec, len(self._devices))

    def _examples(self, encoder: Encoder) -> tuple[Encoded, list[Encoded]]:
        """A sequence of middle length, and the longest."""
        train = self._participant.train
        lengths = lengths_of(train)
        ordered = sorted(range(len(train)), key=lengths.__getitem__)
        size = min(LARGEST_PROBE, self._participant.compute.micro_batch or self._spec.training.batch_size)
        half = len(ordered) // 2
        few = next(self._sequences(encoder, ordered[half:] + ordered[:half]), None)
        if few is None:
            raise DataError("no example has a token to learn; give them more text.")
        return few, [*islice(self._sequences(encoder, ordered[::-1]), size)][::-1]

    def _sequences(self, encoder: Encoder, order: Sequence[int]) -> Iterator[Encoded]:
        train = self._participant.train
        for encoded in learnable(encoder, (train[index] for index in order)):
            yield max(encoded.sequences, key=lambda row: len(row.ids))

    def _estimate(self, loaded: LoadedModel, few: Encoded, many: Sequence[Encoded], compute: Compute) -> Estimate:
        lowest = min(self._sizes)
        measured = [
            Measured(self._sizes[lowest], self._probes(loaded, few, many, compute), self._answering(loaded, compute))
        ]
        peak = Estimate(measured).peak(self._sizes[lowest], padded_tokens([few]))
        spare = (self._bounds.memory - peak) / BYTES_PER_PARAMETER
        further = [r for r, size in self._sizes.items() if lowest < r and size - self._sizes[lowest] <= spare]
        if further:
            highest = max(further)
            loaded = self._place(highest)
            probes = self._probes(loaded, few, many, compute)
            if len(probes) > 1:  # else memory did not suffice for what it was expected to
                measured.append(Measured(self._sizes[highest], probes, self._answering(loaded, compute)))
        return Estimate(measured)

    def _probes(self, loaded: LoadedModel, few: Encoded, many: Sequence[Encoded], compute: Compute) -> list[Probe]:
        release_memory(self._device)
        before = used_memory(self._device)
        spare = max(0.0, self._bounds.memory - before) / MEMORY_SHARE
        small = probe(loaded, [few], self._spec.training, compute, spare)
        if small is None:
            return [Probe(padded_tokens([few]), 0.0, 0.0, 0.0, 2 * round(self._bounds.memory))]
        growth = max(1, small.peak - before) / small.tokens
        affordable = (self._bounds.memory - before) / growth
        while len(many) > 1 and padded_tokens(many) > affordable:
            many = many[len(many) // 2 :]
        fits = padded_tokens(many) <= affordable
        large = probe(loaded, many, self._spec.training, compute, spare) if fits else None
        return [small, large or _in_proportion(small, padded_tokens(many), before)]

    def _answering(self, loaded: LoadedModel, compute: Compute) -> list[Answering]:
        """Answers to one held-out question, and to a batch of them."""
        most = compute.micro_batch or self._spec.training.batch_size
        sizes = sorted({1, min(most, len(self._questions))}) if self._questions else []
        return [time_answers(loaded, self._questions[:size]) for size in sizes]


def _in_proportion(small: Probe, tokens: int, before: int) -> Probe:
    """A larger micro-batch that was not measured, because memory would not hold it."""
    times = tokens / small.tokens
    peak = before + round(times * (small.peak - before))
    return Probe(tokens, times * small.backward, times * small.forward, small.update, peak)
