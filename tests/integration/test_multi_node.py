"""Two agents of torchrun on this machine stand for two machines: what differs or is missing on one, both report."""

import contextlib
import json
import os
import re
import shutil
import signal
import time

import pytest

from tests.helpers.processes import SMALL, alive, free_port, run, torchrun, worker
from tests.helpers.runs import ROOT, checkpoints, wait_for

SHORT = [*SMALL, "--limit-train", "50", "--max-round", "1", "--max-epoch", "1"]


class Machines:
    """Two agents, each with one process; `start` appends each one's own arguments to the common ones."""

    def __init__(self, fresh=False):
        self.agents, self.port, self.fresh = [], free_port(), fresh

    def start(self, common, *own, program="main.py"):
        for number, more in enumerate(own or ([], [])):
            flags = ["--nnodes", "2", "--node_rank", number, "--nproc_per_node", "1"]
            flags += ["--master_addr", "localhost", "--master_port", self.port]
            self.agents.append(torchrun([*flags, program, *common, *more], self.fresh))

    def ends(self, seconds):
        """Exit statuses and standard error of both, once both have ended."""
        until = time.monotonic() + seconds
        said = [agent.communicate(timeout=max(0.1, until - time.monotonic()))[1] for agent in self.agents]
        return [agent.returncode for agent in self.agents], said


@pytest.fixture(params=[False])
def machines(request):
    """The processes are forked, unless the test asks for fresh interpreters."""
    both = Machines(request.param)
    yield both
    for number, agent in enumerate(both.agents):
        if agent.poll() is None:
            if both.fresh:  # the fork server ends what an ended program has started
                with contextlib.suppress(AssertionError):
                    os.kill(worker(agent.pid, number), signal.SIGKILL)
            agent.kill()
            agent.communicate(timeout=60)


FRESH_TOO = pytest.mark.parametrize("machines", [False, pytest.param(True, marks=pytest.mark.slow)], indirect=True)


@FRESH_TOO
def test_two_machines_train_one_network(machines, tmp_path):
    machines.start([*SHORT, "--sess-dir", tmp_path, "--session", "run"])
    statuses, said = machines.ends(120)
    assert statuses == [0, 0], said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["epoch"]) for line in lines] == [(0, 1)]
    assert "2 processes" in (tmp_path / "run" / "log.txt").read_text()


@FRESH_TOO
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_both_within_a_minute(machines, tmp_path, number):
    machines.start([*SHORT, "--max-epoch", "500", "--sess-dir", tmp_path, "--session", "run"])
    wait_for(lambda: checkpoints(tmp_path / "run"), machines.agents[number])
    victim = worker(machines.agents[number].pid, rank=number)
    os.kill(victim, signal.SIGKILL)
    statuses, said = machines.ends(60)
    assert all(statuses), said
    assert not alive(victim)
    assert f"error: rank {1 - number}: " in said[1 - number]
    assert "Traceback" not in said[1 - number].split("error: rank")[0]


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_missing_on_one_machine_ends_both(machines, tmp_path, number):
    machines.start([*SHORT, "--sess-dir", tmp_path, "--session", "run"])
    assert machines.ends(120)[0] == [0, 0]
    machines.agents, machines.port = [], free_port()
    sources = [tmp_path / "run", tmp_path / "run"]
    sources[number] = tmp_path / "nothing"
    machines.start(["--gpus", "cpu", "--max-round", "2"], *(["--resume", source] for source in sources))
    statuses, said = machines.ends(60)
    assert all(statuses), said
    assert f"error: rank {number}: " in said[number]
    assert "nothing" in said[number]
    assert f"error: rank {1 - number}: " in said[1 - number]


def test_a_session_that_cannot_be_opened_ends_both(machines, tmp_path):
    (tmp_path / "file").write_text("no folder")
    machines.start([*SHORT, "--session", "run"], ["--sess-dir", tmp_path / "file"], ["--sess-dir", tmp_path])
    statuses, said = machines.ends(60)
    assert all(statuses), said
    assert "error: rank 0: " in said[0]
    assert "error: rank 1: " in said[1]


def test_an_option_that_differs_is_named_by_both(machines, tmp_path):
    machines.start([*SHORT, "--sess-dir", tmp_path], ["--seed", "1"], ["--seed", "2", "--base-lr", "0.02"])
    statuses, said = machines.ends(60)
    assert all(statuses), said
    for text in said:
        assert re.search(r"error: rank \d: rank 1 was started with another --base-lr, --seed than rank 0", text)


@pytest.mark.parametrize("more", ["--restart", "--test-only"])
def test_an_option_given_on_one_machine_is_named(machines, tmp_path, more):
    """A checkpoint does not store these options, but a process with one of them acts differently."""
    run(1, [*SHORT, "--sess-dir", tmp_path, "--session", "run"])
    machines.start(["--gpus", "cpu", "--sess-dir", tmp_path, "--resume", tmp_path / "run"], [], [more])
    statuses, said = machines.ends(60)
    assert all(statuses), said
    for text in said:
        assert re.search(rf"error: rank \d: rank 1 was started with another (--[a-z]+, )*{more} than rank 0", text)


def test_a_user_error_on_one_machine_is_printed_there(machines, tmp_path):
    machines.start([*SHORT, "--sess-dir", tmp_path], [], ["--batch-size", "none"])
    said = machines.agents[1].stderr  # to its end an older agent would wait for the other one
    assert "error: rank 1: --batch-size" in next(line for line in said if line.startswith("error: "))


@pytest.mark.parametrize("number", [0, 1])
def test_different_kinds_of_device_are_named_by_both(machines, tmp_path, number):
    """A process that is to use a GPU gets only this far on a machine without one."""
    program = tmp_path / "pretending.py"
    program.write_text(PRETENDING.format(root=str(ROOT), number=number))
    machines.start([*SHORT, "--sess-dir", tmp_path], program=str(program))
    statuses, said = machines.ends(60)
    assert all(statuses), said
    kinds = ("cuda", "cpu") if number == 0 else ("cpu", "cuda")
    for text in said:
        assert re.search(rf"error: rank \d: rank 1 would compute on {kinds[1]} and rank 0 on {kinds[0]}", text), text


PRETENDING = """
import os
import sys
sys.path.insert(0, {root!r})
import torch
import main
from lib.distributed import process_group

if os.environ["RANK"] == "{number}":
    process_group.choose_device = lambda *arguments: torch.device("cuda", 0)
    torch.cuda.set_device = lambda device: None
sys.exit(main.main(sys.argv[1:]))
"""


def test_options_of_a_machine_may_differ(machines, tmp_path):
    machines.start([*SHORT, "--debug"], ["--sess-dir", tmp_path / "a"], ["--sess-dir", tmp_path / "b", "--brief"])
    assert machines.ends(120)[0] == [0, 0]


def test_different_checkpoints_are_noticed(machines, tmp_path):
    run(1, [*SHORT, "--sess-dir", tmp_path, "--session", "early"])
    shutil.copytree(tmp_path / "early", tmp_path / "late")
    run(1, ["--resume", tmp_path / "late", "--max-epoch", "2"])
    own = (["--resume", tmp_path / "early"], ["--resume", tmp_path / "late"])
    machines.start(["--gpus", "cpu", "--test-only", "--max-epoch", "2"], *own)
    statuses, said = machines.ends(60)
    assert all(statuses), said
    for text in said:
        assert "rank 1 has read other weights than rank 0" in text
