"""Fingerprints: copies, casts, moves and files keep them; other weights and settings do not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fsdino
from fsdino.errors import CheckpointError, UsageError
from fsdino.models import config as config_module
from fsdino.models import identity, zoo
from fsdino.models.fsdino import FSDINO
from tiny_models import box_mask, picture, tiny_config, tiny_model

RECORDED = "8a9c69901c82270c"  # of fsdino-tiny


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def compiled(model: Any) -> Any:
    return torch.compile(model)  # nothing is compiled before the first call


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
    "torch.compile": compiled,
    "in place": lambda model: model,
}
CASTS: dict[str, Callable[[Any], Any]] = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "and back": lambda model: model.to(torch.bfloat16).float(),
    "double": lambda model: model.double(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "one part": lambda model: (model.decoder.half(), model)[1],
    "the encoder": lambda model: (model.encoder.bfloat16(), model)[1],
    "parts of the encoder": lambda model: (model.encoder.vit.blocks.half(), model)[1],
    "copied again": lambda model: copy.deepcopy(model.to(torch.bfloat16)),
}


WAYS = [*((way, "bfloat16") for way in COPIES), *(("in place", cast) for cast in CASTS),
        *(("deepcopy", cast) for cast in CASTS)]  # fmt: skip


@functools.cache
def original() -> str:
    return tiny_model().fingerprint()


@pytest.mark.parametrize("asked", [True, False], ids=["asked before", "not asked before"])
@pytest.mark.parametrize(("copied", "cast"), sorted(set(WAYS)))
def test_copies_and_casts_keep_the_fingerprint(copied: str, cast: str, asked: bool) -> None:
    """Weights as first loaded: rounding them, or having them elsewhere, is not another model."""
    model = tiny_model()
    if asked or cast in ("one part", "parts of the encoder"):  # only the whole knows of a part
        model.fingerprint()
    assert CASTS[cast](COPIES[copied](model)).fingerprint() == original()


def test_a_cast_copy_takes_the_originals_support() -> None:
    """And answers as the original does, up to rounding."""
    model = tiny_model()
    support = model.encode_support(picture(40, 40), box_mask(40, 40))
    expected = model.segment(picture(30, 30, 1), support).probability
    found = copy.deepcopy(model).to(torch.bfloat16).segment(picture(30, 30, 1), support).probability
    assert np.abs(found - expected).mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_keep_the_fingerprint_of_a_cast_model(dtype: torch.dtype, tmp_path: Path) -> None:
    """Saved, loaded in any type, saved again: one model."""
    expected = original()
    tiny_model().to(dtype).save_pretrained(tmp_path / "a")
    again = fsdino.load(tmp_path / "a")
    assert again.fingerprint() == expected
    again.half().save_pretrained(tmp_path / "b")
    assert fsdino.load(tmp_path / "b", dtype=torch.bfloat16).fingerprint() == expected
    assert load_file(tmp_path / "a" / "model.safetensors")["adapter.expand.weight"].dtype == dtype


def test_a_baseline_of_a_cast_model_is_that_of_the_model() -> None:
    """They share an encoder; the head that was not taken along does not matter."""
    expected = zoo.training_free(tiny_model()).fingerprint()
    assert expected != tiny_model().fingerprint()
    assert zoo.training_free(tiny_model().bfloat16()).fingerprint() == expected
    trained = tiny_model()
    with torch.no_grad():
        trained.decoder.mask_tokens.weight.add_(1)
    assert zoo.training_free(trained).fingerprint() == expected


def test_an_edited_file_does_not_keep_the_fingerprint(tmp_path: Path) -> None:
    """With the old metadata it is damaged; without any it is what its weights are."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    state["decoder.mask_tokens.weight"][0, 0] += 1
    save_file(state, file, metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors are damaged"):
        fsdino.load(tmp_path)
    save_file(state, file)
    assert fsdino.load(tmp_path).fingerprint() != model.fingerprint()
    with torch.no_grad():
        model.decoder.mask_tokens.weight[0, 0] += 1
    assert fsdino.load(tmp_path).fingerprint() == model.fingerprint()


def test_a_forged_identity_is_damage(tmp_path: Path) -> None:
    """The hash of the content holds the identity, too."""
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    forged = metadata["fsdino"].replace(tiny_model().identity(), "0" * 16)
    assert forged != metadata["fsdino"]
    save_file(load_file(file), file, {"fsdino": forged})
    with pytest.raises(CheckpointError, match="damaged"):
        fsdino.load(tmp_path)


def test_an_edited_configuration_is_another_model(tmp_path: Path) -> None:
    """A threshold changed by hand in config.json loads, and supports are encoded again."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"threshold": 0.5', '"threshold": 0.4'))
    found = fsdino.load(tmp_path)
    assert found.fingerprint() == tiny_model(threshold=0.4).fingerprint() != model.fingerprint()


# ------------------------------------------------------------------------------ the configuration


def test_a_new_field_does_not_change_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it has its default; neither does where weights came from."""

    @dataclasses.dataclass(frozen=True)
    class Later(config_module.ModelConfig):
        sharpness: float = 1.0

    now = tiny_config().digest
    monkeypatch.setattr(config_module, "ModelConfig", Later)
    settings = {f.name: getattr(tiny_config(), f.name) for f in dataclasses.fields(tiny_config())}
    assert Later(**settings).digest == now
    assert Later(**settings, sharpness=2.0).digest != now
    assert tiny_config(pretrained=True).digest == now


def test_equal_configurations_are_one() -> None:
    """Numbers however they are written; every field that differs counts."""
    base = tiny_config(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert tiny_config(mean=[0, 0, 0], std=np.ones(3)).digest == base.digest
    changes: list[dict[str, Any]] = [
        {"std": (1, 1, 2)}, {"threshold": 0.4}, {"keep_aspect": True}, {"image_size": 84},
        {"encoder": "vit_small_patch14_reg4_dinov2"}, {"correlation_layers": (3, 4)},
    ]  # fmt: skip
    digests = {tiny_config(**{"mean": (0, 0, 0), "std": (1, 1, 1), **c}).digest for c in changes}
    assert len({*digests, base.digest}) == len(changes) + 1


def test_the_recorded_fingerprint_of_the_bundled_model() -> None:
    """It does not change again: supports that users keep are of this model."""
    model = fsdino.load("fsdino-tiny")
    assert model.fingerprint() == RECORDED
    assert fsdino.load("fsdino-tiny", dtype=torch.bfloat16).fingerprint() == RECORDED
    copy_without_file = zoo.assemble(model.config).eval()
    copy_without_file.load_state_dict(model.state_dict())
    assert copy_without_file.fingerprint() == RECORDED  # taken from the weights, not from the file


# ---------------------------------------------------------------------------------------- changes


def by_data(model: FSDINO) -> None:
    for parameter in model.adapter.parameters():
        parameter.data.mul_(1.5)


def by_replaced_data(model: FSDINO) -> None:
    vector = nn.utils.parameters_to_vector(model.decoder.parameters())
    nn.utils.vector_to_parameters(vector * 2, model.decoder.parameters())


def by_another_parameter(model: FSDINO) -> None:
    weight = model.decoder.mask_tokens.weight
    model.decoder.mask_tokens.weight = nn.Parameter(torch.full_like(weight, 0.25))


def by_another_part(model: FSDINO) -> None:
    model.decoder = tiny_model(seed=3).decoder


def by_assigning(model: FSDINO) -> None:
    model.load_state_dict(tiny_model(seed=1).state_dict(), assign=True)


def by_a_low_rank_update(model: FSDINO) -> None:
    class LowRank(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.up, self.down = (nn.Parameter(torch.ones(n, 1)) for n in weight.shape)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.up @ self.down.T

    embedding = model.decoder.mask_tokens
    nn.utils.parametrize.register_parametrization(embedding, "weight", LowRank(embedding.weight))


def by_a_buffer(model: FSDINO) -> None:
    model.decoder.positions.positional_encoding_gaussian_matrix.add_(1)


def by_training_in_bfloat16(model: FSDINO) -> None:
    model.bfloat16().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    model.eval()


def by_emptying(model: FSDINO) -> None:
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()


@pytest.mark.parametrize(
    "change",
    [by_data, by_replaced_data, by_another_parameter, by_another_part, by_assigning,
     by_a_low_rank_update, by_a_buffer, by_training_in_bfloat16, by_emptying],
)  # fmt: skip
@pytest.mark.parametrize("copied", ["in place", "deepcopy"])
def test_changed_weights_change_the_fingerprint(change: Any, copied: str) -> None:
    """Also where PyTorch does not count the change, and in a copy that was handed a name."""
    model = COPIES[copied](tiny_model())
    before = model.fingerprint()
    change(model)
    assert model.fingerprint() != before


def test_the_same_weights_loaded_again_are_the_same_model() -> None:
    """What counts is the content."""
    model = tiny_model()
    before = model.fingerprint()
    model.load_state_dict(tiny_model(seed=1).state_dict())
    model.load_state_dict(tiny_model().state_dict())
    assert model.fingerprint() == before


def test_compiled_parts_have_the_names_of_the_plain_ones(tmp_path: Path) -> None:
    """`torch.compile` renames what it wraps; fingerprint and files do not show it."""
    model = tiny_model()
    model.decoder = torch.compile(model.decoder)  # type: ignore[assignment]
    model.encoder.vit = torch.compile(model.encoder.vit)
    assert model.fingerprint() == tiny_model().fingerprint()
    model.save_pretrained(tmp_path)
    assert fsdino.load(tmp_path).fingerprint() == tiny_model().fingerprint()


def test_nothing_is_hashed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again, casting and copying cost no more than a look at the weights."""
    calls: list[int] = []
    real = identity.weights_hash
    monkeypatch.setattr(identity, "weights_hash", lambda state: (calls.append(1), real(state))[1])
    model = tiny_model()
    model.fingerprint()
    assert len(calls) == 2  # the encoder, and the rest
    copy.deepcopy(model.bfloat16()).half().fingerprint()
    assert len(calls) == 2


def test_threads_get_one_answer() -> None:
    """Concurrent first calls agree."""
    model, found = tiny_model(), []
    threads = [threading.Thread(target=lambda: found.append(model.fingerprint())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tiny_model().fingerprint()] * 4


def test_an_adapter_fits_the_cast_encoder_that_it_was_distilled_on(tmp_path: Path) -> None:
    """It names its encoder by the same hash, which a cast does not change."""
    model = tiny_model()
    state = {name: t.clone() for name, t in model.adapter.state_dict().items()}
    metadata = {"encoder": model.encoder.identity(), "adapter_layer": "2"}
    save_file(state, tmp_path / "adapter.safetensors", metadata)
    zoo.load_adapter(tiny_model().bfloat16(), tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="another encoder"):
        zoo.load_adapter(tiny_model(seed=1), tmp_path / "adapter.safetensors")


def test_weights_beyond_the_range_of_a_type_are_refused(tmp_path: Path) -> None:
    """float16 ends at 65504: an infinite weight would make every mask empty without a word."""
    model = tiny_model()
    with torch.no_grad():
        model.decoder.mask_tokens.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path)
    fsdino.load(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(UsageError, match=r"mask_tokens\.weight has values beyond .*float16"):
        fsdino.load(tmp_path, dtype=torch.float16)
