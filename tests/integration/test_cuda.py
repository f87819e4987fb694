"""What needs a GPU: the numbers of the CPU, captured steps, and no synchronisation between steps."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import datasets
import models
from datasets.loaders.device import DeviceLoader
from datasets.pipeline import Pipeline
from datasets.transforms.batch import Recipe
from lib.compat import HAS_SEEDS_IN_GRAPHS, capture
from lib.config import Options
from lib.distributed.world import World
from lib.evaluation import linear
from lib.evaluation.features import Features
from lib.evaluation.knn import weighted_knn
from lib.method.discovery import discover
from lib.method.memory_bank import MemoryBank
from lib.method.neighbourhoods import Neighbourhoods
from lib.method.objective import and_loss
from lib.nn.embedder import Embedder
from lib.training.cuda_graph import CapturedStep
from lib.training.optim import build_optimizer
from lib.training.step import FiniteWatch, Step
from main import main
from models.shared_dropout import SharedDropout
from tests.helpers import oracles

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def unit_rows(count, dim, seed):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def exact():
    """Float32 without TF32 and with fixed algorithms, so that two ways of running can be compared."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def trained(optimizer, captured, dtype=None, steps=12, rates=(0.03, 0.003)):
    """Weights, bank and losses after some steps at two learning rates, with a smaller batch now and then."""
    torch.manual_seed(0)
    options = replace(Options(), optimizer=optimizer)
    network = models.build("resnet18", 32, "small", 16)
    embedder = Embedder(network, GPU, dtype)
    embedder.train()
    bank = MemoryBank(64, 32, 0.5, torch.Generator().manual_seed(1)).to(GPU)
    optimiser = build_optimizer(options, network.parameters())
    step = Step(embedder, bank, optimiser, 0.1)
    if captured:
        step = CapturedStep(step)
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2)).to(GPU)
    losses = []
    for rate in rates:
        for group in optimiser.param_groups:
            group["lr"] = rate
        for number in range(steps):
            size = 10 if number % 4 == 3 else 16
            rows = torch.randperm(64, generator=torch.Generator().manual_seed(number))[:size].to(GPU)
            losses.append(step(images[rows], rows[:, None], size))
    if captured:
        assert not step._failed
        assert step._graphs
    return torch.stack(losses).cpu(), bank.memory.cpu(), [value.cpu() for value in network.state_dict().values()]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_captured_steps_learn_as_eager_steps_do(exact, optimizer):
    plain, captured = trained(optimizer, False), trained(optimizer, True)
    torch.testing.assert_close(captured[0], plain[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(captured[1], plain[1], atol=2e-2, rtol=2e-2)
    for ours, theirs in zip(captured[2], plain[2]):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


def test_captured_steps_in_bf16_learn():
    losses, _, _ = trained("sgd", True, torch.bfloat16)
    assert torch.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("captured", [False, True])
def test_a_step_and_its_augmentation_never_synchronise(captured):
    options = Options()
    network = models.build("resnet18", 32, "small", 32)
    embedder = Embedder(network, GPU, None)
    embedder.train()
    bank = MemoryBank(200, 32, 0.5).to(GPU)
    step = Step(embedder, bank, build_optimizer(options, network.parameters()), 0.1)
    if captured:
        step = CapturedStep(step)
    recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, 0.5)
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, device=GPU)
    loader = DeviceLoader(images, 32, (0.5,) * 3, (0.2,) * 3, recipe, 0)
    found = Neighbourhoods.of(
        torch.arange(200, device=GPU),
        torch.arange(1, 201, device=GPU)[:, None] % 200,
        torch.zeros(200, device=GPU),
        None,
    )
    order = torch.arange(200).split(20)

    def learn():
        for images_of_batch, indices in loader.batches(order, (0, 0)):
            step(images_of_batch, found.members(indices), len(indices))

    learn()  # recordings are made here, and algorithms chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        learn()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_made_beside_gpu_work_are_those_of_the_cpu():
    options = Options()
    recipe = Recipe(options.scale, options.ratio, options.colorjitter, options.random_grayscale, 0.5)
    pixels = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    order = torch.arange(300).split(20)
    served = {}
    busy = torch.randn(4096, 4096, device=GPU)
    for device in (CPU, GPU):
        loader, kept = DeviceLoader(pixels.to(device), 32, (0.5,) * 3, (0.2,) * 3, recipe, 0), []
        for images, indices in loader.batches(order, (0, 0)):
            if device is GPU:
                busy = F.normalize(busy @ busy)
            kept.append((images * 1.0, indices + 0))  # read behind the work, and let go of at once
        served[device] = [torch.cat(each).cpu() for each in zip(*kept)]
    torch.testing.assert_close(served[GPU][0], served[CPU][0], atol=1e-4, rtol=1e-4)
    assert torch.equal(served[GPU][1], served[CPU][1])


def test_norms_and_sums_reveal_non_finite_values():
    for value in (1.0, float("nan"), float("inf")):
        watch = FiniteWatch(GPU)
        watch.update(torch.ones((), device=GPU), [torch.ones(3, 2, device=GPU), torch.tensor([1.0, value], device=GPU)])
        assert (watch.found() is None) == (value == 1.0)


