"""Several models as one: their probabilities are averaged, and nobody who predicts sees which."""

import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_model import save_tiny
from torch import nn

import inference_image
from common.errors import UserError
from config import ClassTable, ModelConfig
from data.splits import Division
from inference.predictor import Ensemble, Predictor
from models.checkpoint import save_checkpoint
from segmentation_model import load_model
from training.run_files import BEST, fold_folder

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((90, 120), (33, 200))]


class Scaled(nn.Module):
    """Looks around, and is as sure as it is told."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        score = F.avg_pool2d(x.mean(1, keepdim=True), 5, 1, 2) * self.factor
        return torch.cat([-score, score - 0.2], dim=1)


def members(**options) -> list[Predictor]:
    """Two models of different size and normalisation."""
    looks = ((64, 64), (0.5,) * 3, 3.0), ((48, 96), (0.4,) * 3, -1.5)
    return [
        Predictor(
            Scaled(factor),
            ModelConfig(input_size=size, mean=mean, std=(0.25,) * 3),
            ClassTable.default(),
            **options,
        )
        for size, mean, factor in looks
    ]


def probabilities(predictor: Predictor) -> list[np.ndarray]:
    said = predictor.read(IMAGES, with_probabilities=True)
    return [prediction.probabilities.astype(float) for prediction in said]


@pytest.mark.parametrize(
    "options", [{}, {"tile": 64}, {"flips": True}, {"keep_aspect": True}, {"tile": 100}]
)
def test_an_ensemble_is_the_mean_of_its_members_at_the_pictures_own_size(options):
    own = [probabilities(member) for member in members(**options)]
    together = Ensemble(members(**options))
    for actual, first, second in zip(probabilities(together), *own, strict=True):
        assert np.allclose(actual, (first + second) / 2, atol=1e-3)
    for said in together.read(IMAGES, with_probabilities=True):
        clear = np.abs(said.probabilities[0].astype(float) - 0.5) > 1e-2
        assert np.array_equal(said.mask[clear], said.probabilities.argmax(0)[clear])


def test_bands_that_are_cut_at_different_rows_meet(monkeypatch):
    tiled, whole = members(tile=40)[0], members()[1]
    own = probabilities(tiled), probabilities(whole)
    for band in (7, 512):
        monkeypatch.setattr("inference.predictor.BAND", band)
        for actual, first, second in zip(
            probabilities(Ensemble([tiled, whole])), *own, strict=True
        ):
            assert np.allclose(actual, (first + second) / 2, atol=1e-3)
    sizes = [(50, 60), (20, 20)]
    masks = Ensemble([tiled, whole]).masks_at(IMAGES, sizes)
    assert [mask.shape for mask in masks] == sizes


def test_a_videos_frames_go_the_way_of_one_model():
    together = Ensemble(members())
    frame = IMAGES[0]
    scores = together.frame_scores([frame])
    assert scores.shape == (1, 2, *together.size)
    assert torch.allclose(scores.exp().sum(1), torch.ones(1, *together.size), atol=1e-5)
    same = together.mask(scores[0], frame.shape[:2]) == together.masks([frame])[0]
    assert same.mean() > 0.97


@pytest.fixture
def folder(tmp_path):
    """A folder of two folds with different weights."""
    division = Division("fold", {"a.png": "0", "b.png": "1"}, {"a.png": "a", "b.png": "b"})
    division.write(tmp_path / "cv/folds.csv")
    for number in range(2):
        path = save_tiny(fold_folder(tmp_path / "cv", number) / BEST["miou"])
        loaded = load_model(path)
        for weight in loaded.model.parameters():
            weight.data *= 1 - 0.3 * number
        save_checkpoint(path, loaded.model, loaded.config, loaded.classes)
    return tmp_path / "cv"


def test_a_folder_of_folds_is_a_model(folder):
    paths = [fold_folder(folder, number) / BEST["miou"] for number in range(2)]
    singles = [probabilities(Predictor.load(path, device="cpu")) for path in paths]
    assert not np.allclose(*(single[0] for single in singles), atol=1e-2)
    for models in (folder, [folder], paths):
        loaded = Predictor.load(models, device="cpu")
        assert len(loaded.members) == 2
        for actual, *own in zip(probabilities(loaded), *singles, strict=True):
            assert np.allclose(actual, np.mean(own, axis=0), atol=2e-3)
    assert len(Predictor.load(paths[0].parent, device="cpu").members) == 1  # a run's best


def test_a_fold_that_is_not_trained_and_models_that_do_not_fit_are_refused(folder, tmp_path):
    loaded = load_model(fold_folder(folder, 0) / BEST["miou"])
    other = ClassTable(("soil", "rust"), loaded.classes.colors, loaded.classes.vis_colors)
    save_checkpoint(tmp_path / "other.pth", loaded.model, loaded.config, other)
    with pytest.raises(UserError, match=r"soil, rust.*background, disease.*same classes"):
        Predictor.load([folder, tmp_path / "other.pth"], device="cpu")
    (fold_folder(folder, 1) / BEST["miou"]).unlink()
    with pytest.raises(UserError, match=r"fold_1.*not there.*2 folds.*--resume"):
        Predictor.load(folder, device="cpu")


def test_scripts_take_a_folder_of_folds_and_an_export_refuses_it(folder, tmp_path, monkeypatch):
    export = pytest.importorskip("export", reason="needs onnx")
    Image.fromarray(IMAGES[0]).save(tmp_path / "leaf.png")
    flags = ["--model", str(folder), "--device", "cpu", "--input", str(tmp_path / "leaf.png")]
    flags += ["--out-dir", str(tmp_path / "out"), "--save", "prob"]
    monkeypatch.setattr(sys, "argv", ["inference_image.py", *flags])
    assert inference_image.main() == 0
    saved = np.load(tmp_path / "out/leaf_prob.npz")
    said = Predictor.load(folder, device="cpu").read(IMAGES[:1], with_probabilities=True)
    expected = next(said).probabilities
    assert any(np.array_equal(saved[name], expected) for name in saved.files)
    monkeypatch.setattr(sys, "argv", ["export.py", "--model", str(folder)])
    with pytest.raises(UserError, match=r"names 2; export them one by one.*fold_0"):
        export.main()


def test_licences_of_all_members_are_kept():
    first, second = members()
    first.config = replace(first.config, weights_licence="Apache-2.0")
    second.config = replace(second.config, weights_licence="not for commercial use")
    licence = Ensemble([first, second, first]).config.weights_licence
    assert licence == "Apache-2.0, not for commercial use"


@pytest.mark.parametrize("options", [{}, {"tile": 64}])
def test_an_ensembles_confidence_is_how_far_its_models_masks_agree(options):
    three = [*members(**options), members(**options)[0]]
    three[2].model.factor = 0.4
    for number, said in enumerate(Ensemble(three).read(IMAGES)):
        masks = [list(member.masks(IMAGES))[number] for member in three]
        of_classes = []
        for index in (0, 1):
            pairs = [(a == index, b == index) for a, b in combinations(masks, 2)]
            shared = sum((a & b).sum() for a, b in pairs)
            of_classes.append(2 * shared / sum(a.sum() + b.sum() for a, b in pairs))
        assert said.sums.dice == pytest.approx(of_classes, abs=2e-3)  # a score may be a tie
        assert said.sums.confidence() == pytest.approx(np.mean(of_classes), abs=2e-3)
        assert 0.2 < said.sums.confidence() < 0.98


def test_models_that_agree_are_sure_and_a_class_that_none_sees_is_no_doubt():
    same = members()[:1] * 2
    for model in same:
        model.model.factor = 0.0  # it sees the ground alone
    (said,) = Ensemble(same).read(IMAGES[:1])
    assert said.sums.dice.tolist() == [1, 1]
