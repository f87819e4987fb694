"""Whole commands on machines with little shared memory, few open files, or a long TMPDIR."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.runs import ROOT

PROGRAM = """
import sys
import main
import and_discovery

pictures, out = sys.argv[1:]
train = ["--cfgs", "configs/base.yaml", "configs/imagefolder.yaml", "--data-root", pictures, "--size", "64", "--resize",
         "64", "--batch-size", "35", "--max-round", "1", "--max-epoch", "1", "--low-dim", "8", "--precision", "fp32",
         "--gpus", "cpu", "--no-report", "--no-log-tfb", "--workers-num", "2", "--sess-dir", out, "--num-clusters", "2"]
assert main.main([*train, "--session", "files", "--skip-bad-images"]) == 0
assert main.main([*train, "--session", "small", "--shrink", "70", "--augment-on", "workers"]) == 0
assert main.main(["--resume", out + "/files", "--embed", pictures, "--workers-num", "2", "--brief"]) == 0
model = and_discovery.load(out + "/files")
for workers in (0, 2):
    paths, features = model.folder(pictures, workers=workers)
    print("features", workers, len(paths), features.double().sum().item())
"""


def in_mount_namespace(script, *arguments, **variables):
    """A finished bash script in a mount namespace of its own; its arguments start at `$0`."""
    command = ["unshare", "-rm", "bash", "-c", script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def pictures(tmp_path):
    if in_mount_namespace("mount -t tmpfs tmpfs /dev/shm").returncode != 0:
        pytest.skip("needs user namespaces")
    for name in "ab":
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (35, 66, 70, 3), np.uint8)):
            Image.fromarray(pixels[: 64 + number % 3]).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("machine", ["small", pytest.param("read-only", marks=pytest.mark.slow)])
def test_train_embed_and_the_python_interface_work(tmp_path, pictures, machine):
    """A batch takes 1.7 MB and /dev/shm has 1 MiB, and TMPDIR is too long for a socket; or /dev/shm is read-only."""
    temporary = tmp_path / ("t" * 110)
    temporary.mkdir()
    size = "size=1m" if machine == "small" else "ro"
    script = f'mount -t tmpfs -o {size} tmpfs /dev/shm && exec "$0" -c "$@"'
    done = in_mount_namespace(
        script,
        sys.executable,
        PROGRAM,
        pictures,
        tmp_path / "out",
        TMPDIR=str(temporary),
        PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith("workers ")]
    if machine == "small":
        assert said == []
    else:
        assert said == [
            "workers   none: this process loads the images, which is slower, since their semaphores cannot be made in "
            "/dev/shm (Read-only file system); it must exist and be writable (docker run --tmpfs /dev/shm), or choose "
            "--workers-num 0"
        ]
    here, there = (line.split()[2:] for line in done.stdout.splitlines() if line.startswith("features "))
    assert here == there
    assert here[0] == "70"
    assert (tmp_path / "out" / "files" / "embedded" / "pictures" / "images.csv").is_file()
    assert (tmp_path / "out" / "small" / "final.json").is_file()


@pytest.mark.slow
def test_a_run_with_few_open_files_starts_fewer_workers(tmp_path, pictures):
    done = in_mount_namespace(
        'ulimit -n 32; exec "$0" main.py "$@"', sys.executable,
        "--cfgs", "configs/base.yaml", "configs/imagefolder.yaml", "--data-root", pictures, "--size", "32", "--resize",
        "32", "--batch-size", "35", "--max-round", "1", "--max-epoch", "1", "--low-dim", "8", "--precision", "fp32",
        "--gpus", "cpu", "--sess-dir", tmp_path / "out", "--session", "x", "--augment-on", "workers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "workers   none: this process loads the images, since only 32 files may be open; for all of them: " in (
        done.stdout
    )
    assert (tmp_path / "out" / "x" / "report.html").is_file()
