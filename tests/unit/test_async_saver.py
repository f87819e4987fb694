"""Asynchronous checkpoint writes."""

import threading
import time

import pytest

from lib.checkpoint import io as checkpoint
from lib.checkpoint import manager as keeping
from lib.checkpoint.manager import AsyncCheckpointSaver, Position, checkpoint_file
from lib.errors import RunError
from lib.session.folder import SessionFolder
from tests.helpers.checkpoints import complete


@pytest.fixture
def session(tmp_path):
    return SessionFolder.create(str(tmp_path), "s")


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), checkpoint.write

    def waiting(state, path):
        assert event.wait(30)
        return write(state, path)

    monkeypatch.setattr(keeping.checkpoint, "write", waiting)
    yield event
    event.set()


def save(kept, epoch, is_best=False):
    kept.save(complete(epoch=epoch, format=2), Position(0, epoch, 0), 0, is_best)


def test_a_run_continues_while_a_checkpoint_is_written(session, held):
    kept = AsyncCheckpointSaver(session, keep=2)
    save(kept, 1)
    assert list(session.checkpoints.iterdir()) == []
    held.set()
    assert kept.last == checkpoint_file(session.checkpoints, 0, 0)
    assert checkpoint.load(kept.last)["epoch"] == 1
    kept.close()


def test_a_save_waits_for_the_previous_write(session, held):
    kept = AsyncCheckpointSaver(session, keep=2)
    save(kept, 1)
    threading.Timer(0.3, held.set).start()
    started = time.monotonic()
    save(kept, 2, is_best=True)
    assert time.monotonic() - started > 0.2
    kept.flush()
    assert {path.name: checkpoint.load(path)["epoch"] for path in session.checkpoints.iterdir()} == {
        "0000-00000.ckpt": 2,
        "0000-00000-best.ckpt": 2,
        "0000-00000-e0001-s000000.ckpt": 1,
    }
    kept.close()


@pytest.mark.parametrize("ask", ["flush", "last", "save"])
def test_a_failed_write_is_raised_once_at_the_next_check(session, monkeypatch, ask):
    kept = AsyncCheckpointSaver(session, keep=2)
    save(kept, 1)
    kept.flush()
    write = checkpoint.write

    def full(state, path):
        raise RunError("No space left on device")

    monkeypatch.setattr(keeping.checkpoint, "write", full)
    save(kept, 2)
    with pytest.raises(RunError, match="No space"):
        {"flush": kept.flush, "last": lambda: kept.last, "save": lambda: save(kept, 3)}[ask]()
    monkeypatch.setattr(keeping.checkpoint, "write", write)
    assert checkpoint.load(kept.last)["epoch"] == 1
    kept.close()


def test_a_failed_write_is_logged_at_exit(session, monkeypatch, caplog):
    kept = AsyncCheckpointSaver(session, keep=2)
    monkeypatch.setattr(keeping.checkpoint, "write", lambda state, path: (_ for _ in ()).throw(RunError("full")))
    save(kept, 1)
    kept.close()
    assert "full" in caplog.text


def test_close_waits_for_the_write(session, held):
    kept = AsyncCheckpointSaver(session, keep=2)
    save(kept, 1)
    threading.Timer(0.3, held.set).start()
    kept.close()
    assert checkpoint.load(checkpoint_file(session.checkpoints, 0, 0))["epoch"] == 1
