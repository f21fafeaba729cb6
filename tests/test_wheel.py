"""The wheel: one name, all that a run needs, and the same results as in the repository, in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from r2q import __version__
from r2q.kept import ROOT

BESIDE = ("baselines", "mini", "config", "profiles", "workflow", "results/published")
REPORT = "results/smoke/mini-opt/r2q-g64/seed0/report.json"
CODE = """
from r2q.kept import ROOT, source_hash
from r2q.plan.sources import SOURCES, code, method_code
print(ROOT)
print(source_hash(["mini"]), *map(code, SOURCES), *(method_code(name, {}) for name in ("r2q", "gptq", "bitdistiller")))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs and nothing else."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import hatchling.build as backend; backend.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site: Path, *arguments: str, cwd: Path, status: int = 0) -> str:
    """What Python prints with the packages of a folder before all others."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def below(folder: Path) -> set[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return {file.relative_to(folder).as_posix() for file in files}


def test_it_holds_one_name_and_every_file(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {"r2q", f"r2q-{__version__}.dist-info"}
    shipped = below(site / "r2q" / "_root")
    assert shipped == {"environment.yml", *(f"{name}/{file}" for name in BESIDE for file in below(ROOT / name))}
    assert {file for file in below(site / "r2q") if not file.startswith("_root/")} == below(ROOT / "r2q")


def test_a_run_in_any_folder_has_the_code_and_the_models_of_the_wheel(site: Path, tmp_path: Path) -> None:
    root, hashes = python(site, "-c", CODE, cwd=tmp_path).splitlines()
    assert root == str(site / "r2q" / "_root")
    assert hashes == python(ROOT, "-c", CODE, cwd=tmp_path).splitlines()[1]
    (tmp_path / "mine.yaml").write_text((ROOT / "config" / "smoke.yaml").read_text())
    python(site, "-m", "r2q", "run", "mine.yaml", "--cores", "1", "--", REPORT, cwd=tmp_path)
    assert (tmp_path / REPORT).is_file()
    run = (tmp_path / "results/smoke/config.yaml").read_text()
    assert str(site / "r2q/_root/mini/models/mini-opt") in run
    assert str(ROOT / "mini") not in run


def test_a_workflow_that_came_alone_runs_with_an_installed_package(tmp_path: Path) -> None:
    """As `snakedeploy` leaves it: rules from a repository far away, r2q as a package."""
    shutil.copytree(ROOT / "workflow", tmp_path / "far" / "workflow")
    shutil.copy2(ROOT / "environment.yml", tmp_path / "far")
    (tmp_path / "Snakefile").write_text(
        'configfile: "config.yaml"\nmodule r2q:\n    snakefile: "far/workflow/Snakefile"\n    config: config\n'
        "use rule * from r2q\n"
    )
    shutil.copy2(ROOT / "config" / "smoke.yaml", tmp_path / "config.yaml")
    python(ROOT, "-m", "snakemake", "--cores", "1", "--", REPORT, cwd=tmp_path)
    assert (tmp_path / REPORT).is_file()


def test_conda_for_jobs_is_refused_where_they_would_not_find_this_package(site: Path, tmp_path: Path) -> None:
    wish = ("config/smoke.yaml", "--dry-run", "--software-deployment-method", "conda")
    said = python(site, "-m", "r2q", "run", *wish, cwd=tmp_path, status=1)
    assert "--software-deployment-method: works in a clone of the repository" in said
