"""Options of `baselines/bitdistiller.py`."""

from __future__ import annotations

from typing import Literal

from r2q.training.options import TrainingOptions


class Options(TrainingOptions):
    """Options of BitDistiller; all but the defaults are shared with the other frames."""

    loss: Literal["ce", "forward_kl", "reverse_kl", "jsd", "cakld"] = "cakld"
