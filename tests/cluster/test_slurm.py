"""profiles/slurm on a real SLURM of one node: the scores of a local run, and every kind of failure gone through.

Run by `make test-cluster` alone: it needs root, SLURM's programs (Debian: slurmctld slurmd slurm-client munge) and some
ten minutes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import MISSING, Cluster, until
from tests.workflow import Copy

pytestmark = pytest.mark.cluster

REPORT = "results/smoke/mini-opt/qat_ce-g64/seed0/report.json"
LOG = "results/smoke/logs/train-mini-opt-qat_ce-g64-seed0.log"
PREPARED = ("prepared.json", "training_data.safetensors", "training_data.json")
TRAINED = """
run: smoke
models: {mini-opt: {path: mini/models/mini-opt}}
recipes:
  qat_ce-g64:
    method: qat_ce
    granularity: g64
    options: {quantizer: rtn, steps: 40, batch_rows: 4, learning_rate: 0.001, checkpoint_every: 5, evaluate_every: 40}
tasks: {mini_sums: }
task_include: [results/prepared/mini/tasks]
training:
  kind: text
  length: 128
  held_out: 8
  texts: [{path: results/prepared/mini/train.txt, lines: true, rows: 512}]
"""
# No accounting database here; and a test should not wait 40 s, as the plug-in does, before it first asks for a job.
HERE = """
slurm-status-command: squeue
slurm-no-account: true
slurm-init-seconds-before-status-checks: 1
seconds-between-status-checks: 2
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert not MISSING, f"apt-get install slurmctld slurmd slurm-client munge: {', '.join(MISSING)} missing"
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Run:
    """Snakemake with profiles/slurm on the cluster, in a copy of the repository."""

    def __init__(self, copy: Copy, cluster: Cluster, config: str, *arguments: str) -> None:
        self.copy, self.cluster = copy, cluster
        profile = copy.folder / "profiles" / "slurm" / "config.yaml"
        if "slurm-no-account" not in profile.read_text():
            profile.write_text(profile.read_text() + HERE)
        command = copy.command("--workflow-profile", "profiles/slurm", *arguments, config=config)
        self.path = copy.folder / "output"
        with self.path.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=copy.folder, env=cluster.environment | {"PYTHONPATH": str(copy.folder)},
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.path.read_text()

    def end(self) -> int:
        return self.process.wait(timeout=1200)

    def training(self) -> str:
        """Wait for a checkpoint of the job that trains; its id."""
        folder = self.copy.folder / Path(REPORT).parent

        def ready() -> bool:
            assert self.process.poll() is None, self.output
            return any(folder.rglob("checkpoint.json"))

        until(ready, 180)
        (job,) = self.cluster.jobs("RUNNING")
        return job


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The recipe that trains, run on this machine without SLURM and without a failure."""
    copy = Copy(tmp_path_factory.mktemp("alone"))
    (copy.folder / "config" / "trained.yaml").write_text(TRAINED)
    done = copy.run("--cores", "1", "--", REPORT, config="trained")
    assert done.returncode == 0, done.stdout
    return copy


@pytest.fixture
def begun(alone: Copy, cluster: Cluster, tmp_path: Path) -> Iterator[Run]:
    """The same on the cluster, from where only the training is left."""
    copy = Copy(tmp_path / "copy", of=alone.folder)
    for name in ("results/prepared", *(f"results/smoke/mini-opt/{file}" for file in PREPARED)):
        place = copy.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (alone.folder / name).is_dir() else shutil.copy2)(alone.folder / name, place)
    run = Run(copy, cluster, "trained", "--", REPORT)
    yield run
    if run.process.poll() is None:
        os.killpg(run.process.pid, signal.SIGKILL)
    for job in cluster.jobs("RUNNING", "PENDING"):
        cluster.call("scancel", "--signal=KILL", "--full", job)
    until(lambda: not cluster.jobs("RUNNING", "PENDING", "COMPLETING"))


def weights(copy: Copy) -> str:
    """The hash of the packed weights."""
    return json.loads((copy.folder / REPORT).read_text())["hashes"]["weights"]


def went_on(run: Run) -> bool:
    """Whether the last attempt began with a checkpoint of an earlier one."""
    return re.search(r"training goes on after step [1-9]", (run.copy.folder / LOG).read_text()) is not None


def test_the_scores_are_those_of_a_local_run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    local, there = (Copy(tmp_path_factory.mktemp(name)) for name in ("local", "there"))
    run = Run(there, cluster, "smoke")
    assert run.end() == 0, run.output
    assert len(re.findall("has been submitted with SLURM jobid", run.output)) > 15
    done = local.run()
    assert done.returncode == 0, done.stdout
    assert there.scores() == local.scores()
    for table in ("tables/main.csv", "tables/main.md"):
        assert there.path(table).read_bytes() == local.path(table).read_bytes()
    for model in local.path("").glob("*/*/*/model.safetensors"):
        assert there.path(str(model.relative_to(local.path("")))).read_bytes() == model.read_bytes()
    assert there.planned() == {}


def test_a_job_beyond_its_time_goes_on_from_its_checkpoint(begun: Run, alone: Copy) -> None:
    job = begun.training()
    begun.cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    verb = (begun.copy.folder / REPORT).parent.with_name(".seed0.lock")
    pid = int(verb.read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)  # a minute is the shortest limit, and the training is done before
    assert begun.end() == 0, begun.output
    assert "SLURM status is: 'TIMEOUT'" in begun.output
    later = re.findall(r"submitted with SLURM jobid (\d+)", begun.output)[-1]
    assert begun.cluster.asked(later) == ["125G", "1-00:00:00", "COMPLETED"]  # twice the profile's 64000 MB and 12 h
    assert went_on(begun)
    assert weights(begun.copy) == weights(alone)


def test_the_log_of_a_failed_job_is_where_the_output_says(begun: Run) -> None:
    job = begun.training()
    begun.cluster.call("scancel", job)
    until(lambda: f"SLURM-job '{job}' failed" in begun.output, 120)
    found = re.search(rf"(/\S+/{job}\.log)", begun.output)
    assert found is not None
    assert Path(found[1]).parent == begun.copy.folder / ".snakemake/slurm_logs/rule_train/mini-opt_qat_ce-g64_0"
    assert "train mini-opt: qat_ce-g64 seed 0" in Path(found[1]).read_text()


def test_a_preempted_job_goes_on_from_its_checkpoint(begun: Run, alone: Copy) -> None:
    job = begun.training()
    begun.cluster.call("sbatch", "--partition=urgent", "--cpus-per-task=2", "--mem=1000", "--wrap=sleep 3")
    assert begun.end() == 0, begun.output
    assert "failed" not in begun.output  # SLURM put it back in line, under the same id
    assert "Restarts=1" in begun.cluster.call("scontrol", "show", "job", job)
    assert went_on(begun)
    assert weights(begun.copy) == weights(alone)


def test_a_job_whose_node_died_goes_on_from_its_checkpoint(begun: Run, alone: Copy) -> None:
    cluster, job = begun.cluster, begun.training()
    cluster.lose_node()
    until(lambda: cluster.node() == "down")
    cluster.start_node()
    assert begun.end() == 0, begun.output
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", job)
    assert went_on(begun)
    assert weights(begun.copy) == weights(alone)


def test_jobs_outlive_slurm_s_own_scheduler(begun: Run, alone: Copy) -> None:
    cluster, job = begun.cluster, begun.training()
    cluster.stop("slurmctld", signal.SIGKILL)
    cluster.start("slurmctld", "-D")
    assert begun.end() == 0, begun.output
    assert "Restarts=0" in cluster.call("scontrol", "show", "job", job)
    assert weights(begun.copy) == weights(alone)


def test_a_killed_snakemake_is_taken_up_by_the_next_one(begun: Run, alone: Copy, cluster: Cluster) -> None:
    begun.training()
    os.killpg(begun.process.pid, signal.SIGKILL)
    begun.process.wait()
    second = Run(begun.copy, cluster, "trained", "--", REPORT)
    assert second.end() == 1  # its job is still at work, and is not started twice
    assert re.search(
        r"another snakemake is at work on results/smoke, or jobs of one .* process \d+ of \S+ on", second.output
    )
    until(lambda: not cluster.jobs("RUNNING", "PENDING", "COMPLETING"), 300)
    third = Run(begun.copy, cluster, "trained", "--", REPORT)
    assert third.end() == 0, third.output
    assert weights(begun.copy) == weights(alone)


def test_a_job_without_enough_memory_gets_more(cluster: Cluster, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    small = ("slurm_partition=gpu", "mem_mb=100 * 10 ** (attempt - 1)", "runtime=10")
    run = Run(copy, cluster, "smoke", "--default-resources", *small, "--", "results/smoke/mini-opt/prepared.json")
    assert run.end() == 0, run.output
    jobs = re.findall(r"submitted with SLURM jobid (\d+)", run.output)
    asked = [cluster.asked(job) for job in jobs]
    assert [memory for memory, _, _ in asked[:2]] == ["100M", "1000M"]
    assert asked[0][2] != "COMPLETED"
    assert asked[-1][2] == "COMPLETED"
