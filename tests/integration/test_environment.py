"""What a process inherits: standard streams, environment variables, pipes in place of files, and other packages of
our names. A run continues, and its files are complete."""

import os
import subprocess
import sys
import types

import pytest

import main
from lib.checkpoint import io as checkpoint
from lib.checkpoint.manager import find_checkpoint
from lib.compat import TORCH_RELEASE
from tests.helpers.runs import ROOT, error_line, start

TINY = [
    "--cfgs", "configs/base.yaml", "configs/digits.yaml", "--gpus", "cpu", "--precision", "fp32", "--limit-train", "24",
    "--limit-test", "12", "--batch-size", "12", "--low-dim", "8", "--max-round", "2", "--max-epoch", "1",
    "--tfb-projector", "0",
]  # fmt: skip
FILES = {
    "checkpoint", "config.yaml", "final.json", "log.txt", "metrics.jsonl", "report.html", "starts.jsonl", "tfboard"
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("sessions")
    os.chdir(ROOT)
    assert main.main([*TINY, "--sess-dir", str(folder), "--session", "x"]) == 0
    return folder / "x"


def is_complete(session):
    assert {path.name for path in session.iterdir()} == FILES
    assert (session / "log.txt").read_text().rstrip().endswith(f"TensorBoard files: {session}")
    assert checkpoint.load(find_checkpoint(str(session), ""))["round"] == 1


# --- input that can be read once


def pipe(text):
    """The path of a pipe with this text, as a shell's <(...) gives it."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    return f"/dev/fd/{reading}"


@pytest.mark.parametrize(("how", "more"), [("--resume", []), ("--resume", ["--test-only"]), ("--pretrained", [])])
def test_options_from_a_pipe_count_beside_a_checkpoint(session, capsys, how, more):
    source = find_checkpoint(str(session), "")
    assert main.main([how, str(source), "--cfgs", pipe("max_round: 3\nseed: 12\n"), *more, "--print-args"]) == 0
    cells = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    values = {row[1]: row[2] for row in cells if len(row) > 2}
    assert (values["max_round"], values["seed"]) == ("3", "12")


def test_a_pipe_named_twice_is_read_once(capsys):
    path = pipe("seed: 12\n")
    assert main.main(["--cfgs", path, path, "--print-args"]) == 0
    assert "12" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| seed "))


@pytest.mark.parametrize("option", ["--cfgs", "--labels"])
def test_several_processes_refuse_a_pipe(capsys, option):
    path = pipe("seed: 12\n")
    photos = ["--dataset", "photos"] if option == "--labels" else []
    assert main.main(["--gpus", "0,1", *photos, option, path]) == 2
    expected = f"--gpus 0,1: {path} is a pipe, and 2 processes would read it; save it as a file"
    assert error_line(capsys.readouterr().err) == f"error: {expected}"


@pytest.mark.parametrize("option", ["--resume", "--pretrained"])
def test_a_checkpoint_from_a_pipe_is_refused(capsys, option):
    path = pipe("")
    assert main.main([option, path]) == 2
    assert error_line(capsys.readouterr().err).startswith(f"error: {option} {path}: it is a pipe, and ")


# --- standard streams


class Bare:
    """A minimal replacement of sys.stdout."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class WriteOnly:
    def write(self, text):
        pass


class WindowGone:
    """A replacement of sys.stdout that writes to a window that was closed."""

    def write(self, text=""):
        raise RuntimeError("Internal C++ object already deleted.")

    isatty = flush = write


class Broken(Bare):
    """A stream whose reader closes after a while."""

    def write(self, text):
        super().write(text)
        if "round 0 epoch 1/1" in self.text:
            raise BrokenPipeError(32, "Broken pipe")


class Closed:
    def write(self, text=""):
        raise ValueError("I/O operation on closed file.")

    isatty = flush = write


@pytest.mark.parametrize("kind", [Bare, WriteOnly, WindowGone, Broken, Closed, lambda: None])
def test_a_run_continues_with_any_standard_streams(tmp_path, monkeypatch, kind):
    out, err = kind(), kind()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    assert main.main([*TINY, "--sess-dir", str(tmp_path), "--session", "x"]) == 0
    is_complete(tmp_path / "x")
    if kind is Bare:
        assert out.text.rstrip().endswith(f"TensorBoard files: {tmp_path / 'x'}")
        assert err.text == ""


@pytest.mark.parametrize("kind", [Bare, Broken, Closed, lambda: None])
def test_other_commands_and_mistakes_take_any_stream(session, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("sys.stdout", kind())
    monkeypatch.setattr("sys.stderr", kind())
    assert main.main(["--seed", "x"]) == 2
    (session / "report.html").unlink()
    try:
        main.main(["--resume", str(session), "--report-only"])
        main.main(["--compare", str(session), str(session), "--compare-html", str(tmp_path / "page.html")])
    except BrokenPipeError:
        assert kind is Broken
    except ValueError:
        assert kind is Closed
    assert (session / "report.html").is_file()


def test_a_comparison_with_a_closed_reader_is_written(session, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(ValueError, match="closed file"):
        main.run(main.collect(["--compare", str(session), str(session), "--compare-html", str(tmp_path / "page.html")]),
                 [], main.ProcessInfo())  # fmt: skip
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("closed", [(0, 1, 2), pytest.param((1,), marks=pytest.mark.slow)])
def test_a_run_with_closed_streams_is_complete(tmp_path, closed):
    """The files of a run must not take the descriptors of the streams, or what libraries print would land in them."""
    script = " ".join(["exec", '"$0" "$@"', *(f"{number}>&-" for number in closed)])
    command = ["bash", "-c", script, sys.executable, "main.py", *TINY, "--workers-num", "2", "--augment-on", "workers"]
    done = subprocess.run(
        [*command, "--sess-dir", str(tmp_path), "--session", "x"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    is_complete(tmp_path / "x")


def test_a_reader_that_closes_during_a_run_does_not_end_it(tmp_path):
    process = start(*TINY, "--sess-dir", tmp_path, "--session", "x")
    assert process.stdout.readline().startswith("command ")
    process.stdout.close()
    process.stderr.close()
    process.wait(timeout=120)
    is_complete(tmp_path / "x")


# --- variables of the environment

ODD = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error",
    "OMP_NUM_THREADS": "abc", "COLUMNS": "0", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii",
    "TERM": None, "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "", "TMPDIR": "/nowhere", "CUDA_VISIBLE_DEVICES": "x,-3",
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "abc", "PYTHONHASHSEED": "7",
    "PYTHONOPTIMIZE": "2" if TORCH_RELEASE >= (2, 0) else "1",  # an older one formats docstrings, which 2 takes away
    "TQDM_DISABLE": "1", "TQDM_NCOLS": "x", "TQDM_MININTERVAL": "abc",
}  # fmt: skip


def test_an_odd_environment_changes_nothing(tmp_path):
    once = ["--max-round", "1", "--protocol", "cluster"]
    process = start(*TINY, *once, "--sess-dir", tmp_path, "--session", "x", fresh=True, env=ODD)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert {path.name for path in (tmp_path / "x").iterdir()} == {*FILES, "cluster-table.csv", "cluster-number.png"} - {
        "final.json"
    }
    page = (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5, WORLD_SIZE=2, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0, WORLD_SIZE=0, LOCAL_RANK=0, LOCAL_WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": None}, "MASTER_ADDR="),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "abc"}, "MASTER_PORT=abc"),
    ],
)
def test_variables_of_another_launcher_are_named(monkeypatch, capsys, variables, shown):
    given = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**given, **variables}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert main.main([*TINY, "--debug"]) == 2
    line = error_line(capsys.readouterr().err)
    assert f"but {shown} cannot be; start it by torchrun, or unset RANK" in line


FIGURES = """
import os
from lib.figures.charts import Curve, bars, curves, scatter

def drawn():
    return [curves("a", "", "epoch", "loss", [Curve("l", [1, 2], [3, 4])]), bars("b", "", "x", "y", ["i"], [1], [2]),
            scatter("c", "", [(0.5, 0.5)], [0], ["#123456"])]

before = drawn()
import matplotlib
odd = {"text.usetex": True, "font.size": 40.0, "savefig.bbox": "tight", "lines.linewidth": 9.0, "figure.dpi": 300.0}
matplotlib.rcParams.update(odd)
assert drawn() == before
assert {name: matplotlib.rcParams[name] for name in odd} == odd
assert os.environ["MPLBACKEND"] == "module://nowhere"
"""


def test_figures_ignore_the_users_matplotlib_settings():
    done = subprocess.run(
        [sys.executable, "-c", FIGURES], cwd=ROOT, env={**os.environ, "MPLBACKEND": "module://nowhere"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- names of others' packages

API = """
import sys
sys.path.insert(0, {theirs!r})
{first}
sys.path.append({ours!r})
import and_discovery
{then}
assert [package.WHOSE for package in (datasets, models, lib)] == ["theirs"] * 3
from datasets import transforms
assert transforms.WHOSE == "theirs"
model = and_discovery.load({session!r})
import torch
from PIL import Image
Image.new("RGB", (9, 9), (255, 0, 0)).save({theirs!r} + "/a.png")
paths, here = model.folder({theirs!r})
assert paths == [{theirs!r} + "/a.png"] and here.shape == (1, 8)
[(there, rows)] = model.batches(paths, workers=1)
assert torch.equal(here, there)
try:
    model.features("nowhere.png")
except and_discovery.UserError as error:
    print(error)
"""


@pytest.mark.parametrize("first", [True, False])
def test_other_packages_with_our_names_work_beside_ours(session, tmp_path, first):
    for name in ("datasets", "models", "lib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'theirs'\n")
    (tmp_path / "datasets" / "transforms.py").write_text("WHOSE = 'theirs'\n")
    imports = ["import datasets, models, lib", ""]
    before, after = imports if first else reversed(imports)
    program = API.format(theirs=str(tmp_path), ours=str(ROOT), first=before, then=after, session=str(session))
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nowhere.png: not readable as an image: No such file or directory; replace or remove it\n"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("__file__", "/site-packages/datasets/__init__.py", "/site-packages/datasets/__init__.py"),
        ("__file__", "/home/me/datasets.py", "/home/me/datasets.py"),
        ("__path__", ["/home/me/datasets"], "/home/me/datasets"),
    ],
)
def test_another_package_that_hides_main_is_named(monkeypatch, capsys, name, value, shown):
    """As in a notebook that has imported Hugging Face's datasets, or a folder of data, and then calls main.main."""
    theirs = types.ModuleType("datasets")
    setattr(theirs, name, value)
    ours = [
        each
        for each in sys.modules
        if each == "datasets" or each.startswith(("datasets.", "lib.training.", "lib.commands."))
    ]
    for each in ours:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, "datasets", theirs)
    assert main.main([*TINY, "--debug"]) == 1
    assert error_line(capsys.readouterr().err) == (
        f"error: another package called datasets was imported first ({shown}); run main.py in a process of its own, or "
        "use and_discovery, which works beside it"
    )
