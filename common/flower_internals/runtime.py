"""Takes the tasks of a SuperLink and carries them out, as Flower's SuperExec and its `flwr-serverapp` do, in one process."""

from __future__ import annotations

from typing import NoReturn


class TaskQueue:
    """The ServerApps that wait at a SuperLink to be started. It starts no thread."""

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        self._client = RuntimeHttpClient.from_server_address(address, False, ca, [version])

    def acquire(self) -> str | None:
        """Take the next one: a token that it is run with; None while none waits, or the SuperLink does not answer."""
        import httpx
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            return (
                self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token or None
            )
        except httpx.HTTPError:
            return None

    def close(self) -> None:
        """Close the connection that is kept between requests."""
        self._client.close()


def import_server_app_runner() -> None:
    """Import what `run_server_app` needs, which takes most of its time."""
    import flwr.superlink.runtime  # noqa: F401


def run_server_app(address: str, ca: bytes, token: str, parent: int) -> NoReturn:
    """Run the ServerApp of a task in this process, and exit. It ends with the process `parent` too."""
    from queue import Queue

    from flwr.supercore.logger import mirror_output_to_queue
    from flwr.superlink.runtime import run_serverapp

    lines: Queue[str | None] = Queue()
    mirror_output_to_queue(lines)
    run_serverapp(address, lines, token, False, ca, parent, False)
    raise SystemExit
