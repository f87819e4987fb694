"""The state of a run: everything that a checkpoint saves and restores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

import models
from datasets.pipeline import Pipeline
from lib.checkpoint.io import FORMAT
from lib.config import Options
from lib.distributed.world import World
from lib.errors import UserError
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import SAVED, Neighbourhoods
from lib.nn.embedder import Embedder
from lib.nn.sync_batch_norm import synchronise
from lib.nn.winograd import use_winograd
from lib.pretrained.fitting import check_network
from lib.runtime.determinism import without_adaptive_pooling
from lib.seeding import generator
from lib.session.metrics import History, Round
from lib.training.epoch import EpochProgress
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
    return Embedder(network, world.device, dtype, options.batch_size if options.compile else 0, world)


class TrainingState:
    """Network, optimiser, bank, neighbourhoods, and the position in the run.

    Attributes:
        round, epoch: `epoch` epochs of round `round` are completed.
        progress: progress within the next epoch.
        history: the rounds that have begun.
        nearest: {round: (S,) nearest images of the sampled rows}, of this round and the one before.
        clusters: of the round that has just ended, as `Clusters.state` gives them; otherwise empty.
        baselines: accuracies without learning, see `lib.evaluation.baselines`.
        dataset: the description of the training images in a checkpoint.
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
        self.progress = EpochProgress()
        self.history = History()
        self.nearest: dict[int, Tensor] = {}
        self.clusters: dict[str, Any] = {}
        self.baselines: dict[str, float] = {}
        self.dataset: dict[str, Any] = {}

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
        state.dataset = {
            "name": pipeline.name,
            "size": size,
            "fingerprint": pipeline.fingerprint,
            "contents": pipeline.contents,
            "means": list(pipeline.means),
            "stds": list(pipeline.stds),
        }
        return state

    def checkpoint(
        self, memory: Tensor, options: dict[str, Any], session: str, accuracy: Optional[float]
    ) -> dict[str, Any]:
        """The content of a checkpoint; see `lib.checkpoint.io` for its layout.

        It is the same for any number of processes. Its tensors are copies on the CPU.

        Args:
            memory: (N, D), the whole bank, as `Shard.gather_to_first` gave it to this process.
            options: of this run, as `Options.as_dict` gives them.
            session: its name.
            accuracy: top-1 of the kNN evaluation, in [0, 1], if there was one.
        """
        progress = asdict(self.progress)
        state = {
            "net": self.embedder.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ANs_discovery": {name: getattr(self.neighbourhoods, name) for name in SAVED},
            "acc": accuracy,
            "epoch": self.epoch,
            "step": progress.pop("step"),
            "underway": progress,
            "round": self.round,
            "session": session,
            "format": FORMAT,
            "options": options,
            "precision": "fp32" if self.embedder.dtype is None else "bf16",
            "random": _random_state(options["seed"]),
            "history": [asdict(entry) for entry in self.history.rounds],
            "nearest": self.nearest,
            "clusters": {} if self.progress.step else self.clusters,
            "baselines": self.baselines,
            "dataset": self.dataset,
        }
        return {**_copied_to_cpu(state), "npc": {"memory": memory}}

    def resume(self, saved: dict[str, Any], source: str, options: Options, pipeline: Pipeline) -> None:
        """Restore a checkpoint of this run. The options stay those of this call.

        Args:
            saved: the content, as `lib.checkpoint.io.load` returns it.
            source: its name, for messages.
            options, pipeline: of this run.

        Raises:
            UserError: it belongs to another network, feature length or optimiser, or to other images, or its parts
                are invalid.
        """
        try:
            part = non_finite_part(saved)
            if part is not None:
                raise ValueError(f"a number in its {part} is not finite; take an earlier one")
            check_network(self.embedder.network, saved["net"], source)
            self._check_bank(saved, source, options, pipeline)
            self._check_optimizer(saved, source, options)
            _check_neighbourhoods(saved["ANs_discovery"], len(self.bank))
            self.restore(saved)
            check_state(self.optimizer)
            sizes = tuple(len(batch) for batch in pipeline.epoch_order(self.round, self.epoch))
            self.progress.check_fits(sizes, options.iter_size)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
            raise UserError(f"checkpoint {source} cannot be resumed: {reason}") from error

    def restore(self, saved: dict[str, Any]) -> None:
        """Load the content of a checkpoint, the inverse of `checkpoint`; of the bank this process's rows alone.

        Raises:
            TypeError, ValueError, KeyError and others: a part is missing or invalid.
        """
        shard, device = self.bank.shard, self.bank.memory.device
        self.embedder.network.load_state_dict(saved["net"])
        self.bank.memory.copy_(saved["npc"]["memory"][shard.start : shard.stop])
        self._restore_optimizer(saved["optimizer"])
        found = {name: saved["ANs_discovery"][name] for name in SAVED}
        tensors = {name: value.to(device) for name, value in found.items() if isinstance(value, Tensor)}
        self.neighbourhoods = Neighbourhoods(**{**found, **tensors})
        self.round, self.epoch = saved["round"], saved["epoch"]
        self.progress = _epoch_progress(saved.get("step", 0), saved.get("underway", {}))
        self.history.rounds = [Round(**entry) for entry in saved.get("history", [])]
        rounds = [entry.round for entry in self.history.rounds]
        if not rounds or rounds != list(range(min(rounds[0], 1), self.round + 1)):
            raise ValueError(f"its history covers rounds {rounds}, but it was saved in round {self.round}")
        self.nearest = dict(saved.get("nearest", {}))
        self.clusters = dict(saved.get("clusters", {}))
        self.baselines = {str(name): float(top1) for name, top1 in saved.get("baselines", {}).items()}
        _set_random_state(saved.get("random", {}))

    def _check_bank(self, saved: dict[str, Any], source: str, options: Options, pipeline: Pipeline) -> None:
        """Check that a checkpoint's bank belongs to the training images of this run.

        Raises:
            UserError: it does not; the message says what to do.
        """
        shape, expected = tuple(saved["npc"]["memory"].shape), (len(self.bank), self.bank.memory.shape[1])
        if shape != expected:
            raise UserError(
                f"checkpoint {source}: its memory bank is {_shape(shape)}, this run's {_shape(expected)}"
                " (training images x feature length); use the data set, --limit-train and --low-dim it was made with"
            )
        data = saved.get("dataset", {})
        if data.get("fingerprint", pipeline.fingerprint) != pipeline.fingerprint:
            raise UserError(
                f"checkpoint {source}: its memory bank belongs to other training images "
                f"({data['name']}, {data['size']}) than this run's; use the --dataset, "
                "--data-root, --limit-train and --seed it was made with"
            )
        replaced = pipeline.train.replaced(data.get("contents"))
        if replaced.are_other_pictures and not options.restart:
            raise UserError(
                f"checkpoint {source}: its memory bank belongs to other pictures of the same names: {replaced} have "
                "other contents; restore those files, start a new run from its network with --pretrained instead of "
                "--resume, or add --restart to continue with this bank in a new session"
            )

    def _check_optimizer(self, saved: dict[str, Any], source: str, options: Options) -> None:
        before = saved["options"].get("optimizer", options.optimizer)
        if before != options.optimizer:
            raise UserError(
                f"checkpoint {source} was made with --optimizer {before}, not {options.optimizer}: "
                "its state does not fit"
            )

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Load the optimiser's moments. Weight decay and the like stay those of the options."""
        configured = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        # merged before they are loaded: PyTorch chooses the device of Adam's step count by the groups' settings
        groups = [{**group, **settings} for group, settings in zip(saved["param_groups"], configured)]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})


