"""The program of a process for participants: `python -m flexlora_simulation.engine.process_main FD`.

The pipe FD brings its setting and then jobs, one after the other; what comes back is a result or an exception each time.
"""

import os
import pickle
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch

from flexlora_simulation.engine.jobs import TrainingJob
from flexlora_simulation.engine.participant_process import ParticipantProcess, silence
from flexlora_simulation.engine.worker_pool import Job, Result
from flexlora_simulation.errors import SimulationError


def main(pipe: Connection) -> None:
    """Answer what the pipe brings; the process ends with the pipe."""
    os.dup2(2, 1)  # what libraries print is no output of the simulation
    received = SimpleQueue[Any]()
    threading.Thread(target=_receive, args=(pipe, received), daemon=True).start()
    torch.set_num_threads(1)
    silence()
    process = ParticipantProcess(*received.get())
    pipe.send(None)  # ready
    while True:
        pipe.send(_answer(process, received.get()))


def _receive(pipe: Connection, received: "SimpleQueue[Any]") -> None:
    """In a thread of its own, so that the process ends with the simulation even in the middle of a training."""
    while True:
        try:
            received.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _answer(process: ParticipantProcess, job: Job) -> Result | Exception:
    try:
        return process.train(job) if isinstance(job, TrainingJob) else process.evaluate(job)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return sendable(error)


def sendable(error: Exception) -> Exception:
    """The exception, or one that says the same where it does not survive the way."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # made in this process  # nosec B301
            return error
    except Exception:
        pass
    return SimulationError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
