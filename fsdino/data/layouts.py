"""The layouts of your own folder: which file is an image, and which is its mask.

Only masks are decoded, and only to tell one class from several (`fsdino.data.labels`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsdino.data import labels
from fsdino.data.labels import Labelling
from fsdino.data.names import LAYOUTS
from fsdino.errors import DataError, UsageError, shown_path
from fsdino.image_files import scan_folder

CLASSES_FILE = "classes.txt"

IMAGE_FOLDERS = frozenset(
    {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"}
)
MASK_FOLDERS = frozenset(
    {"annotation", "annotations", "ground_truth", "groundtruth", "gt", "label", "labels", "mask"}
    | {"masks", "segmentation", "segmentations", "segmentationclass", "segmentationclassaug"}
)
# Parts of one data set rather than classes.
_SPLIT_FOLDERS = frozenset({"dev", "test", "train", "training", "val", "valid", "validation"})
MASK_ENDS = ("_mask", "-mask")
_SHOWN = 3  # examples in an error


@dataclass(frozen=True)
class Pairs:
    """Images with their masks.

    Attributes:
        masks: the mask of each image, in the order of the images' names.
        unmarked: images without a mask.
        left_out: files and folders that are neither, with the reasons.
    """

    masks: Mapping[Path, Path]
    unmarked: Sequence[Path] = ()
    left_out: Mapping[Path, str] = field(default_factory=dict)

    @property
    def images(self) -> list[Path]:
        """All images, with and without a mask, in the order of their names."""
        return sorted([*self.masks, *self.unmarked])


@dataclass(frozen=True)
class Reading:
    """How a folder is read. Names are "/"-separated and relative to its root.

    Attributes:
        layout: one of `LAYOUTS`, except "auto".
        classes: a name for each class id.
        images: the images of each class that have a mask, in the order that draws count in.
        masks: the mask of each of them.
        unmarked: images without a mask, by class; of label maps, under no class's id (-1).
        left_out: names that are not read, with the reasons.
        damaged: images whose label map cannot be read, with the reasons.
    """

    layout: str
    classes: Mapping[int, str]
    images: Mapping[int, tuple[str, ...]]
    masks: Mapping[str, str]
    unmarked: Mapping[int, tuple[str, ...]]
    left_out: Mapping[str, str]
    damaged: Mapping[str, str] = field(default_factory=dict)


def read_layout(root: Path, layout: str, labelling: Labelling) -> Reading:
    """Find classes, images and masks below `root`.

    Args:
        root: the folder.
        layout: one of `LAYOUTS`.
        labelling: what the values of label maps mean.

    Raises:
        UsageError: no such layout, or nothing that fits the one asked for.
        DataError: what was found can be read in more than one way; names it.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if layout == "class-folders":
        return _class_folders(root)
    if layout == "auto":
        return _choose(root, labelling)
    pairs = _in_two_folders(root) or _beside(root) or _beside_below(root)
    if not pairs.images:
        raise DataError(
            f"--root {root}: no image found; layout {layout} is images/NAME.jpg with masks/NAME.png"
            ", or NAME.jpg beside NAME_mask.png"
        )
    return _one_class(root, pairs) if layout == "pairs" else _several(root, pairs, labelling)


def _choose(root: Path, labelling: Labelling) -> Reading:
    """The only layout that matches; class folders if none does, whose errors are more specific."""
    folders = _find_class_folders(root)
    apart, beside = _in_two_folders(root), _beside(root)
    marked = [name for name, found in folders.items() if found.masks]
    fits = {
        f"class folders ({_examples(marked)})": marked,
        "a folder of images and one of masks": apart is not None,
        "images and masks beside each other": beside is not None,
    }
    found = [title for title, there in fits.items() if there]
    if len(found) > 1:
        raise DataError(
            f"--root {root}: matches more than one layout, {' and '.join(found)}; move other "
            "files away, or pass --layout"
        )
    pairs = apart or beside
    if pairs is None:
        return _class_folders(root)
    named = labels.read_classes(root / CLASSES_FILE, labelling.background)
    if len(named) > 1 or labels.is_label_maps(root, pairs.masks.values(), labelling):
        return _several(root, pairs, labelling)
    if apart is not None and not named:
        _refuse_subfolders(root, apart)
    return _one_class(root, pairs)


