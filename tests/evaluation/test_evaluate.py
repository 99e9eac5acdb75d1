"""The evaluation loop: what it scores, and that batches, workers and stops change nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsdino.data.episodes import Episode, Sample
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.errors import DataError, UsageError
from fsdino.evaluation import protocols
from fsdino.evaluation.evaluate import Result, Settings, evaluate
from fsdino.evaluation.journal import Journal
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.questions import Questions
from tiny_models import tiny_model

SMALL = Settings(32)


def oracle(questions: Questions) -> torch.Tensor:
    return (questions.batch.query_masks[:, None] - 0.5) * 10


def everything(questions: Questions) -> torch.Tensor:
    return torch.ones_like(questions.batch.query_masks)[:, None]


def ious(result: Result) -> list[float]:
    return [row.iou for row in result.rows]


def few(episodes: int = 24, **changes) -> ProceduralEpisodes:
    return ProceduralEpisodes(0, "val", episodes=episodes, **{"image_size": 32, **changes})


def test_the_truth_scores_100_and_its_opposite_0() -> None:
    """A prediction equal to the mask has IoU 100 for every class; the complement 0."""
    perfect = evaluate(oracle, few(), SMALL)
    assert perfect.miou == perfect.fb_iou == 100
    assert set(perfect.per_class) == set(few().classes) and ious(perfect) == [1.0] * 24
    assert evaluate(lambda questions: -oracle(questions), few(), SMALL).miou == 0


@pytest.mark.parametrize("batch_size, workers", [(1, 0), (5, 2), (64, 1)])
def test_batches_and_workers_change_nothing(batch_size: int, workers: int) -> None:
    """All-foreground scores the masks' mean share per class, whatever the batch size."""
    seen = []
    result = evaluate(
        everything,
        few(),
        Settings(32, batch_size=batch_size, workers=workers),
        report=lambda done, total, miou: seen.append((done, total)),
    )
    shares = [float(few()[i].query.mask.mean()) for i in range(24)]
    assert ious(result) == pytest.approx(shares)
    assert result.miou == pytest.approx(100 * sum(shares) / 24)  # one episode per class
    assert [row.episode for row in result.rows] == list(range(24))
    assert seen[0] == (0, 24) and seen[-1] == (24, 24)


def test_threshold_is_a_probability() -> None:
    """A pixel of probability 0.6 is foreground at 0.5 and background at 0.7."""
    logit = torch.logit(torch.tensor(0.6)).item()

    def constant(questions: Questions) -> torch.Tensor:
        return torch.full_like(questions.batch.query_masks, logit)[:, None]

    assert evaluate(constant, few(2), Settings(32, threshold=0.5)).miou > 0
    assert evaluate(constant, few(2), Settings(32, threshold=0.7)).miou == 0


@pytest.mark.parametrize(
    "changes, message",
    [({"batch_size": 0}, "batch_size"), ({"workers": -1}, "workers"), ({"threshold": 1}, "thresh")],
)
def test_settings_that_cannot_be_meant(changes, message) -> None:
    """Refused before anything runs."""
    with pytest.raises(UsageError, match=message):
        Settings(32, **changes)


