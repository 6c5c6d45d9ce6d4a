"""One path from pictures to masks: sizes, aspect, tiles and flips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_tiny import add_tiny
from torch import nn

from common.errors import UserError
from config import ClassTable, ModelConfig
from inference import predictor as predictor_module
from inference.predictor import Predictor
from models.backbone import PositionTable
from models.checkpoint import save_checkpoint
from segmentation_model import build_model

CLASSES = ClassTable.default()
RNG = np.random.default_rng(0)


class Bright(nn.Module):
    """A model whose second class is what is bright, pixel by pixel: the answer is known."""

    def forward(self, x):
        score = x.mean(1, keepdim=True)
        return torch.cat([-score, score], dim=1)


class Smooth(nn.Module):
    """A model that looks around, as real ones do."""

    def forward(self, x):
        score = F.avg_pool2d(x.mean(1, keepdim=True), 9, 1, 4, count_include_pad=False)
        return torch.cat([-score, score], dim=1) * 4


def probabilities_of(predictor, image):
    return next(predictor.read([image], with_probabilities=True)).probabilities


def make(model=None, size=(64, 64), **options):
    config = ModelConfig(input_size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Predictor(model or Bright(), config, CLASSES, **options)


def halves(height, width):
    """Dark above left, bright below right of a diagonal."""
    y, x = np.mgrid[:height, :width]
    bright = (y / height + x / width) > 1
    return np.where(bright[..., None], 220, 20).astype(np.uint8).repeat(3, axis=2), bright


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (37, 53), (64, 64), (700, 1100), (1300, 40)])
def test_a_mask_has_the_pictures_own_size_and_lies_where_the_picture_does(size):
    image, truth = halves(*size)
    mask = make().masks([image])[0]
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert (mask == truth).mean() > 0.96


def test_scores_are_resized_as_pytorch_does_before_the_argmax():
    scores = torch.from_numpy(RNG.normal(size=(2, 64, 64)).astype(np.float32))
    for size in [(1200, 900), (64, 900), (50, 40)]:
        expected = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        bands = torch.cat([band for _, band in make()._bands(scores, size)], dim=1)
        assert torch.allclose(bands, expected, atol=1e-4)
        same = make().mask(scores, size) == expected.argmax(0).numpy()
        assert same.mean() > 0.9999


def test_pictures_of_one_batch_do_not_touch_each_other():
    images = [halves(90, 70)[0], halves(64, 64)[0], halves(20, 200)[0][::-1].copy()]
    together = make(Smooth()).masks(images)
    for image, mask in zip(images, together, strict=True):
        assert np.array_equal(mask, make(Smooth()).masks([image])[0])


def test_keep_aspect_neither_stretches_nor_shifts():
    seen = []

    class Spy(Bright):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    image, truth = halves(100, 200)
    mask = make(Spy(), keep_aspect=True).masks([image])[0]
    assert (mask == truth).mean() > 0.96
    assert (seen[0][:, :, 32:] == 0).all()  # 100x200 fills the upper 32 of 64 rows
    assert (seen[0][:, :, :32] != 0).all()


def test_tiles_give_what_the_whole_picture_gives_at_its_own_resolution():
    image = RNG.integers(0, 255, (150, 233, 3), dtype=np.uint8)
    for overlap in (0.0, 0.25, 0.5):
        tiled = make(tile=48, overlap=overlap, batch=3)
        assert np.array_equal(tiled.masks([image])[0], image.astype(float).mean(2) > 127.5)


def test_blending_tiles_hides_their_borders():
    image = np.kron(RNG.integers(0, 255, (20, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    whole = probabilities_of(make(Smooth(), size=(160, 160)), image).astype(float)
    errors = {}
    for overlap in (0.0, 0.5):
        tiled = probabilities_of(make(Smooth(), tile=64, overlap=overlap), image)
        errors[overlap] = np.abs(tiled.astype(float) - whole).max()
    assert errors[0.5] < 0.5 * errors[0.0]


def test_what_tiles_hold_does_not_grow_with_the_pictures_height():
    predictor = make(tile=64, overlap=0.5)
    image = np.zeros((2000, 100, 3), np.uint8)
    tallest = max(band.shape[1] for _, band in predictor.tiled_bands(image))
    assert tallest <= 64


def test_small_pictures_are_not_tiled():
    image, truth = halves(40, 40)
    assert np.array_equal(make(tile=64).masks([image])[0], make().masks([image])[0])
    assert truth.any()


def test_flips_average_what_the_mirror_images_give():
    class Leftish(nn.Module):
        """Says 1 on the left half whatever it sees: only an average over flips is symmetric."""

        def forward(self, x):
            ramp = torch.linspace(3, -3, x.shape[3]).expand(len(x), 1, *x.shape[2:])
            return torch.cat([-ramp, ramp], dim=1)

    image = np.zeros((64, 64, 3), np.uint8)
    plain = probabilities_of(make(Leftish()), image)
    flipped = probabilities_of(make(Leftish(), flips=True), image)
    assert plain[1, 0, 0] > 0.99
    assert np.allclose(flipped, flipped[:, ::-1, ::-1], atol=2e-3)
    assert np.allclose(flipped, flipped[:, :, ::-1], atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"tile": 48}, {"flips": True}, {"keep_aspect": True}])
def test_probabilities_sum_to_one_and_agree_with_the_mask(options):
    image = RNG.integers(0, 255, (90, 120, 3), dtype=np.uint8)
    predictor = make(Smooth(), **options)
    probabilities = probabilities_of(predictor, image).astype(np.float32)
    assert np.allclose(probabilities.sum(0), 1, atol=2e-3)
    clear = np.abs(probabilities[0] - 0.5) > 1e-2
    assert np.array_equal(probabilities.argmax(0)[clear], predictor.masks([image])[0][clear])


def test_a_band_is_a_small_part_of_a_large_picture(monkeypatch):
    monkeypatch.setattr(predictor_module, "BAND", 7)
    image, truth = halves(300, 200)
    predictor = make()
    bands = list(predictor._bands(predictor.scores([image])[0], (300, 200)))
    assert all(band.shape[1] <= 7 for _, band in bands)
    assert (predictor.masks([image])[0] == truth).mean() > 0.96


def test_a_file_of_torch_export_is_refused_before_it_is_opened(tmp_path):
    torch.export.save(torch.export.export(Smooth(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "m.pt2")
    with pytest.raises(UserError, match=r"can hold code.*\.onnx"):
        Predictor.load(tmp_path / "m.pt2")


def test_of_a_checkpoint_the_position_tables_are_fixed_for_the_picture_and_the_tile(
    tmp_path, monkeypatch
):
    add_tiny()
    config = ModelConfig("tiny", "pyramid", 2, (64, 96))
    model, path = build_model("tiny", "pyramid").eval(), tmp_path / "model.pth"
    save_checkpoint(path, model, config, CLASSES)
    images = [RNG.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((50, 70), (200, 150))]
    loaded = Predictor.load(path, device="cpu", tile=128)
    live = Predictor(model, config, CLASSES, tile=128)
    assert live.model is model
    expected = [probabilities_of(live, image).astype(float) for image in images]
    for kind in PositionTable.__subclasses__():
        monkeypatch.setattr(kind, "compute", None)
    for image, probabilities in zip(images, expected, strict=True):
        actual = probabilities_of(loaded, image).astype(float)
        assert np.allclose(actual, probabilities, atol=2e-3)  # BatchNorms are folded, too
    with pytest.raises(TypeError):
        live.masks(images[:1])  # the model of a training keeps computing


# --- Models that were trained on crops ------------------------------------------------------------


def of_crops(model=None, size=(48, 32), crop_side=160, photo_size=None, **options):
    config = ModelConfig(input_size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    config = replace(config, crop_side=crop_side, photo_size=photo_size)
    return Predictor(model or Bright(), config, CLASSES, **options)


class Sizes(Bright):
    """Notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        return super().forward(x)


