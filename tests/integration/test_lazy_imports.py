"""Which packages a call imports before it does anything. Each call is forked from one fresh interpreter."""

import json

import pytest

from tests.helpers.cifar import write_cifar
from tests.helpers.runs import ROOT, call
from tests.helpers.sessions import make

PACKAGES = (
    "torch", "torchvision", "torch.distributed.elastic", "numpy", "scipy", "sklearn", "PIL", "yaml", "prettytable",
    "tensorboardX", "tensorboard", "faiss", "tqdm", "matplotlib", "matplotlib.pyplot", "jinja2", "onnx", "onnxruntime",
    "pandas",
)  # fmt: skip
"""What the project imports somewhere, and what slow releases of these bring along."""

RECORD = """
import contextlib, io, json, os, sys
import main

packages, calls, cifar = json.loads(sys.argv[1])


def first_step(*arguments, **options):
    raise KeyboardInterrupt


def answer(arguments):
    if "cifar10" in arguments:
        import torchvision.datasets, lib.evaluation.baselines, lib.training.step
        lib.evaluation.baselines.LARGEST["cpu"] = 0  # of CIFAR's 50,000 images there are none on a CPU
        for name, value in cifar.items():
            setattr(torchvision.datasets.CIFAR10, name, value)
        lib.training.step.Step.__call__ = first_step
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main.main(arguments)
        except SystemExit as stopped:
            status = stopped.code
    return status, [name for name in packages if name in sys.modules], said.getvalue()


for arguments in calls:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        print(json.dumps(answer(arguments)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """For each call its exit status, the imported packages, and the output."""
    import torchvision

    folder = tmp_path_factory.mktemp("start")
    cifar = write_cifar(torchvision.datasets.CIFAR10, folder / "cifar10")
    sessions = [str(make(folder / name)) for name in "ab"]
    config = ["--cfgs", "configs/base.yaml"]
    calls = {
        "help": ["--help"],
        "mistake": ["--nonsense"],
        "missing file": ["--cfgs", "missing.yaml"],
        "print-args": [*config, "--print-args"],
        "compare": ["--compare", *sessions, "--sess-dir", str(folder)],
        "run": [*config, "--dataset", "cifar10", "--data-root", str(folder / "cifar10"), "--gpus", "cpu",
                "--sess-dir", str(folder / "sessions")],
    }  # fmt: skip
    given = json.dumps([PACKAGES, list(calls.values()), cifar])
    status, out, err = call(given, program=["-c", RECORD], fresh=True, cwd=ROOT)
    assert (status, err) == (0, ""), err
    answers = [json.loads(line) for line in out.splitlines()]
    return {name: (status, set(packages), said) for name, (status, packages, said) in zip(calls, answers)} | {
        "page": (folder / "compare-a-b.html").exists()
    }


@pytest.mark.parametrize(("name", "status", "packages"), [
    ("help", 0, set()),
    ("mistake", 2, set()),
    ("missing file", 2, {"yaml"}),
    ("print-args", 0, {"yaml", "prettytable"}),
    ("compare", 0, {"yaml", "prettytable", "numpy", "PIL", "matplotlib", "jinja2"}),
    ("run", 130, {"yaml", "torch", "torchvision", "numpy", "PIL", "tqdm", "tensorboardX"}),
])  # fmt: skip
def test_a_call_imports_only_the_packages_it_uses(started, name, status, packages):
    assert started[name][:2] == (status, packages), started[name][2]


def test_compare_prints_the_same_without_them(started):
    assert "A  a: all 2 rounds completed" in started["compare"][2]
    assert started["page"]
