"""Segment pictures with a trained model.

    python inference_image.py --input input/my_leaves/valid_images --model outputs/model.pth
    python inference_image.py --imgsz 512 512 --input a.jpg "more/*.png" --model outputs/model.pth
    python inference_image.py --input drone.tif --model outputs/model.pth --tile 512 --save mask
    python inference_image.py --input season/ --model outputs/model.pth --recursive --resume

For each picture NAME, by --save:
    overlay   NAME_overlay.jpg, the photograph with its classes tinted
    mask      NAME_mask.png, the class index of each pixel, a palette PNG; of a GeoTIFF
              NAME_mask.tif in its place, polygons and areas for GIS programs
    colour    NAME_colour.png, the classes' colours of the label map
    prob      NAME_prob.npz, the probability of each class, float16 (K, H, W)
    cvat      all masks as one cvat.zip, to be corrected in CVAT and trained on again
    coco      coco.json, labelme  labelme/NAME.json, yolo  yolo/labels/NAME.txt, labelstudio
              labelstudio.json: polygons, to be corrected in those tools (docs/inference.md)

All have the picture's own size. results.csv holds the numbers, summary.html shows all at a glance.
The exit code is 0 if every picture has its results, 1 if some are missing (skipped.txt says why).
"""

import argparse
import json
import sys
from pathlib import Path

import common.environment  # noqa: F401 - first, to say what is not installed

from tqdm import tqdm

from common import cli, distributed
from common.device import compute_repeatably
from common.errors import UserError
from common.files import lock_folder, write_text
from common.text import agreed, counted, printable
from data.inputs import find_inputs
from inference import geo
from inference.journal import Journal
from inference.pictures import Judge, segment_pictures
from inference.predictor import Predictor
from inference.results import KINDS, ResultFolder
from trust.calibration import digests_of
from trust.doubt import make_judge

# Flags of one call; by all others `--resume` knows that it goes on with the same work.
CALL_FLAGS = ("batch", "debug", "device", "workers")
CALL_FLAGS += ("input", "model", "out_dir", "recursive", "resume")


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device", "--deterministic", "--model")
    what = "pictures, folders, patterns, or .txt lists with a path a line"
    parser.add_argument("--input", nargs="+", required=True, metavar="INPUT", help=what)
    parser.add_argument("--recursive", action="store_true", help="look into folders of folders")
    cli.add_shared(parser, "--out-dir", default=Path("outputs/inference_results_image"))
    what = "go on where a run on this folder was stopped, or do what is new; begin if there is none"
    parser.add_argument("--resume", action="store_true", help=what)
    kinds = {"choices": KINDS, "default": ["overlay", "mask"], "metavar": "KIND"}
    what = f"what to write, and nothing else beside the tables: {', '.join(KINDS)}"
    parser.add_argument("--save", nargs="+", help=what, **kinds)
    what = "probability with which the true severity lies within severity_low and severity_high, "
    what += "of a model that evaluate.py --calibrate has calibrated"
    share = cli.number(float, 0.5, 0.99)
    parser.add_argument("--coverage", type=share, default=0.9, metavar="SHARE", help=what)
    scale = cli.number(float, 0, 1e6, open_low=True)
    what = "scale of the photographs, adds areas in square millimetres"
    parser.add_argument("--mm-per-pixel", type=scale, metavar="MM", help=what)
    what = "pixels by which polygons may be off to need fewer points; 0 gives the mask back"
    tolerance = cli.number(float, 0, 1000)
    parser.add_argument("--simplify", type=tolerance, default=0.0, metavar="PIXELS", help=what)
    network = cli.add_prediction_flags(parser)
    cli.add_shared(network, "--workers", help="threads that read and write pictures")
    return parser.parse_args()


