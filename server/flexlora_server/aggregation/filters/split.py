"""Turns shares into the weighted updates of one module that a strategy combines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.filters.reweight import Shares


def split(
    updates: Sequence[Update], shares: Shares, previous: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> list[Update]:
    """For each participant in order its upload, if it counts, and its served slice, if that counts in its place.

    fresh: participants train new adapters, and an unchanged one has B = 0. The weights sum to 1.
    Raises AggregationError where a slice cannot be cut.
    """
    weighted = []
    for update, upload, served in zip(updates, shares.upload, shares.served, strict=True):
        weighted += list(_parts(update, upload, served, previous, dtype, fresh))
    return weighted


def _parts(
    update: Update, upload: float, served: float, previous: GlobalFactors, dtype: torch.dtype, fresh: bool
) -> Iterator[Update]:
    s = update.served_scaling
    if upload > 0:
        yield replace(update, weight=upload, length=upload / (upload + served))
    if served > 0:
        A, B = slice_factors(update.base_or(previous), update.rank, s, dtype)
        yield Update(A, torch.zeros_like(B) if fresh else B, s, served, s, update.base)


def rebased(
    uploads: Iterable[Tensor], previous: Tensor, late: Mapping[int, Tensor], dtype: torch.dtype
) -> Iterator[Tensor]:
    """Tensors that are averaged directly; to late ones their change is applied as if it had been made to `previous`."""
    for index, tensor in enumerate(uploads):
        if index not in late:
            yield tensor
        else:
            yield tensor.double() - late[index].to(dtype).double() + previous.to(dtype).double()


def split_tensors(
    uploads: Iterable[Tensor], shares: Shares, previous: Tensor, late: Mapping[int, Tensor], dtype: torch.dtype
) -> Iterator[tuple[Tensor, float]]:
    """As `split`, for a tensor that is averaged directly: pairs of a tensor and its weight.

    Participants were served `previous`, except those whose index is in `late`.
    """
    for tensor, upload in zip(uploads, shares.upload, strict=True):
        if upload > 0:
            yield tensor, upload
    on_time = [share for index, share in enumerate(shares.served) if index not in late]
    if any(on_time):
        yield previous.to(dtype), sum(on_time)
    for index, base in late.items():
        if shares.served[index] > 0:
            yield base.to(dtype), shares.served[index]
