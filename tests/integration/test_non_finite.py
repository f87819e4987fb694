"""Non-finite losses, gradients and weights: found without synchronising, named, and never saved."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lib.checkpoint import io as checkpoint
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.nn.embedder import Embedder
from lib.training.epoch import NotFiniteError, train_epoch
from lib.training.state import non_finite_part
from lib.training.step import FiniteWatch, NotFinite, Step
from main import main
from tests.helpers.runs import TINY, error_line

CPU = torch.device("cpu")


class Root(nn.Module):
    """Features with a square root, whose slope at 0 is infinite though its value is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, images):
        return F.normalize((images @ self.weight).sqrt() + images, dim=1)


def epoch_of(data, batch=2, iter_size=1, report_every=1000, between_steps=lambda step, progress: None):
    network, bank = Root(), MemoryBank(len(data), 4, 0.5, torch.Generator().manual_seed(0))
    step = Step(Embedder(network, CPU), bank, torch.optim.SGD(network.parameters(), lr=1e-3), 0.5)
    batches = [(data[rows], rows) for rows in torch.arange(len(data)).split(batch)]
    sizes = tuple(len(rows) for _, rows in batches)
    return train_epoch(
        step,
        Neighbourhoods.none(len(data), 1, CPU),
        batches,
        sizes,
        iter_size,
        report_every,
        between_steps=between_steps,
    )


@pytest.mark.parametrize(("row", "value", "what", "step"), [(7, 0.0, "gradient", 3), (4, math.nan, "loss", 2)])
def test_the_first_bad_batch_is_named_at_the_end_of_the_epoch(row, value, what, step):
    data = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    data[row] = value
    with pytest.raises(NotFiniteError) as error:
        epoch_of(data)
    assert error.value.found == NotFinite(step, what)


def test_the_check_does_not_synchronise_at_every_step(monkeypatch):
    asked = []

    def listening(name):
        original = getattr(torch.Tensor, name)

        def call(self, *arguments):
            asked.append(name)
            return original(self, *arguments)

        return call

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, listening(name))
    data = torch.rand(40, 4) + 0.5
    epoch_of(data)  # 20 steps
    first, asked[:] = list(asked), []
    epoch_of(data, batch=20)  # 2 steps
    assert asked == first  # as often in 20 steps as in 2: the epoch's end alone


def test_a_save_checks_the_loss_first():
    data = torch.rand(20, 4) + 0.5
    data[5] = math.nan
    saved = []

    def save(step, progress):
        if step == 4:
            saved.append(progress())

    with pytest.raises(NotFiniteError) as error:
        epoch_of(data, between_steps=save)
    assert error.value.found.step == 2
    assert saved == []


def test_the_check_counts_batches_across_groups_and_resumed_epochs():
    watch = FiniteWatch(CPU)
    watch.begin(10)
    watch.update(torch.tensor(1.0))
    watch.update(torch.tensor(1.0), [torch.ones(3), torch.tensor([1.0, -math.inf])])
    watch.update(torch.tensor(math.inf))
    assert watch.found() == NotFinite(11, "gradient")
    watch.begin(0)
    assert watch.found() is None


def test_a_diverging_run_lists_the_images_of_the_batch(tmp_path, capsys):
    """The images are files, so the session lists their paths; every written checkpoint is finite."""
    train = tmp_path / "data" / "train"
    train.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(train / f"{number}.png")
    arguments = [*TINY, "--dataset", "imagefolder", "--data-root", str(tmp_path / "data"), "--limit-train", "null"]
    arguments += ["--limit-test", "null", "--batch-size", "4", "--display-freq", "1000", "--save-every", "1"]
    assert main([*arguments, "--base-lr", "1e25", "--sess-dir", str(tmp_path), "--session", "s"]) == 1
    message = error_line(capsys.readouterr().err)
    session = tmp_path / "s"
    (note,) = session.glob("not-finite-*.json")
    said = json.loads(note.read_text())
    assert f"is not finite in round {said['round']}, epoch {said['epoch']}, step {said['step']}; " in message
    assert f"the images are listed in {note}" in message
    assert len(said["indices"]) == 4
    files = sorted(train.iterdir())
    assert said["files"] == [str(files[row]) for row in said["indices"]]
    kept = list((session / "checkpoint").glob("*.ckpt"))
    if kept:
        assert f"the last good checkpoint is {session / 'checkpoint' / '0000-00000.ckpt'}" in message
    else:
        assert "there is no checkpoint from before" in message
    for path in kept:
        assert non_finite_part(checkpoint.load(path)) is None, path
