"""The demo's drawings: what it scores is what it says."""

from __future__ import annotations

import numpy as np
import pytest

from fsdino.commands.demo import drawings
from fsdino.commands.demo.drawings import BACKGROUND, Answer, WayAnswer
from fsdino.data.episodes import Episode, Sample
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.evaluation.evaluate import Settings as EvaluationSettings
from fsdino.evaluation.evaluate import evaluate
from fsdino.evaluation.photographs import iou
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.models import zoo
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    return list(drawings.answers(tiny_model(), 4))


@pytest.fixture(scope="module")
def ways() -> list[WayAnswer]:
    return drawings.answer_ways(tiny_model())


def test_episodes_are_the_first_of_the_held_out_fold(answers):
    """Nothing is picked by hand: fold 3, seed 0, 0 to n - 1, and 1 shot is the first of 5."""
    episodes = ProceduralEpisodes(3, "val", shots=1, seed=0, episodes=4, image_size=70)
    assert len(answers) == 4
    for i, answer in enumerate(answers):
        assert np.array_equal(answer.episode.query.image, episodes[i].query.image)
        assert np.array_equal(answer.episode.supports[0].mask, episodes[i].supports[0].mask)
        assert answer.shown.query.image.shape == (140, 140, 3)
        assert 72 <= answer.episode.class_id < 96


def test_masks_are_the_models(answers):
    """1-shot and 5-shot masks equal separate calls with the first and with all supports."""
    model = tiny_model()
    episode = answers[1].episode
    for shots in (1, 5):
        samples = episode.supports[:shots]
        support = model.encode_support([s.image for s in samples], [s.mask for s in samples])
        expected = model.segment(episode.query.image, support).mask
        assert np.array_equal(answers[1].masks["FS-DINO", shots], expected)


def test_the_baseline_shares_the_encoder():
    """It adds nothing learned, and costs no second encoder."""
    model = tiny_model()
    baseline_model = zoo.training_free(model)
    assert baseline_model.encoder is model.encoder
    assert baseline_model.config.variant == "training_free"
    assert not baseline_model.training
    encoder = set(map(id, model.encoder.parameters()))
    assert {id(p) for p in baseline_model.parameters()} == encoder


def test_scores_by_hand():
    """Two classes: IoU 1/3 and (1 + 2) / (2 + 4) give mIoU 5/12, not the mean over episodes."""

    def answer(class_id: int, truth: list[int], predicted: list[int]) -> Answer:
        masks = [np.array([row], dtype=bool) for row in (truth, predicted)]
        sample = Sample(np.zeros((1, 4, 3), np.uint8), masks[0], "s", class_id)
        episode = Episode(sample, (sample,), class_id, "name", 0)
        key = ("FS-DINO", 1)
        return Answer(episode, episode, {key: masks[1]}, {key: iou(masks[1], masks[0])})

    answers = [
        answer(72, [1, 1, 0, 0], [0, 1, 1, 0]),
        answer(73, [1, 1, 0, 0], [1, 0, 0, 0]),
        answer(73, [1, 1, 0, 0], [1, 1, 1, 1]),
    ]
    assert [a.iou["FS-DINO", 1] for a in answers] == [pytest.approx(1 / 3), 0.5, 0.5]
    [score] = drawings.scores(answers).values()
    assert score.miou == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    # Background: (1 + 2 + 0) / (3 + 3 + 2); foreground: (1 + 1 + 2) / (3 + 2 + 4).
    assert score.fb_iou == pytest.approx(100 * (3 / 8 + 4 / 9) / 2)


def test_scores_are_those_of_an_evaluation(answers):
    """The way users take, `segment`, scores what the evaluation of batches scores."""
    model = tiny_model()
    for method, segmenter in (("FS-DINO", model), ("training-free", zoo.training_free(model))):
        for shots in (1, 5):
            episodes = ProceduralEpisodes(3, "val", shots=shots, seed=0, episodes=4, image_size=70)
            expected = evaluate(ModelPredictor(segmenter), episodes, EvaluationSettings(70))
            found = [answer.iou[method, shots] for answer in answers]
            assert found == pytest.approx([row.iou for row in expected.rows], abs=0.01)


def test_each_way_is_scored_on_its_own_class(ways):
    """The label of a query's class is its place among the supports."""
    assert [way.own for way in ways] == [1, 2, 3]
    for way in ways:
        predicted, truth = way.labels == way.own, way.episode.query.mask
        union = np.count_nonzero(predicted | truth)
        assert way.iou == pytest.approx(np.count_nonzero(predicted & truth) / union)


def test_asked_for_alone(ways):
    """As if there were no other supports."""
    model = tiny_model()
    for way in ways:
        sample, query = way.episode.supports[0], way.episode.query
        found = model.segment(query.image, model.encode_support(sample.image, sample.mask)).mask
        union = np.count_nonzero(found | query.mask)
        assert way.alone == pytest.approx(np.count_nonzero(found & query.mask) / union, abs=1e-3)


def test_what_became_of_the_true_masks_pixels(ways):
    """Counted per label, with the probabilities that decided; and the label's pixels beside it."""
    model = tiny_model()
    supports = {
        way.episode.class_name: model.encode_support(
            way.episode.supports[0].image, way.episode.supports[0].mask
        )
        for way in ways
    }
    for way in ways:
        result = model.segment(way.episode.query.image, supports)
        truth = way.episode.query.mask
        assert [fate.name for fate in way.fates] == [BACKGROUND, *supports]
        assert sum(fate.share for fate in way.fates) == pytest.approx(1)
        for label, fate in enumerate(way.fates):
            places = [tuple(place) for place in np.argwhere(truth & (way.labels == label))]
            assert fate.share == pytest.approx(len(places) / truth.sum())
            own = [float(result.probabilities[way.own - 1][place]) for place in places]
            best = [max(float(p[place]) for p in result.probabilities) for place in places]
            assert fate.own == pytest.approx(sum(own) / max(len(own), 1), abs=1e-5)
            assert fate.best == pytest.approx(sum(best) / max(len(best), 1), abs=1e-5)
        beside = sum(way.labels[~truth] == way.own)
        assert way.spill == pytest.approx(beside / truth.sum())
