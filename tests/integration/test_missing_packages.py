"""Environments in which packages are missing or too new: what still works, and the errors."""

import importlib.util
import json
import sys
from importlib import metadata

import pytest

import main
from lib.errors import UserError
from lib.logger import console
from lib.runtime.packages import check_packages
from tests.helpers.runs import TINY, error_line
from tests.helpers.sessions import make


def installed(monkeypatch, **versions):
    def version(name):
        if versions.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("torch", "numpy", "setuptools", "refused"),
    [
        ("1.10.2", "2.0.2", "58.1.0", 'NumPy 2.0.2; pip install "numpy<2"'),
        ("1.10.2", "2.0.2", "82.0.1", 'NumPy 2.0.2 and setuptools 82.0.1; pip install "numpy<2" "setuptools<60"'),
        ("1.10.2", "1.26.4", "70.0.0", 'setuptools 70.0.0; pip install "setuptools<60"'),
        ("2.2.2+cu121", "2.1.0", None, 'NumPy 2.1.0; pip install "numpy<2"'),
        ("1.10.2", "1.26.4", "65.5.0", None),
        ("2.3.0", "2.0.0", "82.0.1", None),
        ("2.14.1", "2.4.6", None, None),
        (None, "2.0.2", "82.0.1", None),
    ],
)
def test_packages_too_new_for_an_older_pytorch_are_named(monkeypatch, torch, numpy, setuptools, refused):
    installed(monkeypatch, torch=torch, numpy=numpy, setuptools=setuptools)
    if refused is None:
        check_packages()
        return
    with pytest.raises(UserError) as caught:
        check_packages()
    assert str(caught.value) == f"PyTorch {torch} does not work with {refused}"


def test_an_incompatible_package_is_one_line_before_anything_else(monkeypatch, capsys):
    installed(monkeypatch, torch="1.10.2", numpy="2.0.2")
    assert main.main([*TINY, "--debug"]) == 2
    captured = capsys.readouterr()
    assert error_line(captured.err).endswith('pip install "numpy<2"')
    assert captured.out == ""


@pytest.fixture
def without_tqdm_and_jinja2(monkeypatch):
    """A package that is None in `sys.modules` fails to import like one that is not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else found(name, *rest)
    )
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)


def test_a_run_needs_neither_tqdm_nor_jinja2(without_tqdm_and_jinja2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = ["--no-brief", "--report", "--display-freq", "1"]
    arguments = [*TINY, *shown, "--sess-dir", str(tmp_path), "--session", "s"]
    assert main.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    said = [line for line in captured.out.splitlines() if "jinja2" in line]
    assert said == [
        f"report    left out: it needs the package jinja2; pip install jinja2, and --resume {tmp_path / 's'} "
        "--report-only writes it later"
    ]
    assert any(
        line.startswith("round 1/1 epoch 2/2  loss ") and line.endswith("left") for line in captured.out.splitlines()
    )
    assert len((tmp_path / "s" / "metrics.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "s" / "report.html").exists()
    assert json.loads((tmp_path / "s" / "final.json").read_text())["top1"] > 0


def test_a_comparison_without_jinja2_is_printed(without_tqdm_and_jinja2, tmp_path, capsys):
    folders = [str(make(tmp_path / name)) for name in ("one", "two")]
    assert main.main(["--compare", *folders, "--sess-dir", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    assert "top-1, last" in out
    assert out.endswith("no page: it needs the package jinja2 (pip install jinja2)\n")
    assert main.main(["--compare", *folders, "--compare-html", str(tmp_path / "x.html")]) == 2
    assert "--compare-html: a page needs the package jinja2; pip install jinja2" in error_line(capsys.readouterr().err)
