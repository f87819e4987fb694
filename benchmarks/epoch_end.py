"""The cost of the end of an epoch besides the kNN evaluation; a recipe of 1,000 epochs pays it 1,000 times."""

import tempfile
from pathlib import Path
from typing import Any

import torch

import models
from benchmarks.setting import Setting
from benchmarks.timing import Row
from lib.checkpoint import io as checkpoint
from lib.config import Options
from lib.evaluation.bank_statistics import bank_statistics
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.nn.embedder import Embedder
from lib.runtime.device import choose_precision
from lib.search.exact import sample_rows
from lib.training.optim import build_optimizer
from lib.training.state import TrainingState, non_finite_part

EPOCHS = 1000
WRITTEN = "checkpoint written by a thread meanwhile"


def epoch_end(setting: Setting) -> list[Row]:
    """Statistics of the bank, copying and checking the state, folding the network, and the sum of these.

    A thread writes the checkpoint. Metrics and TensorBoard are not timed.
    """
    options = Options()
    state = _state(setting, options)
    kept = options.as_dict()
    rows = sample_rows(setting.images)

    def copied() -> dict[str, Any]:
        memory = state.bank.shard.gather_to_first(state.bank.memory)
        return state.checkpoint(memory, kept, "benchmark", None)

    saved = copied()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        times = setting.turns(
            {
                "state copied": copied,
                "check that the state is finite": lambda: non_finite_part(saved),
                "network folded": state.embedder.eval_copy,
                "a sample of the bank looked at": lambda: bank_statistics(
                    state.bank.memory, rows, options.npc_temperature
                ),
                WRITTEN: lambda: checkpoint.save(saved, path),
            }
        )
        size = path.stat().st_size
    notes = {WRITTEN: f"; {size / 2**20:.0f} MiB, flushed, in the temporary folder, with nothing else to do"}
    waited_for = sum(time for what, time in times.items() if what != WRITTEN)
    return [
        Row(
            f"end of an epoch, ResNet18, N = {setting.images:,}: {what}",
            time,
            note=f"{EPOCHS * time:.0f} s in {EPOCHS:,} epochs" + notes.get(what, ""),
        )
        for what, time in [*times.items(), ("all that is waited for", waited_for)]
    ]


def _state(setting: Setting, options: Options) -> TrainingState:
    """The state after a first step, in which the optimiser has its momentum."""
    network = models.build("resnet18", setting.dim, "small", 32)
    embedder = Embedder(network, setting.device, choose_precision("auto", setting.device))
    optimizer = build_optimizer(options, network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    bank = MemoryBank(setting.images, setting.dim, options.npc_momentum).to(setting.device)
    nobody = Neighbourhoods.none(setting.images, options.ANs_size, setting.device)
    return TrainingState(embedder, optimizer, bank, nobody)
