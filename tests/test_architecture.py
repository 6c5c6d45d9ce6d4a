"""The house: imports run downwards, development packages stay in tests, importing does nothing."""

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from house import ROOT, modules
from tiny_data import write_data

# The floors from the ground up, by wing or by file at the top. An import goes to a lower floor, or
# downwards within its own wing.
FLOORS = (
    {"config", "common"},
    {"models", "data", "metrics", "video"},
    {"segmentation_model", "datasets", "utils"},
    {"training", "reporting"},
    {"engine", "inference"},
    {"trust"},
    {"page"},
    {"train", "evaluate", "inference_image", "inference_video", "export", "app", "tools"},
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
MODULES = modules()
# Oracles of the tests; `requirements.txt` does not install them.
DEVELOPMENT_ONLY = {
    "axe_playwright_python",
    "cleanlab",
    "fastervit",
    "hypothesis",
    "playwright",
    "psutil",
    "pycocotools",
    "pytest",
    "segmentation_models_pytorch",
    "torchmetrics",
}
PEERS = {"tools.run_peer", "tools.bench_peers"}  # compare with other people's models
PEER = {"segmentation_models_pytorch"}


def imports_of(path: Path) -> set[str]:
    """The dotted names that a file imports anywhere; of `from a import b` both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import; write the whole name."
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif _imports_by_name(node):
            names.add(node.args[0].value)
    return names


def _imports_by_name(node: ast.AST) -> bool:
    """`importlib.import_module("x")` and `__import__("x")`."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    text = isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return name in ("import_module", "__import__") and text


def wing_of(name: str) -> str:
    return name.split(".")[0]


def arrows(files: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules of the house each one imports; its own package's description is none."""
    return {
        name: {
            other for other in imports_of(path) & files.keys() if other not in (name, wing_of(name))
        }
        for name, path in files.items()
    }


def faults(files: dict[str, Path]) -> list[str]:
    """What is wrong with the imports: unknown modules, arrows that run up, circles."""
    found = [f"{name} has no floor" for name in files if wing_of(name) not in FLOOR]
    drawn = arrows(files)
    for name, others in drawn.items():
        for other in sorted(others):
            own, its = FLOOR.get(wing_of(name), 0), FLOOR.get(wing_of(other), 0)
            if its >= own and wing_of(other) != wing_of(name):
                found.append(f"{name} (floor {own}) imports {other} (floor {its})")
    try:
        list(TopologicalSorter(drawn).static_order())
    except CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


def test_imports_run_downwards_only():
    assert faults(MODULES) == []


def test_every_module_of_the_tree_is_seen():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    tracked = {ROOT / line for line in listed.stdout.splitlines() if not line.startswith("tests/")}
    assert tracked <= set(MODULES.values())
    assert len(MODULES) > 40
    assert {wing_of(name) for name in MODULES} == FLOOR.keys()


def test_the_readmes_layout_names_every_door_and_wing():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, layout = text.partition("## How it is built")
    assert [wing for wing in FLOOR if not re.search(rf"`{wing}(\.py|/)`", layout)] == []


@pytest.mark.parametrize(
    ("name", "code", "fault"),
    [
        (
            "common/x.py",
            "def f():\n    import models.heads",
            "common.x (floor 0) imports models.heads",
        ),
        ("train.py", "from evaluate import main", "train (floor 7) imports evaluate (floor 7)"),
        ("cellar/x.py", "", "cellar.x has no floor"),
        ("data/x.py", "from data import y", "a circle"),
        ("data/x.py", "__import__('engine')", "data.x (floor 1) imports engine"),
    ],
)
def test_a_fault_in_the_house_is_found(tmp_path, name, code, fault):
    for other in ("models/heads.py", "evaluate.py", "engine.py"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/y.py").write_text("import data.x")
    (tmp_path / "data/x.py").touch()
    assert faults(modules(tmp_path)) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(code)
    assert [text for text in faults(modules(tmp_path)) if text.startswith(fault)]


def test_development_packages_are_imported_by_tests_alone():
    for name, path in MODULES.items():
        wrong = {wing_of(other) for other in imports_of(path)} & DEVELOPMENT_ONLY
        assert wrong <= (PEER if name in PEERS else set()), f"{name} imports {wrong}"


# Runs in a process of its own: imports every room, lets one of them check a data set, and reports
# what that did to the world.
WATCH = """
import contextlib, io, json, logging, os, random, sys
touched = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        touched.append((event, str(arguments)[:200]))
        raise ConnectionRefusedError("no network in this test")
    if event in ("subprocess.Popen", "os.system"):
        touched.append((event, str(arguments)[:200]))
    if event in ("open", "os.mkdir", "os.remove") and isinstance(arguments[0], str):
        flags = arguments[2] if event == "open" else os.O_CREAT
        writes = flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and os.path.abspath(arguments[0]).startswith((root, os.getcwd())):
            touched.append((event, arguments[0]))

root, data, *rooms = sys.argv[1:]
sys.path.insert(0, root)
import cv2, matplotlib, numpy, timm, torch, torchvision  # what libraries do is not ours
seed, state, handlers = torch.initial_seed(), random.getstate(), list(logging.root.handlers)
numbers, threads = numpy.random.get_state()[1].tolist(), torch.get_num_threads()
sys.addaudithook(watch)
for room in rooms:
    __import__(room)
sys.argv = ["datasets.py", data]
with contextlib.redirect_stdout(io.StringIO()):
    code = __import__("datasets").main()
same = {
    "torch's seed": torch.initial_seed() == seed,
    "random's state": random.getstate() == state,
    "numpy's state": numpy.random.get_state()[1].tolist() == numbers,
    "logging's handlers": logging.root.handlers == handlers,
    "torch's threads": torch.get_num_threads() == threads,
}
changed = [name for name in same if not same[name]]
print(json.dumps({"touched": touched, "changed": changed, "code": code}))
"""


def test_importing_any_room_does_nothing_else_and_checking_data_asks_no_network(tmp_path):
    """No network (albumentations asks for its version if it may), no file, no seed, no logging."""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    rooms = [name for name in MODULES if name not in PEERS | {"tools.bench_video"}]
    data, empty = write_data(tmp_path / "data"), tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", WATCH, str(ROOT), str(data), *rooms]
    finished = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    *printed, report = finished.stdout.splitlines()
    assert not printed
    assert json.loads(report) == {"touched": [], "changed": [], "code": 0}
    assert not os.listdir(empty)
