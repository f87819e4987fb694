"""A small run in float64, in any number of processes; what it came to is written to a file.

In float32 the last digits of a sum, which depend on how many add it up, grow into visible differences within some
steps of so small a run: batch norm divides by the spread of a few values. In float64 they stay out of sight.

python3 -m tests.helpers.float64_run FILE OPTION...        started by test_distributed_runs.py, alone or by torchrun
"""

import sys

import torch
from torch.nn import functional as F

import datasets
from datasets.pipeline import Pipeline
from lib.config import collect
from lib.distributed import process_group as group
from lib.distributed.process_info import ProcessInfo
from lib.evaluation.evaluator import Evaluator
from lib.nn.embedder import Embedder
from lib.pretrained.bank import start_bank
from lib.training.recorder import Recorder
from lib.training.state import TrainingState
from lib.training.trainer import Trainer


class InFloat64(torch.nn.Module):
    """A ConvNet whose features are not rounded to float32."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        network = self.network
        maps = network.layer3(network.layer2(network.layer1(network.stem(images.double()))))
        features = F.normalize(network.fc(network.avgpool(maps).flatten(1)), dim=1)
        return features if self.training else features.float()


def main(file, arguments):
    options = collect([*arguments, "--debug", "--brief"]).options
    world = group.join(options.gpus, ProcessInfo.here())
    images = datasets.load(options.dataset, options.data_root, options.download)
    pipeline = Pipeline(images, options, world.device, world.rank, world.size)
    state = TrainingState.fresh(options, pipeline, world, None)
    state.bank.double()
    state.embedder = Embedder(InFloat64(state.embedder.network), world.device, world=world)
    state.optimizer.param_groups[0]["params"] = list(state.embedder.network.parameters())
    start_bank(state.bank, options, None, state.embedder, pipeline)
    evaluator = Evaluator(options, pipeline, world)
    recorder, labels = Recorder(options, state, pipeline, evaluator, world), torch.from_numpy(pipeline.train.labels)
    trainer = Trainer(options, state, pipeline, evaluator, recorder, labels, world)
    losses, ordinary = [], trainer.step

    def step(*batch):
        losses.append(ordinary(*batch).item())
        return torch.tensor(losses[-1])

    step.watch = ordinary.watch
    trainer.step = step
    trainer.run()
    bank, found = state.bank.shard.gather_to_first(state.bank.memory), state.neighbourhoods
    if world.is_first:
        torch.save(
            {
                "losses": losses,
                "bank": bank,
                "anchors": found.anchor_indexes,
                "neighbours": found.neighbours,
                "entropy": found.entropy,
                "consistency": found.consistency,
                "knn": [entry.knn_last for entry in state.history.rounds],
                "network": {key: value.clone() for key, value in state.embedder.network.state_dict().items()},
            },
            file,
        )
    group.leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
