"""Benchmarks by name, as episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from fsdino.data.coco import Coco
from fsdino.data.cross_domain import LAYOUTS, CrossDomain
from fsdino.data.davis import Davis
from fsdino.data.episodes import EpisodeKey, Episodes, Provenance
from fsdino.data.folder import Folder
from fsdino.data.fss1000 import Fss1000
from fsdino.data.lists import Lists
from fsdino.data.lvis import Lvis
from fsdino.data.names import ON_DISK, SAMPLINGS
from fsdino.data.paco_part import PacoPart
from fsdino.data.pascal import Pascal
from fsdino.data.pascal_part import PascalPart
from fsdino.data.procedural import ProceduralEpisodes, Split
from fsdino.data.sampling import HSNET_SEED, SPLITS, Seeded, check_numbers, check_pools
from fsdino.data.source import FileEpisodes, Source
from fsdino.errors import DataError, UsageError

EPISODES = 1000

_SOURCES: dict[str, Callable[[Path, Path | None], Source]] = {
    "pascal5i": Pascal,
    "pascal5i-leak-safe": partial(Pascal, leak_safe=True),
    "coco20i": Coco,
    "fss1000": Fss1000,
}
_WITHOUT_LISTS: dict[str, Callable[[Path], Source]] = {
    "pascal-part": PascalPart,
    **{name: partial(CrossDomain, layout) for name, layout in LAYOUTS.items()},
}
# Without lists, too; their classes depend on the number of shots.
_BY_SHOTS: dict[str, Callable[[Path, int], Source]] = {"lvis92i": Lvis, "paco-part": PacoPart}
_WITHOUT_DRAWS = ("folder", "procedural")


def open_source(
    dataset: str,
    root: Path | None,
    splits: Path | None = None,
    *,
    shots: int = 1,
    layout: str = "auto",
    ignore: int | str | None = None,
    background: int | str | None = None,
    skip_bad: bool = False,
    incomplete: bool = False,
) -> Source | Davis:
    """Open a data set on disk.

    Args:
        dataset: one of `ON_DISK`.
        root: its folder, or the folder that this is in.
        splits: folder of HSNet's lists; None derives lists.
        shots: supports per episode, on which the classes of LVIS-92i and PACO-Part depend.
        layout, ignore, background: how your own folder is read; see `Folder`.
        skip_bad: leave out unusable files of such a folder.
        incomplete: accept any root, so that `parts` can list what is missing.

    Raises:
        UsageError: an unknown name, or it is not there; names what to fetch.
    """
    if dataset not in ON_DISK:
        raise UsageError(f"no data set {dataset!r} on disk: choose one of {', '.join(ON_DISK)}")
    if root is None:
        raise UsageError(f"pass --root, the folder that {dataset} is in")
    for title, folder in (("--root", root), ("--splits", splits)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{title} {folder}: no such folder")
    source: Source | Davis
    if dataset == "folder":
        source = Folder(root, layout, ignore, background, skip_bad)
    else:
        _refuse_folder_settings(dataset, layout, ignore, background)
        source = _open_fixed(dataset, root, splits, shots)
    places = source.places
    if not incomplete and places.find(source.root) is None:
        raise UsageError(
            f"--root {root}: no {dataset} there (looked for {places.tried()}); get "
            f"{places.archive} and unpack it there; `fsdino data check {dataset}` lists all parts"
        )
    return source


def _open_fixed(dataset: str, root: Path, splits: Path | None, shots: int) -> Source | Davis:
    """A data set with a layout of its own."""
    if dataset == "davis17":
        return Davis(root)
    if dataset in _SOURCES:
        return _SOURCES[dataset](root, splits)
    if splits is not None:
        raise UsageError(f"--splits {splits}: {dataset} has no split lists; leave it out")
    if dataset in _BY_SHOTS:
        return _BY_SHOTS[dataset](root, shots)
    return _WITHOUT_LISTS[dataset](root)


def open_episodes(
    dataset: str,
    *,
    split: str = "val",
    fold: int | None = 0,
    shots: int = 1,
    seed: int = 0,
    episodes: int | None = None,
    sampling: str = "hsnet",
    root: Path | None = None,
    splits: Path | None = None,
    layout: str = "auto",
    ignore: int | str | None = None,
    background: int | str | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
) -> Episodes:
    """Open a benchmark as episodes. No image is read, but missing COCO masks are rasterised.

    Args:
        dataset: one of `DATASETS`, except DAVIS-17, whose frames are not episodes.
        split: "val" (novel classes), "train" (base classes) or "base_val" (base classes, images
            that are not trained on; of FSS-1000, the validation classes; of folders with few
            images, see `Folder`). Sets for evaluation only have "val" alone.
        fold: the fold whose classes are novel; 0 or None if the data set has no folds.
        shots: supports per episode.
        seed: seed of seeded sampling; the draws of hsnet have none.
        episodes: number of episodes; None is 1000, each test image once for FSS-1000, 2300 for
            LVIS-92i, 2500 for PACO-Part, at most as many for PASCAL-Part, and 600 for the
            cross-domain sets.
        sampling: "hsnet", the published draws, or "seeded". Folders and generated episodes have no
            published draws: they are always seeded, as their provenance records.
        root: the data set's folder.
        splits: folder of HSNet's lists; None derives lists.
        layout, ignore, background: how your own folder is read; see `Folder`.
        image_size: side in pixels of generated pictures.
        skip_bad: do not check that the files of the drawn episodes exist, and leave out unusable
            files of your own folder.

    Raises:
        UsageError: an invalid argument, a missing data set or list.
        DataError: lists or files that cannot be used; names the file.
    """
    if dataset == "procedural":
        _refuse_folder_settings(dataset, layout, ignore, background)
        return _procedural(split, fold, shots, seed, episodes, image_size)
    if image_size is not None:
        raise UsageError("image_size is for generated episodes; files have sizes of their own")
    if sampling not in SAMPLINGS:
        raise UsageError(f"sampling {sampling!r}: choose {' or '.join(SAMPLINGS)}")
    source = _open_numbered(
        dataset,
        split,
        fold,
        shots,
        seed,
        episodes,
        root=root,
        splits=splits,
        layout=layout,
        ignore=ignore,
        background=background,
        skip_bad=skip_bad,
    )
    drawn = "seeded" if dataset in _WITHOUT_DRAWS else sampling
    if drawn == "hsnet" and seed != HSNET_SEED:
        raise UsageError(
            f"seed {seed}: the draws of hsnet start from {HSNET_SEED}; use sampling seeded"
        )
    fold = fold if source.folds else None
    classes, lists = source.classes(fold, split), source.lists(fold, split)
    keys = draw(source, classes, lists, split, shots, seed, episodes, drawn)
    _make_ready(source, keys, lists, split, skip_bad)
    provenance = Provenance(
        dataset=dataset,
        fold=fold,
        split=split,
        sampling=drawn,
        lists="derived" if lists.derived else "published",
        lists_hash=lists.hash,
        mask_source=source.mask_source(split),
    )
    return FileEpisodes(source, keys, classes, fold, shots, seed, provenance)


def check_episodes(
    dataset: str,
    *,
    fold: int | None = 0,
    shots: int = 1,
    seed: int = 0,
    episodes: int | None = None,
    root: Path | None = None,
    splits: Path | None = None,
    layout: str = "auto",
    ignore: int | str | None = None,
    background: int | str | None = None,
) -> None:
    """Refuse what `open_episodes` would refuse for the novel classes, before any file is read.

    Raises:
        UsageError: an argument outside its range, a data set that is not there.
    """
    if dataset == "procedural":
        _refuse_folder_settings(dataset, layout, ignore, background)
        _procedural("val", fold, shots, seed, episodes, None)
        return
    source = _open_numbered(
        dataset,
        "val",
        fold,
        shots,
        seed,
        episodes,
        root=root,
        splits=splits,
        layout=layout,
        ignore=ignore,
        background=background,
    )
    if source.folds:
        source.classes(fold, "val")


def _open_numbered(
    dataset: str,
    split: str,
    fold: int | None,
    shots: int,
    seed: int,
    episodes: int | None,
    **where: Any,
) -> Source:
    """The data set on disk, once the numbers are found to be in range; see `open_episodes`."""
    if dataset == "davis17":
        raise UsageError("davis17 is scored video by video, not by episodes: `fsdino evaluate`")
    check_numbers(split, shots, seed, episodes)
    source = open_source(dataset, shots=shots, **where)
    assert not isinstance(source, Davis)
    if source.folds == 0 and fold not in (None, 0):
        raise UsageError(f"fold {fold}: {dataset} has no folds; pass --fold 0")
    return source


def draw(
    source: Source,
    classes: Sequence[int],
    lists: Lists,
    split: str,
    shots: int = 1,
    seed: int = 0,
    episodes: int | None = None,
    sampling: str | None = None,
) -> Sequence[EpisodeKey]:
    """Draw the episodes of a split's lists; arguments as of `open_episodes`.

    Raises:
        DataError: a class has too few images; the message names it.
    """
    if isinstance(source, Folder):
        queries, pools = source.pools(lists)
        return Seeded(pools, split, shots, seed, episodes or EPISODES, queries)
    check_pools(lists.by_class, classes, source.class_names, source.dataset)
    if sampling is None:
        sampling = "seeded" if source.dataset in _WITHOUT_DRAWS else "hsnet"
    if sampling == "hsnet":
        return source.hsnet(lists, classes, shots, episodes)
    pools = {class_id: lists.by_class.get(class_id, ()) for class_id in classes}
    return Seeded(pools, split, shots, seed, episodes or EPISODES)


def _refuse_folder_settings(
    dataset: str, layout: str, ignore: int | str | None, background: int | str | None
) -> None:
    """Refuse settings that would have no effect.

    Raises:
        UsageError: the message names the settings.
    """
    given = {"layout": layout != "auto", "ignore": ignore is not None}
    given["background"] = background is not None
    names = [name for name, used in given.items() if used]
    if names:
        raise UsageError(
            f"{' and '.join(names)}: only for your own folder, and {dataset} has a fixed layout; "
            "leave them out"
        )


def _make_ready(
    source: Source, keys: Sequence[EpisodeKey], lists: Lists, split: str, skip_bad: bool
) -> None:
    """Report missing images at the start, and make missing masks."""
    few = len(keys) * (len(keys[0].names)) < len(lists.items)
    if few:
        names = sorted({name for key in keys for name in key.names})
    else:
        names = sorted({name for name, _ in lists.items})
    if not skip_bad and (few or isinstance(keys, tuple)):
        files = dict.fromkeys(map(source.file, names))
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{missing[0]}: missing, with {len(missing) - 1} other images of the "
                f"episodes; `fsdino data check {source.dataset}` lists what to download"
            )
    if source.mask_source(split) == "rasterised":
        source.make_masks(names)


def _procedural(
    split: str, fold: int | None, shots: int, seed: int, episodes: int | None, size: int | None
) -> Episodes:
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    return ProceduralEpisodes(
        fold or 0,
        cast(Split, split),
        shots,
        seed,
        EPISODES if episodes is None else episodes,
        112 if size is None else size,
    )
