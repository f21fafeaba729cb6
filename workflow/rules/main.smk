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
    *(rules.latency.output if PLAN.timed else []),
    *(rules.lattice.output if "lattice" in PLAN.drawn else []),
    *rules.controls.output,
    *TABLES,
    SIGNED,
    *DRAWN,
    *CLAIMS,
    *rules.page.output,
]


onstart:  # no module's, whose terminal is another workflow's
    show_progress()


onsuccess:
    print_results(PLAN)


onerror:
    print_logs(PLAN)
