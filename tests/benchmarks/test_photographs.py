"""Photographs are drawn, segmented and averaged as the record says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import camvid
import numpy as np
import photo_latency
import photo_methods
import photo_results
import photo_statistics
import pytest
import torch
from photo_methods import Answer, Method, Scored, Trial
from photo_pairs import HELD_OUT, Photograph, load_pairs
from PIL import Image
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

import photographs
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.models.encoders import Features
from fsdino.models.shots import Shot, SupportFeatures
from tiny_models import tiny_model

HEIGHT, WIDTH = 60, 80
SKY, ROAD, CAR, POLE, NOTHING = (
    camvid.CLASSES.index(name) for name in ("sky", "road", "car", "pole", "unlabelled")
)


# ------------------------------------------------------------------------------------- statistics


def test_iou_leaves_ignored_pixels_out() -> None:
    prediction = np.array([[1, 1, 1, 0, 0, 1]], bool)
    truth = np.array([[1, 1, 0, 1, 0, 0]], bool)
    ignored = np.array([[0, 0, 0, 1, 1, 1]], bool)
    assert photo_statistics.iou(prediction, truth) == pytest.approx(100 * 2 / 5)
    assert photo_statistics.iou(prediction, truth, ignored) == pytest.approx(100 * 2 / 3)
    assert photo_statistics.iou(~truth, truth) == 0
    assert photo_statistics.iou(truth & False, truth & False) == 100


def test_means_weigh_queries_then_groups() -> None:
    """The first group has four queries of mean 25, the second one of 75, the third none."""
    sums = [np.array([[100.0], [0.0]]), np.array([[75.0]]), np.array([[0.0]])]
    counts = [np.array([1.0, 3.0]), np.array([1.0]), np.array([0.0])]
    assert photo_statistics.mean_of_groups(sums, counts) == pytest.approx([50])
    assert np.isnan(photo_statistics.mean_of_groups(sums[2:], counts[2:])).all()


def test_bootstrap_draws_supports() -> None:
    """Two supports, one of three queries at 100, one of one at 0: draws give 100, 75 and 0."""
    sums, counts = [np.array([[300.0, 270.0], [0.0, -10.0]])], [np.array([3.0, 1.0])]
    samples = photo_statistics.bootstrap(sums, counts)
    assert samples.shape == (photo_statistics.RESAMPLES, 2)
    values, times = np.unique(samples[:, 0], return_counts=True)
    assert values.tolist() == [0, 75, 100]
    assert times / len(samples) == pytest.approx([0.25, 0.5, 0.25], abs=0.05)
    # The second method is ten points lower at each query: a paired difference has no spread.
    assert photo_statistics.interval(samples[:, 0] - samples[:, 1]) == [10, 10]
    assert photo_statistics.interval(samples[:, 0]) == [0, 100]


def test_bootstrap_leaves_out_groups_without_a_value() -> None:
    """A draw of the second group that has its empty support twice does not count as 0."""
    sums = [np.array([[40.0], [40.0]]), np.array([[80.0], [0.0]])]
    samples = photo_statistics.bootstrap(sums, [np.ones(2), np.array([1.0, 0.0])])
    assert set(samples[:, 0].tolist()) == {40.0, 60.0}
    nothing = photo_statistics.bootstrap([np.zeros((2, 1))], [np.zeros(2)])
    assert photo_statistics.interval(nothing[:, 0]) is None


def test_interval_is_the_central_95_percent() -> None:
    assert photo_statistics.interval(np.arange(1001.0)) == [25, 975]


def test_auroc_and_rank_correlation_with_ties() -> None:
    """As SciPy counts them."""
    generator = np.random.RandomState(1)
    first, second = generator.randint(6, size=(2, 40)).astype(float)
    for values in (first, second):
        assert photo_statistics.ranks(values) == pytest.approx(stats.rankdata(values))
    expected = stats.mannwhitneyu(first[:15], second[:25]).statistic / (15 * 25)
    assert photo_statistics.auroc(first[:15], second[:25]) == pytest.approx(expected)
    expected = stats.spearmanr(first, second).statistic
    assert photo_statistics.spearman(first, second) == pytest.approx(expected)


def test_auroc_and_rank_correlation_by_hand() -> None:
    assert photo_statistics.auroc([2, 3], [0, 1]) == 1
    assert photo_statistics.auroc([1, 1], [1, 1]) == 0.5
    assert photo_statistics.auroc([1], [0, 1, 2, 3]) == pytest.approx(1.5 / 4)
    assert photo_statistics.auroc([], [1]) is None and photo_statistics.auroc([1], []) is None
    assert photo_statistics.spearman([1, 2, 3], [9, 8, 7]) == pytest.approx(-1)
    assert photo_statistics.spearman([1, 1], [2, 3]) is None
    assert photo_statistics.spearman([1], [2]) is None


def test_warnings_by_hand() -> None:
    """Below 0.5 are two supports, one of the two that are poor and a good one."""
    rows = photo_statistics.warnings_by_threshold([0.3, 0.45, 0.7, 0.9], [20, 80, 49.9, 50])
    found = {row["threshold"]: (row["precision"], row["recall"]) for row in rows}
    assert found[0.5] == (0.5, 0.5)
    assert found[0.4] == (1.0, 0.5)
    assert found[0.3] == (None, 0.0)
    assert found[0.95] == (0.5, 1.0)
    assert photo_statistics.warnings_by_threshold([0.1], [90])[5]["recall"] is None


# ---------------------------------------------------------------------------------------- CamVid


def labelled(car: bool, pole: bool = False) -> Any:
    """Sky over road, a strip without label between, perhaps a car of 4 % and a thin pole."""
    labels = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    labels[28:32] = NOTHING
    labels[32:] = ROAD
    if car:
        labels[40:52, 10:26] = CAR
    if pole:
        labels[5:25, 60] = POLE  # 20 of 4800 pixels, 0.42 %
    return labels


def write_frames(folder: Path, drives: dict[str, int]) -> Path:
    """That number of frames of each drive; every second one shows a car, every third a pole."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    colors = np.random.RandomState(0).randint(256, size=(len(camvid.CLASSES), 3))
    generator = np.random.RandomState(1)
    for drive, count in drives.items():
        for index in range(count):
            labels = labelled(index % 2 == 0, index % 3 == 0)
            noise = generator.randint(-20, 20, size=(HEIGHT, WIDTH, 3))
            image = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8)
            name = f"{drive}_{index:06d}"
            Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=95)
            Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "road", {"0001AA": 5, "0002BB": 3})


