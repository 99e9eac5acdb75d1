"""Does stage 1 help stage 2? `python benchmarks/distillation.py --out DIR`.

Trains a small SAM for masks of base-class objects (`small_sam.py`) and says what it knows; distils
it into adapters of a model's own frozen encoder, as `fsdino distill` does; then trains the
segmenter, as `fsdino train` does, with the distilled adapter and with a random one, each frozen and
trained on. All else is equal: the teacher's decoder, steps, episodes, seeds. mIoU on the held-out
fold. Prints a table and what it means, and writes a JSON file.

The same command continues an interrupted call.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ablation
import small_sam
import torch
from record import drawn_set
from tiny_recipe import on_frozen_encoder

from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.files import read_json_lines, read_object, write_json
from fsdino.images import write_png
from fsdino.models import zoo
from fsdino.models.config import VARIANTS, ModelConfig
from fsdino.models.segmenter import Segmenter
from fsdino.training.distillation.agreement import agreement
from fsdino.training.distillation.config import GRIDS, DistillConfig
from fsdino.training.distillation.distill import ADAPTER_FILE, Distillation
from fsdino.training.meta.config import TrainConfig
from fsdino.training.run import CONFIG, Run

TEACHER = small_sam.Recipe()
EPISODES = 960  # of the held-out fold: 24 classes take turns
KNOWLEDGE_EPISODES = 144  # two rounds of the 72 base classes
KNOWS = 2.0  # times the IoU of an untrained teacher
IMAGE_SEED = 1001  # no seed of the teacher or of stage 2
ARMS = {  # name: whether the adapter is distilled, whether stage 2 trains it
    "distilled, frozen": (True, False),
    "random, frozen": (False, False),
    "distilled, trained": (True, True),
    "random, trained": (False, True),
}
SETTINGS = ("variant", "images", "epochs", "loss_grid", "steps", "images_per_step")
PUBLISHED = "published: distillation adds 6.8 mIoU (COCO-20i, 52.8 to 59.6, simplified model)"

Row = dict[str, Any]


# -------------------------------------------------------------------------------------- the teacher


def teacher_recipe(model: ModelConfig, steps: int) -> small_sam.Recipe:
    """A teacher whose embedding and decoder have the measures of a model's own."""
    return dataclasses.replace(
        TEACHER,
        width=model.width,
        decoder_heads=model.decoder_heads,
        decoder_mlp=model.decoder_mlp,
        steps=steps,
    )


def train_teacher(recipe: small_sam.Recipe, folder: Path, workers: int) -> tuple[Path, Row]:
    """Its file, and what it knows beside what it knew before it learned."""
    path = small_sam.train(recipe, folder, workers)
    done = folder / "knowledge.json"
    if not done.exists():
        episodes = ProceduralEpisodes(
            recipe.fold, "base_val", episodes=KNOWLEDGE_EPISODES, image_size=recipe.side
        )
        trained = round(small_sam.point_iou(small_sam.load(recipe, path), episodes), 2)
        untrained = round(small_sam.point_iou(small_sam.build(recipe).eval(), episodes), 2)
        log, _ = read_json_lines(folder / "metrics.jsonl")
        row = {
            "asked": f"the object at one random point of it, {len(episodes)} base_val queries",
            "point_iou": trained,
            "untrained_point_iou": untrained,
            "finding": knowledge(trained, untrained),
            "seconds": log[-1]["seconds"],
        }
        write_json(done, row)
    return path, read_object(done, "remove it")


def knowledge(trained: float, untrained: float) -> str:
    """Whether the teacher learned enough for the comparison to mean anything."""
    verdict = "it knows" if trained >= KNOWS * untrained else "it KNOWS LITTLE: nothing is shown"
    return (
        f"teacher: IoU {trained:.1f} % from one point on an object, {untrained:.1f} % before it "
        f"learned: {verdict}"
    )


# ------------------------------------------------------------------------------------------ stage 1


