# model + text -> recipe -> packed 2-bit checkpoint -> raw evaluation JSON -> scores.csv -> tables and figures
#
#   snakemake                                             config/embedded.yaml, all cores
#   snakemake --cores all --configfile config/smoke.yaml  another config in its place
#
# workflow/Snakefile is the same for those who look there; as a module of another workflow, take that one.


include: "workflow/rules/main.smk"


rule all:
    default_target: True
    input:
        EVERYTHING,
    message:
        "all: done"