def test_frames_and_what_they_show(folder: Path) -> None:
    frames = camvid.read_frames(folder)
    assert frames.drives == ("0001AA",) * 5 + ("0002BB",) * 3
    cover = frames.cover()
    assert cover[0, CAR] == pytest.approx(100 * 12 * 16 / 4800) and cover[1, CAR] == 0
    assert cover.sum(1) == pytest.approx(100)
    shown = frames.photograph(0, CAR)
    assert shown.mask.sum() == 12 * 16 and shown.ignored is not None
    assert shown.ignored.sum() == 4 * WIDTH
    part = camvid.read_frames(folder, ["0002BB"])
    assert part.drives == ("0002BB",) * 3 and part.sha256 != frames.sha256


def shows(cover: Any, name: str) -> set[int]:
    """Frames of a class, by the protocol's bounds."""
    bound = 0.3 if name in ("pole", "sign", "pedestrian") else 2
    return set(np.flatnonzero(cover[:, camvid.CLASSES.index(name)] > bound).tolist())


@pytest.mark.parametrize("shots", [1, 5])
def test_draws(shots: int) -> None:
    """Eight supports a class against twelve others that show it; shots of one drive."""
    generator = np.random.RandomState(3)
    drives = ["A"] * 15 + ["B"] * 9 + ["C"] * 3
    cover = generator.uniform(0, 5, (27, 12)) * (generator.uniform(size=(27, 12)) < 0.8)
    draws = camvid.draw(cover, drives, shots)
    for name in (*camvid.MAIN, *camvid.SMALL):
        class_id = camvid.CLASSES.index(name)
        own = [draw for draw in draws if draw.class_id == class_id]
        candidates = shows(cover, name)
        assert len(own) == (min(8, len(candidates)) if shots == 1 else len(own)) <= 8
        assert len({draw.shots[0] for draw in own}) == len(own)
        for draw in own:
            assert len(set(draw.shots)) == shots and candidates >= {*draw.shots, *draw.queries}
            assert len({drives[shot] for shot in draw.shots}) == 1
            assert not set(draw.shots) & set(draw.queries)
            assert len(set(draw.queries)) == min(12, len(candidates) - shots) == len(draw.queries)
            assert all(cover[frame, class_id] == 0 for frame in draw.without)
            assert len(draw.without) == min(12, int((cover[:, class_id] == 0).sum()))
    assert len(draws) > 20


