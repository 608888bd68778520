"""A federation of real processes, as its operators run it, of which parts are killed, cut off and stopped.

One server and three devices live through all of it, one fault after the other, and a run for each, in secure sums. A round
takes less than a second, so a device is held still first where a fault is to strike it within one.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tessera.common.utils.atomic_files import read_tensors
from tessera.deploy.executors import inline
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.supernode import public_key
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tests.faults.federation import NODES, START, Federation, run_settings, serverapps, wait
from tests.support.catalogues import small_settings
from tests.support.nodes import workers

ROUNDS = 15
CUT = 30.0
DEADLINE = 10.0
TOLERANCE = 2e-4
"""What masks may round off in a run."""
AWAY = 40.0
"""Seconds after which a round goes on at the latest whose device is gone: 20 for the server to notice, and a busy machine."""
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc"),
]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    yield made
    made.close()


def test_an_expired_certificate_is_renewed_and_devices_keep_theirs(federation: Federation) -> None:
    """The server does not start with one and says what mends it. The devices had been given ca.crt before."""
    files = make_certificates(federation.server.folder, [], 0)
    (federation.folder / "ca.crt").write_bytes(files.ca.read_bytes())
    time.sleep(1.1)  # certificates end at whole seconds
    refused = federation.launch("server", "server", "--dir", federation.server.folder)
    assert refused.wait(START) == 1
    assert "server.pem expired on" in federation.said("server")
    assert "certificates" in federation.said("server")
    assert federation.launch("renew", "certificates", federation.server.folder, "--renew").wait(START) == 0
    federation.start_server()
    for node, folder in enumerate(federation.devices):
        federation.control.register(public_key(folder))
        federation.join(node)


def test_the_authority_changes_and_no_device_is_started_again(federation: Federation) -> None:
    """The old one vouches for the new one, so all are there by the ca.crt they have. Given the new one, they connect by that,
    and are there when the old one is gone."""
    files, running = federation.server.certificates, [federation.commands[f"device-{node}"] for node in range(NODES)]
    for change in ("--new-ca", "--drop-old-ca"):
        assert federation.launch("change", "certificates", files.folder, change).wait(START) == 0
        federation.commands["server"].terminate()
        federation.commands["server"].wait(START)
        federation.start_server()
        federation.submit(f"change{change}", 2)
        federation.finishes(f"change{change}")
        assert federation.nodes(f"change{change}") == [NODES] * 2
        joins = [federation.joins(node) for node in range(NODES)]
        (federation.folder / "ca.crt").write_bytes(files.ca.read_bytes())
        wait(lambda: all(federation.joins(node) > before for node, before in enumerate(joins)))  # noqa: B023
    assert all(process.poll() is None for process in running)


def test_a_device_cut_off_for_30_seconds_comes_back_by_itself(federation: Federation) -> None:
    """Its connections break and cannot be made again for half a minute. The round closes without it as soon as the server takes
    it to be gone; once it can connect again, it is back within seconds."""
    joins = federation.joins(1)
    federation.submit("cut", ROUNDS)
    federation.reaches("cut", lambda nodes: len(nodes) >= 1)
    federation.way.cut()
    cut = time.monotonic()
    gone = federation.reaches("cut", lambda nodes: NODES - 1 in nodes)
    with federation.held(0):  # the rounds wait for the device to be back
        time.sleep(max(0.0, cut + CUT - time.monotonic()))
        federation.way.mend()
        back = wait(lambda: federation.online(1), told=lambda: federation.said("device-1"))
    federation.finishes("cut")
    assert federation.nodes("cut")[0] == federation.nodes("cut")[-1] == NODES, federation.warned("cut")
    assert gone < AWAY
    assert back < CUT
    assert federation.joins(1) == joins, "it is the same process"
    print(f"cut off: its round closed after {gone:.1f} s; mended, it was back after {back:.1f} s")


def test_a_device_slower_than_the_deadline_is_left_out_of_its_round_and_takes_part_in_a_later_one(
    federation: Federation,
) -> None:
    """The round closes at the deadline, with the others' replies; the server names the node; its late reply is dropped."""
    federation.submit("slow", ROUNDS, timeout=DEADLINE)
    federation.reaches("slow", lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        federation.reaches("slow", lambda nodes: NODES - 1 in nodes)
    federation.finishes("slow")
    assert federation.nodes("slow")[0] == federation.nodes("slow")[-1] == NODES
    assert f"node {federation.number(1)} did not answer in {DEADLINE:g} s" in federation.warned("slow")


@pytest.mark.parametrize("step", ["before it has the message", "at work"])
def test_a_device_killed_in_a_round_is_named_and_comes_back(federation: Federation, step: str) -> None:
    """Its round goes on without it as soon as the server takes it to be gone; the other's reply is kept. Started again at once,
    it tries until the server takes it back. What it had learnt before is there, and it takes part again."""
    device, name = federation.devices[1], f"killed-{step.split()[0]}"
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        if step != "at work":
            federation.node(1).suspend()
        federation.holds_up(name, 1)
        federation.kill(device, "device-1")
    rounds = len(federation.nodes(name))
    learnt = {path: path.read_bytes() for path in device.glob(f"private/{name}-*/block-0000/*")}
    assert learnt
    with federation.held(0):  # the round after it waits for the device to be back
        federation.join(1)
        assert {path: path.read_bytes() for path in learnt} == learnt
    federation.finishes(name)
    nodes = federation.nodes(name)
    assert nodes[:rounds] == [NODES] * rounds
    assert nodes[rounds] == NODES - 1
    assert nodes[-1] == NODES
    assert f"node {federation.number(1)} failed: " in federation.warned(name)
    print(f"killed {step}: its round took {federation.rounds(name)[rounds]['seconds']:.1f} s")
    assert federation.rounds(name)[rounds]["seconds"] < AWAY


def test_a_device_killed_once_it_has_replied_loses_nothing(federation: Federation) -> None:
    """Its reply counts. It is back before the round closes, and the run learns what it would have learnt anyhow."""
    name = "killed-after"
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(0):
        federation.holds_up(name, 0)
        federation.kill(federation.devices[1], "device-1")
        federation.join(1)
    federation.finishes(name)
    assert federation.nodes(name) == [NODES] * ROUNDS
    assert_undisturbed(federation, name, ROUNDS)


def test_a_worker_killed_at_work_costs_its_message_alone(federation: Federation) -> None:
    """As where memory runs out. The node says so at once; where what forks its workers is killed, it joins anew by itself."""
    name, node, joins = "worker-killed", federation.node(1), federation.joins(1)
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        federation.holds_up(name, 1)
        workers(federation.devices[1])[-1].kill()
    federation.reaches(name, lambda nodes: nodes[-2:] == [NODES - 1, NODES])
    assert federation.joins(1) == joins
    with federation.held(1):
        federation.holds_up(name, 1)
        workers(federation.devices[1])[0].kill()
    federation.reaches(name, lambda nodes: nodes.count(NODES - 1) == 2)
    with federation.held(0):
        node.wait(START)
        wait(lambda: federation.joins(1) > joins, told=lambda: federation.said("device-1"))
    federation.finishes(name)
    assert federation.nodes(name)[-1] == NODES
    assert f"node {federation.number(1)} failed: the device's worker ended without an answer" in federation.warned(name)


def test_a_device_told_to_end_at_work_signs_off_within_three_seconds(federation: Federation) -> None:
    """Its round need not wait until the server misses it, and it is taken back at once."""
    name, joined, node = "signed-off", federation.commands["device-1"], federation.node(1)
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        federation.holds_up(name, 1)
        joined.terminate()
        node.wait(3.0)
    assert federation.reaches(name, lambda nodes: NODES - 1 in nodes) < 5.0
    assert joined.wait(START) == 128 + signal.SIGTERM
    with federation.held(0):
        refusals = federation.said("device-1").count("2004")
        federation.join(1)
    federation.finishes(name)
    assert federation.nodes(name)[-1] == NODES
    assert federation.said("device-1").count("2004") == refusals


def test_a_run_whose_serverapp_is_killed_and_then_its_whole_server_is_resumed_each_time(federation: Federation) -> None:
    """`submit` says that the run failed; with --resume it goes on. Then SuperLink, ServerApp and `submit` die at once: started
    from the same folder, the server knows its devices' keys; they come back by themselves; --resume ends with what an
    undisturbed run has learnt."""
    name, folder, joins = "server-killed", federation.server.folder, federation.joins(1)
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        federation.holds_up(name, 1)
        for pid in serverapps(folder):
            os.kill(pid, signal.SIGKILL)
        assert federation.commands[name].wait(START) == 1
    assert "the run's ServerApp ended without a word: " in federation.said(name)
    assert "go on with --resume" in federation.said(name)

    rounds = len(federation.nodes(name))
    federation.submit(name, ROUNDS, "--resume")
    federation.reaches(name, lambda nodes: len(nodes) > rounds)
    with federation.held(1):
        federation.holds_up(name, 1)
        federation.kill(folder, name, "server")
    assert rounds < len(federation.nodes(name)) < ROUNDS
    federation.start_server()
    federation.submit(name, ROUNDS, "--resume")
    federation.finishes(name)
    assert federation.nodes(name) == [NODES] * ROUNDS
    assert all(process.poll() is None for name, process in federation.commands.items() if name.startswith("device"))
    assert federation.joins(1) == joins
    assert_undisturbed(federation, name, ROUNDS)


def test_a_device_revoked_in_a_round_is_cut_off_and_the_run_goes_on(federation: Federation) -> None:
    """The server asks it for nothing more. The device's `join` says why it gives up, once it has tried for a while."""
    name, joined, node = "revoked", federation.commands["device-1"], federation.node(1)
    federation.submit(name, ROUNDS)
    federation.reaches(name, lambda nodes: len(nodes) >= 1)
    with federation.held(1):
        federation.holds_up(name, 1)
        federation.control.revoke(federation.control.devices()[1])
        closed = federation.reaches(name, lambda nodes: NODES - 1 in nodes)
        revoked = time.monotonic() - closed
        node.wait(AWAY)
        ended = time.monotonic() - revoked
    federation.finishes(name)
    assert federation.nodes(name)[-1] == NODES - 1
    assert joined.wait(START) == 1
    assert "the server refuses this device, which it took in before: its key was revoked" in federation.said("device-1")
    assert ended < CUT
    print(f"revoked: its round closed after {closed:.1f} s, its node ended after {ended:.1f} s")


def assert_undisturbed(federation: Federation, name: str, rounds: int) -> None:
    """Server and devices have learnt what they learn in a run that nothing disturbs."""
    settings, folder = run_settings(name, rounds), federation.folder / f"undisturbed-{name}"
    devices = partition(federation.dataset, folder / "devices", NODES)
    job = Job(small_settings(**settings), federation.dataset, devices, folder)
    inline.execute(job, lambda line: None)
    for mine, theirs in ((federation.run(name), job.run_dir), *zip(federation.devices, devices, strict=True)):
        found, wanted = (
            sorted([*where.glob("checkpoints/*"), *where.glob(f"private/{name}-*/block-0000/*")])[-1]
            for where in (mine, theirs)
        )
        assert found.name == wanted.name
        tensors, _ = read_tensors(found)
        for key, value in read_tensors(wanted)[0].items():
            torch.testing.assert_close(tensors[key], value, rtol=TOLERANCE, atol=TOLERANCE)
