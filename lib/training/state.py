"""Everything a run carries from step to step, and its way into a checkpoint and back."""

from collections.abc import Iterator, Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

import models
from datasets.pipeline import Pipeline
from lib.checkpoint.io import FORMAT
from lib.checkpoint.schema import check_neighbourhoods
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.nn.embedder import Embedder
from lib.nn.sync_batch_norm import synchronise
from lib.nn.winograd import use_winograd
from lib.pretrained.fitting import load_exactly
from lib.runtime.determinism import without_adaptive_pooling
from lib.seeding import generator
from lib.training.epoch import Underway
from lib.training.history import History
from lib.training.optim import build_optimizer, check_state


def build_embedder(options: Options, world: World, dtype: Optional[torch.dtype]) -> Embedder:
    """The network of a run, initialised from the seed, on this process's device. `dtype` is that of autocast."""
    network = models.build(options.network, options.low_dim, options.stem, options.size, options.init, options.seed)
    if options.deterministic:
        network = without_adaptive_pooling(network, options.size)
    if options.sync_bn:
        network = synchronise(network, world)
    if options.winograd and not options.compile:
        use_winograd(network, world.device, dtype)
    return Embedder(network, world.device, dtype, options.compile, world)


class TrainingState:
    """Network, optimiser, bank, neighbourhoods, and where the run is.

    `round` and `epoch` say what has been completed: `epoch` epochs of round `round`. `underway` is how far the next one
    is.
    """

    def __init__(
        self,
        embedder: Embedder,
        optimizer: Optimizer,
        bank: MemoryBank,
        neighbourhoods: Neighbourhoods,
    ):
        self.embedder = embedder
        self.optimizer = optimizer
        self.bank = bank
        self.neighbourhoods = neighbourhoods
        self.round = 0
        self.epoch = 0
        self.underway = Underway()
        self.history = History()
        self.nearest: dict[int, Tensor] = {}  # of this round and the one before, as the last survey found them
        self.baselines: dict[str, float] = {}  # see `lib.evaluation.baselines`

    @classmethod
    def fresh(cls, options: Options, pipeline: Pipeline, world: World, dtype: Optional[torch.dtype]) -> "TrainingState":
        """The state before the first epoch, a function of the seed. `dtype` is that of autocast."""
        embedder = build_embedder(options, world, dtype)
        size = len(pipeline.train)
        first_rows = generator(options.seed, "memory bank")
        bank = MemoryBank(size, options.low_dim, options.npc_momentum, first_rows, world).to(world.device)
        optimizer = build_optimizer(options, embedder.network.parameters())
        state = cls(embedder, optimizer, bank, Neighbourhoods.none(size, options.ANs_size, world.device))
        state.round = options.first_round
        return state

    def checkpoint(
        self, memory: Tensor, options: Options, pipeline: Pipeline, session: str, accuracy: Optional[float]
    ) -> dict[str, Any]:
        """The dict that is written to disk; see `lib.checkpoint.io` for its layout.

        It does not depend on how many processes there are. Its tensors are copies, which training does not change.

        Args:
            memory: (N, D), the whole bank, as `MemoryBank.gather_to_first` gave it to this process.
            options, pipeline: of this run.
            session: its name.
            accuracy: top-1 of the kNN evaluation, in [0, 1], if there was one.
        """
        state = {
            "net": self.embedder.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ANs_discovery": self.neighbourhoods.state_dict(),
            "acc": accuracy,
            "epoch": self.epoch,
            "step": self.underway.step,
            "underway": self.underway.state(),
            "round": self.round,
            "session": session,
            "format": FORMAT,
            "options": options.as_dict(),
            "precision": "fp32" if self.embedder.dtype is None else "bf16",
            "random": _random_state(options.seed),
            "history": self.history.state(),
            "nearest": self.nearest,
            "baselines": self.baselines,
            "dataset": {
                "name": pipeline.name,
                "size": len(pipeline.train),
                "fingerprint": pipeline.fingerprint,
                "contents": pipeline.contents,
                "means": list(pipeline.means),
                "stds": list(pipeline.stds),
            },
        }
        return {**_copied_to_cpu(state), "npc": {"memory": memory}}

    def restore(self, saved: dict[str, Any], source: str, options: Options, pipeline: Pipeline) -> None:
        """Take over a checkpoint. Options are not taken from it here: those of the run stand.

        Args:
            saved: what `checkpoint.load` returned.
            source: its name, for messages.
            options, pipeline: of this run.

        Raises:
            UserError: it belongs to another network, feature length or optimiser, or to other images, or its parts
                are not what they should be.
        """
        try:
            self._restore(saved, source, options, pipeline)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
            raise UserError(f"checkpoint {source} cannot be gone on from: {reason}") from error

    def _restore(self, saved: dict[str, Any], source: str, options: Options, pipeline: Pipeline) -> None:
        part = not_finite(saved)
        if part is not None:
            raise ValueError(f"a number in its {part} is not finite; take an earlier one")
        self.restore_network(saved, source)
        memory = saved["npc"]["memory"]
        expected = (len(self.bank), self.bank.memory.shape[1])
        if tuple(memory.shape) != expected:
            raise UserError(
                f"checkpoint {source}: its memory bank is {_shape(memory.shape)}, this run's {_shape(expected)}"
                " (training images x feature length); use the data set, --limit-train and --low-dim it was made with"
            )
        if saved.get("dataset", {}).get("fingerprint", pipeline.fingerprint) != pipeline.fingerprint:
            raise UserError(
                f"checkpoint {source}: its memory bank belongs to other training images "
                f"({saved['dataset']['name']}, {saved['dataset']['size']}) than this run's; use the --dataset, "
                "--data-root, --limit-train and --seed it was made with"
            )
        replaced = pipeline.train.replaced(saved.get("dataset", {}).get("contents"))
        if replaced.are_others and not options.restart:
            raise UserError(
                f"checkpoint {source}: its memory bank belongs to other pictures of the same names: {replaced} hold "
                "something else; put those back, start anew from its network with --pretrained in place of --resume, "
                "or add --restart to go on with this bank in a new session"
            )
        self.bank.load_whole(memory)
        before = saved["options"].get("optimizer", options.optimizer)
        if before != options.optimizer:
            raise UserError(
                f"checkpoint {source} was made with --optimizer {before}, not {options.optimizer}: "
                "its state does not fit"
            )
        configured = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        # momentum buffers come from the file, weight decay and the like from the options. Put together before they are
        # loaded: it is by the groups' settings that PyTorch decides on which device Adam's count of steps lives.
        groups = [{**group, **settings} for group, settings in zip(saved["optimizer"]["param_groups"], configured)]
        self.optimizer.load_state_dict({**saved["optimizer"], "param_groups": groups})
        check_state(self.optimizer)
        check_neighbourhoods(saved["ANs_discovery"], len(self.bank))
        self.neighbourhoods = Neighbourhoods.from_state_dict(saved["ANs_discovery"], self.bank.memory.device)
        self.round, self.epoch = saved["round"], saved["epoch"]
        self.underway = Underway.from_state(saved.get("step", 0), saved.get("underway", {}))
        sizes = tuple(len(batch) for batch in pipeline.epoch_order(self.round, self.epoch))
        self.underway.check_fits(sizes, options.iter_size)
        self.history = History.from_state(saved.get("history", []))
        rounds = [entry.round for entry in self.history.rounds]
        if not rounds or rounds != list(range(min(rounds[0], 1), self.round + 1)):
            raise ValueError(f"its history is of rounds {rounds}, and it is of round {self.round}")
        self.nearest = dict(saved.get("nearest", {}))
        self.baselines = {str(name): float(top1) for name, top1 in saved.get("baselines", {}).items()}
        _set_random_state(saved.get("random", {}))

    def restore_network(self, saved: dict[str, Any], source: str) -> None:
        """Take over the network alone.

        Raises:
            UserError: it is another network.
        """
        load_exactly(self.embedder.network, saved["net"], source)


def not_finite(saved: dict[str, Any]) -> Optional[str]:
    """Which part of a checkpoint holds a number that is not finite, if one does, among those that training changes."""
    parts = {"network": saved["net"], "optimiser": saved["optimizer"], "memory bank": saved["npc"]}
    for name, part in parts.items():
        if not all(_is_finite(tensor) for tensor in _tensors(part) if tensor.is_floating_point()):
            return name
    return None


def _is_finite(tensor: torch.Tensor) -> bool:
    # one number that is not finite makes the sum so; if large ones alone did it, a closer look tells
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _copied_to_cpu(value: Any) -> Any:
    """The same plain data with every tensor on the CPU: a file made on a GPU opens anywhere."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied_to_cpu(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied_to_cpu(inner) for inner in value]
    return value


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _random_state(seed: int) -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"seed": seed, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    if "torch" in state:
        torch.set_rng_state(state["torch"])
    if state.get("cuda") and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
