"""What `fsdino video` writes beside masks: an overlay video, and COCO annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fsdino.commands.segment.formats import checked, chosen

if TYPE_CHECKING:
    from fractions import Fraction

    from fsdino.models.instances import Split
    from fsdino.models.segmentation import Segmentation

PNG, OVERLAY, COCO = "png", "overlay", "coco"
FILES = {OVERLAY: "overlay.mp4", COCO: "annotations.json"}


class Annotated(Protocol):
    """A finished frame, as annotations name it; `output.Row` is one."""

    @property
    def frame(self) -> int:
        """Its number in the clip."""
        ...

    @property
    def image(self) -> str:
        """Its file, or the name that it gets when the clip is taken apart."""
        ...

    @property
    def seconds(self) -> Fraction:
        """Its time."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        ...

    @property
    def objects(self) -> list[dict[str, Any]]:
        """COCO annotations without ids."""
        ...


@dataclass(frozen=True)
class VideoFormats:
    """Which files are written beside masks.

    Attributes:
        names: keys of `FILES`.
        split, min_area: what counts as an object; see `Segmentation.instances`.
    """

    names: tuple[str, ...] = (OVERLAY,)
    split: Split = "connected"
    min_area: int = 1

    @classmethod
    def parse(cls, text: str, split: str = "connected", min_area: int = 1) -> VideoFormats:
        """Read --format, --split and --min-area.

        Raises:
            UsageError: an unknown format, none at all, an unknown split, or an area below 1.
        """
        given = chosen(text, (PNG, *FILES))
        return cls(
            tuple(name for name in FILES if name in given), checked(split, min_area), min_area
        )

    def call(self) -> dict[str, Any]:
        """What decides the files, for the record of the call."""
        more = {"split": self.split, "min_area": self.min_area} if self.coco else {}
        return {"formats": [*self.names], **more}

    @property
    def overlay(self) -> bool:
        """Whether a video with overlays is written."""
        return OVERLAY in self.names

    @property
    def coco(self) -> bool:
        """Whether COCO annotations are written."""
        return COCO in self.names

    @property
    def files(self) -> list[str]:
        """What is written at the end."""
        return [FILES[name] for name in self.names]

    def objects(self, result: Segmentation) -> list[dict[str, Any]]:
        """A frame's COCO annotations, with ids that count within the frame; none if not wanted."""
        if not self.coco:
            return []
        return result.to_coco(0, split=self.split, min_area=self.min_area)


def coco_lines(
    rows: Callable[[], Iterable[Annotated]], categories: Mapping[str, int]
) -> Iterator[str]:
    """The COCO file of a video, in pieces: a frame is an image, with its number and time.

    Args:
        rows: gives the frames, from the first one on; called twice.
        categories: ids by class name.
    """
    from fsdino.models.coco_export import coco_pieces

    images = (
        {
            "id": number,
            "file_name": row.image,
            "width": row.size[1],
            "height": row.size[0],
            "frame_index": row.frame,
            "time": round(float(row.seconds), 6),
        }
        for number, row in enumerate(rows(), 1)
    )
    annotations = (
        {**annotation, "image_id": number}
        for number, row in enumerate(rows(), 1)
        for annotation in row.objects
    )
    numbered = ({**annotation, "id": number} for number, annotation in enumerate(annotations, 1))
    return coco_pieces(images, categories, numbered)
