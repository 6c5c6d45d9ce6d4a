"""Where something is not installed, a script says what to do; a traceback would not."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from common import packages

ROOT = Path(packages.__file__).parents[1]
DOORS = ["train", "evaluate", "inference_image", "inference_video", "export", "app", "datasets"]
ALONE = {"__init__", "mean_of_seeds"}  # need no package
TOOLS = sorted({path.stem for path in (ROOT / "tools").glob("*.py")} - ALONE)


@pytest.mark.parametrize("script", [*DOORS, *(f"tools/{tool}" for tool in TOOLS)])
def test_a_python_without_packages_is_told_to_activate_the_environment(script):
    # -E -S: a Python as in a new terminal, which does not look where packages are installed.
    call = [sys.executable, "-E", "-S", str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: .+ has no package torch: activate the environment first \(.+activate\), or "
        r"install what is needed: .+ -m pip install -r requirements\.txt\n",
        done.stderr,
    )


def test_every_requirement_is_looked_for():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
    found = packages_distributions()
    looked_for = {
        distribution.lower().replace("_", "-")
        for name in packages.NEEDED
        for distribution in found[name]
    }
    assert required <= looked_for
    assert len(packages.NEEDED) == len(required)
    assert packages.missing_packages() == ""


def test_the_command_installs_into_the_python_that_runs(monkeypatch):
    assert packages.install_command("-r a.txt") == f"{sys.executable} -m pip install -r a.txt"
    monkeypatch.setattr(sys, "executable", "/my plants/bin/python")
    assert packages.install_command("av") == '"/my plants/bin/python" -m pip install av'
