"""How a run of stage 2 scores its model: by the evaluation protocol, on episodes of its own."""

from __future__ import annotations

import logging

from fsdino.data.episodes import Episodes
from fsdino.data.folder import Folder
from fsdino.data.source import FileEpisodes
from fsdino.devices import find_dtype
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Settings, evaluate
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.models.segmenter import Segmenter
from fsdino.processes import Processes
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.steps import open_training
from fsdino.training.state import own_random

logger = logging.getLogger("fsdino.training")


class Validation:
    """The episodes that the best model is chosen by.

    Args:
        config: of the run.

    Attributes:
        selected_on: what that is, as the model's provenance says it.

    Raises:
        UsageError, DataError: the data set cannot be opened; see `open_training`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.episodes = open_training(
            config,
            config.validation_shots,
            config.validation_episodes,
            config.model.image_size if config.data == "procedural" else None,
            "val" if config.select_on == "novel" else "base_val",
        )
        novel = config.select_on == "novel"
        self.selected_on = "novel classes of the fold" if novel else _base_classes(self.episodes)

    def score(self, model: Segmenter, processes: Processes) -> float:
        """Score a model: mIoU in percent, NaN where there is nothing to score.

        The model is put into evaluation mode and back into training mode.

        Raises:
            FsdinoError: its output is not finite.
        """
        config = self.config
        settings = Settings(
            config.model.image_size,
            protocols.find("joint", seeded=True),
            device=processes.device,
            dtype=find_dtype(config.dtype),
            workers=0 if config.data == "procedural" else config.workers,
            skip_bad=config.skip_bad,
        )
        model.eval()
        with own_random():
            miou = evaluate(
                ModelPredictor(model), self.episodes, settings, processes=processes
            ).miou
        model.train()
        return miou


def _base_classes(episodes: Episodes) -> str:
    """That they are base classes, and of how many the images are those that are trained on."""
    found = "base classes"
    if isinstance(episodes, FileEpisodes) and isinstance(episodes.source, Folder):
        one, none = episodes.source.few_images()
        for few, what in (
            (one, "one image each that is not trained on"),
            (none, "images that are trained on"),
        ):
            if few:
                logger.warning("validation asks %s for %s", ", ".join(few), what)
                found += f"; of {len(few)} of {len(episodes.classes)} classes {what}"
    return found