def _refuse_subfolders(root: Path, pairs: Pairs) -> None:
    """Refuse images/cat and images/dog, which may be two classes or parts of one."""
    inside = [path.relative_to(root).parts[1] for path in pairs.masks if _depth(root, path) > 2]
    found = list(dict.fromkeys(inside))
    if len(found) > 1 and any(name.casefold() not in _SPLIT_FOLDERS for name in found):
        raise DataError(
            f"--root {root}: the images are in {_examples(found)}, which may be classes or parts "
            "of one; give each class a folder, CLASS/images with CLASS/masks, or pass --layout "
            "pairs for one class"
        )


# --------------------------------------------------------------------------------- class folders


def _class_folders(root: Path) -> Reading:
    found = _find_class_folders(root)
    kept = {name: pairs for name, pairs in found.items() if pairs.images}
    left_out: dict[Path, str] = {}
    for name, pairs in found.items():
        left_out.update(pairs.left_out)
        if name not in kept:
            left_out[root / name] = "no image lies in this folder itself: it is not a class"
    left_out.update((path, "not in a class folder") for path in _files(root))
    left_out.update((path, f"a link to {one.name}") for path, one in _linked(root).items())
    names = dict(enumerate(kept))
    images = {
        class_id: tuple(_name(root, path) for path in kept[name].masks)
        for class_id, name in names.items()
    }
    unmarked = {
        class_id: tuple(_name(root, path) for path in kept[name].unmarked)
        for class_id, name in names.items()
    }
    masks = _names(root, kept.values())
    return Reading("class-folders", names, images, masks, unmarked, _reasons(root, left_out))


def _find_class_folders(root: Path) -> dict[str, Pairs]:
    """Folders by class name: those of the root or, if none has images, those below them."""
    linked = _linked(root)
    tops = [folder for folder in _folders(root) if folder not in linked]
    found = {folder.name: _class_folder(folder) for folder in tops}
    if any(side_by_side(folder).images for folder in tops):
        return found
    _refuse_splits(root, found)
    if any(pairs.images for pairs in found.values()):
        return found
    nested = {
        _name(root, folder): _class_folder(folder)
        for folder in _all_below(root)
        if folder.name.casefold() not in IMAGE_FOLDERS | MASK_FOLDERS
    }
    nested = {name: pairs for name, pairs in nested.items() if pairs.images}
    _refuse_splits(root, nested)
    return nested or found


def _refuse_splits(root: Path, found: Mapping[str, Pairs]) -> None:
    """Refuse train/ and val/ of one data set, which would double each class."""
    tops = dict.fromkeys(name.partition("/")[0] for name, pairs in found.items() if pairs.images)
    if tops and all(name.casefold() in _SPLIT_FOLDERS for name in tops):
        raise DataError(
            f"--root {root}: {_examples([*tops])} look like parts of one data set and not like "
            f"classes; pass --root {root / next(iter(tops))}"
        )


def _class_folder(folder: Path) -> Pairs:
    """A class: images with masks beside them, or in folders of images and of masks."""
    pairs = side_by_side(folder)
    inside = _folders(folder)
    if not pairs.images and (apart := _in_two_folders(folder)) is not None:
        return apart
    left_out = dict(pairs.left_out)
    if pairs.images:
        left_out.update((path, "a folder inside a class folder") for path in inside)
    return Pairs(pairs.masks, pairs.unmarked, left_out)


# ----------------------------------------------------------------------------- images and masks


def side_by_side(folder: Path) -> Pairs:
    """Pair the images of one folder with the masks beside them.

    The mask of NAME.jpg is NAME.png, or NAME_mask or NAME-mask with any image suffix; that of
    NAME.png is NAME_mask or NAME-mask. Suffixes are not case-sensitive, and names are
    compared as Unicode text, so that composed and decomposed letters are the same.

    Raises:
        DataError: an image has more than one mask.
    """
    listing = scan_folder(folder)
    files = listing.images
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(_text(path.stem), []).append(path)
    found: dict[Path, list[Path]] = {}
    masks: set[Path] = set()
    for path in files:  # NAME.jpg and NAME.png, before names are looked into
        if not _is_png(path):
            found[path] = [other for other in by_stem[_text(path.stem)] if _is_png(other)]
            masks.update(found[path])
    for path in files:
        base = _base(path)
        if base is None or path in masks or found.get(path):
            continue
        for image in by_stem.get(base, ()):
            if image not in masks:
                found.setdefault(image, []).append(path)
                masks.add(path)
    images = {path: own for path, own in sorted(found.items()) if path not in masks}
    _refuse_ambiguous(images)
    left_out = {
        path: "a PNG file without a partner: an image has a mask, a mask has an image"
        for path in files
        if path not in masks and path not in images
    }
    left_out.update((folder / name, reason) for name, reason in listing.left_out.items())
    return Pairs(
        {path: own[0] for path, own in images.items() if own},
        [path for path, own in images.items() if not own],
        left_out,
    )


