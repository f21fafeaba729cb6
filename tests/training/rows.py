"""Random rows of tokens to train tiny models on."""

from pathlib import Path
from typing import Any

import torch

from r2q.training.data import Rows, TrainingData


def random_data(folder: Path | None = None, kind: str = "generated", **changes: Any) -> TrainingData:
    """24 rows of up to 16 tokens, a prompt of 4; the last 8 held out."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 96, (24, 16), generator=generator)
    end = torch.randint(10, 17, (24,), generator=generator)
    rows = Rows(tokens, torch.full((24,), 4), end)
    return TrainingData(rows[slice(0, 16)], rows[slice(16, 24)], kind, "none", folder, **changes)
