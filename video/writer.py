"""Video out: frames encoded at their times, sound copied or encoded beside them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import av

from common.errors import UserError
from video.clock import common_time_base
from video.reader import Frame, Sound, VideoReader, is_copied
from video.sources import reason_of
from video.tinting import colours_of

# What each encoder calls its constant quality.
QUALITY_OPTION = dict.fromkeys(("libx264", "libx265", "libsvtav1"), "crf")
QUALITY_OPTION |= dict.fromkeys(("h264_nvenc", "hevc_nvenc"), "cq")
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class VideoWriter(AbstractContextManager):
    """An mp4 that plays in a browser while it loads, with the time, turn and colours of its source.

    H.264 with 4:2:0 colour has even sides only: an odd side is lengthened by one repeated line.

    Args:
        path: file to write, mp4.
        reader: the source, whose size, rate, orientation, colours and sound are taken over.
        codec: a key of QUALITY_OPTION.
        quality: constant quality, lower is better.
        threads: that encode; 0 leaves it to the encoder, which takes more than there are cores.

    Raises:
        UserError: the codec is not available here.
    """

    def __init__(
        self, path: Path, reader: VideoReader, codec: str, quality: float, threads: int = 0
    ):
        options = {"movflags": "+faststart"}
        self._container = av.open(f"file:{path}", "w", format="mp4", options=options)
        try:
            self._video = self._add_video(reader, codec, quality)
            self._video.codec_context.thread_count = threads
            self._tracks = [self._add_sound(source) for source in reader.sounds]
            self._video.codec_context.open(strict=False)
        except (av.error.FFmpegError, ValueError) as error:
            self._container.close()
            raise UserError(
                f"--codec {codec} cannot write {reader.name} here ({reason_of(error)}); "
                "try --codec libx264."
            ) from error

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode())
                for track in self._tracks:
                    if track.encoded and track.started and not track.broken:
                        self._container.mux(track.stream.encode())
        finally:
            self._container.close()

    def write(self, frame: Frame) -> None:
        """Encode a frame, `picture` in yuv420p with even sides, at its time."""
        picture, tick = frame.picture, self._time_base
        picture.time_base = tick
        picture.pts = round(frame.time / tick)
        picture.duration = max(1, round(frame.duration / tick))
        self._container.mux(self._video.encode(picture))

    def write_sound(self, sound: Sound) -> bool:
        """Copy or encode a piece of sound; whether its track could be written.

        A damaged track falls silent from there on, the video goes on.
        """
        track = self._tracks[sound.track]
        if track.broken:
            return False
        try:
            if track.encoded:
                track.started = True
                self._container.mux(track.stream.encode(sound.content))
            else:
                sound.content.stream = track.stream
                self._container.mux(sound.content)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):  # the disk, not the sound
                raise
            track.broken = True
        return not track.broken

    def _add_video(self, reader: VideoReader, codec: str, quality: float) -> av.VideoStream:
        first = reader.first
        stream = self._container.add_stream(codec, rate=reader.rate)
        stream.width, stream.height = first.width + first.width % 2, first.height + first.height % 2
        stream.pix_fmt = "yuv420p"
        stream.options = {QUALITY_OPTION[codec]: f"{quality:g}"}
        if codec.startswith("lib"):
            # The model is what takes time; slower presets save a tenth of the bytes.
            stream.options |= {"preset": "8" if codec == "libsvtav1" else "veryfast"}
        context = stream.codec_context
        if "265" in codec or "hevc" in codec:
            context.codec_tag = "hvc1"  # the one name of HEVC that Apple plays
        self._time_base = context.time_base = common_time_base(reader.rate, reader.stream.time_base)
        context.color_range, context.colorspace = colours_of(first)
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
        if reader.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = reader.stream.sample_aspect_ratio
        if reader.matrix is not None:
            stream.set_display_matrix([int(value) for value in reader.matrix])
        return stream

    def _add_sound(self, source: av.AudioStream) -> "Track":
        if is_copied(source):
            return Track(self._container.add_stream_from_template(source), encoded=False)
        rate = min(AAC_RATES, key=lambda known: abs(known - source.codec_context.sample_rate))
        stream = self._container.add_stream("aac", rate=rate)
        channels = source.codec_context.layout.nb_channels
        stream.layout = {1: "mono", 6: "5.1"}.get(channels, "stereo")
        return Track(stream, encoded=True)


@dataclass
class Track:
    """An audio track of the output."""

    stream: av.AudioStream
    encoded: bool
    started: bool = False
    broken: bool = False
