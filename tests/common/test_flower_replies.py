"""How replies are fetched from a server: all that are there in one look, none lost by another's fault."""

from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from tessera.common.flower_internals.grid import replies


class Announced:
    """A server's Runtime API that announces replies once, as Flower's does, and then hands out their objects."""

    def __init__(self, found: list[Message], damaged: int) -> None:
        self.looks, self.fetched = list[list[str]](), list[int]()
        self.messages = {message.object_id: message for message in found}
        self.objects = {
            name: (number, b"no object of Flower's" if number == damaged else one.deflate())
            for number, message in enumerate(found)
            for name, one in get_all_nested_objects(message).items()
        }

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        self.looks.append(list(request.message_ids))
        there = [
            message for message in self.messages.values() if message.metadata.reply_to_message_id in self.looks[-1]
        ]
        for message in there:
            message.metadata.__dict__["_message_id"] = message.object_id
            del self.messages[message.object_id]
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(message)) for message in there],
            message_object_trees=[get_object_tree(message) for message in there],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        number, content = self.objects[request.object_id]
        self.fetched.append(number)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        pass

    def GetNodes(self, request: Any) -> Any:
        class Nodes:
            nodes = ()

        return Nodes


def test_replies_come_in_one_look_and_one_that_cannot_be_read_costs_no_other() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    found = []
    for node in range(3):
        question = Message(RecordDict(), node + 7, "train")
        question.metadata.__dict__["_message_id"] = f"asked-{node}"
        found.append(Message(RecordDict({"said": ConfigRecord({"node": node})}), reply_to=question))
    grid = HttpGrid(insecure=True, token="token")
    grid.set_run(Run.create_empty(run_id=1))
    grid._client = server = Announced(found, damaged=1)  # type: ignore[assignment]

    asked = ["asked-0", "asked-1", "asked-2", "asked-3"]
    looked = replies(grid, asked)
    name, first = next(looked)
    assert name == "asked-0"
    assert set(server.fetched) == {0}, "a reply is fetched when it is its turn"
    rest = dict(looked)
    assert server.looks == [asked]
    assert rest["asked-1"] is None
    for reply, node in ((first, 0), (rest["asked-2"], 2)):
        assert reply is not None
        assert reply.content.config_records["said"]["node"] == node
    assert list(replies(grid, asked)) == []
