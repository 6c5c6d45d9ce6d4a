"""Segment pictures with a trained model.

    python inference_image.py --input input/my_leaves/valid_images --model outputs/model.pth
    python inference_image.py --imgsz 512 512 --input a.jpg "more/*.png" --model outputs/model.pth
    python inference_image.py --input drone.tif --model outputs/model.pth --tile 512 --save mask

For each picture NAME, by --save:
    overlay   NAME_overlay.jpg, the photograph with its classes tinted
    mask      NAME_mask.png, the class index of each pixel, a palette PNG for CVAT and GIS programs
    colour    NAME_colour.png, the classes' colours of the label map
    prob      NAME_prob.npz, the probability of each class, float16 (K, H, W)
    cvat      all masks as one cvat.zip, to be corrected in CVAT and trained on again

All have the picture's own size. results.csv holds the numbers, summary.html shows all at a glance.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from common import cli, distributed
from common.errors import UserError
from common.files import lock_folder, write_text
from data.inputs import find_inputs
from inference.pictures import segment_pictures
from inference.predictor import Predictor
from inference.results import KINDS, Result, ResultFolder


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--model")
    what = "pictures, folders, patterns, or .txt lists with a path a line"
    parser.add_argument("--input", nargs="+", required=True, metavar="INPUT", help=what)
    parser.add_argument("--recursive", action="store_true", help="look into folders of folders")
    cli.add_shared(parser, "--out-dir", default=Path("outputs/inference_results_image"))
    kinds = {"choices": KINDS, "default": ["overlay", "mask"], "metavar": "KIND"}
    what = f"what to write: {', '.join(KINDS)}"
    parser.add_argument("--save", nargs="+", help=what, **kinds)
    scale = cli.number(float, 0, 1e6, open_low=True)
    what = "scale of the photographs, adds areas in square millimetres"
    parser.add_argument("--mm-per-pixel", type=scale, metavar="MM", help=what)
    network = cli.add_prediction_flags(parser)
    cli.add_shared(network, "--workers", help="threads that read and write pictures")
    return parser.parse_args()


def segment_all(
    predictor: Predictor, folder: ResultFolder, named: list[tuple[str, Path]], workers: int
) -> tuple[list[Result], list[str]]:
    """Segment pictures below a bar; what cannot be read is listed, not lost.

    Returns:
        the results in the order of the inputs, and a sentence for each picture left out.
    """
    results: list[Result] = []
    skipped: list[str] = []
    outcomes = segment_pictures(predictor, folder, named, workers)
    hidden = not distributed.is_main()
    for outcome in tqdm(outcomes, "Segmenting", len(named), unit="picture", disable=hidden):
        if isinstance(outcome, UserError):
            skipped.append(" ".join(str(outcome).split()))
        else:
            results.append(outcome)
    return results, skipped


def main() -> int:
    args = parse_args()
    named = find_inputs(args.input, args.recursive, args.out_dir)
    options = cli.prediction_options(args)
    predictor = Predictor.load(args.model, args.imgsz, args.device, **options)
    folder = ResultFolder(args.out_dir, args.save, predictor.classes, args.mm_per_pixel)
    folder.refuse_to_replace_neighbours(named)
    predictor.to(distributed.init(predictor.device))
    mine = list(named.items())[distributed.rank() :: distributed.world_size()]
    with lock_folder(args.out_dir, distributed.is_main()):
        distributed.barrier()  # nobody writes before the main process holds the folder
        parts = distributed.gather(segment_all(predictor, folder, mine, args.workers))
        made = {result.name: result for results, _ in parts for result in results}
        skipped = [sentence for _, sentences in parts for sentence in sentences]
        if distributed.is_main():
            folder.write_summary([made[name] for name in named if name in made])
            where = f"results are in {folder.path}/, see summary.html"
            print(f"{len(made)} pictures segmented; {where}")
            list_skipped(args.out_dir / "skipped.txt", skipped)
    distributed.shutdown()
    return 1 if skipped else 0


def list_skipped(path: Path, skipped: list[str]) -> None:
    """Say which pictures were left out, and why."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(f"{line}\n" for line in skipped))
    print(f"{len(skipped)} pictures were skipped, listed in {path.name}:", file=sys.stderr)
    print(*skipped[:20], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
