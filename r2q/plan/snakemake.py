"""What Snakemake has to be told besides rules: the config checked at once, and what to make again."""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake.utils import update_config

from r2q import config as configuration
from r2q import server
from r2q.config import Config, ConfigError, machine_problems
from r2q.config.strict_yaml import parse_yaml, read_yaml
from r2q.inputs.hub import Hub, pin
from r2q.intact import Damaged
from r2q.kept import LIBRARY, ROOT, busy, held, write_atomic
from r2q.models.source import PREPARED
from r2q.plan import Plan

RUNNING: dict[str, ExitStack] = {}  # what this process holds while jobs run, by the folder of a run, or that runs share


def checked(workflow: Any, config: dict[str, Any]) -> tuple[Config, str]:
    """The config with all its problems found at once, and what it was read from, for messages.

    Files are read anew: in Snakemake's own reading a key that stands twice is silent, and 1e-5 is text. What is given
    with --config counts, too; but not where this workflow is a module: that is the other one's.

    Raises:
        WorkflowError: it is not valid, or a module moves outputs, which verbs look for where the config says.
    """
    paths = workflow.modifier.path_modifier
    if paths.prefix or paths.modifies_prefixes:
        raise WorkflowError(
            "prefix and replace_prefix of a module: a run has results/<run> and figures/<run>, as `run` of its config "
            "names them; start Snakemake with --directory for another folder"
        )
    source, data = "the config of the module", config
    try:
        if workflow.modifier.parent_modifier is None:  # else a module of another workflow
            data, given = {}, dict(workflow.config_settings.config)
            files = [os.path.relpath(path) for path in workflow.configfiles]
            source = " + ".join(files + (["--config"] if given else [])) or "config"
            for path in files:
                update_config(data, read_yaml(path))
            update_config(data, _typed(given))
        return _pinned(configuration.parse(configuration.with_shipped_models(data), source=source)), source
    except (ConfigError, Damaged) as error:
        raise WorkflowError(f"the config is not valid\n{error}") from None


def _pinned(config: Config) -> Config:
    """The config with what `fetch` pinned for its run; jobs then leave the network alone."""
    hub = Hub.of(config)
    if hub.inputs is not None:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    return pin(config, hub)


def run_jobs_here(workflow: Any) -> None:
    """Jobs run with the interpreter and packages that Snakemake runs with, also where neither is on the paths.

    With `--software-deployment-method conda`, whose environment has all but r2q, r2q alone is this one.

    Raises:
        WorkflowError: it is asked for and r2q is an installed package, which no other interpreter can have.
    """
    if workflow.deployment_settings.deployment_method and LIBRARY.parent != ROOT:
        raise WorkflowError("--software-deployment-method: works in a clone of the repository; this r2q is installed")
    paths = {"PATH": (str(Path(sys.executable).parent), os.defpath), "PYTHONPATH": (str(ROOT), "")}
    for name, (first, default) in paths.items():
        rest = os.environ.get(name, default).split(os.pathsep)
        os.environ[name] = os.pathsep.join([first, *(part for part in rest if part and part != first)])


def write_config(config: Config, path: str) -> None:
    """Write the config of the run, which all jobs read; kept untouched while it stays the same."""
    text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    if not Path(path).is_file() or Path(path).read_text(errors="replace") != text:
        write_atomic(path, text)


def _typed(value: Any) -> Any:
    """Values of --config as YAML means them: Snakemake leaves numbers inside of braces as text."""
    if isinstance(value, dict):
        return {key: _typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_typed(part) for part in value]
    return parse_yaml(value) if isinstance(value, str) else value


def stop_with(source: str, problems: Iterable[str]) -> None:
    """Stop before the first job where there are problems."""
    text = "\n".join(f"{source}: {problem}" for problem in problems)
    if text:
        raise WorkflowError(text)


def again(workflow: Any, plan: Plan, stale: dict[str, str]) -> None:
    """Have outputs made again, as --forcerun would, and say why; to be called while jobs are looked for.

    Snakemake has no way to state that an output is there and no good. This set is what --forcerun fills. Tables and the
    like, which do not keep what they were asked, are made again where Snakemake has no record of them.
    """
    for manifest in plan.manifests:
        if Path(manifest).is_file() and workflow.persistence.metadata(IOFile(manifest)) is None:
            stale.setdefault(manifest, "tables and figures of which Snakemake has no record: made again")
    if not stale.keys() <= workflow.dag.forcefiles:
        workflow.dag.forcefiles.update(stale)
        print("\n".join(dict.fromkeys(stale.values())), file=sys.stderr)


def computing(workflow: Any, plan: Plan) -> set[str]:
    """Rules with jobs to run that compute with a model, which are those that may hold a GPU.

    What trains is told by what it makes: a workflow that has this one as a module may rename rules.
    """
    jobs = [job for job in workflow.dag.needrun_jobs() if "gpu" in job.rule.resources]
    trained = set(plan.files("report.json", units=plan.trained))
    return {"train" if trained.intersection(job.output) else job.rule.name for job in jobs}


