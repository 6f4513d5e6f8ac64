"""Ctrl-C and SIGTERM while a round is trained: the first asks training to stop after its step, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(on_first: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """For the block, the first signal is only noted: the function yielded says so, and `on_first` is called, once.

    A further one raises KeyboardInterrupt. Signals that were ignored stay ignored, and outside the main thread, where none
    arrive, nothing changes.
    """
    tellers: list[threading.Thread] = []

    def note(number: int, frame: FrameType | None) -> None:
        if tellers:
            raise KeyboardInterrupt
        # what was interrupted may be in the middle of writing to the streams that on_first writes to
        tellers.append(threading.Thread(target=on_first))
        tellers[0].start()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in taken}
    try:
        yield lambda: bool(tellers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for teller in tellers:
            teller.join()
