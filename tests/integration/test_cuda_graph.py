"""Which steps are captured and replayed. The graphs themselves need a GPU: test_cuda.py."""

import contextlib
import logging

import pytest
import torch
from torch import nn

from lib.training import cuda_graph as captured_step
from lib.training.cuda_graph import EAGER_STEPS, CapturedStep, can_be_captured
from models.shared_dropout import SharedDropout


class Book:
    """Stands in for `Step` and its captured graphs, and records which of them ran."""

    def __init__(self):
        self.entries = []
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    def __call__(self, images, members, size, share=1.0, first=True, last=True):
        assert size == len(images)
        self.entries.append(("eager", size))
        return torch.zeros(())

    def recording(self, step, images, members):
        self.entries.append(("recorded", len(images)))
        book = self

        class Recording:
            def replay(self, images, members):
                book.entries.append(("replayed", len(images)))
                return torch.zeros(())

        return Recording()


@pytest.fixture
def book(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    book = Book()
    monkeypatch.setattr(captured_step, "_Graph", book.recording)
    return book


def batch(size, members=1):
    return torch.zeros(size, 3, 4, 4), torch.zeros(size, members, dtype=torch.int64), size


def run(step, book, *batches, **kwargs):
    start = len(book.entries)
    for each in batches:
        step(*each, **kwargs)
    return book.entries[start:]


def test_a_batch_shape_is_captured_after_some_eager_steps_and_then_replayed(book):
    step = CapturedStep(book)
    ran = run(step, book, *[batch(8)] * (EAGER_STEPS + 3))
    assert ran == [("eager", 8)] * EAGER_STEPS + [("recorded", 8)] + [("replayed", 8)] * 3


def test_a_smaller_last_batch_and_larger_sets_get_graphs_of_their_own(book):
    step = CapturedStep(book)
    run(step, book, *[batch(8)] * (EAGER_STEPS + 1))
    assert run(step, book, batch(5)) == [("eager", 5)]
    assert run(step, book, batch(8)) == [("replayed", 8)]
    run(step, book, *[batch(5)] * EAGER_STEPS)
    assert run(step, book, batch(5), batch(8)) == [("replayed", 5), ("replayed", 8)]
    assert run(step, book, batch(8, members=2)) == [("eager", 8)]


def test_a_new_learning_rate_is_captured_again(book):
    step = CapturedStep(book)
    run(step, book, *[batch(8)] * (EAGER_STEPS + 1))
    book.optimizer.param_groups[0]["lr"] = 0.01
    assert run(step, book, batch(8), batch(8)) == [("recorded", 8), ("replayed", 8), ("replayed", 8)]


def test_batches_of_accumulated_gradients_are_never_captured(book):
    step = CapturedStep(book)
    for _ in range(3 * EAGER_STEPS):
        assert run(step, book, batch(8), share=0.5, last=False) == [("eager", 8)]


def test_a_failed_capture_is_logged_and_the_run_continues_eagerly(book, monkeypatch):
    def fails(step, images, members):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(captured_step, "_Graph", fails)
    handler, said = logging.Handler(), []
    handler.emit = lambda record: said.append(record.getMessage())
    monkeypatch.setattr(captured_step.log, "handlers", [handler])
    step = CapturedStep(book)
    assert run(step, book, *[batch(8)] * (EAGER_STEPS + 4)) == [("eager", 8)] * (EAGER_STEPS + 4)
    reason = "operation not permitted when stream is capturing"
    assert said == [f"steps of 8 images are not captured in a CUDA graph: {reason}"]


def test_optimisers_that_count_in_python_are_not_captured():
    """A captured step would keep its step count for ever."""
    weights = [nn.Parameter(torch.zeros(2))]
    network = nn.Linear(2, 2)
    assert can_be_captured(network, torch.optim.SGD(weights, lr=0.1, momentum=0.9))
    assert not can_be_captured(network, torch.optim.Adam(weights, lr=0.1))
    counted = torch.optim.Adam(weights, lr=0.1)
    counted.param_groups[0]["capturable"] = True
    assert can_be_captured(network, counted)


@pytest.mark.parametrize("seeded", [True, False])
def test_dropout_is_captured_where_a_replay_draws_by_a_new_seed(monkeypatch, seeded):
    monkeypatch.setattr(captured_step, "HAS_SEEDS_IN_GRAPHS", seeded)
    network = nn.Sequential(nn.Linear(2, 2), SharedDropout(0.5))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    assert can_be_captured(network, optimizer) == seeded
    assert can_be_captured(network[0], optimizer)
