"""Stacks to decompose: any shapes, ranks, scalings and weights, and spectra that make iterations and certificates fail."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from flexlora_server.aggregation.svd.stack import Stack, Term
from tests.server.aggregation.oracle import Matrix, to_numpy

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dense(stack: Stack) -> Matrix:
    """W in float64, the plain way."""
    terms = [term.scale * (to_numpy(term.B) @ to_numpy(term.A)) for term in stack.terms]
    return np.asarray(np.sum(terms, axis=0), dtype=np.float64)


def gaussian(d: int, k: int, ranks: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Stack:
    """Independent factors: a flat spectrum, hard for any iteration."""
    generator = torch.Generator().manual_seed(seed)
    return Stack([_term(d, k, rank, 1 / len(ranks), generator, dtype) for rank in ranks])


def with_spectrum(sigma: Sequence[float], d: int, k: int, seed: int = 0) -> tuple[Stack, Tensor]:
    """One term of exactly these singular values, and its right singular vectors (n, k)."""
    generator = torch.Generator().manual_seed(seed)
    n = len(sigma)
    U = torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(k, n, generator=generator, dtype=torch.float64)).Q
    return Stack([Term(U * torch.tensor(sigma, dtype=torch.float64), V.mT.contiguous(), 1.0)]), V.mT


def _term(d: int, k: int, rank: int, scale: float, generator: torch.Generator, dtype: torch.dtype) -> Term:
    B = torch.randn(d, rank, generator=generator) / math.sqrt(d)
    return Term(B.to(dtype), (torch.randn(rank, k, generator=generator) / math.sqrt(k)).to(dtype), scale)


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """Rank-deficient, zero, cancelling, badly scaled and extremely weighted ones among them."""
    d, k = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    terms = []
    for rank in draw(st.lists(st.integers(1, 12), min_size=1, max_size=8)):
        term = _term(d, k, rank, draw(st.sampled_from([1.0, 0.5, 1e-9, 1e6])), generator, draw(st.sampled_from(DTYPES)))
        kind = draw(st.sampled_from(["plain", "plain", "plain", "zero", "repeated", "graded"]))
        if kind == "zero":
            term = Term(torch.zeros_like(term.B), term.A, term.scale)
        if kind == "repeated":
            term = Term(term.B, term.A[:1].expand_as(term.A), term.scale)
        if kind == "graded":
            grades = 10.0 ** -torch.arange(rank)
            term = Term(term.B.float() * grades, term.A, term.scale)
        terms.append(term)
    if draw(st.booleans()):
        first = terms[0]
        terms.append(Term(first.B, first.A, -draw(st.sampled_from([1.0, 0.5])) * first.scale))  # cancels
    return Stack(terms)
