"""Frames on the screen while they are made."""

import os
import sys

import cv2

from common.errors import UserError
from common.packages import install_command
from video.reader import Frame
from video.tinting import Turn


class Window:
    """A window with the latest frame; Esc, q or its cross close it."""

    def __init__(self, name: str, turn: Turn):
        self._name, self._turn = name, turn
        cv2.namedWindow(name, cv2.WINDOW_NORMAL)

    def show(self, frame: Frame) -> bool:
        """Whether to go on."""
        cv2.imshow(self._name, self._turn.upright(frame.picture.to_ndarray(format="bgr24")))
        closed = cv2.waitKey(1) & 0xFF in (27, ord("q"))
        return not closed and cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) > 0


def check_window() -> None:
    """Refuse --show where no window can be opened.

    Raises:
        UserError: OpenCV was built without windows, or there is no screen.
    """
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in screens):
        raise UserError("--show needs a screen and there is none here; leave it out.")
    try:
        cv2.namedWindow("--show")
        cv2.destroyWindow("--show")
    except cv2.error as error:
        raise UserError(
            "--show needs an OpenCV with windows: pip uninstall opencv-python-headless, then "
            f"{install_command('opencv-python')}."
        ) from error
