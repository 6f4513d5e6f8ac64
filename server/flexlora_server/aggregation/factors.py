"""The low-rank factors that are exchanged: a participant's update, the global update, and its slices.

PEFT conventions: `lora_A` is (r, k), `lora_B` is (d, r), the update of the base weight is `scaling * B @ A`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.errors import AggregationError

SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class SliceKind(NamedTuple):
    """The global update (by `id`) and the scaling that a slice was cut with: slices of one kind are prefixes of one another."""

    base: int
    scaling: float


@dataclass(frozen=True)
class Update:
    """One participant's factors for one module.

    A: lora_A (r, k), B: lora_B (d, r), any float dtype.
    scaling: s_i of the upload, so that its product is `scaling * B @ A`.
    weight: p_i, the participant's share; the weights of a round sum to 1.
    served_scaling: the scaling of the slice this participant was served (its rank is r).
    base: the global update which that slice was cut from, where it was not the previous one: an update that comes late.
    length: what filters left of the length of its change; the rest of its participant's share is an update as served.
    """

    A: Tensor
    B: Tensor
    scaling: float
    weight: float
    served_scaling: float
    base: "GlobalFactors | None" = None
    length: float = 1.0

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def kind(self) -> SliceKind:
        """The kind of the slice it was served."""
        return SliceKind(id(self.base), self.served_scaling)

    def base_or(self, previous: "GlobalFactors") -> "GlobalFactors":
        """The global update it was trained from: its base, or else `previous`."""
        return previous if self.base is None else self.base


@dataclass(frozen=True)
class GlobalFactors:
    """The global update of one module, W = B @ A; its first r columns and rows are what rank r is served.

    B: (d, r_max) float32, `U * Sigma` for the strategies that decompose.
    A: (r_max, k) float32 holding values the served dtype can represent.
    """

    B: Tensor
    A: Tensor

    def to(self, device: torch.device) -> "GlobalFactors":
        """The same on another device."""
        return GlobalFactors(self.B.to(device), self.A.to(device))


def slice_factors(global_: GlobalFactors, rank: int, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One rank's slice as served: A (rank, k), B (d, rank) in `dtype`; `scaling * B @ A` is W at that rank.

    Raises AggregationError for a rank outside 1..r_max, or where B / scaling does not fit into `dtype`.
    """
    r_max = global_.A.shape[0]
    if not 1 <= rank <= r_max:
        raise AggregationError(f"rank {rank} cannot be served: the global update holds ranks 1 to {r_max}")
    if not (math.isfinite(scaling) and scaling > 0):
        raise AggregationError(f"scaling {scaling} cannot be served: it must be positive and finite")
    # divide by a tensor: a GPU divides by a number as a product with its inverse, which may round differently
    B = (global_.B[:, :rank].double() / global_.B.new_tensor(scaling, dtype=torch.float64)).to(dtype)
    if not bool(torch.isfinite(B).all()):
        raise AggregationError(f"lora_B at rank {rank} does not fit into {dtype}: serve float32, or a larger alpha")
    return global_.A[:rank].to(dtype), B


def bases(updates: Sequence[Update], previous: GlobalFactors) -> dict[SliceKind, GlobalFactors]:
    """The global update that each kind of slice was cut from, in the order of the updates."""
    return {update.kind: update.base_or(previous) for update in updates}


def initial_factors(d: int, k: int, r_max: int, seed: int, name: str, dtype: torch.dtype) -> GlobalFactors:
    """Round 0: B = 0 and one seeded A of the largest rank, Kaiming-uniform as PEFT initialises lora_A."""
    A = torch.empty(r_max, k)
    torch.nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=named_generator(seed, name))
    return GlobalFactors(B=torch.zeros(d, r_max), A=rounded(A, dtype))


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor, seeded by its name: the order in which tensors are created does not matter."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as float32 holding only values `dtype` can represent; raises AggregationError where it is too large for it."""
    if dtype not in SERVED_DTYPES:
        raise AggregationError(f"{dtype} cannot be served: choose float32, float16 or bfloat16")
    narrow = x.to(dtype)
    if not bool(torch.isfinite(narrow).all()):
        raise AggregationError(f"lora_A does not fit into {dtype}: lower norm_bound, or serve float32")
    return narrow.to(torch.float32)


def kept_trainable(factors: GlobalFactors, previous: GlobalFactors) -> GlobalFactors:
    """The factors, with previous' rows of A where both of a direction's are 0: it has no gradient and would never train again."""
    dead = ~(factors.A.any(dim=1) | factors.B.any(dim=0))
    return GlobalFactors(factors.B, torch.where(dead[:, None], previous.A, factors.A)) if bool(dead.any()) else factors


def weighted_stack(updates: Sequence[Update]) -> Stack:
    """The sum of p_i s_i B_i A_i, one term per update."""
    return Stack([Term(update.B, update.A, update.weight * update.scaling) for update in updates])
