"""A folder or a file of labelled photographs, as supports: images and their masks by class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsdino.data.annotations import Shape, is_yolo, read_shapes, read_yolo, yolo_names
from fsdino.data.layouts import IMAGE_FOLDERS, MASK_ENDS, MASK_FOLDERS, side_by_side
from fsdino.errors import DataError, UsageError, listed, printable, shown_path
from fsdino.image_files import scan_folder
from fsdino.images import Flags, read_image

logger = logging.getLogger("fsdino.data")

UNNAMED = "foreground"
MOST_IMAGES = 64  # of a class; supports of more gain little, and take memory
_FORMS = (
    "NAME.jpg with NAME.png or NAME_mask.png beside it or in masks/ (a folder for each class, if "
    "there are several), LabelMe or COCO JSON files, or YOLO segments"
)


@dataclass(frozen=True)
class Labelled:
    """The labelled images of one class, as `encode_support` takes them.

    Attributes:
        images: K image files.
        masks: K mask files, or bool arrays [H, W] where annotations were drawn.

    Example:
        >>> from pathlib import Path
        >>> import fsdino
        >>> coins = fsdino.Labelled([Path("coins.jpg")], [Path("coins.png")])
        >>> coins.images[0].name
        'coins.jpg'
    """

    images: list[Path] = field(default_factory=list)
    masks: list[Path | Flags] = field(default_factory=list)


def read_labelled(path: str | os.PathLike[str]) -> dict[str, Labelled]:
    """Find the labelled images in a folder, or those of an annotation file.

    * Pairs: NAME.jpg with NAME.png, or NAME_mask or NAME-mask with any image suffix, beside it
      or in a folder masks/; images may be in a folder images/. The class is called "foreground";
      with a folder for each class, by the folder.
    * LabelMe's JSON files, with polygons, rectangles, also tilted ones, circles and masks.
    * A COCO JSON file, as CVAT and others export it, with polygons and run lengths.
    * YOLO segments: labels/NAME.txt with images/NAME.jpg, or NAME.txt beside NAME.jpg; names of
      classes are in data.yaml, classes.txt or obj.names.

    All shapes of a class in an image are one mask. Images without a shape or a mask are left out;
    the log names those without a mask.

    Returns:
        Images and masks by class, classes and images in the order of their names.

    Raises:
        UsageError: there is no such path, or no labelled image.
        DataError: two kinds of labels, two masks for one image, an annotation file that is damaged
            or names a missing image, more than 64 images of a class.

    Example:
        >>> from pathlib import Path
        >>> import fsdino
        >>> Path("labelled/coin").mkdir(parents=True)
        >>> coins = fsdino.samples()["coins"]
        >>> coins.image.save("labelled/coin/1.jpg")
        >>> coins.mask.save("labelled/coin/1.png")
        >>> {name: len(c.images) for name, c in fsdino.read_labelled("labelled").items()}
        {'coin': 1}
    """
    place = Path(path)
    if place.is_file():
        root = place.parent
        if root.name.casefold() in MASK_FOLDERS:
            root = root.parent
        found = read_shapes(place, _pictures(root), root)
        if found is None:
            raise UsageError(
                f"{shown_path(place)} is neither a LabelMe nor a COCO file; pass a folder with "
                f"{_FORMS}"
            )
        classes = _drawn(found[1])
        kinds = [found[0]]
    elif place.is_dir():
        classes, kinds = _in_folder(place)
    else:
        raise UsageError(f"{shown_path(place)}: no such file or folder; check the path")
    if not classes and kinds:
        raise UsageError(
            f"{shown_path(place)}: the {listed(kinds)} annotations have no polygon and no mask: "
            "draw one, or export in another format (Label Studio's COCO leaves brushes out)"
        )
    if not classes:
        raise UsageError(f"{shown_path(place)}: no labelled image found; it needs {_FORMS}")
    return classes


def _in_folder(root: Path) -> tuple[dict[str, Labelled], list[str]]:
    """The labelled images by class, and the kinds of labels that there are."""
    pictures = _pictures(root)
    shapes: dict[str, list[Shape]] = {}
    for file in _visible(root, ".json"):
        found = read_shapes(file, pictures, root)
        if found is not None:
            shapes.setdefault(found[0], []).extend(found[1])
    segments = _yolo(root, pictures)
    if segments:
        shapes["YOLO"] = segments
    pairs = _pairs_by_class(root)
    kinds = [*shapes, *(["masks"] if pairs else [])]
    if len(kinds) > 1:
        raise DataError(
            f"{shown_path(root)} has labels of several kinds ({', '.join(kinds)}): pass the "
            "annotation file, or a folder with one kind"
        )
    return pairs or _drawn([shape for part in shapes.values() for shape in part]), kinds


def _drawn(shapes: Sequence[Shape]) -> dict[str, Labelled]:
    """Shapes as masks, those of one class in one image together."""
    owners: dict[Path, Path] = {}
    by_class: dict[str, dict[Path, list[Shape]]] = {}
    for shape in shapes:
        if owners.setdefault(shape.image, shape.file) != shape.file:
            raise DataError(
                f"{shown_path(shape.image)} has two annotation files, "
                f"{shown_path(owners[shape.image])} and {shown_path(shape.file)}: keep one"
            )
        by_class.setdefault(shape.label, {}).setdefault(shape.image, []).append(shape)
    classes: dict[str, Labelled] = {}
    for label, images in sorted(by_class.items()):
        _check_count(label, len(images))
        classes[label] = Labelled()
        for image, own in sorted(images.items()):
            classes[label].images.append(image)
            classes[label].masks.append(_mask(label, image, own))
    return classes


def _mask(label: str, image: Path, shapes: Sequence[Shape]) -> Flags:
    pixels = read_image(image)
    height, width = pixels.shape[:2]
    masks = []
    for shape in shapes:
        if shape.size not in (None, (height, width)):
            assert shape.size is not None
            raise DataError(
                f"{shown_path(shape.file)}: {shown_path(image.name)} is {shape.size[1]} × "
                f"{shape.size[0]} there, and the image is {width} × {height}; annotate the image "
                "as it is, and upright"
            )
        try:
            masks.append(shape.draw((height, width)))
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{shown_path(shape.file)}: a shape of {printable(label)} is damaged ({error}); "
                "export the annotations again"
            ) from error
    mask = masks[0]
    for further in masks[1:]:
        mask = mask | further
    if not mask.any():
        raise DataError(
            f"{shown_path(shapes[0].file)}: {printable(label)} covers no pixel of "
            f"{shown_path(image.name)}; draw it again, or remove it"
        )
    return mask


def _yolo(root: Path, pictures: Sequence[Path]) -> list[Shape]:
    """The segments of the text files that belong to an image by folder and name."""
    by_stem: dict[Path, list[Path]] = {}
    for picture in pictures:
        by_stem.setdefault(picture.with_suffix(""), []).append(picture)
    shapes = []
    for file in _visible(root, ".txt"):
        if file.name in ("classes.txt", "train.txt", "val.txt", "test.txt"):
            continue
        stem = file.with_suffix("")
        inside = [*stem.relative_to(root).parts]
        in_labels = [k for k, part in enumerate(inside[:-1]) if part.casefold() == "labels"]
        for k in in_labels:
            inside[k] = "images"
        found = by_stem.get(stem, []) or by_stem.get(root.joinpath(*inside), [])
        if not in_labels and not is_yolo(file):
            continue
        if len(found) > 1:
            raise DataError(
                f"{shown_path(file)} belongs to several images, {listed(map(str, found))}: keep one"
            )
        if found:
            names = yolo_names([file.parent, root, *file.parent.parents[:2]])
            shapes += read_yolo(file, found[0], names)
        elif in_labels:
            raise DataError(
                f"{shown_path(file)} belongs to the image {'/'.join(inside)}.jpg, which is not in "
                f"{shown_path(root)}: put it there, or remove the file"
            )
    return shapes


def _pairs_by_class(root: Path) -> dict[str, Labelled]:
    """Images with mask files: the root's own or, if it has none, those of each folder in it."""
    whole = _pairs(root)
    if whole is not None:
        return {UNNAMED: whole}
    classes = {}
    for folder in _folders(root):
        if folder.name.casefold() in IMAGE_FOLDERS | MASK_FOLDERS:
            continue
        found = _pairs(folder)
        if found is not None:
            classes[folder.name] = found
    return classes