def one_of(names: Iterable[str]) -> str:
    """A wildcard's constraint: one of these names, of which there may be none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def start_with_jobs(workflow: Any, plan: Plan, source: str, config_file: str) -> None:
    """Have the run started right before its first job: machine looked at, run held, server started, config written.

    `onstart` does not do: Snakemake calls none of a module, and none with --no-hooks. A module is read anew for each
    `use rule` of it, and may be read with several configs.
    """
    schedule = JobScheduler.schedule

    def start_and_schedule(scheduler: JobScheduler) -> bool:
        if not workflow.dryrun and plan.results not in RUNNING:
            if workflow.local_exec:  # on a cluster jobs run elsewhere
                stop_with(source, machine_problems(plan.config, computing(workflow, plan)))
                without_rate_limit(scheduler)
            RUNNING[plan.results] = run_alone(workflow, plan)
            write_config(plan.config, config_file)
            clear(workflow, plan)
        return schedule(scheduler)

    JobScheduler.schedule = start_and_schedule


def run_alone(workflow: Any, plan: Plan) -> ExitStack:
    """Be the only Snakemake at work on a run, with a server for jobs of this machine, as long as this process lives.

    The profiles switch Snakemake's own lock off: it outlives a kill -9, and then asks for --unlock. What runs share is
    made by one of them: Snakemake deletes outputs before it makes them, under a run that already reads them.

    Raises:
        WorkflowError: another Snakemake is at work, or jobs of one that was killed.
    """
    first, holds = not RUNNING, ExitStack()  # the others are modules of the same workflow
    try:
        at_work = busy(plan.results)
        if not at_work:
            holds.enter_context(held(f"{plan.results}/snakemake"))
    except ValueError as error:
        raise WorkflowError(str(error)) from None
    if at_work:
        jobs = "; ".join(f"process {pid} on {path}" for path, pid in at_work.items())
        raise WorkflowError(
            f"another snakemake is at work on {plan.results}, or jobs of one that was killed; wait for it, or stop it "
            f"first: {jobs}"
        )
    made = {Path(file).parent for job in workflow.dag.needrun_jobs() for file in job.output}
    for folder in sorted(folder for folder in made if folder.is_relative_to(PREPARED) and str(folder) not in RUNNING):
        try:
            holds.enter_context(held(f"{folder}.made"))
            RUNNING[str(folder)] = holds
        except ValueError:
            raise WorkflowError(
                f"another snakemake makes {folder}, which this run needs, too; start it again once that is there"
            ) from None
    own = workflow.deployment_settings.deployment_method  # else jobs share this environment, and a server in it
    if first and workflow.local_exec and not own:
        server.start()
    return holds


def clear(workflow: Any, plan: Plan) -> None:
    """Before tables and the page are made, remove what the run had by another config, which they would show."""
    page = f"{plan.results}/report.html"
    if (found := plan.left_over()) and any(page in job.output for job in workflow.dag.needrun_jobs()):
        print(f"of another config of this run, removed: {', '.join(found)}", file=sys.stderr)
        for file in found:
            Path(file).unlink()


def without_rate_limit(scheduler: JobScheduler) -> None:
    """Jobs of this machine start at any rate.

    At every look for jobs that can start, Snakemake's limit (9.27: 100 a second) sets a timer, to look again a second
    later: every second, and each job that ends adds a timer. A run of 287 jobs lost a quarter of a processor to it.
    """
    scheduler.job_rate_limiter = None


def print_results(plan: Plan) -> None:
    """What a finished run has to show, on the terminal."""
    from r2q.report.averages import best_of_families
    from r2q.report.run import read_scores
    from r2q.report.tables.render import terminal
    from r2q.report.tables.summary import summarize

    results = plan.results
    if not Path(results, "scores.csv").is_file():  # only a part of the run was asked for
        return
    scores = read_scores(Path(results, "scores.csv"))
    chosen = best_of_families(scores)
    print(terminal(summarize(scores, chosen)))
    if len(chosen) < len(scores):
        recipes = scores["recipe"].nunique()
        print(f"the best of each family; all {recipes} recipes: {results}/tables/main.md, {results}/report.html\n")
    print(f"scores  {results}/scores.csv (one row per number), {results}/layers.csv, {results}/provenance.json")
    print(f"tables  {results}/tables/{', '.join(plan.tables)}: .md, .csv, .tex{'; claims.md' * bool(plan.trained)}")
    print(f"figures {plan.figures}/")
    print(f"page    {results}/report.html, which shows all of it")


def print_estimate(workflow: Any, plan: Plan, uses_gpu: bool) -> None:
    """What the whole run costs on the GPUs and cores that Snakemake is given; asks no hub."""
    from r2q.plan.estimate import Estimate
    from r2q.plan.jobs import Machine

    config = plan.config
    given = {name: resource.value or 1 for name, resource in workflow.global_resources.items()}
    gpus = max(given.get("gpu", given["_nodes"]), config.limits.training_processes if plan.trained else 1)
    cpu_jobs = max(1, given["_cores"] // config.limits.threads)
    try:
        said = Estimate(config, Machine(gpus if uses_gpu else 0, None, cpu_jobs)).summary()
    except ConfigError as error:
        said = f"{error}; `python -m r2q estimate` asks the hub"
    print(f"estimate of the whole run: {said}", file=sys.stderr)


def print_logs(plan: Plan) -> None:
    """Where to look when a run stopped."""
    print(f"\nThe run stopped. Each job's log, with warnings and tracebacks, is in {plan.results}/logs/;")
    print("whatever was finished is kept, and the same command goes on from here.")
