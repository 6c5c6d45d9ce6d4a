"""Video in: frames at their exact times and sound beside them, decoded with PyAV.

The picture stays in the camera's own YUV from file to file: it is converted to RGB once, for the
model, and never back, so what the mask leaves alone is only re-encoded.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from common.errors import UserError
from video.clock import Clock
from video.sources import is_live, open_source, reason_of, shown_name
from video.tinting import Turn

# Sound that plays wherever H.264 in mp4 does; its packets are copied, other sound becomes AAC.
COPIED_SOUND = {"aac", "mp3"}
# FFmpeg draws text files as videos; nobody means that.
NOT_VIDEO = {"tty", "bin", "xbin", "idf", "adf"}
# Containers whose header says how long the file is. For others FFmpeg guesses from the end.
DECLARES_LENGTH = {"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"}
MAX_PIXELS = 1 << 27  # of a frame: 16K fits, a forged header does not


@dataclass
class Frame:
    """One frame on its way from decoder to encoder.

    Args:
        index: counted from 0.
        time: seconds from the start of the file, exact.
        duration: seconds, exact.
        picture: as decoded, in the stored orientation.
        image: HWC uint8 RGB, upright, for the model; None once it has been seen.
    """

    index: int
    time: Fraction
    duration: Fraction
    picture: av.VideoFrame
    image: np.ndarray | None = None


@dataclass
class Sound:
    """A piece of one audio track: a packet to be copied or a decoded frame to be encoded."""

    track: int
    content: av.Packet | av.AudioFrame


@dataclass(frozen=True)
class Damage:
    """Where a video broke first: seconds from its start, and how."""

    time: float
    reason: str


class VideoReader(AbstractContextManager):
    """Frames and sound of a file, a camera or a stream, in the order they are stored.

    The first frame is decoded at once: only frames tell the size, orientation and colours that
    the output needs, and a video without any is refused before an output exists.

    Args:
        source: a path, a camera's number, or an address that FFmpeg opens (rtsp://, http://).
        threads: that decode; 0 leaves it to FFmpeg, which takes one a core.

    Raises:
        UserError: no such file or camera, no video in it, or no frame that can be decoded.
    """

    def __init__(self, source: str, threads: int = 0):
        self.name = shown_name(source)
        self.live = is_live(source)
        self.damage: Damage | None = None
        self._container = open_source(source, self.name)
        try:
            self.stream = self._pick_stream(threads)
            self.sounds = [s for s in self._container.streams.audio if _audible(s)]
            self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or 25)
            self._clock = Clock(self.stream.time_base, self.rate, self._start_time())
            self._places: deque[int | None] = deque()  # of an AVI's frames that are to come
            self._rgb = VideoReformatter()
            self._same = VideoReformatter()
            self._packets = 0
            self._end = self._sound_end = Fraction(0)  # seconds read so far
            self._sound_dts: dict[int, int] = {}
            if len(self.sounds) < len(self._container.streams.audio):
                self.note("a sound track cannot be decoded")
            self.first: av.VideoFrame | None = None
            self._items = self._read()
            self._waiting = self._until_first_frame()
        except BaseException:
            self._container.close()
            raise

    def __exit__(self, *_) -> None:
        self._items.close()
        self._container.close()

    @property
    def matrix(self) -> np.ndarray | None:
        """The nine integers that say how players turn the stored picture; None: as it is."""
        data = self.first.side_data.get("DISPLAYMATRIX")
        return None if data is None else np.frombuffer(bytes(data), np.int32)

    @property
    def expected_frames(self) -> int | None:
        """How many frames the header promises; None where it does not say."""
        if self.live:
            return None
        if self.stream.frames:
            return self.stream.frames
        length = self._declared_length()
        return round(length * self.rate) if length else None

    def batches(self, size: int) -> Iterator[list[Frame | Sound]]:
        """Groups of what follows in the file, each with at most `size` frames."""
        turn = Turn(self.matrix)
        waiting, self._waiting = self._waiting, []
        batch, frames = [], 0
        for item in chain(waiting, self._items):
            if isinstance(item, Frame):
                # One thread is faster than many here: the other stages keep the cores busy.
                rgb = self._rgb.reformat(item.picture, format="rgb24", threads=1)
                item.image = turn.upright(rgb.to_ndarray())
                frames += 1
            batch.append(item)
            # A stretch of sound alone must not gather without end.
            if frames == size or len(batch) == 64 * size:
                yield batch
                batch, frames = [], 0
        if batch:
            yield batch

    def note(self, reason: str, time: Fraction | None = None) -> None:
        """Remember the first damage, at `time` or where reading stands."""
        if self.damage is None:
            self.damage = Damage(float(self._end if time is None else time), reason)

    def _until_first_frame(self) -> list[Frame | Sound]:
        waiting = []
        for item in self._items:
            waiting.append(item)
            if isinstance(item, Frame):
                self.first = item.picture
                return waiting
            if len(waiting) > 10_000:
                break
        raise UserError(
            f"{self.name} has no frame that can be decoded; record or export the video again."
        )

    def _read(self) -> Generator[Frame | Sound, None, None]:
        """Demux and decode until the end or until nothing more can be read; note what is wrong."""
        packets = self._container.demux([self.stream, *self.sounds])
        while True:
            try:
                packet = next(packets)
            except StopIteration:  # the demuxer has flushed the decoders with empty packets
                break
            except (av.error.FFmpegError, ValueError) as error:
                self.note(reason_of(error))
                yield from self._decoded_pictures(None)
                break
            if packet.stream.index == self.stream.index:  # an empty packet's own index is 0
                self._packets += packet.size > 0
                yield from self._decoded_pictures(packet)
            else:
                yield from self._decoded_sound(packet)
        self._note_missing_end()

    def _decoded_pictures(self, packet: av.Packet | None) -> Iterator[Frame]:
        if packet is not None and packet.size and self._formats() == {"avi"}:
            # AVI stores no times, but its frames' places: FFmpeg leaves some empty where a frame
            # lasts longer. Its guesses of the times jump where frames are stored out of order.
            self._places.append(packet.dts)
        try:
            pictures = self.stream.decode(packet)
        except (av.error.FFmpegError, ValueError) as error:
            self.note(reason_of(error))
            if packet is not None and self._places:
                self._places.pop()  # no frame will come for it
            return
        for picture in pictures:
            stamp = self._place() if self._places else picture.pts
            index, time = self._clock.index, self._clock.time_of(stamp)
            if picture.is_corrupt:
                self.note("the frame is damaged", time)
            duration = self._clock.period
            if picture.duration and not self._clock.regular:
                duration = picture.duration * self.stream.time_base
            self._end = max(self._end, time + duration)
            if (first := self.first) is not None:
                # A stream may change its size or format on the way; the output cannot.
                size = first.width, first.height
                picture = self._same.reformat(picture, *size, first.format.name)
            yield Frame(index, time, duration, picture)

    def _place(self) -> int | None:
        """The stamp of an AVI's next frame, from the places of the packets that were decoded."""
        place = self._places.popleft()
        following = self._places[0] if self._places else None
        # Frames that are stored out of order come out one packet later than they are shown.
        late = following is not None and self.stream.codec_context.has_b_frames
        return following - 1 if late else place

    def _decoded_sound(self, packet: av.Packet) -> Iterator[Sound]:
        track = self.sounds.index(packet.stream)
        start, tick = self._clock.start, packet.stream.time_base
        if packet.pts is not None:
            self._sound_end = max(self._sound_end, packet.pts * tick - start)
        if is_copied(packet.stream):
            if packet.dts is None or not packet.size:
                return
            # Muxers refuse time that stands still; a damaged file holds such packets.
            if packet.dts > self._sound_dts.get(track, -math.inf):
                self._sound_dts[track] = packet.dts
                if packet.pts is not None:
                    packet.pts -= round(start / tick)
                packet.dts -= round(start / tick)
                yield Sound(track, packet)
            return
        try:
            pieces = packet.decode()
        except (av.error.FFmpegError, ValueError) as error:
            self.note(f"sound: {reason_of(error)}")
            return
        for piece in pieces:
            if piece.pts is not None:
                piece.pts -= round(start / piece.time_base)
            yield Sound(track, piece)

    def _note_missing_end(self) -> None:
        length = self._declared_length()
        if length is None or self.damage is not None:
            return
        # mp4 counts its frames; elsewhere the length is that of the longest track, and rounded.
        fewer = self._packets < self.stream.frames and "mp4" in self._formats()
        tolerance = 2 / self.rate if fewer else Fraction(1, 2)
        reached = self._end if self.stream.duration else max(self._end, self._sound_end)
        if length - reached > tolerance:
            self.note(f"the file ends here, though it says it lasts {float(length):.2f} s")

    def _declared_length(self) -> Fraction | None:
        """Seconds that the header promises; None where the container does not say."""
        if not DECLARES_LENGTH & self._formats():
            return None
        if self.stream.duration:
            return self.stream.duration * self.stream.time_base
        if not self._container.duration:
            return None
        # Matroska says when it ends, which includes the time before it starts.
        before = self._clock.start if "matroska" in self._formats() else 0
        return Fraction(self._container.duration, av.time_base) - before

    def _formats(self) -> set[str]:
        return set(self._container.format.name.split(","))

    def _start_time(self) -> Fraction:
        """Where zero is: recordings start anywhere; a player starts where the first track does."""
        discontinuous = self._container.format.flags & av.format.Flags.ts_discont.value
        starts = [
            stream.start_time * stream.time_base
            for stream in self._container.streams
            if stream.start_time is not None and stream.time_base is not None
        ]
        first = min(starts, default=Fraction(0))
        # Before zero there are only samples that a decoder needs and nobody hears.
        return first if discontinuous or self.live else max(Fraction(0), first)

    def _pick_stream(self, threads: int) -> av.VideoStream:
        cover = av.stream.Disposition.attached_pic  # of a song, stored as a video stream, too
        videos = [s for s in self._container.streams.video if not s.disposition & cover]
        if not videos or self._container.format.name in NOT_VIDEO:
            raise UserError(f"{self.name} has no video stream; give a video.")
        stream = videos[0]
        context = stream.codec_context
        if not _decodable(stream) or not stream.time_base:
            raise UserError(
                f"{self.name} is coded in a way that FFmpeg cannot read; convert it to H.264."
            )
        if context.width * context.height > MAX_PIXELS:
            raise UserError(
                f"{self.name} claims frames of {context.width}x{context.height} pixels, which is "
                "more than any camera's; the file is damaged."
            )
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_type, context.thread_count = "AUTO", threads
        return stream


def _decodable(stream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name != "none"


def _audible(stream: av.AudioStream) -> bool:
    context = stream.codec_context
    return _decodable(stream) and context.sample_rate > 0 and context.layout.nb_channels > 0


def is_copied(sound: av.AudioStream) -> bool:
    """Whether a track is taken over as it is; the decoder's own name may differ ("mp3float")."""
    return sound.codec_context.codec.canonical_name in COPIED_SOUND
