"""Base models that a workload makes: folders in the user's cache, each made once.

A folder's name holds a digest of everything that it is made of, so that another option makes another folder.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging

from flexlora_simulation.errors import DataError


def made_model(name: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> str:
    """The folder `name` made of these JSON values; `make` writes it where it is not there yet.

    It appears whole or not at all, so that several simulations may make it at the same time.

    Raises:
        DataError: it cannot be written.
    """
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    target = cache_folder() / f"{name}-{digest}"
    if target.is_dir():
        return str(target)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True)
        with _without_notes():
            make(unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    except OSError as error:
        raise DataError(
            f"the base model of {name} cannot be written to {target} ({error}); free space there"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return str(target)


def cache_folder() -> Path:
    """Where made base models lie: `flexlora-sim` in XDG_CACHE_HOME, or in `.cache` of the home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flexlora-sim"


@contextmanager
def _without_notes() -> Iterator[None]:
    """Without transformers' bars, and its notes of a head that is new."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
