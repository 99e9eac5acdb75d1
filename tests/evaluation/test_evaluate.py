"""The evaluation loop: what it scores, and that batches, workers and stops change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluated import Shared, everything, few
from fsdino.data.episodes import Episode
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


def ious(result: Result) -> list[float]:
    return [row.iou for row in result.rows]


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