def test_the_loss_and_its_gradient_are_those_of_the_cpu():
    features, memory = unit_rows(32, 64, 1), unit_rows(3000, 64, 2)
    members = torch.randint(3000, (32, 3), generator=torch.Generator().manual_seed(0))
    found = {}
    for device in (CPU, GPU):
        x = features.clone().to(device).requires_grad_()
        loss = and_loss(x, memory.to(device), members.to(device), 0.1)
        loss.backward()
        found[device] = loss.detach().cpu(), x.grad.cpu()
    torch.testing.assert_close(found[GPU], found[CPU], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found[GPU][0], oracles.softmax_loss(features, memory, members, 0.1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("backend", ["auto", "torch", "faiss"])
def test_discovery_finds_what_the_cpu_finds(backend):
    memory = unit_rows(3000, 64, 3)
    on_cpu, on_gpu = discover(memory, 2, 0.25, 2, 0.1), discover(memory.to(GPU), 2, 0.25, 2, 0.1, backend)
    torch.testing.assert_close(on_gpu.entropy.cpu(), on_cpu.entropy, atol=1e-4, rtol=1e-5)
    assert set(on_gpu.anchor_indexes.tolist()) == set(on_cpu.anchor_indexes.tolist())
    anchors = on_cpu.anchor_indexes
    ours, theirs = on_gpu.neighbours.cpu()[on_gpu.position.cpu()[anchors]], on_cpu.neighbours[on_cpu.position[anchors]]
    assert (ours == theirs).double().mean() > 0.999


def test_knn_is_that_of_the_cpu():
    database, queries = unit_rows(2000, 32, 4), unit_rows(300, 32, 5)
    labels = torch.randint(10, (2000,), generator=torch.Generator().manual_seed(1))
    truth = torch.randint(10, (300,), generator=torch.Generator().manual_seed(2))
    on_cpu = weighted_knn(queries, truth, database, labels, 10, 50, 0.1)
    on_gpu = weighted_knn(queries.to(GPU), truth.to(GPU), database.to(GPU), labels.to(GPU), 10, 50, 0.1)
    assert on_gpu.top1 == pytest.approx(on_cpu.top1, abs=0.01)


def test_a_tiny_run_and_its_evaluation(tmp_path):
    import main

    arguments = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--limit-train", "50", "--limit-test", "30"]
    arguments += ["--batch-size", "16", "--max-round", "2", "--max-epoch", "2", "--sess-dir", str(tmp_path)]
    arguments += ["--session", "tiny", "--gpus", "0"]
    assert main.main(arguments) == 0
    assert main.main(["--resume", str(tmp_path / "tiny"), "--test-only", "--gpus", "0"]) == 0
    assert main.main(["--resume", str(tmp_path / "tiny"), "--test-only", "--gpus", "cpu"]) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_a_run_resumes_on_another_kind_of_device(optimizer, tmp_path):
    """The device of an optimiser's step counts differs between them."""
    options = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--limit-train", "64", "--batch-size", "16"]
    options += ["--max-round", "2", "--optimizer", optimizer, "--base-lr", "0.001", "--no-report", "--no-log-tfb"]
    session = ["--sess-dir", str(tmp_path), "--session", "s"]
    assert main([*options, *session, "--max-epoch", "2", "--gpus", "cpu", "--max-round", "1"]) == 0
    assert main(["--resume", str(tmp_path / "s"), "--gpus", "0", "--max-epoch", "4"]) == 0
    assert main(["--resume", str(tmp_path / "s"), "--gpus", "cpu", "--max-round", "2"]) == 0


def test_a_step_is_captured_while_pages_are_pinned(tmp_path):
    """The loader's thread pins batches all the time."""
    options = ["--cfgs", "configs/base.yaml", "configs/digits.yaml", "--limit-train", "96", "--batch-size", "8"]
    options += ["--max-round", "1", "--max-epoch", "3", "--augment-on", "workers", "--workers-num", "2", "--gpus", "0"]
    assert main([*options, "--sess-dir", str(tmp_path), "--session", "s", "--no-report", "--no-log-tfb"]) == 0
    assert "not captured" not in (tmp_path / "s" / "log.txt").read_text()


@pytest.mark.skipif(not HAS_SEEDS_IN_GRAPHS, reason="such steps are not captured in this PyTorch")
def test_a_replay_draws_dropout_masks_from_the_current_seed():
    layer, rows = SharedDropout(0.5), torch.ones(64, 64, device=GPU)
    layer.set_rows(0, 64)
    layer(rows)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capture(graph):
        dropped = layer(rows)

    def replayed(seed):
        torch.manual_seed(seed)
        graph.replay()
        return dropped.clone()

    one, other = replayed(1), replayed(2)
    assert not torch.equal(one, other)
    assert torch.equal(replayed(1), one)


def test_linear_probes_whose_training_rows_do_not_fit(exact, monkeypatch):
    """The training rows are then in main memory, the fewer test rows on the GPU."""
    options = replace(Options(), dataset="digits", size=8, low_dim=16, limit_train=200, limit_test=60)

    def accuracies(device):
        pipeline = Pipeline(datasets.load("digits", None, False), options, device)
        torch.manual_seed(0)
        embedder = Embedder(models.build("resnet18", 16, "small", 8), device)
        world = World.alone(device)
        features = Features(embedder, pipeline, world, 16)
        return linear.Linear(pipeline, world, 0, 0, 8).evaluate(features).scalars

    plain = accuracies(CPU)
    places = itertools.cycle([CPU, GPU])
    monkeypatch.setattr(linear, "_device_for", lambda size, device: next(places))
    assert accuracies(GPU) == pytest.approx(plain, abs=0.04)
