"""A server that sends a client arrays of one MiB and gets them back: empty messages first, then full ones."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp


def echo(message: Message, context: Context) -> Message:
    """What came, back again."""
    return Message(content=message.content, reply_to=message)


def main(grid: Grid, context: Context) -> None:
    """Print the seconds of each round trip. Every message has other numbers: equal objects are sent only once."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    random = np.random.default_rng(0)
    for mib in (0, context.run_config["mib"]):
        for _ in range(context.run_config["trips"]):
            arrays = {str(at): Array(random.standard_normal((512, 512), np.float32)) for at in range(mib)}
            content = RecordDict({"arrays": ArrayRecord(arrays)})
            started = time.perf_counter()
            replies = list(grid.send_and_receive([Message(content, nodes[0], "train")]))
            seconds = time.perf_counter() - started
            if len(replies) != 1 or replies[0].has_error() or len(replies[0].content["arrays"]) != mib:
                raise RuntimeError(f"unexpected replies: {replies}")
            print(f"ROUND-TRIP {mib} {seconds}", flush=True)


client = ClientApp()  # flwr looks for these two by reading the file: one plain assignment each
server = ServerApp()
client.train()(echo)
server.main()(main)
