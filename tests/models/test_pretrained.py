"""Weights from outside load completely or not at all, and never run code."""

import argparse
import http.server
import os
import re
import socket
import threading
from pathlib import Path

import literal
import pytest
import torch
from literal import SMALL, learnt, randomise
from narrow import narrow_model, narrowed
from torch import nn

import segmentation_model
from common.errors import UserError
from models import digests, pretrained, variants
from models.heads import is_head
from models.pretrained import load_backbone, load_weights
from segmentation_model import build_model

LINE = re.compile(
    r"(\d+) of (\d+) ImageNet tensors loaded, (\d+) position tables recomputed for (\d+)x(\d+)"
)


def small_package(resolution: int = 224) -> nn.Module:
    model = literal.package.FasterViT(resolution=[resolution, resolution], **SMALL).eval()
    randomise(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, resolution, resolution))  # fills its caches
    return model


def write_as_nvidia(model: nn.Module, path: Path, prefix: str = "module.", **changes) -> Path:
    """The format of the published files."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    arguments = argparse.Namespace(model="faster_vit_0_224", lr=5e-3, input_size=(3, 224, 224))
    optimizer = {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": []}
    content = {"epoch": 299, "arch": "faster_vit_0_224", "state_dict": state, "version": 2}
    content |= {"args": arguments, "optimizer": optimizer, "amp_scaler": {"scale": 65536.0}}
    torch.save(content | changes, path)
    return path


@pytest.fixture(scope="module")
def package():
    return small_package()


@pytest.fixture
def nvidia_file(package, tmp_path):
    return write_as_nvidia(package, tmp_path / "faster_vit.pth.tar")


def assert_same_backbone(model: nn.Module, package: nn.Module) -> None:
    own = model.state_dict()
    for name, tensor in learnt(package).items():
        assert torch.equal(own[name], tensor), name


# --- Files of NVIDIA, of the article, of ours -----------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_file_in_nvidias_format_loads_completely(package, tmp_path, prefix):
    path = write_as_nvidia(package, tmp_path / "weights.pth.tar", prefix)
    model = narrow_model(resolution=(320, 160))
    head = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("upsample_and")}
    line = load_backbone(model, path)
    count, total, tables, *size = (int(number) for number in LINE.fullmatch(line).groups())
    assert count == total > 50
    assert tables == sum(name.endswith(".relative_bias") for name in package.state_dict())
    assert size == [320, 160]
    assert_same_backbone(model, package)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in head.items())


def test_caches_of_another_size_have_no_part_in_the_result(tmp_path):
    """The file was written at 224, the model is used at 256: as the package does at 256."""
    at_224, at_256 = small_package(224), small_package(256)
    path = write_as_nvidia(at_224, tmp_path / "weights.pth.tar")
    model = narrow_model()
    load_backbone(model, path)
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        actual = model.forward_features(images)[1][-1]
        expected = literal.level_maps(at_256, images)[-1]
    assert literal.relative_error(actual, expected) < 1e-5


def test_the_articles_function_loads_and_says_so(tmp_path, capsys):
    """FasterViT-0 as it is published; no network is asked, since the file is there."""
    with torch.device("meta"):
        reference = build_model()
    shapes = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in reference.state_dict().items()
        if not is_head(name)
    }
    shapes["levels.3.blocks.0.norm1.weight"] += 7
    path = tmp_path / "faster_vit_0.pth.tar"
    torch.save({"state_dict": shapes, "args": argparse.Namespace(a=1)}, path)
    model = segmentation_model.faster_vit_0_any_res(
        pretrained=True, resolution=[512, 512], model_path=str(path)
    )
    assert (model.levels[3].blocks[0].norm1.weight == 7).all()
    count, total, *_ = (int(n) for n in LINE.fullmatch(capsys.readouterr().out.strip()).groups())
    assert count == total >= 367


def test_the_articles_checkpoint_brings_its_head(tmp_path):
    article = randomise(narrowed(literal.ArticleModel((224, 224), **SMALL)), seed=5)
    path = tmp_path / "best_model_iou.pth"
    torch.save({"epoch": 3, "model_state_dict": article.state_dict()}, path)
    assert any(name.endswith(literal.CACHES) for name in article.state_dict())
    model = narrow_model()
    assert "segmentation head" in load_backbone(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, article.state_dict()[name]), name


def test_of_a_checkpoint_with_other_classes_all_but_the_classifier_is_kept(tmp_path):
    trained, model = narrow_model(num_classes=5, seed=9), narrow_model()
    path = tmp_path / "best_model_iou.pth"
    torch.save({"format": 1, "model_state_dict": trained.state_dict()}, path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_backbone(model, path)
    for name, tensor in model.state_dict().items():
        expected = before if name.startswith("upsample_and_classify.13.") else trained.state_dict()
        assert torch.equal(tensor, expected[name]), name
    assert model.upsample_and_classify[13].out_channels == 3


def test_a_bare_state_dict_loads_too(tmp_path, package):
    torch.save(learnt(package), tmp_path / "bare.pth")
    model = narrow_model()
    load_backbone(model, tmp_path / "bare.pth")
    assert_same_backbone(model, package)


# --- What is refused ------------------------------------------------------------------------------


def refusal(path: Path, model: nn.Module | None = None) -> str:
    """The one sentence; the model is as it was."""
    model = narrow_model() if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_backbone(model, path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    return message


LEARNT = [
    "levels.2.blocks.1.hat_attn.qkv.weight",
    "levels.2.global_tokenizer.pos_embed.bias",
    "levels.0.blocks.0.norm1.running_var",
    "patch_embed.conv_down.0.weight",
    "head.weight",
]


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.parametrize("fault", ["missing", "shape", "nan", "inf"])
def test_a_learnt_tensor_that_is_missing_or_wrong_is_named(package, tmp_path, name, fault):
    state = {key: tensor.clone() for key, tensor in package.state_dict().items()}
    if fault == "missing":
        del state[name]
    elif fault == "shape":
        state[name] = torch.zeros(*state[name].shape, 2)
    else:
        state[name].view(-1)[-1] = float(fault)
    path = write_as_nvidia(package, tmp_path / "w.pth.tar", state_dict=state)
    assert name in refusal(path)


def test_a_file_of_another_variant_is_refused(tmp_path):
    other = literal.package.FasterViT(resolution=[224, 224], **(SMALL | {"dim": 24}))
    refusal(write_as_nvidia(other, tmp_path / "w.pth.tar"))


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 0.5, 0.999])
def test_a_truncated_file_is_refused(nvidia_file, keep):
    data = nvidia_file.read_bytes()
    nvidia_file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    assert "damaged or no checkpoint" in refusal(nvidia_file)


NO_CHECKPOINTS = {
    "html": b"<!DOCTYPE html><html>404</html>",
    "text": b"hello",
    "utf-8": "naïve\n".encode() * 1000,
    "zip header": b"PK\x03\x04zip",
    "empty dictionary": b"\x80\x02}q\x00.",
    "zeros": b"\x00" * 4096,
}


@pytest.mark.parametrize("data", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, data):
    path = tmp_path / "faster_vit_0.pth.tar"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.zeros(3), {}, {"state_dict": {}}, {"state_dict": {"a": 1}}, 7],
    ids=repr,
)
def test_a_file_with_something_else_inside_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    refusal(tmp_path / "other.pth")


def test_a_path_that_is_no_file_is_refused(tmp_path):
    assert "is not a file" in refusal(tmp_path)
    assert "is not a file" in refusal(tmp_path / "missing.pth")


class Planted:
    """Unpickled, it would run a command."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo owned > '{self.path}'",)