def test_a_class_never_drawn_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its zero in the mean must not go unnoticed."""
    result = evaluate(oracle, few(23), SMALL)
    [missing] = result.scores.undrawn
    assert f"{missing} ({few().class_names[missing]})" in caplog.text
    assert result.miou == pytest.approx(100 * 23 / 24)


def test_output_that_is_not_finite_is_an_error() -> None:
    """NaN compares as background: it would be a silent zero."""
    with pytest.raises(DataError, match="not finite"):
        evaluate(lambda questions: oracle(questions) * torch.nan, few(2), SMALL)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fusion", ["joint", "vote"])
def test_weights_that_are_not_finite_stop_an_evaluation(fusion: str, value: float) -> None:
    """Also with `skip_bad`, which is for files; the error names the weights."""
    for part in ("encoder", "decoder"):
        model = tiny_model()
        with torch.no_grad():
            next(getattr(model, part).parameters()).view(-1)[0] = value
        settings = Settings(70, protocols.find("joint", fusion=fusion), skip_bad=True)
        with pytest.raises(DataError, match=rf"weights hold NaN or infinity \({part}\."):
            evaluate(ModelPredictor(model), few(2, image_size=70, shots=2), settings)


@pytest.mark.parametrize("fusion", ["joint", "vote"])
@pytest.mark.parametrize("role", ["query", "support"])
def test_one_image_without_finite_features_is_named(
    monkeypatch: pytest.MonkeyPatch, role: str, fusion: str
) -> None:
    """Out of a batch of four; what was done before it is kept."""
    model, episodes = tiny_model(), few(8, image_size=70, shots=2)
    key = episodes.key(5)
    name = key.query if role == "query" else key.supports[1]
    encode, wanted = type(model).encode, episodes[5]
    image = wanted.query.image if role == "query" else wanted.supports[1].image
    bad = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255

    def spoiled(self, images: torch.Tensor):
        features = encode(self, images)
        if torch.equal(images[0], bad):
            features.last[0, 0, 0, 0] = torch.nan
        return features

    monkeypatch.setattr(type(model), "encode", spoiled)
    done: list[int] = []
    settings = Settings(70, protocols.find("joint", fusion=fusion), batch_size=4)
    with pytest.raises(DataError, match=f"^{re.escape(name)}: .*(not finite|NaN or infinity)"):
        evaluate(
            ModelPredictor(model), episodes, settings,
            report=lambda count, total, miou: done.append(count),
        )  # fmt: skip
    assert done == [0, 4]


class Damaged:
    """Episodes two of which cannot be read."""

    def __init__(self, episodes: ProceduralEpisodes) -> None:
        self.episodes = episodes

    def __getattr__(self, name: str):
        return getattr(self.episodes, name)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        if index in {2, 3}:
            raise DataError(f"image {index}.jpg is damaged")
        return self.episodes[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_episodes_stop_or_are_skipped_by_name(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a silent zero: an error with the file's name, or a counted skip that scores nothing."""
    damaged = Damaged(few(8))
    with pytest.raises(DataError, match=r"^episode 2: image 2.jpg is damaged"):
        evaluate(oracle, damaged, Settings(32, batch_size=2, workers=workers))
    settings = Settings(32, batch_size=2, workers=workers, skip_bad=True)
    result = evaluate(oracle, damaged, settings)
    assert result.skipped == {2: "image 2.jpg is damaged", 3: "image 3.jpg is damaged"}
    assert "image 3.jpg is damaged" in caplog.text
    drawn = 8 - 2
    assert result.miou == pytest.approx(100 * drawn / 24)
    assert int(result.scores.episodes.sum()) == drawn


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    """Finished batches are not asked again, a half-written line is dropped, the rest is equal."""
    model, episodes = tiny_model(), few(14, image_size=70)
    settings = Settings(70, batch_size=4)
    asked: list[str] = []

    def interrupted(questions: Questions) -> torch.Tensor:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append("batch")
        return ModelPredictor(model)(questions)

    with pytest.raises(KeyboardInterrupt):
        journal = Journal(tmp_path / "r.json", {"model": "a"})
        evaluate(interrupted, episodes, settings, journal=journal)
    with (tmp_path / "r.part0.jsonl").open("a") as file:
        file.write('{"seed": 0, "episode": 8, "cla')

    def counting(questions: Questions) -> torch.Tensor:
        asked.append("batch")
        return ModelPredictor(model)(questions)

    journal = Journal(tmp_path / "r.json", {"model": "a"})
    resumed = evaluate(counting, episodes, settings, journal=journal)
    assert len(asked) == 4  # of 14 episodes in batches of 4
    assert resumed.rows == evaluate(ModelPredictor(model), episodes, settings).rows