def test_draws_are_those_of_the_generator() -> None:
    """NumPy's RandomState(0) permutes five things to 2 0 1 3 4, four then to 0 1 3 2 ..."""
    cover = np.zeros((6, 12))
    cover[:5, SKY] = 50
    generator = np.random.RandomState(0)
    supports = generator.permutation(5).tolist()
    assert supports == [2, 0, 1, 3, 4]
    draws = camvid.draw(cover, ["A"] * 6, 1)
    assert [draw.shots for draw in draws] == [(s,) for s in supports]
    for draw in draws:
        others = [frame for frame in range(5) if frame != draw.shots[0]]
        assert list(draw.queries) == [others[k] for k in generator.permutation(4)]
        assert draw.without == (5,)


def test_supports_do_not_depend_on_shots() -> None:
    """With frames enough for five shots, supports and the order of queries are those of one."""
    cover = np.full((20, 12), 8.0)
    drives = ["A"] * 12 + ["B"] * 8
    ones, fives = camvid.draw(cover, drives, 1), camvid.draw(cover, drives, 5)
    assert [draw.shots[0] for draw in ones] == [draw.shots[0] for draw in fives]
    for one, five in zip(ones, fives, strict=True):
        kept = [query for query in one.queries if query not in five.shots]
        assert list(five.queries[: len(kept)]) == kept


def test_drives_of_supports_and_queries() -> None:
    cover = np.full((9, 12), 8.0)
    drives = ["A", "B", "C"] * 3
    for draw in camvid.draw(cover, drives, 2, support_drives=["A"], query_drives=["B", "C"]):
        assert {drives[shot] for shot in draw.shots} == {"A"}
        assert {drives[query] for query in draw.queries} == {"B", "C"}
        assert len(draw.queries) == 6
    assert camvid.draw(cover, drives, 4) == []


def test_a_folder_that_is_not_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder images/"):
        camvid.read_frames(tmp_path)
    with pytest.raises(UsageError, match=r"unknown drive '0003CC'.*0001AA, 0002BB"):
        camvid.read_frames(folder, ["0001AA", "0003CC"])
    labels = folder / "labels" / "0002BB_000001.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 12, np.uint8)).save(labels)
    with pytest.raises(DataError, match=r"0002BB_000001.png: label 12; they must be 0 to 11"):
        camvid.read_frames(folder)
    Image.fromarray(np.zeros((HEIGHT, WIDTH - 1), np.uint8)).save(labels)
    with pytest.raises(DataError, match="labels of shape"):
        camvid.read_frames(folder)
    labels.unlink()
    with pytest.raises(DataError, match="labels are missing"):
        camvid.read_frames(folder)
    for file in (folder / "images").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=r"holds no \.jpg or \.png files"):
        camvid.read_frames(folder)


def test_frames_may_be_png_files(folder: Path) -> None:
    """As SegNet's copy of CamVid has them."""
    file = folder / "images" / "0002BB_000001.jpg"
    image = np.array(Image.open(file))
    Image.fromarray(image).save(file.with_suffix(".png"))
    file.unlink()
    frames = camvid.read_frames(folder)
    assert frames.names[6] == "0002BB_000001" and np.array_equal(frames.images[6], image)


def test_columns_are_the_drives(folder: Path) -> None:
    """A query is in the first column where its support is from the same drive."""
    frames = camvid.read_frames(folder)
    draws = camvid.draw(frames.cover(), frames.drives, 1)
    for draw, trial in zip(draws, photographs.camvid_trials(frames, draws), strict=True):
        drive = frames.drives[draw.shots[0]]
        for query, column in zip(draw.queries, trial.columns, strict=True):
            assert (column == "same drive") == (frames.drives[query] == drive)
        assert trial.group == camvid.CLASSES[draw.class_id]
        assert all(query.mask.any() for query in trial.queries)


