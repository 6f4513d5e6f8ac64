"""Batches: padded tensors on the device, predictions and losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from flexlora_client.training.encoding.encoder import IGNORE_INDEX, Encoded
from flexlora_client.training.models.load_model import LoadedModel


@dataclass(frozen=True)
class Batch:
    """`input_ids` and `attention_mask` (n, tokens) int64; `targets` (n, tokens), or (n,) of classes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor


def collate(encoded: Sequence[Encoded], loaded: LoadedModel) -> Batch:
    """Examples as one batch, filled up on the right with masked padding."""
    longest = max(len(example.ids) for example in encoded)
    ids = [(*example.ids, *[loaded.pad_id] * (longest - len(example.ids))) for example in encoded]
    mask = [(*[1] * len(example.ids), *[0] * (longest - len(example.ids))) for example in encoded]
    if loaded.classifies:
        targets = torch.tensor([example.targets[0] for example in encoded])
    else:
        targets = torch.tensor(
            [(*example.targets, *[IGNORE_INDEX] * (longest - len(example.targets))) for example in encoded]
        )
    move = loaded.device
    return Batch(torch.tensor(ids).to(move), torch.tensor(mask).to(move), targets.to(move))


def predictions(loaded: LoadedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (m, classes or vocabulary) float32 of the m predictions that count, and their targets (m,)."""
    with loaded.precision():
        logits = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    if loaded.classifies:
        return logits.float(), batch.targets
    following = batch.targets[:, 1:]
    counted = following != IGNORE_INDEX
    return logits[:, :-1][counted].float(), following[counted]  # only these: a vocabulary is large


def summed_loss(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """Cross entropy in nats, summed over the predictions that count; divide by their number (`Encoded.weight`)."""
    return cross_entropy(*predictions(loaded, batch), reduction="sum")
