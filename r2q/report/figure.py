"""The figures of a run, by their names. Each is drawn as `<out>.png` and `<out>.svg` from `<out>.csv` beside them."""

from __future__ import annotations

from pathlib import Path

from r2q.report import drift as _drift
from r2q.report import lattice as _lattice
from r2q.report import training_curves as _training_curves
from r2q.report import weight_error as _weight_error


def lattice(config_path: str | Path, results: str | Path, out: str | Path) -> None:
    """RTN beside R2Q on one weight group of the run in the folder `results`; see `r2q.models.inspect.lattice_data`.

    The one figure whose CSV has to be read out of models first, so the one that needs torch.
    """
    from r2q.models.inspect import lattice_data

    lattice_data(config_path, results, f"{out}.csv")
    _lattice.plot(f"{out}.csv", out)


def weight_error(layers: str | Path, out: str | Path) -> None:
    """Relative weight error of every layer and recipe in a run's layers.csv."""
    _weight_error.plot(layers, out)


def training(steps: str | Path, out: str | Path) -> None:
    """Gradient norm and loss by step in a run's training.csv."""
    _training_curves.plot(steps, out)


def drift(layers: str | Path, out: str | Path) -> None:
    """Distance to the full-precision weights before and after training in a run's drift.csv."""
    _drift.plot(layers, out)
