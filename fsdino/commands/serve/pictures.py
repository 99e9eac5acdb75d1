"""Pictures that the page shows: small JPEG files in memory, by keys that cannot be guessed."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from PIL import Image

from fsdino.images import encode_image
from fsdino.overlay import shrunk

SIDE = 1024  # pixels of a picture at most
_MOST = 256  # pictures of one visitor


def jpeg(picture: Image.Image, side: int = SIDE) -> bytes:
    """A picture of at most this many pixels a side, as JPEG."""
    return encode_image(shrunk(picture.convert("RGB"), side), "JPEG", quality=88)


class Pictures:
    """The newest pictures of one visitor; the oldest make room."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, picture: Image.Image, side: int = SIDE) -> str:
        """Keep a picture; returns its key."""
        content, key = jpeg(picture, side), secrets.token_urlsafe(16)
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> bytes | None:
        """The content of a picture; None if it is not, or no longer, here."""
        with self._lock:
            return self._kept.get(key)