def test_rows_that_fit_no_episode_are_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged index, class, name or count ends in a fresh answer, not in an error or a sum."""
    episodes, out = few(6), tmp_path / "r.json"
    good = evaluate(oracle, episodes, SMALL).rows
    changes = [
        {"episode": 6}, {"class_id": 10**6}, {"query": "another"}, {"query": 9 * "x"},
        {"union": (32 * 32 + 1,) * 3},
    ]  # fmt: skip
    bad = [replace(row, **change) for row, change in zip(good, changes, strict=False)]
    Journal(out, {}).append([*bad, good[5]])
    asked: list[str] = []

    def counting(questions: Questions) -> torch.Tensor:
        asked.extend(key.query for key in questions.keys)
        return oracle(questions)

    settings = replace(SMALL, batch_size=1)
    result = evaluate(counting, episodes, settings, journal=Journal(out, {}))
    assert result.rows == good and result.miou == evaluate(oracle, episodes, SMALL).miou
    assert asked == [row.query for row in good[:5]]
    assert "5 rows kept beside the result fit no episode" in caplog.text


class Shared:
    """Four pictures of a box; each episode asks about two of them, in two sizes."""

    classes, class_names, fold, shots, seed = (1,), {1: "box"}, 0, 1, 0

    def __init__(self, sizes: tuple[tuple[int, int], ...] = ((70, 70),) * 4, ignored=False) -> None:
        self.samples = []
        for number, (height, width) in enumerate(sizes):
            rng = np.random.default_rng(number)
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            mask = np.zeros((height, width), bool)
            mask[height // 4 : height // 2 + number, width // 3 : width - 9] = True
            ignore = ~mask if ignored else None
            self.samples.append(Sample(image, mask, f"{number}.jpg", 1, ignore))

    def __len__(self) -> int:
        return 6

    def pick(self, index: int) -> tuple[Sample, Sample]:
        return self.samples[index % 4], self.samples[(index + 1) % 4]

    def __getitem__(self, index: int) -> Episode:
        query, support = self.pick(index)
        return Episode(query, (support,), 1, "box", index)

    def key(self, index: int):
        from fsdino.data.episodes import EpisodeKey

        query, support = self.pick(index)
        return EpisodeKey(1, query.name, (support.name,))


def test_every_distinct_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images serve six episodes of two images each; nothing is kept beyond its last use."""
    model, encoded = tiny_model(), []
    encode = type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda self, x: encoded.append(len(x)) or encode(self, x)
    )
    cached = ModelPredictor(model)
    result = evaluate(cached, Shared(), Settings(70, batch_size=2))
    assert encoded == [1] * 4
    assert len(cached.cache) == cached.cache.size == 0
    # A cache too small for one image costs time and changes nothing.
    encoded.clear()
    small = ModelPredictor(model, cache_bytes=1)
    assert evaluate(small, Shared(), Settings(70, batch_size=2)).rows == result.rows
    assert len(encoded) == 3 + 3 + 3  # of each batch's distinct images


def test_a_models_answer_is_its_forward_pass() -> None:
    """Cached features and joined batches give the logits of a forward pass over the episode."""
    model, episodes = tiny_model(), few(3, image_size=70, shots=2)
    answers = []

    def spy(questions: Questions) -> torch.Tensor:
        answers.append((questions.batch, ModelPredictor(model)(questions)))
        return answers[-1][1]

    evaluate(spy, episodes, Settings(70))
    [(batch, logits)] = answers
    with torch.inference_mode():
        expected = model(batch.support_images, batch.support_masks, batch.query_images)
    logits = F.interpolate(logits, (70, 70), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_vote_runs_every_shot_alone() -> None:
    """K one-shot passes, then HSNet's vote: by two of two shots, a pixel needs at least one."""
    model, episodes = tiny_model(), few(3, image_size=70, shots=2)
    settings = Settings(70, protocol=protocols.find("hsnet"))
    votes = []

    def spy(questions: Questions) -> torch.Tensor:
        votes.append((questions.batch, ModelPredictor(model)(questions)))
        return votes[-1][1]

    result = evaluate(spy, episodes, settings)
    [(batch, logits)] = votes
    with torch.inference_mode():
        for k in range(2):
            one = slice(k, k + 1)
            query, support = model.encode_episodes(
                batch.support_images[:, one], batch.support_masks[:, one], batch.query_images
            )
            expected = model.answer(query, [support]).logits
            torch.testing.assert_close(logits[:, one], expected, rtol=1e-4, atol=1e-4)
    resized = F.interpolate(logits, (70, 70), mode="bilinear", align_corners=True)
    for row, maps, truth in zip(result.rows, resized, batch.query_masks > 0, strict=True):
        masks = [(one > 0).numpy() for one in maps]
        total = sum(mask.astype(int) for mask in masks)
        voted = torch.from_numpy(total / max(total.max(), 1) >= 0.5)
        assert row.intersection[1] == int((voted & truth).sum())


def test_original_size_scores_the_files_own_pixels() -> None:
    """Counts add up to the image's own pixels, and ignored ones count nowhere."""
    sizes = ((50, 60), (70, 40), (33, 95), (64, 64))
    protocol = protocols.find("hsnet-original")
    settings = Settings(70, protocol=protocol, batch_size=4)
    result = evaluate(everything, Shared(sizes), settings)
    for row in result.rows:
        height, width = sizes[row.episode % 4]
        truth = Shared(sizes).samples[row.episode % 4].mask
        assert row.union[1] == height * width and row.intersection[1] == int(truth.sum())
    ignoring = evaluate(everything, Shared(sizes, ignored=True), settings)
    assert ious(ignoring) == [1.0] * 6


def test_autocast_is_close_to_float32() -> None:
    """bfloat16 runs, and moves the score by little."""
    model, episodes = tiny_model(), few(4, image_size=70)
    exact = ious(evaluate(ModelPredictor(model), episodes, Settings(70)))
    half = Settings(70, dtype=torch.bfloat16)
    rounded = ious(evaluate(ModelPredictor(model), episodes, half))
    assert rounded == pytest.approx(exact, abs=0.05)
