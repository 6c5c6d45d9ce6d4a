"""Pictures of another kind are told from those of the training, by features kept in the model."""

import numpy as np
import pytest
import torch
from tiny_data import write_pairs
from tiny_model import save_tiny

from common.errors import UserError
from data.images import read_image, write_image
from inference.predictor import Predictor
from models.checkpoint import add_to_checkpoint, read_checkpoint
from trust.familiarity import (
    Familiarity,
    neighbour_distance,
    own_distances,
    read_familiarity,
    remember_pictures,
)


def test_distances_are_those_of_scipys_tree():
    from scipy.spatial import KDTree

    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(40, 6)), rng.normal(size=(7, 6))
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    other = new / np.linalg.norm(new, axis=1, keepdims=True)
    expected = KDTree(unit).query(other, k=5)[0][:, -1]
    assert neighbour_distance(10 * new, known) == pytest.approx(expected, rel=1e-4)
    own = np.sort(KDTree(unit).query(unit, k=6)[0][:, -1])  # the nearest is the picture itself
    assert own_distances(known) == pytest.approx(own, rel=1e-4)


def test_few_pictures_and_a_single_one_are_known_too():
    assert len(own_distances(np.ones((1, 3)))) == 1
    few = Familiarity.of(np.eye(3))
    assert few.unlike(np.eye(3)[:1])[0] <= 1
    assert few.unlike(-np.eye(3)[:1])[0] == 1


def test_new_pictures_of_the_kind_are_familiar_and_others_are_not():
    rng = np.random.default_rng(1)
    kind = rng.normal(size=20)
    known, same = (kind + rng.normal(size=(n, 20)) for n in (200, 400))
    familiarity = Familiarity.of(known)
    assert (familiarity.unlike(same) > 0.95).mean() == pytest.approx(0.05, abs=0.04)
    assert (familiarity.unlike(rng.normal(size=(50, 20)) - kind) > 0.95).all()


def test_a_checkpoint_keeps_its_training_pictures_and_flags_others(tmp_path):
    path = save_tiny(tmp_path / "m.pth")
    write_pairs(tmp_path, "train", 12, 0)
    pictures = sorted((tmp_path / "train_images").iterdir())
    predictor = Predictor.load(path, device="cpu")
    assert read_familiarity([path]) is None
    remember_pictures(path, predictor, pictures)
    (familiarity,) = read_familiarity([path])
    assert familiarity.known.shape[0] == 12
    write_image(tmp_path / "other.png", np.full((40, 56, 3), (255, 0, 255), np.uint8))
    images = [read_image(pictures[0]), read_image(tmp_path / "other.png")]
    near, far = familiarity.unlike(predictor.features(images))
    assert near < far == 1
    assert read_checkpoint(path)["familiarity"].dtype == torch.float16


def test_of_a_model_that_hides_its_backbone_nothing_is_kept(tmp_path):
    """As other people's models do that tools/run_peer.py trains."""
    path = save_tiny(tmp_path / "model.pth")
    predictor = Predictor.load(path)
    predictor.model = torch.nn.Sequential(predictor.model)
    write_image(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    remember_pictures(path, predictor, [tmp_path / "a.png"])
    assert "familiarity" not in read_checkpoint(path)


def test_damaged_features_are_refused(tmp_path):
    path = save_tiny(tmp_path / "m.pth")
    kinds = "text", torch.zeros(3), torch.full((2, 2), torch.nan), torch.eye(4).to_sparse()
    for damaged in kinds:
        add_to_checkpoint(path, familiarity=damaged)
        with pytest.raises(UserError, match="damaged"):
            read_familiarity([path])
    add_to_checkpoint(path, familiarity=torch.eye(4))
    (of_another,) = read_familiarity([path])
    with pytest.raises(UserError, match="4 features"):
        of_another.unlike(np.zeros((1, 5), np.float32))


@pytest.mark.parametrize("count", [0, 2001])
def test_more_pictures_than_can_be_used_are_refused_rather_than_forgotten(tmp_path, count):
    path = save_tiny(tmp_path / "m.pth", familiarity=torch.zeros(count, 4).half())
    with pytest.raises(UserError, match=rf"features of {count:,} training pictures, and of 1 to"):
        read_familiarity([path])
