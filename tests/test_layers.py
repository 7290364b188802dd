"""The shape of the source: which module may import which, and how long things may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mambaad

PACKAGE = Path(mambaad.__file__).parent

LAYERS = [
    {"constants", "errors", "interrupt", "threads", "triton_support"},
    {"files"},
    {"checks", "layout_names", "recipes", "settings_table", "tiling"},
    {"train_config"},
    {
        "blend",
        "config",
        "corruptions",
        "devices",
        "fused",
        "heatmap",
        "metrics",
        "parallel",
        "pipeline",
        "replay",
        "scan",
        "scores",
        "sheets",
    },
    {"data", "model", "drawing", "grids", "presets"},
    {
        "average",
        "batches",
        "checkpoint",
        "counting",
        "measure",
        "device_metrics",
        "examples",
        "graphs",
        "grouping",
        "inference",
        "mixed",
        "optimisers",
        "prediction",
        "reading",
        "schedules",
        "steps",
    },
    {"calibrate", "compare", "convert", "fit", "prediction_tables", "splits", "state"},
    {"evaluate", "kept_pictures", "predict", "steplog"},
    {"extend_settings", "train", "report", "results"},
    {"extend", "testing", "profile", "stress", "tune", "display", "serve", "runtime"},
    {"ablate", "demo", "options"},
    {"tools", "tools_data", "tools_extend", "tools_stress", "tools_studies", "tools_tune"},
    {"cli", "__init__"},
    {"__main__"},
]
"""From the bottom to the top. A part imports from layers below its own, and from itself."""

LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

WITHOUT = {
    "fused": {"mambaad.config"},
    "metrics": {"mambaad.config", "torch"},
    "scan": {"mambaad.config"},
}
"""What a part does without although its layer would allow it."""

KERNELS = ("_task", "_kernel")
"""Functions whose names end so are written out for a compiler and may be longer."""

FILE_LINES, FUNCTION_LINES = 400, 60


def part_of(name: str) -> str:
    """``scan`` for scan/cpu, ``train`` for train, ``report`` for report_page and its sisters."""
    first = name.replace(".", "/").partition("/")[0]
    return "report" if first.startswith("report_") else first


def imports(tree: ast.Module) -> Iterator[str]:
    """Every imported module by its full name, also inside functions.

    ``from mambaad import x`` counts as mambaad.x if that is a part, else as the package itself,
    apart from the version, which the package defines before it imports anything.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif node.module == "mambaad":
                for name in node.names:
                    if name.name != "__version__":
                        known = part_of(name.name) in LEVEL
                        yield f"mambaad.{name.name if known else '__init__'}"
            else:
                yield node.module or ""


def wrong_imports(package: Path) -> list[str]:
    wrong = []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package).as_posix()
        importer = part_of(where.removesuffix(".py"))
        if importer not in LEVEL:
            wrong.append(f"{where} is in no layer")
            continue
        for module in imports(ast.parse(file.read_text(encoding="utf-8"))):
            banned = WITHOUT.get(importer, set())
            if any(module == name or module.startswith(f"{name}.") for name in banned):
                wrong.append(f"{where} imports {module}")
            if module.startswith("."):
                wrong.append(f"{where} imports {module}, which is relative")
            if module.partition(".")[0] != "mambaad":
                continue
            imported = part_of(module.partition(".")[2] or "__init__")
            if imported not in LEVEL:
                wrong.append(f"{where} imports {imported}, which is in no layer")
            elif imported != importer and LEVEL[imported] >= LEVEL[importer]:
                wrong.append(f"{where} imports {imported}")
    return wrong


def too_long(package: Path) -> list[str]:
    long = []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package).as_posix()
        source = file.read_text(encoding="utf-8")
        lines = len(source.splitlines())
        if lines > FILE_LINES:
            long.append(f"{where}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES and not node.name.endswith(KERNELS):
                    long.append(f"{where}: {node.name} has {lines} lines")
    return long


def test_imports_go_down_only() -> None:
    assert wrong_imports(PACKAGE) == []


def test_files_and_functions_are_short() -> None:
    assert too_long(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("scan/orders.py", "from mambaad.model import build", "scan/orders.py imports model"),
        ("scan/orders.py", "import mambaad.config", "scan/orders.py imports mambaad.config"),
        ("metrics/ranking.py", "    import torch.nn", "metrics/ranking.py imports torch.nn"),
        ("data/x.py", "from mambaad import model", "data/x.py imports model"),
        ("train.py", "from mambaad import Detector", "train.py imports __init__"),
        ("data/x.py", "from mambaad import report_page", "data/x.py imports report"),
        ("train.py", "import mambaad", "train.py imports __init__"),
        ("train.py", "from mambaad.report import table", "train.py imports report"),
        ("train.py", "from mambaad.news import x", "train.py imports news, which is in no layer"),
        ("train.py", "from .config import x", "train.py imports .config, which is relative"),
        ("news.py", "import os", "news.py is in no layer"),
    ],
)
def test_the_rule_finds_it(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"def f():\n    {line}\n")
    found = wrong_imports(tmp_path)
    assert complaint in found


def test_allowed_imports(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.py").write_text(
        "import torch\nfrom mambaad.data.y import z\nfrom mambaad import __version__, config\n"
        "from mambaad.errors import DatasetError\n"
    )
    assert wrong_imports(tmp_path) == []


def test_lengths_are_counted(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    body = "    pass\n" * FUNCTION_LINES
    (tmp_path / "scan" / "cpu_kernels.py").write_text(f"def a_task():\n{body}def b():\n{body}")
    (tmp_path / "train.py").write_text(f"class C:\n    def a_task(self):\n{'    ' * 1 + body}")
    (tmp_path / "long.py").write_text("x = 1\n" * (FILE_LINES + 1))
    assert too_long(tmp_path) == [
        "long.py: 401 lines",
        "scan/cpu_kernels.py: b has 61 lines",
    ]
