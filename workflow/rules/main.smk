# Everything but the rule `all`, which each Snakefile has to state itself.


if not workflow.overwrite_configfiles:  # a config of the user's replaces the default, it is not merged into it

    configfile: f"{workflow.current_basedir}/../../config/embedded.yaml"


include: "common.smk"
include: "prepare.smk"
include: "quantize.smk"
include: "evaluate.smk"
include: "report.smk"


report: "../report/workflow.rst"


localrules:  # a second each: not worth a place in a cluster's queue
    all,
    collect,
    collect_training,
    controls,
    table,
    figure,
    claims,
    page,


# A unit's two records stand for its folder, see r2q/plan/checks.py.
EVERYTHING = [
    *PLAN.intermediates,
    *expand(rules.check.output, model=list(CONFIG.models)),
    *PLAN.files("report.json", "evaluation.json", "lm_eval.json", "items.json"),
    *rules.collect.output,
    *(rules.collect_training.output if TRAINED else []),
    *(rules.lattice.output if "lattice" in PLAN.drawn else []),
    *rules.controls.output,
    *TABLES,
    SIGNED,
    *DRAWN,
    *CLAIMS,
    *rules.page.output,
]


onstart:
    # On a cluster jobs run elsewhere, and a dry run may be of another machine; known no sooner.
    if workflow.local_exec:
        stop_with(SOURCE, machine_problems(CONFIG, computing(workflow)))
        without_rate_limit(workflow)
    own = workflow.deployment_settings.deployment_method  # else jobs share this environment, and a server in it
    RUNNING.append(run_alone(PLAN, local=workflow.local_exec and not own))
    write_config(CONFIG, RUN_CONFIG)
    show_progress()


onsuccess:
    print_results(PLAN)


onerror:
    print_logs(PLAN)
