"""The mean of several seeds.

    python tools/mean_of_seeds.py outputs/results/*/evaluation/metrics.json

`make results` ends with it.
"""

import argparse
import json
import statistics
from pathlib import Path


def mean(values: list[float | None]) -> float:
    """Over the seeds that have the figure: a class that is nowhere has none (NaN)."""
    return statistics.mean([value for value in values if value is not None] or [float("nan")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path, nargs="+")
    runs = [json.loads(path.read_text()) for path in parser.parse_args().metrics]
    print(f"mean of {len(runs)} seeds: mIoU {mean([run['miou'] for run in runs]):.4f}")
    for index, name in enumerate(runs[0]["classes"]):
        print(f"  {name}: IoU {mean([run['iou'][index] for run in runs]):.4f}")
    print(f"  mean boundary IoU {mean([run['mean_boundary_iou'] for run in runs]):.4f}")


if __name__ == "__main__":
    main()
