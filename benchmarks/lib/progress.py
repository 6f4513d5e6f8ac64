"""Progress on the standard error, where figures go to the standard output."""

import sys
import time
from collections.abc import Callable

Tell = Callable[[str], None]


def clock() -> Tell:
    """Tells progress on the standard error, with the minutes and seconds since now."""
    started = time.perf_counter()

    def tell(what: str) -> None:
        minutes, seconds = divmod(int(time.perf_counter() - started), 60)
        print(f"[{minutes:02}:{seconds:02}] {what}", file=sys.stderr, flush=True)

    return tell
