"""Splits examples into training and held-out parts."""

import numpy as np

from flexlora_client.errors import DataError
from flexlora_client.training.data.store import ExampleStore, Selection


def split(store: ExampleStore, fraction: float) -> tuple[Selection, Selection]:
    """The examples to train on, and about `fraction` (0 to below 1) of all held out, the same ones on every call.

    Each example's own content and the store's seed decide on its side: appending rows moves no example from one part to the
    other, and two equal rows never stand on different sides.

    Raises:
        DataError: nothing is left to train on.
    """
    held = store.keys / 2**64 < fraction
    if held.all():
        raise DataError(
            f"holding out {fraction} of {len(store)} examples leaves none to train on; "
            "add examples, hold out less, or give a held-out file."
        )
    return Selection(store, np.flatnonzero(~held)), Selection(store, np.flatnonzero(held))


def check_fraction(fraction: float) -> None:
    """Raises: DataError, where it is not from 0 to below 1."""
    if not 0 <= fraction < 1:
        raise DataError(f"the held-out fraction is {fraction}; give a number from 0 to below 1.")