def non_finite_part(saved: dict[str, Any]) -> Optional[str]:
    """The part of a checkpoint that holds a non-finite number: network, optimiser or bank; None if all are finite."""
    parts = {"network": saved["net"], "optimiser": saved["optimizer"], "memory bank": saved["npc"]}
    for name, part in parts.items():
        if not all(_is_finite(tensor) for tensor in _tensors(part) if tensor.is_floating_point()):
            return name
    return None


def _is_finite(tensor: torch.Tensor) -> bool:
    # a non-finite number makes the sum non-finite; but finite ones may overflow
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _copied_to_cpu(value: Any) -> Any:
    """The same plain data with a copy of every tensor on the CPU, so that any machine can load the file."""
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


def _epoch_progress(step: int, saved: dict[str, Any]) -> EpochProgress:
    """Read the epoch progress from the entries `step` and `underway` of a checkpoint."""
    if not step:
        return EpochProgress()
    images, batches = int(saved["images"]), int(saved["batches"])
    return EpochProgress(step, images, batches, float(saved["loss_sum"]), float(saved["seconds"]))


def _check_neighbourhoods(found: Mapping[str, Any], images: int) -> None:
    """Check the anchors and neighbours of a checkpoint for this number of images: a bad index may crash the process.

    Raises:
        ValueError: they do not; the message says why.
    """
    tensors = {}
    for name, dimensions in (("anchor_indexes", 1), ("instance_indexes", 1), ("position", 1), ("neighbours", 2)):
        value = found.get(name)
        if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.dim() != dimensions:
            raise ValueError(f"its {name} are not whole numbers in {dimensions} dimension(s)")
        tensors[name] = value
    anchors, neighbours = tensors["anchor_indexes"], tensors["neighbours"]
    entropy = found.get("entropy")
    if not isinstance(entropy, torch.Tensor) or tuple(entropy.shape) != (images,):
        raise ValueError("its entropy is not one number for each image")
    if len(tensors["position"]) != images or len(anchors) + len(tensors["instance_indexes"]) != images:
        raise ValueError(f"its anchors and instances are not those of {images} images")
    if len(neighbours) != len(anchors):
        raise ValueError("its neighbours are not those of its anchors")
    for name, low, high in (
        ("anchor_indexes", 0, images),
        ("instance_indexes", 0, images),
        ("neighbours", 0, images),
        ("position", -1, len(anchors)),
    ):
        value = tensors[name]
        if value.numel() and not (low <= int(value.min()) and int(value.max()) < high):
            raise ValueError(f"its {name} lie outside {low} to {high - 1}")
    consistency = found.get("consistency")
    if consistency is not None and not isinstance(consistency, float):
        raise ValueError("its consistency is not a number")