def _pairs(folder: Path) -> Labelled | None:
    """Images and masks of one folder; None if no image in it has a mask."""
    inside = {name: _with_images(folder, name) for name in ("images", "masks")}
    for kind, folders in inside.items():
        if len(folders) > 1:
            raise DataError(
                f"{shown_path(folder)} has several folders of {kind}, "
                f"{listed(part.name for part in folders)}: keep one"
            )
    if inside["masks"]:
        masks, unmarked = _beside_folder(
            [*inside["images"], folder][0], inside["masks"][0], deep=bool(inside["images"])
        )
    else:
        pairs = side_by_side(folder)
        masks, unmarked = dict(pairs.masks), [*pairs.unmarked]
    if not masks:
        return None
    if unmarked:
        logger.warning("left out, without a mask: %s", listed(map(shown_path, unmarked)))
    name = UNNAMED if folder.name == "" else folder.name
    _check_count(name, len(masks))
    ordered = sorted(masks.items())
    return Labelled([image for image, _ in ordered], [mask for _, mask in ordered])


def _beside_folder(images: Path, masks: Path, *, deep: bool) -> tuple[dict[Path, Path], list[Path]]:
    """The masks in a folder of their own by image, and images that have none."""
    by_name: dict[str, list[Path]] = {}
    for path in scan_folder(masks, recursive=True).images:
        by_name.setdefault(path.relative_to(masks).with_suffix("").as_posix(), []).append(path)
    found: dict[Path, Path] = {}
    unmarked = []
    for image in scan_folder(images, recursive=deep).images:
        name = image.relative_to(images).with_suffix("").as_posix()
        own = [mask for end in ("", *MASK_ENDS) for mask in by_name.get(f"{name}{end}", [])]
        if len(own) > 1:
            raise DataError(
                f"{shown_path(image)}: has {len(own)} masks, {listed(map(str, own))}; keep one"
            )
        if own:
            found[image] = own[0]
        else:
            unmarked.append(image)
    return found, unmarked


def _check_count(label: str, count: int) -> None:
    if count > MOST_IMAGES:
        raise DataError(
            f"{printable(label)} has {count:,} labelled images, at most {MOST_IMAGES} make a "
            "support: copy the best ones into a folder of their own"
        )


def _with_images(folder: Path, kind: str) -> list[Path]:
    """The folders of images or of masks in a folder that hold image files."""
    names = IMAGE_FOLDERS if kind == "images" else MASK_FOLDERS
    inside = [part for part in _folders(folder) if part.name.casefold() in names]
    return [part for part in inside if scan_folder(part, recursive=True).images]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise UsageError(
            f"{shown_path(folder)}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def _pictures(root: Path) -> list[Path]:
    return scan_folder(root, recursive=True).images


def _visible(root: Path, suffix: str) -> Iterator[Path]:
    """Files below a folder by suffix, but hidden ones, in the order of their names."""
    for file in sorted(root.rglob(f"*{suffix}")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.is_file() and not hidden:
            yield file