def segment_all(
    predictor: Predictor,
    folder: ResultFolder,
    journal: Journal,
    named: list[tuple[str, Path]],
    workers: int,
    judge: Judge,
) -> dict[str, str]:
    """Segment pictures below a bar, noting each as it is done; what cannot be read is no harm.

    Returns:
        a sentence for each picture left out, by its name.
    """
    skipped = {}
    outcomes = segment_pictures(predictor, folder, named, workers, judge)
    hidden = not distributed.is_main() or not named
    shown = tqdm(outcomes, "Segmenting", len(named), unit="picture", disable=hidden)
    for (name, _), outcome in zip(named, shown, strict=True):
        if isinstance(outcome, UserError):
            skipped[name] = " ".join(str(outcome).split())
        else:
            journal.append(outcome)
    return skipped


def main() -> int:
    args = parse_args()
    named = find_inputs(args.input, args.recursive, args.out_dir)
    if args.deterministic:
        compute_repeatably()
    options = cli.prediction_options(args)
    predictor = Predictor.load(args.model, args.imgsz, args.device, **options)
    wanted = args.save, predictor.classes, args.mm_per_pixel, args.simplify
    folder = ResultFolder(args.out_dir, *wanted)
    folder.refuse_to_replace_neighbours(named)
    distributed.init(predictor.device)
    try:
        with lock_folder(args.out_dir, distributed.is_main()):
            missing = run(args, predictor, folder, named)
    except KeyboardInterrupt:
        if distributed.is_main():
            print("\nInterrupted. The same command with --resume goes on.", file=sys.stderr)
        return 130
    distributed.shutdown()
    return 1 if missing else 0


def run(
    args: argparse.Namespace, predictor: Predictor, folder: ResultFolder, named: dict[str, Path]
) -> dict[str, str]:
    """Segment what is not done yet, each process its share, and sum all up.

    Returns:
        on the main process, a sentence by name for each picture without results.
    """
    journal, done = Journal(folder.path, folder.columns), {}
    if distributed.is_main():
        settings = result_settings(args)
        done = journal.begin(settings, args.resume, named, folder.is_whole)
    # Nobody writes before the main process holds the folder and knows what is in it.
    journal.run, finished = distributed.gather((journal.run, set(done)))[0]
    if finished:
        many = counted(len(named), "picture|pictures")
        were = agreed(len(finished), "was|were")
        distributed.say(f"{len(finished)} of {many} {were} finished before.")
    waiting = [item for item in named.items() if item[0] not in finished]
    mine = waiting[distributed.rank() :: distributed.world_size()]
    judge = make_judge(args.model, predictor, args.coverage, say=distributed.say)
    parts = distributed.gather(segment_all(predictor, folder, journal, mine, args.workers, judge))
    if not distributed.is_main():
        return {}
    made = done | journal.added()
    shown = tqdm(named, "Looking at the results", delay=2)
    made = {name: made[name] for name in shown if name in made and folder.is_whole(name)}
    if kept := folder.keep_tables_of_others(named):
        print(f"The earlier results there were of other pictures: their table is now {kept}.")
    folder.write_summary(journal, made)
    many = counted(len(made), "picture|pictures")
    print(f"{many} segmented; results are in {folder.path}/, see summary.html")
    print(f"Beside it: results.csv, {folder.contents}")
    if maps := geo.contents(folder, made):
        print(maps)
    skipped = {name: text for part in parts for name, text in part.items()}
    gone = (
        "has no result any more, because the folder was changed meanwhile; --resume does it again."
    )
    lines = {
        name: skipped.get(name, f"{printable(path)} {gone}")
        for name, path in named.items()
        if name not in made
    }
    list_skipped(folder.path / "skipped.txt", list(lines.values()))
    return lines


def result_settings(args: argparse.Namespace) -> dict:
    """What the results depend on beside the pictures, as plain values by the names of flags."""
    flags = {name: value for name, value in vars(args).items() if name not in CALL_FLAGS}
    flags |= {"save": sorted(set(args.save)), "model": digests_of(args.model)}
    named = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    return json.loads(json.dumps(named))  # tuples become lists, as they come back


def list_skipped(path: Path, skipped: list[str]) -> None:
    """Say which pictures were left out, and why."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(f"{line}\n" for line in skipped))
    many = counted(len(skipped), "picture|pictures was|were")
    print(f"{many} skipped, listed in {path.name}:", file=sys.stderr)
    print(*skipped[:20], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