def _beside(root: Path) -> Pairs | None:
    """Images and masks in the root itself; None if no image has a mask there."""
    pairs = side_by_side(root)
    if not pairs.masks:
        return None
    left_out = {**pairs.left_out, **{path: "a folder beside the images" for path in _folders(root)}}
    left_out.pop(root / CLASSES_FILE, None)
    return Pairs(pairs.masks, pairs.unmarked, left_out)


def _beside_below(root: Path) -> Pairs:
    """Images with masks in the same folder, in any folders below the root."""
    parts = [side_by_side(folder) for folder in (root, *_all_below(root))]
    left_out = {path: reason for part in parts for path, reason in part.left_out.items()}
    left_out.pop(root / CLASSES_FILE, None)
    masks = {image: mask for part in parts for image, mask in part.masks.items()}
    return Pairs(
        dict(sorted(masks.items())),
        [path for part in parts for path in part.unmarked],
        left_out,
    )


def _in_two_folders(root: Path) -> Pairs | None:
    """A folder of images and one of masks, of one structure; None if there are none.

    Raises:
        DataError: several such folders match, or an image has several masks, or a mask several
            images.
    """
    fitting = _two_folders(root)
    if not fitting:
        return None
    if len(fitting) > 1:
        found = ", ".join(f"{a.name}/ with {b.name}/" for a, b in fitting)
        raise DataError(
            f"--root {root}: images and masks match in more than one way, {found}; move away what "
            "does not belong to the data"
        )
    images, masks = (_by_key(folder) for folder in fitting[0])
    for key, paths in images.items():
        if len(paths) > 1 and key in masks:
            raise DataError(
                f"{masks[key][0]}: matches several images, {_examples(paths)}; keep one of them"
            )
    owners = {path: masks.get(key) or _ending(masks, key) for key, [path, *_] in images.items()}
    _refuse_ambiguous(owners)
    marked = {path: own[0] for path, own in sorted(owners.items()) if own}
    taken = set(marked.values())
    left_out = {
        path: "a mask without an image"
        for paths in masks.values()
        for path in paths
        if path not in taken
    }
    others = [path for path in _files(root) if path.name != CLASSES_FILE]
    others += [path for path in _folders(root) if path not in fitting[0]]
    left_out.update((path, "beside the images and masks") for path in others)
    for folder in fitting[0]:
        strange = scan_folder(folder, recursive=True).left_out
        left_out.update((folder / name, reason) for name, reason in strange.items())
    return Pairs(marked, sorted(path for path, own in owners.items() if not own), left_out)


def _two_folders(root: Path) -> list[tuple[Path, Path]]:
    """Folders of images and of masks, by name, that have a file of one name in common."""
    inside = _folders(root)
    images = [path for path in inside if path.name.casefold() in IMAGE_FOLDERS]
    masks = [path for path in inside if path.name.casefold() in MASK_FOLDERS]
    if not images or not masks:
        return []
    keys = {path: set(_by_key(path)) for path in (*images, *masks)}
    return [
        (image, mask)
        for image in images
        for mask in masks
        if not keys[image].isdisjoint(keys[mask] | {_without_end(key) for key in keys[mask]})
    ]


def _by_key(folder: Path) -> dict[str, list[Path]]:
    """The images below a folder by their names in it, without suffix."""
    found: dict[str, list[Path]] = {}
    for path in scan_folder(folder, recursive=True).images:
        found.setdefault(_text(_name(folder, path.with_suffix(""))), []).append(path)
    return found


def _ending(masks: Mapping[str, list[Path]], key: str) -> list[Path]:
    return [path for end in MASK_ENDS for path in masks.get(f"{key}{end}", ())]


