# The embedded models' text and tasks; refuses checkpoints that were not trained on it.
rule world:
    input:
        expand(
            "{root}/mini/models/{model}/{file}",
            root=ROOT,
            model=MINI_MODELS,
            file=["model.safetensors", "tokenizer.json", "provenance.json"],
        ),
    output:
        WORLD_FILES,
    log:
        f"{RESULTS}/logs/world.log",
    conda:
        "../../environment.yml"
    params:
        source=source_hash(["mini/world.py"]),
        out=folder_of_output,
        models=models_of_input,
    message:
        "world: write the text and the tasks of the embedded models"
    shell:
        r"""
        python -m mini.world \
            --out {params.out:q} \
            --models {params.models:q} \
            2>&1 | tee {log:q}
        """


# Trains the embedded models anew, from this repository alone; not part of `all`, on a GPU: snakemake pretrain
# The models that the other rules read are the committed ones in mini/models; these go elsewhere, to be compared or copied.
rule pretrain:
    output:
        directory("results/prepared/pretrained"),
    log:
        f"{RESULTS}/logs/pretrain.log",
    conda:
        "../../environment.yml"
    resources:
        gpu=GPU,
    params:
        source=source_hash(["mini"]),
    message:
        "pretrain: train the embedded models into {output}"
    shell:
        r"""
        python -m mini.pretrain \
            --out {output:q} \
            2>&1 | tee {log:q}
        """


# The folder of a model that comes as a GGUF file, here, on the hub or in a package; models of one file and all runs share
# it.
rule source:
    input:
        PLAN.source_files,
    output:
        expand("{folder}/{{source}}/{name}", folder=SOURCES, name=MADE),
    log:
        f"{RESULTS}/logs/source-{{source}}.log",
    wildcard_constraints:
        source=one_of(PLAN.sources),
    priority: 10
    conda:
        "../../environment.yml"
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_source,
        model=PLAN.source_of,
        out=folder_of_output,
    message:
        "source {wildcards.source}"
    shell:
        r"""
        python -m r2q source \
            --config {params.config:q} \
            --model {params.model:q} \
            --out {params.out:q} \
            --log {log:q}
        """


# Its recipes are no part of `asked`: those that come later are held against what this job found, when Snakemake reads
# the config.
rule prepare:
    input:
        model=PLAN.model_files,
        none=stale_outputs,
    output:
        f"{RESULTS}/{{model}}/prepared.json",
    log:
        f"{RESULTS}/logs/prepare-{{model}}.log",
    priority: 10
    conda:
        "../../environment.yml"
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_prepare,
    message:
        "prepare {wildcards.model}"
    shell:
        r"""
        python -m r2q prepare \
            --config {params.config:q} \
            --model {wildcards.model:q} \
            --out {output:q} \
            --log {log:q}
        """
