"""A long video takes no more memory than a short one.

python tests/soak/video.py --count 10
"""

# ruff: noqa: E402

import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import av
import numpy as np

from common import cli

SIZE, RATE, SAMPLES = (360, 640), 25, 44100
# The whole way of a video but for the model, whose place brightness takes.
RUN = """
import resource, sys
import cv2, numpy as np, torch
import inference_video
from config import ClassTable

class Quick:
    classes = ClassTable.default()

    @classmethod
    def load(cls, *_, **__):
        return cls()

    def scores(self, images):
        small = np.stack([cv2.resize(i, (64, 36), interpolation=cv2.INTER_AREA) for i in images])
        bright = torch.from_numpy(small).float().mean(dim=3) / 255 - 0.5
        return torch.stack([-bright, bright], dim=1)

    def mask(self, scores, size):
        return cv2.resize(scores.argmax(0).byte().numpy(), size[::-1], None, 0, 0, 0)

torch.set_num_threads(1)
inference_video.Predictor = Quick
code = inference_video.main()
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(code)
"""


def write_long(path: Path, minutes: int) -> None:
    """A video with sound, whose pictures and tone repeat."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (10, SIZE[0] // 40, SIZE[1] // 40, 3), np.uint8)
    pictures = blocks.repeat(40, axis=1).repeat(40, axis=2)
    wave = (3000 * np.sin(np.arange(SAMPLES) * 0.05)).astype(np.int16)[None]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE)
        video.height, video.width, video.pix_fmt = *SIZE, "yuv420p"
        video.options = {"preset": "ultrafast"}
        sound = container.add_stream("aac", rate=SAMPLES, layout="mono")
        for second in range(minutes * 60):
            for _ in range(RATE):
                frame = av.VideoFrame.from_ndarray(pictures[second % 10], "rgb24")
                container.mux(video.encode(frame))
            piece = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            piece.sample_rate, piece.time_base = SAMPLES, Fraction(1, SAMPLES)
            piece.pts = second * SAMPLES
            container.mux(sound.encode(piece))
        for stream in (video, sound):
            container.mux(stream.encode())


def peak_mebibytes(folder: Path, minutes: int) -> float:
    """The most memory that the segmentation of a video of this length takes."""
    source = folder / f"{minutes}.mp4"
    write_long(source, minutes)
    flags = ["--model", "-", "--input", source, "--out-dir", folder / "out", "--smooth", "0.5"]
    command = [sys.executable, "-c", RUN, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    with av.open(str(folder / "out" / source.name)) as container:
        assert container.streams.video[0].frames == minutes * 60 * RATE
    return float(done.stdout.split("PEAK")[1])


def main() -> int:
    parser = cli.Parser(__doc__)
    parser.add_argument("--count", type=cli.number(int, 2), default=10, help="minutes of video")
    args = parser.parse_args()
    peaks, started = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for minutes in (1, args.count):
            peaks[minutes] = peak_mebibytes(Path(name), minutes)
            frames, seconds = minutes * 60 * RATE, time.monotonic() - started
            peak = f"{minutes} min: at most {peaks[minutes]:.0f} MiB"
            print(f"{peak}, {frames} frames written, {seconds:.0f} s", flush=True)
    return int(peaks[args.count] > peaks[1] + 60)


if __name__ == "__main__":
    cli.run(main)
