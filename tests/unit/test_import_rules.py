"""The rules of docs/architecture.md, held against the imports in the code."""

import ast
import re

from tests.helpers.runs import ROOT

TABLE = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)


def package(module):
    """The row of the table that a module of this project belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "lib" else parts[0]


def imports():
    """For each package its imports as pairs of a file and the module it imports, those within functions too."""
    found = {}
    for folder in ("lib", "datasets", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            if name == "lib.__init__":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{path}: a relative import"
                    modules = [node.module] if node.module != "lib" else [f"lib.{alias.name}" for alias in node.names]
                found.setdefault(package(name.removesuffix(".__init__")), []).extend((name, each) for each in modules)
    return found


IMPORTS = imports()


def ours(of):
    """Pairs of a file of a package and another package of this project, or its own, that it imports."""
    return {(name, package(module)) for name, module in IMPORTS[of] if package(module) in IMPORTS}


def test_every_package_is_in_the_table():
    assert sorted(TABLE) == sorted(IMPORTS)


def test_packages_import_only_packages_above_them():
    against = [
        (name, imported)
        for place, importing in enumerate(TABLE)
        for name, imported in ours(importing)
        if imported not in TABLE[: place + 1]
    ]
    assert not against


def test_lib_method_imports_neither_files_nor_options_nor_logging():
    for importing in ("lib.method", "lib.search"):
        project = {imported for _, imported in ours(importing)}
        assert project <= {"lib.method", "lib.search", "lib.errors", "lib.distributed"}
        others = {module.split(".")[0] for _, module in IMPORTS[importing]} - {"lib"}
        assert others <= {"torch", "numpy", "faiss", "collections", "dataclasses", "fractions", "math", "typing"}


def test_packages_do_not_import_their_users():
    unknown = {
        "lib.distributed": {"lib.config", "lib.session", "lib.logger"},
        "datasets": {"lib.session", "lib.evaluation", "lib.report"},
    }
    for importing, names in unknown.items():
        assert not {imported for _, imported in ours(importing)} & names
    assert not [name for importing in IMPORTS for name, to in ours(importing) if to == "lib.commands" != importing]


def test_number_of_files_in_lib_and_datasets():
    assert len(list((ROOT / "lib").glob("*.py"))) <= 4
    assert len(list((ROOT / "lib").rglob("*.py"))) <= 110
    assert len(list((ROOT / "datasets").rglob("*.py"))) <= 24
