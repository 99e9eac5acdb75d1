"""Names of models that are installed with the package, for modules that must import nothing."""

from __future__ import annotations

DEFAULT = "fsdino-photo"  # of `fsdino.load` and `fsdino segment`: for photographs
DRAWN = "fsdino-tiny"  # trained on drawings: for tests, and for the drawn data set
