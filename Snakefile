# model + text -> recipe -> packed 2-bit checkpoint -> raw evaluation JSON -> scores.csv -> tables and figures
#
#   snakemake                                             config/embedded.yaml, all cores
#   snakemake --cores all --configfile config/smoke.yaml  another config in its place


if not workflow.overwrite_configfiles:  # a config of the user's replaces the default, it is not merged into it

    configfile: "config/embedded.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


report: "workflow/report/workflow.rst"


localrules:  # a second each: not worth a place in a cluster's queue
    all,
    collect,
    table,
    figure_weight_error,
    collect_training,
    figure_training,
    figure_drift,
    claims,


rule all:
    default_target: True
    input:
        all_unit_files("report.json"),
        all_unit_files("evaluation.json"),  # a unit's folder that was deleted comes back
        TABLES,
        FIGURES,
        TRAINING,
    message:
        "all: done"


onstart:
    check_machine()
    hold_lock()
    write_config()


onsuccess:
    print_results()


onerror:
    print_logs()
