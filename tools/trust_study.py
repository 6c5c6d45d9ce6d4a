"""What docs/trust.md says was measured: intervals, confidence, unfamiliar pictures, spoiled masks.

    python tools/trust_study.py --model outputs/best_model_iou.pth --data input/leaves --split test
    python tools/trust_study.py --model M --data ROOT --split test --strangers input/other/photos

The pictures of the split must be new to the model. Everything is drawn again from the same seed.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common.environment  # noqa: F401 - first, to say what is not installed

import cv2
import numpy as np
import torch
from tqdm import tqdm

from common import cli
from data.images import list_images, read_image
from data.source import open_source
from inference.predictor import Predictor
from metrics import ConfusionMatrix, SeverityTable, mean
from trust.agreement import lin_concordance
from trust.calibration import conformal_quantile, doubt
from trust.familiarity import read_familiarity
from trust.label_errors import LARGEST, label_quality

REPEATS = 400
KINDS = ("erased", "drawn", "swapped", "shifted", "another's")
SHIFT = 12  # pixels, at the masks' own size


def main() -> int:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--model")
    cli.add_shared(parser, "--data", required=True)
    parser.add_argument("--split", choices=("valid", "test"), default="valid", help="part")
    what = "folder of photographs of another kind"
    parser.add_argument("--strangers", type=Path, metavar="FOLDER", help=what)
    args = parser.parse_args()
    predictor = Predictor.load(args.model, device=args.device)
    source = open_source(args.data, (args.split,))
    table = SeverityTable.of(predictor.classes.names)
    rows = [look(predictor, pair, source.reader, table) for pair in tqdm(source.pairs[args.split])]
    tell_intervals(rows)
    tell_confidence(rows)
    tell_strangers(args.model, predictor, rows, args.strangers)
    tell_spoiled(rows)
    return 0


def look(predictor: Predictor, pair, reader, table: SeverityTable) -> dict:
    """All that the study needs of one picture."""
    image, truth = read_image(pair.image), reader.read(pair)
    said = next(predictor.read([image], [truth.shape], with_probabilities=True))
    probs = said.probabilities.astype(np.float32)
    matrix = ConfusionMatrix(len(predictor.classes))
    matrix.update(torch.from_numpy(said.mask), torch.from_numpy(truth))
    counts = matrix.counts.numpy()
    true, predicted = table.shares(counts.sum(1))[-1], table.shares(counts.sum(0))[-1]
    scale = min(1, LARGEST / max(truth.shape))
    size = round(truth.shape[1] * scale), round(truth.shape[0] * scale)
    return {
        "true": true,
        "predicted": predicted,
        "doubt": doubt(said.sums, table)[-1],
        "risk": 1 - mean([1.0 if value != value else value for value in matrix.dice()[1:]]),
        "confidence": said.sums.confidence(),
        "expected soft Dice": replace(said.sums, dice=None).confidence(),
        "mean maximal probability": probs.max(0).mean(),
        "mean entropy, negative": (probs * np.log(probs + 1e-9)).sum(0).mean(),
        "features": predictor.members[0].features([image])[0],
        "probs": np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in probs]),
        "mask": cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST),
        "scale": scale,
    } | ({} if len(predictor.classes) > 2 else {"probs": None})  # spoiling needs leaf and symptom


def tell_intervals(rows: list[dict]) -> None:
    """How often and how widely intervals at 90 % cover, over random halves to calibrate on."""
    true, predicted, own = (
        np.array([r[key] for r in rows]) for key in ("true", "predicted", "doubt")
    )
    concordance = lin_concordance(true, predicted)[0]
    print(f"{len(rows)} pictures, concordance of severity {concordance:.3f}")
    random = np.random.default_rng(0)
    for count in (9, 20, 40, 100):
        if count > len(rows) / 2:
            continue
        for words, scale in (("scaled by doubt", own), ("all alike", np.ones_like(own))):
            covered, width = [], []
            for _ in range(REPEATS):
                order = random.permutation(len(rows))
                learnt, new = order[:count], order[count:]
                bound = conformal_quantile(np.abs(predicted - true)[learnt] / scale[learnt], 0.9)
                low = np.clip(predicted - bound * scale, 0, 1)[new]
                high = np.clip(predicted + bound * scale, 0, 1)[new]
                covered.append(((low <= true[new]) & (true[new] <= high)).mean())
                width.append((high - low).mean())
            print(
                f"  {count} to calibrate on, {words}: covers {np.mean(covered):.1%} (standard "
                f"deviation {np.std(covered):.1%}), mean width {np.mean(width):.2%}"
            )


def tell_confidence(rows: list[dict]) -> None:
    """The area under the generalised risk-coverage curve (Traub et al. 2024), less is better."""
    risks = np.array([row["risk"] for row in rows])

    def area(scores: np.ndarray) -> float:
        order = np.argsort(-scores, kind="stable")
        return float(np.cumsum(risks[order]).mean() / len(risks))

    print(f"risk-coverage area: at random {risks.mean() / 2:.4f}, at best {area(-risks):.4f}")
    for name in (
        "confidence",
        "expected soft Dice",
        "mean maximal probability",
        "mean entropy, negative",
    ):
        print(f"  {name} {area(np.array([row[name] for row in rows])):.4f}")


def tell_strangers(models: list[Path], predictor: Predictor, rows: list[dict], folder) -> None:
    """How many new pictures of the kind, and of another, are called unlike training."""
    known = read_familiarity(models)
    if not known:
        print("the model has kept no features of its training pictures")
        return
    own = known[0].unlike(np.stack([row["features"] for row in rows]))
    print(f"unlike training (above 95 %): {np.mean(own > 0.95):.1%} of the split", end="")
    if folder:
        member = predictor.members[0]
        seen = [member.features([read_image(path)])[0] for path in tqdm(list_images(folder))]
        far = known[0].unlike(np.stack(seen))
        print(f", {np.mean(far > 0.95):.1%} of {len(far)} strangers", end="")
    print()


def tell_spoiled(rows: list[dict]) -> None:
    """How many of 20 spoiled masks are among the first 30 of 100, five draws."""
    rows = [row for row in rows if row["probs"] is not None][:100]
    if len(rows) < 100:
        return
    found = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        masks, spoiled, kinds = [row["mask"] for row in rows], set(), list(KINDS) * 4
        for index in random.permutation(len(rows)):
            other = rows[(index + 7) % len(rows)]["mask"]
            shift = round(SHIFT * rows[index]["scale"])
            made = spoil(random, masks[index], kinds[0], other, shift) if kinds else None
            if made is not None:
                masks[index] = made
                spoiled.add(int(index))
                kinds.pop(0)
        quality = [label_quality(row["probs"], m) for row, m in zip(rows, masks, strict=True)]
        found.append(len(spoiled & set(np.argsort(quality, kind="stable")[:30].tolist())))
    print(f"of 20 spoiled masks among 100, found in the first 30: {found} in five draws")


def spoil(
    random: np.random.Generator, mask: np.ndarray, kind: str, other: np.ndarray, shift: int
) -> np.ndarray | None:
    """A mask (H, W) of ground, leaf and symptom with an error, or None where it has no place."""
    mask, symptom = mask.copy(), (mask == 2).astype(np.uint8)
    labels, stats = cv2.connectedComponentsWithStats(symptom)[1:3]
    if kind == "erased":
        largest = 1 + int(np.argmax(stats[1:, -1])) if len(stats) > 1 else 0
        if not largest or stats[largest, -1] < 160:
            return None
        mask[labels == largest] = 1
    elif kind == "drawn":
        ys, xs = np.nonzero(cv2.erode((mask == 1).astype(np.uint8), np.ones((51, 51), np.uint8)))
        if not len(ys):
            return None
        place = random.integers(len(ys))
        cv2.circle(mask, (int(xs[place]), int(ys[place])), 16, 2, cv2.FILLED)
    elif kind == "swapped":
        if symptom.sum() < 160:
            return None
        mask[mask > 0] = 3 - mask[mask > 0]
    elif kind == "shifted":
        mask = np.roll(mask, shift, axis=1)
        mask[:, :shift] = 0
    else:
        return other.copy()
    return mask


if __name__ == "__main__":
    cli.run(main)
