"""Short videos that tests read: with sound, turned, at odd times, tagged."""

from fractions import Fraction

import av
import numpy as np


def scene(index: int, height: int, width: int) -> np.ndarray:
    """A dark picture with a bright square in its upper left part that moves to the right."""
    image = np.full((height, width, 3), (40, 70, 30), np.uint8)
    image[height // 8 : height // 2, width // 8 + index % 8 : width // 2 + index % 8] = 200
    return image


def write_video(
    path,
    frames=20,
    size=(96, 128),
    rate=Fraction(25),
    times=None,
    tick=Fraction(1, 1000),
    codec="libx264",
    pix_fmt="yuv420p",
    options=None,
    container_options=None,
    tags=None,
    matrix=None,
    sound=None,
    draw=scene,
):
    """Make a video; `times` of its frames, in ticks of milliseconds, for a variable rate."""
    frames = len(times) if times else frames
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt, stream.options = pix_fmt, options or {}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if matrix:
            stream.set_display_matrix(matrix)
        if times:
            stream.codec_context.time_base = tick
        track = container.add_stream(sound, rate=44100, layout="stereo") if sound else None
        container.start_encoding()  # the header, even where no frame follows
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(index, *size), "rgb24")
            if times:
                frame.pts, frame.time_base = times[index], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track:
            add_tone(container, track, int(frames / rate * 44100))
    return path


def add_tone(container, track, samples):
    wave = (8000 * np.sin(np.arange(samples) * 0.06)).astype(np.int16)
    for start in range(0, samples, 1024):
        piece = np.repeat(wave[start : start + 1024], 2)[None]
        frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44100, start, Fraction(1, 44100)
        container.mux(track.encode(frame))
    container.mux(track.encode())
