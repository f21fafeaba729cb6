"""Runs of the whole workflow in copies of the repository, where tests may change and delete things."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from r2q.kept import ROOT

COPIED = (
    "Snakefile", "environment.yml", "workflow", "profiles", "config", "r2q", "baselines", "mini", "results/published"
)  # fmt: skip
# columns of scores.csv that differ from run to run
MOVES = ("seconds", "quantize_cpu_seconds", "evaluate_cpu_seconds", "peak_mib")


def printed(code: str, *arguments: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Copy:
    """A copy of what runs, without results."""

    def __init__(self, folder: Path, of: Path = ROOT) -> None:
        self.folder = folder
        self.output = ""  # of the run that finished it
        folder.mkdir(exist_ok=True)
        for name in COPIED:
            source = of / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, *arguments: str, config: str = "smoke") -> list[str]:
        return [sys.executable, "-m", "snakemake", "--configfile", f"config/{config}.yaml", *arguments]

    def run(self, *arguments: str, config: str = "smoke") -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end; stdout and stderr come together."""
        return subprocess.run(
            self.command(*arguments, config=config),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def dry(self, *arguments: str, config: str = "smoke") -> tuple[dict[str, int], set[str]]:
        """What a run would do: jobs by rule, and with which units, as its jobs say it (`evaluate mini-opt: r2q-g64
        seed 0`)."""
        done = self.run("--dry-run", *arguments, config=config)
        assert done.returncode == 0, done.stdout
        if "Nothing to be done" in done.stdout:
            return {}, set()
        stats = done.stdout.split("Job stats:")[1].split("total")[0]
        units = re.findall(r"(?m)^Job \d+: ((?:quantize|train|evaluate) .*)$", done.stdout)
        return {rule: int(count) for rule, count in re.findall(r"(?m)^(\S+) +(\d+)$", stats)}, set(units)

    def planned(self, *arguments: str, config: str = "smoke") -> dict[str, int]:
        """The jobs alone."""
        return self.dry(*arguments, config=config)[0]

    def units(self, *arguments: str, config: str = "smoke") -> set[str]:
        """The units alone."""
        return self.dry(*arguments, config=config)[1]

    def path(self, name: str) -> Path:
        return self.folder / "results" / "smoke" / name

    def scores(self) -> list[dict[str, str]]:
        """Rows of scores.csv without what may differ from run to run."""
        with self.path("scores.csv").open(newline="") as file:
            return [{k: v for k, v in row.items() if k not in MOVES} for row in csv.DictReader(file)]

    def edit(self, name: str, old: str, new: str) -> str:
        """Replace text in a file of the copy; returns the file's former content."""
        file = self.folder / name
        before = file.read_text()
        assert before.count(old) == 1, f"{name} has {before.count(old)} times {old!r}"
        file.write_text(before.replace(old, new))
        return before
