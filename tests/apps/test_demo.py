"""The demo: what it scores is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.apps import demo
from fsdino.apps.demo import Answer, Results, Settings
from fsdino.data.episodes import Episode, Sample
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import UsageError
from fsdino.evaluation.evaluate import Settings as EvaluationSettings
from fsdino.evaluation.evaluate import evaluate
from fsdino.evaluation.predictors import predictor
from fsdino.models import zoo
from fsdino.ops import baseline
from fsdino.ops.baseline import Workload
from tiny_models import tiny_model

MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(4, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    tiny_model().save_pretrained(path / "model")
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baseline.WORKLOADS, "mini", MINI)
        settings = Settings(str(folder / "model"), 4, 2, "mini", 1, "fsdino demo --out here")
        return demo.run(settings, folder / "out")


def test_episodes_are_the_first_of_the_held_out_fold(results):
    """Nothing is picked by hand: fold 3, seed 0, 0 to n - 1, and 1 shot is the first of 5."""
    episodes = ProceduralEpisodes(3, "val", shots=1, seed=0, episodes=4, image_size=70)
    assert len(results.answers) == 4
    for i, answer in enumerate(results.answers):
        assert np.array_equal(answer.episode.query.image, episodes[i].query.image)
        assert np.array_equal(answer.episode.supports[0].mask, episodes[i].supports[0].mask)
        assert answer.shown.query.image.shape == (140, 140, 3)
        assert 72 <= answer.episode.class_id < 96


def test_masks_are_the_models(results, folder):
    """1-shot and 5-shot masks equal separate calls with the first and with all supports."""
    model = tiny_model()
    episode = results.answers[1].episode
    for shots in (1, 5):
        samples = episode.supports[:shots]
        support = model.encode_support([s.image for s in samples], [s.mask for s in samples])
        expected = model.segment(episode.query.image, support).mask
        assert np.array_equal(results.answers[1].masks["FS-DINO", shots], expected)


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
        return Answer(episode, episode, {key: masks[1]}, {key: demo._iou(masks[1], masks[0])})

    answers = [
        answer(72, [1, 1, 0, 0], [0, 1, 1, 0]),
        answer(73, [1, 1, 0, 0], [1, 0, 0, 0]),
        answer(73, [1, 1, 0, 0], [1, 1, 1, 1]),
    ]
    assert [a.iou["FS-DINO", 1] for a in answers] == [pytest.approx(1 / 3), 0.5, 0.5]
    [score] = demo._scores(answers, (72, 73, 74)).values()
    assert score.miou == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    # Background: (1 + 2 + 0) / (3 + 3 + 2); foreground: (1 + 1 + 2) / (3 + 2 + 4).
    assert score.fb_iou == pytest.approx(100 * (3 / 8 + 4 / 9) / 2)


def test_scores_are_those_of_an_evaluation(results):
    """The way users take, `segment`, scores what the evaluation of batches scores."""
    model = tiny_model()
    for method, segmenter in (("FS-DINO", model), ("training-free", zoo.training_free(model))):
        for shots in (1, 5):
            episodes = ProceduralEpisodes(3, "val", shots=shots, seed=0, episodes=4, image_size=70)
            expected = evaluate(predictor(segmenter), episodes, EvaluationSettings(70))
            found = [answer.iou[method, shots] for answer in results.answers]
            assert found == pytest.approx(expected.per_episode, abs=0.01)


def test_each_way_is_scored_on_its_own_class(results):
    """The label of a query's class is its place among the supports."""
    assert [way.own for way in results.ways] == [1, 2, 3]
    for way in results.ways:
        predicted, truth = way.labels == way.own, way.episode.query.mask
        union = np.count_nonzero(predicted | truth)
        assert way.iou == pytest.approx(np.count_nonzero(predicted & truth) / union)


def test_files(results, folder):
    """Two overlays per episode at the scenes' size, and the numbers as JSON."""
    overlays = sorted(path.name for path in (folder / "out" / "overlays").iterdir())
    assert overlays == [f"{i:03d}-{shots}shot.png" for i in range(4) for shots in (1, 5)]
    with Image.open(folder / "out" / "overlays" / "000-1shot.png") as image:
        assert image.size == (140, 140)
    data = json.loads((folder / "out" / "demo.json").read_text())
    assert data["data"] == "procedural-v1/fold3/val/0"
    assert len(data["episodes"]) == 4
    assert {(s["method"], s["shots"]) for s in data["scores"]} == {
        (method, shots) for method in ("FS-DINO", "training-free") for shots in (1, 5)
    }
    assert data["kernels"]["timings"][0]["name"] == "eager"


@pytest.mark.parametrize("name", ["episodes", "pictures", "repeats"])
def test_numbers_below_one_are_refused(name, tmp_path):
    """Before anything is loaded or written."""
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        demo.run(Settings(**{name: 0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