# --------------------------------------------------------------------------------------- methods


def unit(tokens: Any) -> Any:
    return tokens / np.linalg.norm(tokens, axis=0, keepdims=True)


def test_mutual_nearest_by_loops() -> None:
    """Prototypes, best matches and votes of one query and two shots, token by token."""
    generator = np.random.RandomState(2)
    channels, layers, h, w = 6, 2, 3, 4
    query, shots = (
        generator.randn(layers, channels, h, w),
        generator.randn(2, layers, channels, h, w),
    )
    masks = generator.uniform(size=(2, h, w))
    fore, back = generator.randn(2, channels)

    cosine = np.einsum("chw,c->hw", unit(query[-1]), fore / np.linalg.norm(fore))
    other = np.einsum("chw,c->hw", unit(query[-1]), back / np.linalg.norm(back))
    matches, votes = np.zeros((h, w)), np.zeros((h, w))
    for shot, mask in zip(shots, masks, strict=True):
        volume = np.zeros((h * w, h * w))
        for layer in range(layers):
            pair = unit(query[layer]).reshape(channels, -1).T @ unit(shot[layer]).reshape(
                channels, -1
            )
            volume += np.maximum(pair, 0) / layers
        inside = mask.ravel() >= 0.5
        voted = np.zeros(h * w)
        for token in range(h * w):
            matches.flat[token] += (volume[token, inside].max() - volume[token, ~inside].max()) / 2
            best = volume[token].argmax()
            if volume[:, best].argmax() == token:
                voted[token] = 1 if inside[best] else -1
        grid = np.pad(voted.reshape(h, w), 1)
        for row in range(h):
            for column in range(w):
                votes[row, column] += grid[row : row + 3, column : column + 3].sum() / 9 / 2

    tensor = lambda array: torch.from_numpy(np.asarray(array, np.float32))[None]  # noqa: E731
    features = Features(tensor(query[0]), tensor(query[-1]), (tensor(query),), torch.empty(0))
    support = SupportFeatures(
        tensor(fore), tensor(back),
        [Shot((tensor(s),), (tensor(m),)) for s, m in zip(shots, masks, strict=True)],
    )  # fmt: skip
    score = photo_methods.mutual_nearest(features, support)
    assert score[0, 0].numpy() == pytest.approx((cosine - other + matches + votes) / 3, abs=1e-5)
    rest = photo_methods.mutual_nearest(features, support, without="votes")
    assert rest[0, 0].numpy() == pytest.approx((cosine - other + matches) / 2, abs=1e-5)
    assert photo_methods.prototypes(features, support)[0, 0].numpy() == pytest.approx(
        cosine - other, abs=1e-5
    )