@pytest.mark.parametrize("place", ["args", "optimizer", "state_dict", "whole"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_planted_command_does_not_run(package, tmp_path, place, zipped):
    sign, path = tmp_path / "owned.txt", tmp_path / "stranger.pth.tar"
    content = {"state_dict": dict(package.state_dict()), "args": argparse.Namespace(a=1)}
    if place == "whole":
        content = Planted(sign)
    elif place == "state_dict":
        content["state_dict"]["norm.weight"] = Planted(sign)
    else:
        content[place] = Planted(sign)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "could run" in refusal(path)
    assert not sign.exists()
    # The test can fail: a careless load does run it.
    torch.load(path, weights_only=False)
    assert sign.exists()


# --- Downloads ------------------------------------------------------------------------------------

BODY = bytes(range(256)) * 9000  # 2.3 MB: more than one block


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/missing"):
            self.send_error(404, "Not Found")
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2 if self.path == "/broken" else None])

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("page", ["/whole", "/unsized"])
def test_a_download_arrives_whole(address, tmp_path, page, capsys):
    path = tmp_path / "weights" / "faster_vit_0.pth.tar"
    assert pretrained.fetch(address + page, path) == path
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == [path.name]
    assert "faster_vit_0.pth.tar" in capsys.readouterr().err  # the bar


