"""Classes that are asked for together: whose objects are background to whom, and for how long."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from weakref import ref

import numpy as np
import pytest

import fsdino
from fsdino.models import companions
from fsdino.models.fsdino import FSDINO
from fsdino.models.supports import Support
from fsdino.models.video import Tracker
from tiny_models import box_mask, picture, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = picture(50, 70, seed=9)


@pytest.fixture
def model() -> FSDINO:
    return tiny_model(variant="training_free")


def encoded(model: FSDINO, count: int = 3) -> dict[str, Support]:
    """Classes of a photograph each."""
    return {
        str(seed): model.encode_support(picture(60, 80, seed), box_mask(60, 80))
        for seed in range(count)
    }


def by_hand(model: FSDINO, supports: Mapping[str, Support]) -> list[np.ndarray]:
    """The maps of supports whose fits have been given the others' photographs."""
    maps = []
    for name, support in supports.items():
        assert support.fit is not None
        others = [other.pooled() for key, other in supports.items() if key != name]
        fit = model.fit_beside(support.fit, others)
        maps.append(model.segment(QUERY, replace(support, fit=fit)).probability)
    return maps


def test_the_others_objects_are_background(model: FSDINO, tmp_path: Path) -> None:
    """In every way to ask for several classes, with supports from files, too."""
    supports = encoded(model)
    expected = by_hand(model, supports)
    alone = [model.segment(QUERY, support).probability for support in supports.values()]
    assert np.abs(np.stack(expected) - np.stack(alone)).max() > 0.01
    found = model.segment(QUERY, supports)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    for result in model.segment_iter([QUERY] * 2, supports):
        assert result.same_as(found)
    assert Tracker(model, supports).segment(QUERY).same_as(found)
    for name, support in supports.items():
        support.save(tmp_path / f"{name}.safetensors")
    loaded = {name: Support.load(tmp_path / f"{name}.safetensors") for name in supports}
    assert model.segment(QUERY, loaded).same_as(found)


def test_one_class_is_answered_as_before(model: FSDINO) -> None:
    (support,) = encoded(model, 1).values()
    found = model.segment(QUERY, {"cat": support})
    np.testing.assert_array_equal(found.probability, model.segment(QUERY, support).probability)


def test_objects_of_one_photograph_are_background_already(model: FSDINO) -> None:
    """They change nothing to each other, also where one was encoded with further photographs."""
    mask = box_mask(60, 80)
    both = model.encode_objects(picture(60, 80), {"box": mask, "rest": ~mask})
    for name, found in zip(both, model.segment(QUERY, both).probabilities, strict=True):
        alone = model.segment(QUERY, both[name]).probability
        np.testing.assert_allclose(found, alone, atol=1e-6)
    more = model.encode_support([picture(60, 80), picture(60, 80, 1)], [~mask, mask])
    others = companions.others({"box": both["box"], "more": more})
    assert [[len(shots) for shots in rest] for rest in others.values()] == [[1], []]


def test_a_mapping_is_fitted_once(model: FSDINO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for the next query, again with other companions, which it does not keep alive."""
    calls: list[int] = []
    fit = FSDINO.fit_beside
    monkeypatch.setattr(
        FSDINO, "fit_beside", lambda *given: calls.append(len(given[2])) or fit(*given)
    )
    supports = encoded(model)
    for _ in range(2):
        model.segment([QUERY, QUERY], supports)
        assert calls == [2, 2, 2]
    one = model.segment(QUERY, {name: supports[name] for name in "01"})
    assert calls == [2, 2, 2, 1, 1]
    np.testing.assert_allclose(
        one.probabilities, by_hand(model, {name: supports[name] for name in "01"}), atol=1e-6
    )
    gone = ref(supports.pop("1"))
    gc.collect()
    assert gone() is None


def test_the_memory_of_a_tracker_keeps_the_others_as_background(model: FSDINO) -> None:
    """Frames join the supports, and the classifier of all has the other photographs, too."""
    supports = encoded(model, 2)
    tracker = Tracker(model, supports, memory=1)
    labels = np.where(box_mask(50, 70), 1, 2)
    tracker.remember(QUERY, labels)
    found = tracker.segment(QUERY).probabilities
    features = model.encode_image(QUERY)
    for place, (name, other) in enumerate(("01", "10")):
        shots = [*supports[name].pooled(), model.shot(features, labels == place + 1)]
        fit = model.fit(shots)
        assert fit is not None
        fit = model.fit_beside(fit, [supports[other].pooled()])
        asked = replace(supports[name].features(1), shots=shots, fit=fit)
        expected = model.segment_encoded(QUERY, features, {"": asked}, 0.5).probability
        np.testing.assert_allclose(found[place], expected, atol=1e-6)


def test_classes_take_less_of_each_other() -> None:
    """Cups and mills, each found by one example from photographs that have nothing in common."""
    samples, model = fsdino.samples(), fsdino.load()
    support = {
        name: model.encode_support(sample.image, sample.mask)
        for name, sample in samples.items()
        if name in ("espresso-cup", "teacup", "post-mill", "log-mill")
    }
    before, after = [], []  # shares of a photograph that have the other class's label
    for names in (("espresso-cup", "post-mill"), ("teacup", "log-mill")):
        asked = {name: support[name] for name in names}
        for own, name in enumerate(names):
            query = samples[samples[name].query].image
            found = model.segment(query, asked)
            after.append((found.labels == 2 - own).mean())
            alone = [model.segment(query, one) for one in asked.values()]
            other = alone[1 - own].probability
            before.append((other > alone[own].probability)[alone[1 - own].mask].sum() / other.size)
    assert np.mean(after) < 0.6 * np.mean(before)
