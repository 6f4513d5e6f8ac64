"""Timed steps on the real model: what one micro-batch of one rank takes of memory and time."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flexlora_client.errors import OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.encoding.batches import collate, summed_loss
from flexlora_client.training.encoding.encoder import Encoded, Question
from flexlora_client.training.evaluation.greedy_answers import ask
from flexlora_client.training.fitting.memory import PeakMemory, at_most
from flexlora_client.training.loop.step import Stepper
from flexlora_client.training.models.devices import release_memory
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_client.training.models.replicas import set_mode, zero_grad
from flexlora_shared.messages.runs import TrainingSpec

TIMED_TOKENS = 8  # of an answer, after its first
REPEATS = 3  # timed steps of a probe, after one that is not timed
PATIENCE_S = 6.0  # no further repeat after so long, but for the first: memory is full in the second step


@dataclass(frozen=True)
class Probe:
    """What was measured with one micro-batch."""

    tokens: int  # padded
    backward: float  # seconds of a forward and a backward pass
    forward: float  # seconds of a forward pass without gradients
    update: float  # seconds of clipping and of the optimizer
    peak: int  # bytes


@dataclass(frozen=True)
class Answering:
    """What it took to answer so many questions at once."""

    questions: int
    first: float  # seconds to the first token of each: reading the questions
    token: float  # seconds of each further token of all


def padded_tokens(examples: Sequence[Encoded]) -> int:
    """Tokens of the batch that these make, of images their number."""
    return len(examples) * max(1, *(len(example.ids) for example in examples))


def probe(
    loaded: LoadedModel, examples: Sequence[Encoded], training: TrainingSpec, compute: Compute, growth: float
) -> Probe | None:
    """Steps on the examples as one micro-batch, in `growth` bytes; None: they do not suffice. Changes the trainable tensors.

    Of several replicas each gets such a micro-batch, all at a time: their times are those of a turn of all devices.
    """
    settings = replace(compute, micro_batch=len(examples))
    one_batch = training.model_copy(update={"batch_size": len(examples)})
    release_memory(loaded.device)
    try:
        with PeakMemory(loaded.device) as peak, at_most(growth, loaded.device):
            stepper = Stepper(replace(loaded, compute=settings), one_batch)
            set_mode(loaded, train=True)
            backward, update = _timed_steps(stepper, [*examples] * len(loaded.all_replicas), loaded.device)
            set_mode(loaded, train=False)
            forward = _timed_forward(loaded, examples)
    except OutOfMemory:
        return None
    finally:
        zero_grad(loaded)
        set_mode(loaded, train=False)
    if stepper.compute != settings:  # memory ended, and the stepper went on with less
        return None
    return Probe(padded_tokens(examples), backward, forward, update, peak.bytes)


def _timed_steps(stepper: Stepper, examples: Sequence[Encoded], device: torch.device) -> tuple[float, float]:
    backward: list[float] = []
    update: list[float] = []
    weight, settings = sum(example.weight for example in examples), stepper.compute
    while len(backward) < 2 or (len(backward) <= REPEATS and sum(backward) < PATIENCE_S):
        began = _now(device)
        stepper.accumulate(examples, weight)
        backward.append(_now(device) - began)
        if len(backward) == 2:  # what is largest: optimizer state, gradients of one micro-batch, activations of another
            stepper.accumulate(examples, weight)
        between = _now(device)
        stepper.update()
        update.append(_now(device) - between)
        stepper.optimizer.zero_grad(set_to_none=True)
        if stepper.compute != settings:
            break
    return statistics.median(backward[1:] or backward), statistics.median(update[1:] or update)


def time_answers(loaded: LoadedModel, questions: Sequence[Question]) -> Answering:
    """Generating answers to the questions, as one batch."""
    ask(loaded, questions, 1)
    first, more = _seconds_to_ask(loaded, questions, 1), _seconds_to_ask(loaded, questions, 1 + TIMED_TOKENS)
    return Answering(len(questions), first, max(0.0, more - first) / TIMED_TOKENS)


def _seconds_to_ask(loaded: LoadedModel, questions: Sequence[Question], tokens: int) -> float:
    began = _now(loaded.device)
    ask(loaded, questions, tokens, least=tokens)
    return _now(loaded.device) - began


def _timed_forward(loaded: LoadedModel, examples: Sequence[Encoded]) -> float:
    began = _now(loaded.device)
    with torch.no_grad():
        summed_loss(loaded, collate(examples, loaded)).item()
    return _now(loaded.device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
