"""Statements of README, docs and docstrings about the paper, checked against the code."""

import importlib
import re

import pytest
import torch

import lib.method
from benchmarks import busy
from benchmarks.cluster_number import features
from lib.config import collect
from lib.runtime.device import precision_note
from tests.helpers.runs import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """Cells of the Markdown tables' lines."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


EQUATIONS = [(cells[0], cells[2]) for cells in rows(section("The equations")) if re.match(r"\d", cells[0])]


@pytest.mark.parametrize(("numbers", "places"), EQUATIONS)
def test_the_functions_of_the_table_say_which_equation_they_are(numbers, places):
    first = re.findall(r"\d+", numbers)[0]
    docstrings = []
    for place in re.findall(r"`([\w.]+)`", places):
        module, *names = place.split(".")
        found = importlib.import_module(f"lib.method.{module}")
        for name in names:
            found = getattr(found, name)
        docstrings.append(found.__doc__ + importlib.import_module(f"lib.method.{module}").__doc__)
    assert docstrings
    if numbers != "9 to 11":  # the gradients, written out in the docstring of the module
        assert all(re.search(rf"equation {first}\b|\({first}\)", text, re.IGNORECASE) for text in docstrings)
    else:
        assert "its gradient is" in docstrings[0]


def test_equations_have_the_papers_numbers():
    numbered = dict(EQUATIONS)
    assert "anchor_count" in numbered["6"]  # the share of anchors, S = r / R
    assert "neighbourhood_log_likelihood" in numbered["3, 4"]
    docstring = [re.split(r"\s{2,}", line) for line in lib.method.__doc__.splitlines() if re.match(r"\d", line)]
    assert [(cells[0], cells[2]) for cells in docstring] == [(n, places.replace("`", "")) for n, places in EQUATIONS]
    drawing = (ROOT / "docs" / "method.svg").read_text(encoding="utf-8")
    assert "(1 − η) m_i + η x_i) (eq. 8)" in drawing  # the paper's eta weighs the new feature
    assert "anchors (eq. 6)" in drawing


def test_no_symbol_that_the_paper_does_not_have():
    for path in [ROOT / "README.md", *(ROOT / "docs").iterdir(), *(ROOT / "lib").rglob("*.py")]:
        assert path.suffix == ".png" or "S_r" not in path.read_text(encoding="utf-8"), path


def test_every_published_figure_has_its_source():
    text = section("Results")
    table = [cells for cells in rows(text) if cells[0].startswith(("AlexNet", "ResNet18"))]
    assert len(table) == 5
    for cells in table:
        mark = re.match(r"\[[a-z]\]", cells[-1]).group()
        assert f"\n{mark} " in text or f". {mark} " in text, cells
    assert "96.1, 93.9, 89.8, 82.5 %" in DOCS["reproducibility.md"]
    for figures in (["34.5", "12.1", "56.8"], ["80.8", "50.7", "93.6"]):
        source = next(cells[-1] for cells in table if cells[1:4] == figures)
        assert source in ("[a]", "[s]")  # not this paper


def test_the_line_for_the_published_environment_has_the_versions_of_requirements_yaml():
    line = re.search(r"pip install (torch==.*?)```", README, re.DOTALL)[1]
    pinned = (ROOT / "requirements.yaml").read_text(encoding="utf-8")
    wanted = re.findall(r"- (?:py)?(torch|torchvision|faiss-cpu|numpy|setuptools)(=|<)([\d.]+)", pinned)
    assert len(wanted) == 5
    for name, relation, version in wanted:
        assert f"{name}{'==' if relation == '=' else relation}{version}" in line


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1800
    for name, text in {"README.md": README, **{f"docs/{page}": text for page, text in DOCS.items()}}.items():
        for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
            if target and "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def _anchor(title):
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_heading_that_a_link_names_is_there():
    pages = {ROOT / "README.md": README, **{ROOT / "docs" / page: text for page, text in DOCS.items()}}
    headings = {page: set(map(_anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE))) for page, text in pages.items()}
    for page, text in pages.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", text):
            assert anchor in headings[(page.parent / target).resolve() if target else page], f"{page.name}: #{anchor}"


def test_the_project_table_asks_for_what_requirements_txt_lists():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert re.findall(r'"([^"]+)"', listed) == [line for line in lines if line and not line.startswith("#")]


def test_the_log_names_the_papers_precision():
    assert precision_note("auto", torch.bfloat16).endswith("--precision fp32 computes in it")
    assert (
        precision_note("bf16", torch.bfloat16) is precision_note("auto", None) is precision_note("fp32", None) is None
    )


@pytest.mark.parametrize(
    "arguments", [busy.RUN, ["--cfgs", "configs/base.yaml", "configs/digits.yaml", *features.OPTIONS]]
)
def test_benchmarks_on_digits_train_the_network_of_their_figures(monkeypatch, arguments):
    """ResNet18 in bfloat16 where the hardware has it, whatever the demo trains."""
    monkeypatch.chdir(ROOT)
    options = collect(arguments).options
    assert (options.dataset, options.network, options.precision) == ("digits", "resnet18", "auto")