def write_images(folder: Path, count: int) -> None:
    """Pictures of base classes as PNG files, without labels; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    episodes = ProceduralEpisodes(
        TEACHER.fold, "train", seed=IMAGE_SEED, episodes=count, image_size=TEACHER.side
    )
    for index in range(count):
        path = folder / f"{index:06d}.png"
        if not path.exists():
            write_png(path, episodes[index].query.image)


def stage_1(
    model: Segmenter, teacher: Path, options: argparse.Namespace, seed: int
) -> DistillConfig:
    """Coarse to fine: half the model's image size, then all of it."""
    size, patch = model.config.image_size, model.encoder.patch_size
    return DistillConfig(
        model=model.config,
        images=(str(options.out / "images"),),
        teacher_checkpoint=str(teacher),
        encoder_from=options.encoder,
        held_out=0.05,
        image_sizes=(size // 2 // patch * patch, size),
        epochs=(options.epochs,),
        loss_grid=options.loss_grid,
        warmup=50,
        cache=str(options.out / "embeddings"),
        seed=seed,
        threads=1,
        workers=options.workers,
        validate_every=250,
        checkpoint_every=100,
    )


def distil(config: DistillConfig, folder: Path) -> Row:
    """Stage 1 of one seed; the result is kept in `folder/row.json`."""
    done = folder / "row.json"
    if not done.exists():
        began = time.process_time()
        distillation = Distillation(config, folder, resume=(folder / CONFIG).exists())
        distillation.prepare()
        result = distillation.fit()
        steps = distillation.schedule.steps
        seconds = (time.process_time() - began) * steps / max(steps - distillation.start, 1)
        row = {
            "images": result["images"],
            "seconds": round(seconds, 1),
            "constant_cosine": round(constant_cosine(distillation), 4),
            "stages": [
                {**stage, "curve": [rounded(point) for point in stage["curve"]]}
                for stage in map(rounded, result["stages"])
            ],
        }
        write_json(done, row)
    return read_object(done, "remove it")


def constant_cosine(distillation: Distillation) -> float:
    """Cosine that the mean of the training images' embeddings gets on the held-out images.

    What agreement is worth: an adapter that looks at no image comes so far.
    """
    cache, contents = distillation.targets.cache, distillation.targets.inventory.contents
    assert cache is not None
    kinds = (distillation.corpus.training, distillation.corpus.held_out)
    training, held_out = (
        torch.stack([found for f in files if (found := cache.get(contents[f.name])) is not None])
        for files in kinds
    )
    mean = training.float().mean(0, keepdim=True)
    inside = torch.ones(len(held_out), *held_out.shape[2:], dtype=torch.bool)
    return agreement(mean.expand(held_out.shape), held_out, inside)[1].mean().item()


def rounded(row: Mapping[str, Any]) -> Row:
    """The row with its floats to four digits."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


# ------------------------------------------------------------------------------------------ stage 2


def stage_2(
    arm: str,
    model: ModelConfig,
    teacher: Path,
    adapter: Path,
    options: argparse.Namespace,
    seed: int,
) -> TrainConfig:
    """The bundled recipe for one arm, on a frozen encoder."""
    distilled, trained = ARMS[arm]
    return on_frozen_encoder(
        dataclasses.replace(model, variant=options.variant),
        options.encoder,
        steps=options.steps,
        seed=seed,
        fold=TEACHER.fold,
        decoder_weights=str(teacher),
        adapter_weights=str(adapter) if distilled else None,
        train_adapter=trained,
        images_per_step=options.images_per_step,
        workers=options.workers,
    )


def run_seed(
    seed: int, model: Segmenter, teacher: Path, options: argparse.Namespace
) -> tuple[Row, dict[str, Row]]:
    """Stage 1, then every arm of stage 2."""
    folder = options.out / str(seed)
    learned = distil(stage_1(model, teacher, options, seed), folder / "distil")
    cosine, constant = learned["stages"][-1]["held_out_cosine"], learned["constant_cosine"]
    print(f"seed {seed}  stage 1: cosine {cosine:.3f}, of a constant {constant:.3f}", flush=True)
    rows: dict[str, Row] = {}
    for arm in ARMS:
        adapter = folder / "distil" / ADAPTER_FILE
        config = stage_2(arm, model.config, teacher, adapter, options, seed)
        rows[arm] = row = ablation.run(config, folder / arm.replace(", ", "-"), EPISODES)
        result = f"mIoU {row['miou']:6.2f} {row['cpu_seconds']:7.1f} s"
        print(f"seed {seed}  {arm:20} {result}", flush=True)
    return learned, rows


# ----------------------------------------------------------------------------------- what comes out


def compare(rows: Mapping[str, Sequence[Row]]) -> dict[str, Row]:
    """What the distilled adapter adds to the random one, seed by seed, frozen and trained."""
    found = {}
    for kind in ("frozen", "trained"):
        pairs = zip(rows[f"distilled, {kind}"], rows[f"random, {kind}"], strict=True)
        added = [round(mine["miou"] - other["miou"], 2) for mine, other in pairs]
        found[kind] = {"added_by_seed": added, **spread(added), "finding": finding(kind, added)}
    return found


def spread(values: Sequence[float]) -> Row:
    """Mean, standard deviation over seeds (None of one), and range."""
    deviation = round(statistics.stdev(values), 2) if len(values) > 1 else None
    mean = round(statistics.mean(values), 2)
    return {"mean": mean, "deviation": deviation, "least": min(values), "most": max(values)}


def finding(kind: str, added: Sequence[float]) -> str:
    """What the differences say beside the published effect."""
    if min(added) > 0:
        verdict = "the published direction"
    elif max(added) < 0:
        verdict = "AGAINST the published direction"
    else:
        verdict = "no direction: the seeds disagree"
    return (
        f"adapter {kind}: distillation adds {statistics.mean(added):+.2f} mIoU here "
        f"({min(added):+.2f} to {max(added):+.2f} over {len(added)} seeds): {verdict}"
    )


def report(rows: Mapping[str, Sequence[Row]], comparison: Mapping[str, Row]) -> None:
    """Print the table and the findings."""
    print(f"{'adapter':20} {'mIoU':>7} {'±':>6}   range, held-out fold {TEACHER.fold}, 1-shot")
    for name, results in rows.items():
        found = spread([row["miou"] for row in results])
        deviation = "" if found["deviation"] is None else f"{found['deviation']:.2f}"
        print(
            f"{name:20} {found['mean']:7.2f} {deviation:>6}   "
            f"{found['least']:.2f} to {found['most']:.2f}"
        )
    for row in comparison.values():
        print(row["finding"])
    print(PUBLISHED)


# ------------------------------------------------------------------------------------------ the run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, default=Path("benchmarks/results/distillation.json"))
    parser.add_argument("--encoder", default="fsdino-tiny", help="name or folder of a model")
    parser.add_argument("--variant", choices=VARIANTS[:3], default="full", help="of the segmenter")
    parser.add_argument("--seeds", type=int, default=3, help="of stages 1 and 2")
    parser.add_argument("--teacher-steps", type=int, default=TEACHER.steps)
    parser.add_argument("--images", type=int, default=2000, help="of stage 1")
    parser.add_argument("--epochs", type=int, default=16, help="of each size in stage 1")
    parser.add_argument("--loss-grid", choices=GRIDS, default=GRIDS[0], help="of stage 1")
    parser.add_argument("--steps", type=int, default=900, help="of stage 2")
    parser.add_argument("--images-per-step", type=int, default=16, help="in stage 2")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw images")
    return parser.parse_args(arguments)


def settle(options: argparse.Namespace, encoder: str, recipe: small_sam.Recipe) -> Row:
    """Settings that the numbers depend on; the folder refuses to continue with others."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    settings = {"encoder_fingerprint": encoder, "teacher": dataclasses.asdict(recipe), **settings}
    Run(options.out, settings, resume=(options.out / CONFIG).exists())
    return settings


def command(options: argparse.Namespace) -> str:
    """What was called, without names of folders."""
    named = options.encoder if options.encoder in zoo.names() else "MODEL"
    kept = ("seeds", "teacher_steps", *SETTINGS)
    shown = " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in kept)
    return f"python benchmarks/distillation.py --encoder {named} {shown} --out DIR"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print, write."""
    options = parse(arguments)
    model = zoo.load(options.encoder)
    recipe = teacher_recipe(model.config, options.teacher_steps)
    settings = settle(options, model.fingerprint(), recipe)
    teacher, known = train_teacher(recipe, options.out / "teacher", options.workers)
    print(known["finding"], flush=True)
    write_images(options.out / "images", options.images)
    seeds = [run_seed(seed, model, teacher, options) for seed in range(options.seeds)]
    rows = {arm: [found[arm] for _, found in seeds] for arm in ARMS}
    comparison = compare(rows)
    report(rows, comparison)
    write_record(
        options.record,
        command(options),
        settings=settings,
        **drawn_set(f"fold{TEACHER.fold}/val/0"),
        evaluation=f"{EPISODES} episodes, 1-shot mIoU in percent",
        teacher=known,
        stage_1=[learned for learned, _ in seeds],
        arms=rows,
        spread={arm: spread([row["miou"] for row in found]) for arm, found in rows.items()},
        comparison=comparison,
        published=PUBLISHED,
    )


if __name__ == "__main__":
    with sharing.threads(1):
        main()