def _refuse_ambiguous(found: Mapping[Path, Sequence[Path]]) -> None:
    for image, masks in found.items():
        if len(masks) > 1:
            raise DataError(f"{image}: has {len(masks)} masks, {_examples(masks)}; keep one")


# --------------------------------------------------------------------------- what is in the pairs


def _one_class(root: Path, pairs: Pairs) -> Reading:
    """Everything as one class."""
    named = labels.read_classes(root / CLASSES_FILE, background=0)
    if len(named) > 1:
        raise DataError(
            f"{root / CLASSES_FILE}: names {len(named)} classes, and layout pairs has one; pass "
            "--layout labels, or remove the file"
        )
    name = next(iter(named.values()), root.resolve().name or "object")
    images = {0: tuple(_name(root, path) for path in pairs.masks)}
    unmarked = {0: tuple(_name(root, path) for path in pairs.unmarked)}
    masks = _names(root, [pairs])
    return Reading("pairs", {0: name}, images, masks, unmarked, _reasons(root, pairs.left_out))


def _several(root: Path, pairs: Pairs, labelling: Labelling) -> Reading:
    """The classes in label maps; an image has any number of them."""
    file = root / CLASSES_FILE
    named = labels.read_classes(file, labelling.background)
    values, damaged = labels.read_values(pairs.masks.values())
    images: dict[int, list[str]] = {}
    left_out = _reasons(root, pairs.left_out)
    for path, mask in pairs.masks.items():
        present = labelling.classes(values.get(mask, ()))
        labels.check_known(mask, present, named, file)
        if mask in values and not present:
            left_out[_name(root, path)] = "its label map holds no class"
        for value in present:
            images.setdefault(value, []).append(_name(root, path))
    for value in sorted(named.keys() - images.keys() - {labelling.ignore}):
        left_out[f"class {value} {named[value]}"] = "no label map has it"
    names = {value: named.get(value, str(value)) for value in sorted(images)}
    return Reading(
        "labels",
        names,
        {value: tuple(images[value]) for value in names},
        _names(root, [pairs]),
        {-1: tuple(_name(root, path) for path in pairs.unmarked)},
        left_out,
        {_name(root, path): damaged[mask] for path, mask in pairs.masks.items() if mask in damaged},
    )


# ------------------------------------------------------------------------------------------ names


def _entries(folder: Path) -> list[Path]:
    """Visible entries of a folder, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(
            f"{shown_path(folder)}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _linked(folder: Path) -> dict[Path, Path]:
    """Folders inside that link to another one, with that one: a class is read once."""
    found: dict[Path, Path] = {}
    linked: dict[Path, Path] = {}
    for path in sorted(_folders(folder), key=lambda path: (path.is_symlink(), path)):
        one = found.setdefault(path.resolve(), path)
        if one != path:
            linked[path] = one
    return linked


def _files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if not path.is_dir()]


def _all_below(folder: Path) -> list[Path]:
    """All visible folders below a folder, each before those in it, once."""
    found: list[Path] = []
    seen = {folder.resolve()}
    waiting = _folders(folder)[::-1]
    while waiting:
        path = waiting.pop()
        if path.resolve() not in seen:
            seen.add(path.resolve())
            found.append(path)
            waiting += _folders(path)[::-1]
    return found


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _text(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _without_end(stem: str) -> str:
    for end in MASK_ENDS:
        if stem.lower().endswith(end):
            return stem[: -len(end)]
    return stem


def _base(path: Path) -> str | None:
    """The name of the image whose mask a file is by its own name."""
    stem = _text(path.stem)
    base = _without_end(stem)
    return base if base not in ("", stem) else None


def _depth(root: Path, path: Path) -> int:
    return len(path.relative_to(root).parts)


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _names(root: Path, parts: Iterable[Pairs]) -> dict[str, str]:
    return {
        _name(root, image): _name(root, mask)
        for pairs in parts
        for image, mask in pairs.masks.items()
    }


def _reasons(root: Path, left_out: Mapping[Path, str]) -> dict[str, str]:
    return {_name(root, path): reason for path, reason in left_out.items()}


def _examples(found: Sequence[Path | str]) -> str:
    names = [shown_path(item) for item in found[:_SHOWN]]
    return ", ".join(names) + (", …" if len(found) > _SHOWN else "")
