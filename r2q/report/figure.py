"""The figures of a run, by their names: each reads one CSV and writes a PNG and an SVG."""

from r2q.report.lattice import lattice
from r2q.report.weight_error import weight_error

__all__ = ["lattice", "weight_error"]
