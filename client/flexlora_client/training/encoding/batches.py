"""Batches: padded tensors on the device, predictions and losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from flexlora_client.training.encoding.encoded import IGNORE_INDEX, Encoded
from flexlora_client.training.encoding.images import pixels
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_shared.messages.runs import ProblemType


@dataclass(frozen=True)
class Batch:
    """`input_ids` and `attention_mask` (n, tokens) int64, of images (n, 0).

    `targets` (n, tokens) int64, of encoder-decoders as long as their answers; (n,) of one class each; (n, labels) float32
    of multi-label classification and regression.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    type_ids: torch.Tensor | None = None  # as input_ids
    pixels: torch.Tensor | None = None  # (n, channels, height, width) float32


def collate(encoded: Sequence[Encoded], loaded: LoadedModel) -> Batch:
    """Examples as one batch, filled up on the right with masked padding; an example of several sequences as so many rows."""
    rows = [sequence for example in encoded for sequence in example.sequences]
    move = loaded.device
    mask = _filled([(1,) * len(row.ids) for row in rows], 0)
    types = _filled([row.type_ids for row in rows], 0).to(move) if rows[0].type_ids else None
    images = pixels([row.image for row in rows], loaded.processor).to(move) if rows[0].image else None
    pad = 0 if images is not None else loaded.pad_id
    ids = _filled([row.ids for row in rows], pad)
    return Batch(ids.to(move), mask.to(move), _targets(rows, loaded).to(move), types, images)


def predictions(loaded: LoadedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (m, classes or vocabulary) float32 of the m predictions that count, and their targets.

    The targets are (m,) classes or tokens, or (m, labels) float32; see `loss_of`.
    """
    task = loaded.task_type
    with loaded.precision():
        logits = loaded.model(**_inputs(batch, task == "SEQ_2_SEQ_LM")).logits
    if task in ("SEQ_CLS", "IMAGE_CLASSIFICATION"):
        return logits.float(), batch.targets
    following = batch.targets
    if task == "CAUSAL_LM":  # each token is predicted by the one before
        following, logits = following[:, 1:], logits[:, :-1]
    counted = following != IGNORE_INDEX
    return logits[counted].float(), following[counted]  # only these: a vocabulary is large


def summed_loss(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """The loss summed over the predictions that count; divide by their number (`Encoded.weight`)."""
    return loss_of(*predictions(loaded, batch), loaded.problem_type)


def loss_of(logits: torch.Tensor, targets: torch.Tensor, problem: ProblemType) -> torch.Tensor:
    """The summed loss of predictions: cross entropy in nats; of several numbers an example, the mean over them.

    multi-label: binary cross entropy in nats; regression: squared error. Both as transformers computes them.
    """
    if not targets.is_floating_point():
        return cross_entropy(logits, targets, reduction="sum")
    each = binary_cross_entropy_with_logits if problem == "multi-label" else mse_loss
    return each(logits, targets, reduction="none").mean(dim=1).sum()


def _inputs(batch: Batch, seq2seq: bool) -> dict[str, torch.Tensor]:
    if batch.pixels is not None:
        return {"pixel_values": batch.pixels}
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.type_ids is not None:
        inputs["token_type_ids"] = batch.type_ids
    if seq2seq:
        inputs["labels"] = batch.targets  # the model makes its decoder's input of them
    return inputs


def _targets(rows: Sequence[Encoded], loaded: LoadedModel) -> torch.Tensor:
    if loaded.problem_type != "single-label":
        return torch.tensor([row.values for row in rows], dtype=torch.float32)
    if loaded.task_type in ("SEQ_CLS", "IMAGE_CLASSIFICATION"):
        return torch.tensor([row.targets[0] for row in rows])
    return _filled([row.targets for row in rows], IGNORE_INDEX)


def _filled(rows: Sequence[tuple[int, ...]], filling: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([(*row, *[filling] * (longest - len(row))) for row in rows], dtype=torch.int64)