def photograph(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Photograph:
    """Noise with a bright square."""
    image = np.random.RandomState(seed).randint(0, 90, size=(height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), bool)
    mask[10:40, 10:50] = True
    image[mask] += np.uint8(150)
    return Photograph(image, mask)


def trial(**changes: Any) -> Trial:
    settings: dict[str, Any] = {
        "group": "square", "shots": (photograph(0),),
        "queries": (photograph(1), photograph(2)), "columns": ("pairs",) * 2,
    }  # fmt: skip
    return Trial(**{**settings, **changes})


def test_scores_are_cut_at_zero() -> None:
    """A score that is positive in the left half marks the left half."""
    model = tiny_model()

    def left(query: Features, support: SupportFeatures) -> Tensor:
        score = torch.full((1, 1, *query.last.shape[-2:]), -1.0)
        score[..., : score.shape[-1] // 2] = 1
        return score

    half = np.zeros((HEIGHT, WIDTH), bool)
    half[:, :32] = True  # two tokens of five, and half the way to the third
    query = Photograph(photograph(1).image, half)
    (found,) = Method("left", Scored(model, left)).ask(trial(queries=(query,))).ious
    assert found == pytest.approx(100)


def test_everything_is_foreground() -> None:
    ignored = np.zeros((HEIGHT, WIDTH), bool)
    ignored[50:] = True
    query = Photograph(photograph(1).image, photograph(1).mask, ignored)
    (found,) = Method("everything").ask(trial(queries=(query,))).ious
    assert found == pytest.approx(100 * 30 * 40 / (50 * WIDTH))


def test_what_a_model_says_of_itself() -> None:
    """The support's quality, and a score for queries with the object and for those without."""

    class Model:
        def encode_support(self, images: Any, masks: Any, *, quality: bool, warn: bool) -> Any:
            assert not warn
            return SimpleNamespace(quality=0.25 if quality else None)

        def segment(self, images: list[Any], support: Any, *, tiles: bool) -> list[Any]:
            marked = [image[..., 0] >= 150 for image in images]  # the squares of `photograph`
            return [
                SimpleNamespace(mask=mask, score=mask.mean(), found=mask.any()) for mask in marked
            ]

    empty = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    row = Method("model", Model(), explains=True)  # type: ignore[arg-type]
    answer = row.ask(trial(without=(empty,)))
    assert answer == Answer((100, 100), 0.25, (0.25, 0.25), (True, True), (0,), (False,))
    silent = Method("model", Model())  # type: ignore[arg-type]
    assert silent.ask(trial(without=(empty,))) == Answer((100, 100))


def test_each_picture_is_encoded_once() -> None:
    """Methods on one encoder share its features, which are what it gives without memory."""
    model = tiny_model()
    rows = [Method(str(n), Scored(model, photo_methods.mutual_nearest)) for n in range(2)]
    before = rows[0].ask(trial())
    seen: list[int] = []
    plain = model.encoder.forward_list

    def counted(images: Any, *rest: Any) -> Any:
        seen.append(len(images))
        return plain(images, *rest)

    model.encoder.forward_list = counted  # type: ignore[method-assign]
    photo_methods.remember(model.encoder)
    answers = [row.ask(trial()) for row in (*rows, *rows)]
    assert sum(seen) == 3  # one support and two queries
    assert all(answer.ious == pytest.approx(before.ious) for answer in answers)


def test_features_are_forgotten() -> None:
    """Beyond the limit the least recently used go; a result is right however small the limit."""
    passed: list[float] = []

    class Encoder(nn.Module):
        def forward_list(self, images: Any) -> list[Features]:
            passed.extend(float(image.mean()) for image in images)
            return [Features(image, image, image, image) for image in images]

    encoder = Encoder()
    pictures = [torch.full((1, 5, 5), float(n)) for n in range(3)]  # 4 * 100 bytes each
    photo_methods.remember(encoder, 800)
    for wanted in ([0, 1], [0], [2], [0], [1]):  # 2 puts 1 out, 0 was used since
        found = encoder.forward_list([pictures[n] for n in wanted])
        assert [float(f.last.mean()) for f in found] == wanted
    assert passed == [0, 1, 2, 1]


def test_tiles_differ_for_larger_pictures_only() -> None:
    assert not trial().is_cut()
    assert trial(shots=(photograph(0, 60, 60),)).is_cut()
    assert trial(without=(photograph(3, 61, 80).image,)).is_cut()
    small, large = photograph(0, 50, 60), photograph(0, 70, 100)
    assert not trial(shots=(small, large)).is_cut()  # their median is the queries' size


def test_a_tile_that_is_the_picture_is_not_segmented_again() -> None:
    calls: list[bool] = []

    class Counting(Method):
        def ask(self, trial: Trial, *, tiles: bool = False) -> Answer:
            calls.append(tiles)
            return Answer((float(tiles),) * len(trial.queries))

    row = Counting("model", tiny_model())
    trials = [trial(), trial(shots=(photograph(0, 50, 50),))]
    asked = photographs.ask_all(iter(trials), 2, [Method("everything"), row], tiles=True)
    assert calls == [False, False, True]
    assert asked.names == ["everything", "model", "model, tiles"]
    assert [a.ious[0] for a in asked.answers["model, tiles"]] == [0, 1]


# ------------------------------------------------------------------------------- what comes out


def test_columns_of_a_table() -> None:
    """Two classes, whose second has one query in the other column."""
    same, other = "same drive", "other drives"
    asked = photo_results.Asked(
        [0, 1, 2],
        ["sky", "sky", "road"],
        [(same, other), (same,), (same, other)],
        {
            "mutual nearest": [Answer((10, 50)), Answer((30,)), Answer((40, 0))],
            "training-free": [Answer((20, 60)), Answer((40,)), Answer((50, 10))],
        },
    )
    result = photo_results.camvid_result(asked, 1, "model")
    first, second = (result["columns"][f"main, {name}"] for name in (same, other))
    assert first["methods"]["mutual nearest"]["iou"] == 30  # (20 + 40) / 2
    assert second["methods"]["mutual nearest"]["iou"] == 25
    # The first support alone has a query in the second column: no draw spreads its difference.
    difference = first["differences"]["training-free minus mutual nearest"]
    assert difference == {"iou": 10, "interval": [10, 10]}
    assert result["columns"]["small, same drive"] == {}
    assert result["classes"]["road"][other]["methods"]["training-free"]["iou"] == 10
    assert result["queries"] == {same: 3, other: 2}
    assert result["supports"] == {"sky": 2, "road": 1}


def test_scores_and_quality_of_answers() -> None:
    answers = [
        Answer((80.0, 60.0), 0.9, (0.8, 0.6), (True, True), (0.1,), (False,)),
        Answer((10.0,), 0.2, (0.3,), (False,), (0.4, 0.3), (True, False)),
    ]
    there, quality = photo_results.presence(answers), photo_results.explained([3, 4], answers)
    assert there is not None and quality is not None
    # 9 pairs: 0.8 and 0.6 are above all three, 0.3 is above one and equal to one.
    assert there["auroc"] == pytest.approx(7.5 / 9, abs=1e-3)
    assert there["not_found_percent"] == pytest.approx(33.3)
    assert there["found_without_percent"] == pytest.approx(33.3)
    assert (there["queries"], there["queries_without"]) == (3, 3)
    assert quality["spearman"] == 1 and quality["supports"] == 2
    assert photo_results.presence([Answer((1.0,))]) is None
    assert photo_results.explained([3], [Answer((1.0,))]) is None


def test_a_support_of_several_pairs_counts_once() -> None:
    """Its quality stands beside the mean over all of its queries."""
    answers = [Answer((20.0,), 0.6), Answer((90.0,), 0.8), Answer((70.0,), 0.6)]
    quality = photo_results.explained([3, 4, 3], answers)
    assert quality is not None and quality["supports"] == 2 and quality["spearman"] == 1
    row = next(row for row in quality["warning"] if row["threshold"] == 0.7)
    assert (row["precision"], row["recall"]) == (1, 1)  # (20 + 70) / 2 is below 50
    first, again, other = trial(), trial(queries=(photograph(5),)), trial(shots=(photograph(4),))
    assert first.support() == again.support() != other.support()


def write_pairs(folder: Path) -> Path:
    """Two pairs whose query is a.png, one of b.png with a larger query, one of c.png alone."""
    folder.mkdir()
    for seed, name in enumerate("abc"):
        shown = photograph(seed)
        Image.fromarray(shown.image).save(folder / f"{name}.png")
        Image.fromarray(shown.mask.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")

    def part(name: str, **more: Any) -> dict[str, Any]:
        return {"image": f"{name}.png", "mask": f"{name}_mask.png", **more}

    pairs = [
        {"name": "one", "supports": [part("b"), part("b", mirror=True)], "query": part("a")},
        {
            "name": "two",
            "supports": [part("b", mirror=True)],
            "query": part("a", box=[5, 5, 70, 55]),
        },
        {"name": "three", "supports": [part("a", box=[5, 5, 55, 45])], "query": part("b")},
        {"name": "four", "supports": [part("c")], "query": part("c", mirror=True)},
    ]
    (folder / "pairs.json").write_text(json.dumps({"pairs": pairs}))
    return folder


def test_pairs_and_what_they_do_not_show(tmp_path: Path) -> None:
    """Pictures of support or query, and their crops, do not count as without the object."""
    pairs = load_pairs(write_pairs(tmp_path / "pairs"))
    trials = list(photographs.pair_trials(pairs))
    assert [t.group for t in trials] == ["a.png", "a.png", "b.png", "c.png"]
    assert [len(t.without) for t in trials] == [1, 1, 1, 3]
    assert pairs[1].query.image.shape == (50, 65, 3)
    assert pairs[1].query.mask.sum() == 30 * 40
    assert np.array_equal(pairs[3].query.image, pairs[3].supports[0].image[:, ::-1])


def test_pictures_without_a_class_that_many_show() -> None:
    """Sky is in most of the held-out photographs: they are not asked for as pictures without it,
    and one that is the query of several pairs is asked once."""
    pairs = load_pairs(HELD_OUT)
    trials = dict(zip((pair.name for pair in pairs), photographs.pair_trials(pairs), strict=True))
    pixels = {pair.picture: pair.query.image for pair in pairs}
    for kind, name in (("sky", "sky, coast to lake"), ("bird", "bird, duck to macaw")):
        asked = [image.tobytes() for image in trials[name].without]
        assert len(asked) == len(set(asked)) >= 10
        found = {picture for picture, image in pixels.items() if image.tobytes() in asked}
        shows = json.loads((HELD_OUT / "pairs.json").read_text(encoding="utf-8"))["shows"]
        assert all(kind not in shows[picture] for picture in found)


def test_means_over_pictures_and_classes() -> None:
    """Pairs of one picture, or of one class, count as one."""
    answers = [Answer((10,)), Answer((30,)), Answer((60,))]
    asked = photo_results.Asked([0, 1, 2], ["a", "a", "b"], [("pairs",)] * 3, {"m": answers})
    pairs = [
        SimpleNamespace(name=name, picture=picture, kind=kind)
        for name, picture, kind in (("x", "a", "cat"), ("y", "a", "dog"), ("z", "b", "dog"))
    ]
    result = photo_results.pairs_result(asked, pairs, "model")  # type: ignore[arg-type]
    columns = {kind: column["methods"]["m"] for kind, column in result["columns"].items()}
    assert columns["pictures"] == {"iou": 40, "interval": [20, 60]}
    assert columns["classes"] == {"iou": 27.5, "interval": [10, 45]}
    parts = result["parts"]
    assert parts["pictures"] == {"a": {"m": 20}, "b": {"m": 60}}
    assert parts["classes"] == {"cat": {"m": 10}, "dog": {"m": 45}}
    assert parts["pairs"] == {"x": {"m": 10}, "y": {"m": 30}, "z": {"m": 60}}


# ----------------------------------------------------------------------------------------- the run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model on disk."""
    tiny_model().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_the_record_of_a_run(
    small: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every method has a cell in every column; that of everything is the share of scored pixels."""
    folder = write_frames(tmp_path / "road", {"0001AA": 3, "0002BB": 2})
    out = tmp_path / "record.json"
    call = ["--model", str(small), "--labels", str(folder), "--shots", "1", "--threads", "1"]
    call += ["--pairs", str(write_pairs(tmp_path / "pairs")), "--tiles", "--ablate"]
    photographs.main([*call, "--out", str(out)])
    record = json.loads(out.read_text())
    names = [
        "everything", "fsdino-tiny", "fsdino-tiny, tiles", "prototypes", "prototypes, tiles",
        "mutual nearest", "mutual nearest, tiles", *photo_methods.ABLATIONS, "training-free",
        "training-free, tiles", "small", "small, tiles",
    ]  # fmt: skip
    found = record["camvid"]
    (result,) = found["results"]
    # Two frames of the first drive and one of the second show a car, one of each a pole.
    assert result["supports"] == {"sky": 5, "road": 5, "car": 3, "pole": 2}
    assert found["frames"] == 5 and found["support_drives"] == ["0001AA", "0002BB"]
    columns = result["columns"]
    assert columns.pop("small, same drive") == {}
    for column in columns.values():
        assert list(column["methods"]) == names
        for cell in column["methods"].values():
            low, high = cell["interval"]
            assert 0 <= low <= cell["iou"] + 0.01 and cell["iou"] <= high + 0.01 <= 100.02
        assert {"training-free minus mutual nearest", "small minus training-free"} <= set(
            column["differences"]
        )
    everything = result["classes"]["sky"]["other drives"]["methods"]["everything"]
    assert everything["iou"] == pytest.approx(100 * 28 / 56, abs=0.3)  # less where there is a pole
    cars = result["classes"]["car"]["same drive"]["methods"]["everything"]
    assert cars["iou"] == pytest.approx(100 * 12 * 16 / (56 * WIDTH), abs=0.01)
    (pairs,) = record["pairs"]
    assert list(pairs["parts"]["pairs"]) == ["one", "two", "three", "four"]
    assert pairs["parts"]["pairs"]["one"]["everything"] == 25  # 30 x 40 of 60 x 80
    assert str(tmp_path) not in out.read_text()
    assert {"environment", "source", "command"} <= record.keys()
    printed = capsys.readouterr().out
    assert "CamVid, 1-shot" in printed and "4 pairs of pairs" in printed


def test_what_is_asked_for_must_exist(
    folder: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, before anything is measured."""
    call = ["--model", str(small), "--out", str(tmp_path / "record.json")]
    for more, message in (
        (["--pairs", str(folder)], "holds no pairs.json"),
        (["--methods", "nearest"], "unknown 'nearest'; choose from everything"),
        (["--labels", str(folder), "--drives", "0009ZZ"], "unknown drive '0009ZZ'"),
        (["--labels", str(folder), "--shots", "9"], "too few frames for 9 shots"),
    ):
        with pytest.raises(SystemExit) as caught:
            photographs.main([*call, *more])
        assert message in str(caught.value) and "\n" not in str(caught.value)
    for more in (["--drives", "A"], ["--labels", "x", "--query-drives", "A"], ["--shots", "0"]):
        with pytest.raises(SystemExit) as caught:
            photographs.main([*call, *more])
        assert caught.value.code == 2
    capsys.readouterr()
    assert not (tmp_path / "record.json").exists()


def test_labels_alone_leave_the_pairs_closed(folder: Path) -> None:
    """Settings are chosen on some pictures; the others are not opened meanwhile."""
    assert photographs.parse(["--labels", str(folder)]).pairs == []
    assert [p.name for p in photographs.parse([]).pairs] == ["photographs"]
    assert photographs.parse(["--latency", "--pairs"]).pairs == []


# ---------------------------------------------------------------------------------------- latency


def test_an_array_and_its_mask_are_timed(small: Path, one_thread: None) -> None:
    row = photo_latency.time_array(str(small), 2)
    assert 0 < row["milliseconds"] <= row["slowest_milliseconds"] and row["repeats"] == 2
    peak = photo_latency.peak_megabytes()
    assert peak is None or 50 < peak < 100_000


def test_a_folder_goes_through_the_command(small: Path, one_thread: None) -> None:
    row = photo_latency.time_folder(str(small), 2)
    assert row["files"] == 2 and row["seconds"] > 0


def test_each_measurement_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With AVX2 at most, and its threads; folders of two sizes give the rate without the start."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        calls.append((command, env))
        files = int(command[command.index("--files") + 1]) if "--files" in command else 0
        row = {"threads": int(env["OMP_NUM_THREADS"]), "milliseconds": 5, "slowest_milliseconds": 6,
               "peak_megabytes": 7, "files": files, "seconds": 3 + files / 10}  # fmt: skip
        return SimpleNamespace(returncode=0, stdout=json.dumps(row), stderr="")

    monkeypatch.setattr(photo_latency.subprocess, "run", run)
    found = photographs.run_latency("fsdino-tiny", Console(file=io.StringIO()))
    assert [row["threads"] for row in found["array"]] == [1, 2]
    assert found["folder"]["images_per_second"] == pytest.approx(10)
    assert found["folder"]["images_per_second_with_start"] == pytest.approx(48 / 7.8, abs=0.01)
    for command, env in calls:
        assert env.get("OMP_WAIT_POLICY") == ("PASSIVE" if "--files" in command else None)
        assert env["ATEN_CPU_CAPABILITY"] == "avx2" and env["ONEDNN_MAX_CPU_ISA"] == "AVX2"
        assert command[2:5] == ["fsdino-tiny", "--threads", env["OMP_NUM_THREADS"]]


def test_a_measurement_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nunknown model 'x'\n")
    monkeypatch.setattr(photo_latency.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(FsdinoError, match=r"^x could not be timed with 1 threads: unknown model"):
        photo_latency.measure("x", 1)
    failed.stderr = ""
    with pytest.raises(FsdinoError, match="exit code 1"):
        photo_latency.measure("x", 1)
