"""A text of any length and with any letters into a file: a shell command could not hold it."""

from pathlib import Path

Path(snakemake.output[0]).write_text(snakemake.params.text)  # noqa: F821  (Snakemake puts it there)
