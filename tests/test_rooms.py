"""The house: which room of the package may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ad_keras"
COMMANDS = ("train", "export", "dream", "evaluate", "reproduce", "tune")
FLOORS = [
    ("__main__",),
    COMMANDS,
    ("reproduction",),
    ("evaluation", "tuning"),
    *((room,) for room in ("runs", "measures", "pad", "compute", "data", "cli", "errors")),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(source: str) -> set[str]:
    """The rooms of `ad_keras` that a module's import statements name, wherever they stand."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "ad_keras" and len(name) > 1}


def forbidden(room: str, imported: set[str]) -> list[str]:
    """What of it is neither the room itself nor on a lower floor."""
    return sorted(
        other for other in imported if other != room and FLOOR.get(other, -1) <= FLOOR[room]
    )


MODULES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_its_own_room_and_lower_ones(file):
    room = room_of(file)
    assert room in FLOOR, f"{room} has no place in the house"
    assert forbidden(room, rooms_imported(file.read_text())) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("runs", "from ad_keras.evaluation.suite import Suite"),
        ("pad", "import ad_keras.runs.config"),
        ("evaluation", "def f():\n    from ad_keras.tuning import search"),
        ("measures", "from ad_keras import reproduction"),
        ("cli", "from ad_keras import train"),
        ("runs", "from ad_keras.helpers import anything"),
    ],
)
def test_the_rule_finds_what_runs_back_up(room, line):
    assert len(forbidden(room, rooms_imported(line))) == 1
