"""Scripts know the commands of README.md and docs/, and README's main ones are run in order."""

import argparse
import importlib
import re
import runpy
import shlex
import sys

import pytest
from house import ROOT
from tiny_data import write_data
from tiny_video import write_video

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PEERS = ("unet_resnet34", "segformer_b0", "unet_lite0")
PLACEHOLDERS = {"SEED": "1", "HEAD": "pyramid"}
SHORT = ["--epochs", "1", "--imgsz", "64", "64", "--workers", "0"]
# What comes before a script: settings for one command, Python, or torchrun and its flags.
CALL = re.compile(r"(?:\w+=\S+ )*(?:python|torchrun(?: --\S+)*) (?P<script>\S+\.py)(?P<flags>.*)")


def commands_of(text: str) -> list[str]:
    """The script and flags of each command in a document's blocks and in its sentences."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    # In a sentence a command has its flags where it is meant to be given as it stands.
    inline = [" ".join(found.split()) for found in re.findall(r"`(python [^`]+)`", text)]
    found = [CALL.match(line.strip()) for line in [*blocks.splitlines(), *inline]]
    return [call["script"] + call["flags"] for call in found if call and "..." not in call["flags"]]


COMMANDS = sorted({line for path in DOCUMENTS for line in commands_of(path.read_text("utf-8"))})


class Understood(Exception):
    """A script has read its flags."""


def test_the_documents_hold_commands():
    assert len(COMMANDS) > 60
    assert any(line.startswith("train.py --imgsz 512 512 --epochs 50") for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_flags_that_its_script_knows(line, monkeypatch, capsys):
    words = shlex.split(line, comments=True)
    if words[0] == "tools/run_peer.py":  # which hands all on, and knows more models
        words = ["faster_vit_0" if word in PEERS else word for word in words[1:]]
    parse = argparse.ArgumentParser.parse_args

    def understand(self, *given):
        parse(self, *given)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understand)
    monkeypatch.setattr(sys, "argv", [PLACEHOLDERS.get(word, word) for word in words])
    script = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
    with pytest.raises((Understood, SystemExit)) as end:
        script.main()
    assert isinstance(end.value, Understood) or end.value.code == 0  # as --help has


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what README's reader has: photographs with masks, and a video."""
    write_data(tmp_path / "input/my_leaves", train=4, valid=2)
    write_video(tmp_path / "walk.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readmes_own_way_from_photographs_to_results(clone, monkeypatch):
    """Each command as it stands there; a training is made short by flags after its own."""
    text = (ROOT / "README.md").read_text("utf-8")
    wanted = ("datasets", "tools/preview", "train.py --data input/my_leaves --recipe light")
    wanted += ("evaluate.py --model outputs/best", "inference_image", "inference_video")
    lines = [line for line in commands_of(text) if line.startswith(wanted) and "folds" not in line]
    lines.sort(key=lambda line: [line.startswith(start) for start in wanted].index(True))
    assert len(lines) == len(wanted)
    for line in lines:
        words = shlex.split(line, comments=True)
        monkeypatch.setattr(sys, "argv", words + SHORT * (words[0] == "train.py"))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        assert not end.value.code, line
    made = ("preview/preview.html", "report.html", "evaluation/report.html")
    made += ("inference_results_image/results.csv", "inference_results_video/walk.mp4")
    assert [name for name in made if not (clone / "outputs" / name).is_file()] == []
