"""The house: imports run downwards, development packages stay in tests, importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every import goes to a strictly lower level, so neighbours, and scripts above all, never meet.
SCRIPTS = 9
LEVELS = {
    "config": 0, "distributed": 0, "errors": 0, "pipeline": 0,
    "backbone": 1, "files": 1, "heads": 1, "losses": 1, "metrics": 1,
    "cli": 2, "engine": 2, "images": 2, "optimisation": 2, "pretrained": 2, "tinting": 2,
    "pairs": 3, "segmentation_model": 3, "training_state": 3, "utils": 3, "video": 3,
    "checkpoint": 4, "masks": 4, "report": 4,
    "dataset_checks": 5, "onnx_model": 5,
    "datasets": 6, "predictor": 6,
    "evaluation": 7,
    "run_folder": 8,
    "benchmark": SCRIPTS, "evaluate": SCRIPTS, "export": SCRIPTS, "inference_image": SCRIPTS,
    "inference_video": SCRIPTS, "sample_data": SCRIPTS, "train": SCRIPTS,
}  # fmt: skip
ROOMS = sorted(path.stem for path in ROOT.glob("*.py"))
# Oracles and tools of the tests; `requirements.txt` does not install them.
DEVELOPMENT_ONLY = {
    "fastervit", "segmentation_models_pytorch", "torchmetrics", "hypothesis", "pytest",
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """The top-level names that a file imports anywhere, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import; rooms are top-level files."
            names.add(node.module.split(".")[0])
        elif _imports_by_name(node):
            names.add(node.args[0].value.split(".")[0])
    return names


def _imports_by_name(node: ast.AST) -> bool:
    """`importlib.import_module("x")` and `__import__("x")`."""
    if not isinstance(node, ast.Call) or not node.args:
        return False
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    text = isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return name in ("import_module", "__import__") and text


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards_only(room):
    assert room in LEVELS, f"{room}.py has no level: give it one in LEVELS of {Path(__file__).name}"
    for name in sorted(imports_of(ROOT / f"{room}.py") & set(ROOMS)):
        assert name in LEVELS, f"{name}.py has no level"
        assert LEVELS[name] < LEVELS[room], (
            f"{room}.py (level {LEVELS[room]}) imports {name}.py (level {LEVELS[name]}), "
            "but imports run downwards only"
        )


def test_all_imports_are_seen_wherever_they_hide(tmp_path):
    code = """
import a, b.c as d
from e.f import g
def function():
    from h import i
    if True:
        import j
    importlib.import_module("k.l")
    return __import__("m")
"""
    (tmp_path / "code.py").write_text(code)
    assert imports_of(tmp_path / "code.py") == set("abehjkm")


def test_development_packages_are_imported_by_tests_alone():
    outside = [
        path
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] != "tests"
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    assert len(outside) >= len(ROOMS) > 10
    for path in outside:
        wrong = imports_of(path) & DEVELOPMENT_ONLY
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, which only tests may"


# Runs in a process of its own: imports every room and reports what that did to the world.
WATCH = """
import json, logging, os, random, sys
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

root, rooms = sys.argv[1], sys.argv[2:]
sys.path.insert(0, root)
import cv2, matplotlib, numpy, timm, torch, torchvision  # what libraries do is not ours
seed, state, handlers = torch.initial_seed(), random.getstate(), list(logging.root.handlers)
numbers, threads = numpy.random.get_state()[1].tolist(), torch.get_num_threads()
sys.addaudithook(watch)
for room in rooms:
    __import__(room)
same = {
    "torch's seed": torch.initial_seed() == seed,
    "random's state": random.getstate() == state,
    "numpy's state": numpy.random.get_state()[1].tolist() == numbers,
    "logging's handlers": logging.root.handlers == handlers,
    "torch's threads": torch.get_num_threads() == threads,
}
print(json.dumps({"touched": touched, "changed": [name for name in same if not same[name]]}))
"""


def test_importing_any_room_does_nothing_else(tmp_path):
    """No network (albumentations asks for its version if it may), no file, no seed, no logging."""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, str(ROOT), *ROOMS],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    *printed, report = finished.stdout.splitlines()
    assert not printed
    assert json.loads(report) == {"touched": [], "changed": []}
    assert not os.listdir(tmp_path)
