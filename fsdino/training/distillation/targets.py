"""What the student learns to give: the teacher's embeddings, from disk or computed on the fly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fsdino.errors import DataError
from fsdino.processes import Processes
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.corpus import Corpus, ImageFile
from fsdino.training.distillation.embeddings import EmbeddingCache, fill
from fsdino.training.distillation.inventory import Inventory, read_inventory
from fsdino.training.distillation.pairs import Pair, PairReader
from fsdino.training.distillation.teacher import Teacher
from fsdino.training.run import Run

logger = logging.getLogger("fsdino.training")

INVENTORY_FILE = "images.json"


class Targets:
    """The teacher's embeddings of a run's images.

    Args:
        config: of the run.
        corpus: the images.
        teacher: computes them, on its device.
        dtype: in which it does.
        cache: keeps them; None computes them whenever they are asked for.
        run: its folder gets the inventory.
        processes: that share the work.
        hashes: of encoder, teacher and images.

    Attributes:
        corpus: the images; those that cannot be read are left out by `prepare`.
        inventory: which images there are, and which cannot be read.
        lost: reasons by the name of images that could not be read while learning.
    """

    def __init__(
        self,
        config: DistillConfig,
        corpus: Corpus,
        teacher: Teacher,
        dtype: torch.dtype,
        cache: EmbeddingCache | None,
        run: Run,
        processes: Processes,
        hashes: Mapping[str, str],
    ) -> None:
        self.config, self.corpus, self.teacher = config, corpus, teacher
        self.dtype, self.cache = dtype, cache
        self.run, self.processes, self.hashes = run, processes, hashes
        self.inventory = Inventory(unreadable=dict(corpus.unreadable))
        self.lost: dict[str, str] = {}

    def prepare(self, report: Callable[[int], None] | None = None) -> None:
        """Have every image's embedding in the cache; see `Distillation.prepare`."""
        if self.cache is None:
            return
        files = (*self.corpus.training, *self.corpus.held_out)
        stored = self._stored()
        known = self.processes.gather(stored is not None)  # another run may be repairing the cache
        if stored is not None and all(known):
            self.inventory = stored
        else:
            if self.processes.is_first:
                self.cache.announce(files, self.teacher.architecture.most_bytes)
            found = self._fill(self.processes.share(files), report)
            for part in self.processes.gather(found):
                self.inventory.add(part)
            self.cache.refresh()
            self.processes.in_turn(self._store)
        self._leave_out_unreadable()

    def missing(self) -> int:
        """How many images `prepare` of this process goes through."""
        if self.cache is None or self._stored() is not None:
            return 0
        return len(self.processes.share(range(len(self.corpus))))

    def reader(self) -> PairReader:
        """What reads images, and their embeddings where those are kept."""
        return PairReader(self.teacher.architecture, self.cache, self.inventory.contents)

    def of(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """The embeddings of pairs from `reader`, float16 [C, h, w] each.

        None stands for an image that cannot be used; a warning names it.
        """
        for pair in pairs:
            if pair.error:
                logger.warning("left out of a step: %s", pair.error)
                self.lost[pair.file.name] = pair.error
        if self.cache is None:
            seen = [pair.scaled for pair in pairs if pair.scaled is not None]
            size = self.config.teacher_batch
            answers = [
                embedding
                for first in range(0, len(seen), size)
                for embedding in self.teacher(seen[first : first + size], self.dtype)
            ]
            following = iter(answers)
            return [None if pair.scaled is None else next(following) for pair in pairs]
        return [None if pair.error else self._kept(pair) for pair in pairs]

    def _kept(self, pair: Pair) -> Tensor | None:
        """An embedding from the cache; where it could not be read, its shard is computed again."""
        assert self.cache is not None
        if pair.target is not None:
            return pair.target
        contents = self.inventory.contents
        content = contents[pair.file.name]
        found = self.cache.get(content, pair.shape)
        if found is not None:  # another process was faster
            return found
        lost = self.cache.drop_shard_of(content) | {content}
        known = (*self.corpus.training, *self.corpus.held_out)
        damaged = [other for other in known if contents[other.name] in lost]
        logger.warning("computing %d embeddings again", len(damaged))
        self._fill(damaged)
        return self.cache.get(content, pair.shape)

    def _fill(
        self, files: Sequence[ImageFile], report: Callable[[int], None] | None = None
    ) -> Inventory:
        assert self.cache is not None
        return fill(
            self.cache,
            self.teacher,
            files,
            dtype=self.dtype,
            batch_size=self.config.teacher_batch,
            workers=self.config.workers,
            report=report,
        )

    def _leave_out_unreadable(self) -> None:
        corpus = self.corpus
        bad, path = self.inventory.unreadable, self.run.folder / INVENTORY_FILE
        training, held_out = (
            tuple(file for file in files if file.name not in bad)
            for files in (corpus.training, corpus.held_out)
        )
        if bad:
            logger.warning(
                "%d of %d images cannot be used; %s names them", len(bad), len(corpus), path
            )
        if not training or not held_out:
            what = "to measure on" if training else "to learn from"
            raise DataError(
                f"no image {what} can be read ({len(bad)} of {len(corpus)} are unreadable): "
                f"see {path}"
            )
        self.corpus = Corpus(training, held_out, bad)

    def _stored(self) -> Inventory | None:
        """The inventory of the resumed run, if images, teacher and cache are unchanged."""
        assert self.cache is not None
        if self.run.before is None:  # a start that failed left it: images may have been repaired
            return None
        return read_inventory(self.run.folder / INVENTORY_FILE, self.hashes, self.cache)

    def _store(self) -> None:
        if self.processes.is_first:
            self.inventory.write(self.run.folder / INVENTORY_FILE, self.hashes)
