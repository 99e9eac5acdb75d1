"""The demo's photographs: each is segmented with the one that it is the query of."""

from __future__ import annotations

import numpy as np
import pytest

import fsdino
from fsdino.evaluation import photographs
from fsdino.evaluation.photographs import EVERYTHING, TRAINING_FREE
from fsdino.models import zoo
from tiny_models import tiny_model


def test_each_is_the_support_for_its_query():
    """In the samples' order, with their own masks; IoU counted by hand, beside everything's."""
    samples = fsdino.samples()
    model = tiny_model()
    answers = list(photographs.answers("mine", model, samples))
    assert [answer.support.name for answer in answers] == list(samples)
    free = zoo.training_free(model)
    for answer in answers[:2]:
        support, query = answer.support, answer.query
        assert query.name == support.query
        truth = np.asarray(query.mask) > 0
        for method, segmenter in (("mine", model), (TRAINING_FREE, free)):
            encoded = segmenter.encode_support(support.image_file, support.mask_file)
            found = segmenter.segment(query.image_file, encoded).mask
            assert np.array_equal(answer.masks[method], found)
            both, either = np.count_nonzero(found & truth), np.count_nonzero(found | truth)
            assert answer.iou[method] == pytest.approx(both / either)
        assert list(answer.iou) == ["mine", TRAINING_FREE, EVERYTHING]
        assert answer.iou[EVERYTHING] == pytest.approx(truth.mean())
        encoded = model.encode_support(support.image, support.mask, quality=True, warn=False)
        assert answer.quality == encoded.quality
        assert answer.encode_seconds > 0 and answer.segment_seconds > 0


def test_a_training_free_model_is_shown_once():
    """The same masks would stand in two columns."""
    model = tiny_model(variant="training_free")
    assert list(photographs.methods("mine", model)) == ["mine"]


def test_the_default_finds_a_cup():
    """What ships does the main job: a cup of another kind, in colours of its own."""
    samples = fsdino.samples()
    chosen = {"espresso-cup": samples["espresso-cup"], "teacup": samples["teacup"]}
    [answer, _] = photographs.answers("it", fsdino.load("fsdino-photo"), chosen)
    assert answer.iou["it"] > 0.5 > answer.iou[EVERYTHING] + 0.2