def refused_download(url: str, path: Path) -> str:
    with pytest.raises(UserError) as error:
        pretrained.fetch(url, path)
    message = str(error.value)
    for part in (url, str(path), "--recipe light", "--weights none"):
        assert part in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("page", ["/broken", "/missing"])
@pytest.mark.parametrize("earlier", [None, b"an earlier file"])
def test_a_failed_download_leaves_everything_as_it_was(address, tmp_path, page, earlier):
    path = tmp_path / "faster_vit_0.pth.tar"
    if earlier:
        path.write_bytes(earlier)
    refused_download(address + page, path)
    assert os.listdir(tmp_path) == ([path.name] if earlier else [])
    if earlier:
        assert path.read_bytes() == earlier


def test_without_a_network_one_sentence_says_what_to_do(tmp_path):
    with socket.socket() as probe:  # holds a port without listening
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        refused_download(f"http://127.0.0.1:{port}/file", tmp_path / "faster_vit_0.pth.tar")
    assert not os.listdir(tmp_path)


def test_an_address_without_an_answer_is_refused_in_one_sentence(tmp_path):
    refused_download("http://no-such-host.invalid/file", tmp_path / "faster_vit_0.pth.tar")


@pytest.mark.parametrize("answer", [b"", b"gibberish\r\n\r\n"], ids=["hangs up", "no http"])
def test_a_server_that_speaks_no_http_is_refused_in_one_sentence(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        refused_download(url, tmp_path / "faster_vit_0.pth.tar")
        thread.join()
    assert not os.listdir(tmp_path)


def test_the_articles_function_downloads_what_is_not_there(tmp_path, monkeypatch, address):
    monkeypatch.setattr(variants, "WEIGHTS_URL", address + "/missing/")
    path = tmp_path / "faster_vit_0.pth.tar"
    with pytest.raises(UserError, match=r"fastervit_0_224_1k\.pth\.tar"):
        segmentation_model.faster_vit_0_any_res(
            pretrained=True, model_path=str(path), dim=16, in_dim=8, depths=(1, 1, 1, 1)
        )
    assert not os.listdir(tmp_path)


def test_a_variant_of_ours_has_no_published_weights_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "DEFAULT_WEIGHTS_DIR", tmp_path)
    with torch.device("meta"):
        model = build_model("faster_vit_tiny", "pyramid", 2)
    assert 5e6 < sum(parameter.numel() for parameter in model.parameters()) < 6e6
    with pytest.raises(UserError, match="Nobody published weights of faster_vit_tiny; use --rec"):
        load_weights(model, "faster_vit_tiny", None)
    assert not any(tmp_path.iterdir())


def test_weights_come_over_https():
    assert variants.WEIGHTS_URL.startswith("https://")


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digests.sha256(tmp_path / "file") == expected