def test_a_model_of_crops_tiles_by_itself_at_the_photographs_own_resolution():
    model = Sizes()
    image = RNG.integers(0, 255, (150, 133, 3), dtype=np.uint8)
    predictor = of_crops(model)
    assert predictor.overlap == 0.25
    assert np.array_equal(predictor.masks([image])[0], image.astype(float).mean(2) > 127.5)
    assert set(model.seen) == {(48, 32)}
    assert len(model.seen) == 4 * 6  # ceil of (150 - 48) / 36 and of (133 - 32) / 24, and one each
    small = image[:20, :20]  # and pads what is smaller than a tile, rather than stretch it
    assert np.array_equal(predictor.masks([small])[0], small.astype(float).mean(2) > 127.5)
    assert set(model.seen) == {(48, 32)}
    assert of_crops(tile=64).masks([image])[0].shape == (150, 133)


def test_a_model_of_crops_sees_photographs_at_the_scale_of_its_training():
    model = Sizes()
    image, truth = halves(300, 200)
    predictor = of_crops(model, crop_side=96, photo_size=96)
    mask = predictor.masks([image])[0]
    assert mask.shape == truth.shape
    assert (mask == truth).mean() > 0.97
    assert len(model.seen) == 3 * 3  # a view of 96x64
    at_half = next(predictor.masks_at([image], [(150, 100)]))
    assert (at_half == truth[::2, ::2]).mean() > 0.97
    scores = predictor.frame_scores([image, image[::-1].copy()])
    assert scores.shape == (2, 2, 96, 64)
    assert np.array_equal(predictor.mask(scores[0], (300, 200)), mask)


@pytest.mark.parametrize(
    "predictor",
    [
        make(Smooth()),
        make(Smooth(), (48, 96), keep_aspect=True),
        of_crops(crop_side=96, photo_size=96),
        of_crops(),
    ],
    ids=["whole", "aspect", "scaled crops", "crops"],
)
def test_a_frame_that_is_fitted_before_has_the_same_scores(predictor):
    rng = np.random.default_rng(0)
    for size in ((300, 200), (151, 333), (40, 30)):
        frame = rng.integers(0, 255, (*size, 3), np.uint8)
        fitted = predictor.fitted(frame)
        assert torch.equal(predictor.frame_scores([fitted]), predictor.frame_scores([frame]))


def test_another_scale_than_the_trainings_is_said_once(capsys):
    predictor = of_crops(crop_side=160)
    predictor.masks([np.zeros((100, 90, 3), np.uint8), np.zeros((90, 310, 3), np.uint8)])
    assert capsys.readouterr().err == ""
    predictor.masks([np.zeros((40, 70, 3), np.uint8), np.zeros((400, 90, 3), np.uint8)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "70x40 px is much smaller" in said
    of_crops(crop_side=160).masks([np.zeros((90, 340, 3), np.uint8)])
    assert "larger" in capsys.readouterr().err
    scaled = of_crops(crop_side=96, photo_size=96)  # whatever is larger is scaled
    scaled.masks([np.zeros((90, 340, 3), np.uint8)])
    assert capsys.readouterr().err == ""
