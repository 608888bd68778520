"""A Flower app that does next to nothing: four numbers go to each node and come back, by Flower's own means alone."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from tessera.benchmarks.pacing.pace import Paced

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the nodes, then send and receive whenever it is this app's turn."""
    paced, wanted = Paced(int(context.run_config["port"])), int(context.run_config["nodes"])
    while len(nodes := list(grid.get_node_ids())) < wanted:
        time.sleep(1)
    while True:
        paced.turn()
        content = RecordDict({"numbers": ArrayRecord([np.arange(4, dtype=np.float32)])})
        replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
        if sum(reply.has_content() for reply in replies) < wanted:
            raise RuntimeError("a node did not answer")
        paced.done()


@client.train()
def echo(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(message.content, reply_to=message)
