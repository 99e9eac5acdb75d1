"""`fsdino demo`: its options and its tables."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsdino.commands.options import (
    Json,
    check_folder,
    check_model,
    check_range,
    wait_without_spinning,
)
from fsdino.models.names import DEFAULT as DEFAULT_MODEL
from fsdino.models.names import DRAWN as DRAWN_MODEL
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.commands.demo.run import Results


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write a report with pictures of what fsdino does, offline, in about a minute.

    Segments the photographs that are installed with fsdino, then drawings of the generated data
    set's held-out fold, compares both with the truth and with what needs no training, and times
    the kernels. Builds the C++ kernels first, if they are missing and there is a compiler.
    """

    out: Path
    """Folder for report.html, demo.json, photographs/ and overlays/."""
    model: str = DEFAULT_MODEL
    """Name, folder or hub id (hf:owner/name) of the model that segments the photographs."""
    drawn_model: str = DRAWN_MODEL
    """The model that segments the drawings, trained without the data set's fold 3."""
    episodes: int = 24
    """Number of drawn episodes to segment and score."""
    pictures: int = 3
    """Number of these to show for each number of shots."""
    workload: str = "W6"
    """Workload of the kernel table; see `fsdino benchmark`."""
    rounds: int = 3
    """Rounds of the kernel timing."""
    as_json: Json = False
    """Print the numbers as one JSON object instead of tables."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        wait_without_spinning()
        check_folder(self.out)
        for option, value in (
            ("--episodes", self.episodes), ("--pictures", self.pictures),
            ("--rounds", self.rounds),
        ):  # fmt: skip
            check_range(option, value, 1)
        for name in (self.model, self.drawn_model):
            check_model(name)
        from fsdino.bench.workloads import find_workloads

        find_workloads([self.workload])
        from fsdino.commands import build
        from fsdino.commands.demo import page, report, run

        build.build_if_possible()
        settings = run.Settings(
            self.model, self.drawn_model, self.episodes, self.pictures, self.workload,
            self.rounds,
            command=shlex.join(["fsdino", *sys.argv[1:]]),
        )  # fmt: skip
        results = run.run(settings, self.out)
        report.write(self.out / "report.html", page.render(results))
        if self.as_json:
            print(json.dumps(results.to_dict()))
        else:
            _print_demo(results)
            print(f"\n{self.out / 'report.html'}: open it in a browser ({results.seconds:.0f} s)")
        from fsdino.bench import compare

        compare.check_passed([results.kernels])
        return 0


def _print_demo(results: Results) -> None:
    from fsdino.bench.table import print_comparison

    means = results.mean_iou()
    rows = [
        [answer.support.name, answer.query.name, *(f"{answer.iou[m]:.2f}" for m in means)]
        for answer in results.photographs
    ]
    rows.append(["mean", "", *(f"{value:.2f}" for value in means.values())])
    print_table(
        ["support", "query", *means], rows, f"Photographs: IoU with the truth of {len(rows) - 1}"
    )
    print_table(
        ["", "support images", "mIoU %", "FB-IoU %"],
        [
            [method, str(shots), f"{score.miou:.1f}", f"{score.fb_iou:.1f}"]
            for (method, shots), score in results.scores.items()
        ],
        f"Drawings, {results.settings.drawn_model}: IoU with the truth over {len(results.answers)} "
        "held-out episodes",
    )
    print_comparison(results.kernels)
