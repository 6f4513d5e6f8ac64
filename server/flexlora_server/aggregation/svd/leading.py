"""The result of a route, and the exception after which the next safer route is tried."""

from dataclasses import dataclass

from torch import Tensor

EPS = 2.220446049250313e-16  # float64


class RouteFailed(Exception):
    """This route cannot answer for this stack; the message says why, for the round's metrics."""


@dataclass(frozen=True)
class LeadingTriplets:
    """The leading j singular triplets of W (d, k), all float64, before signs are fixed and rows completed.

    US: (d, j), the left singular vectors times their singular values.
    S: (j,), descending.
    Vt: (j, k), orthonormal rows.
    singular_values: those of W that are known, descending; at least S.
    total_energy: the squared Frobenius norm of W.
    certificate: the truncation's error is at most this many times the smallest possible (and float32 rounding); 1 if exact.
    products: (R, R), <s_p b_p, s_q b_q> <a_p, a_q> of the stack's columns and rows, where the route makes them; their sum is
    the total energy.
    """

    US: Tensor
    S: Tensor
    Vt: Tensor
    singular_values: Tensor
    total_energy: float
    certificate: float = 1.0
    products: Tensor | None = None
