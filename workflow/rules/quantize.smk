# Tokens for the recipes that look at text, once per model; only for models that have such a recipe. Before other models'
# units, as are rows: what is wrong with a text is found there.
rule calibrate:
    input:
        prepared=PLAN.of_model("prepared.json"),
        tokenizer=PLAN.tokenizer_files,
        text=PLAN.texts("calibration"),
    output:
        f"{RESULTS}/{{model}}/calibration.safetensors",
    log:
        f"{RESULTS}/logs/calibrate-{{model}}.log",
    priority: 10
    conda:
        "../../environment.yml"
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_calibrate,
        states=PLAN.states(PLAN.texts("calibration")),
    message:
        "calibrate {wildcards.model}"
    shell:
        r"""
        python -m r2q calibrate \
            --config {params.config:q} \
            --model {wildcards.model:q} \
            --out {output:q} \
            --log {log:q}
        """


# Rows for the recipes that train, once per model and the same for all of them. The verb keeps what it would make again.
rule teacher_data:
    input:
        prepared=PLAN.of_model("prepared.json"),
        model=PLAN.model_files,
        texts=PLAN.texts("training"),
    output:
        update(f"{RESULTS}/{{model}}/training_data.safetensors"),
    log:
        f"{RESULTS}/logs/teacher_data-{{model}}.log",
    priority: 10
    conda:
        "../../environment.yml"
    threads: CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_teacher_data,
        states=PLAN.states(PLAN.texts("training")),
    message:
        "teacher_data {wildcards.model}"
    shell:
        r"""
        python -m r2q teacher-data \
            --config {params.config:q} \
            --prepared {input.prepared:q} \
            --model {wildcards.model:q} \
            --out {output:q} \
            --log {log:q}
        """


# A packed checkpoint. The verb keeps a result whose key has not changed, so the old report stays until then: `update`.
rule quantize:
    input:
        prepared=PLAN.of_model("prepared.json"),
        model=PLAN.model_files,
        checkpoint=PLAN.checkpoint_files,
        calibration=PLAN.calibration,
        training=PLAN.training,
        start=PLAN.start,
    output:
        update(f"{UNIT}/report.json"),
    log:
        f"{RESULTS}/logs/quantize-{{model}}-{{recipe}}-seed{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_quantize,
        states=PLAN.states(PLAN.checkpoint_files),
        out=folder_of_output,
        options=optional_inputs,
    message:
        "quantize {wildcards.model}: {wildcards.recipe} seed {wildcards.seed}"
    shell:
        r"""
        python -m r2q quantize \
            --config {params.config:q} \
            --prepared {input.prepared:q} \
            --model {wildcards.model:q} \
            --recipe {wildcards.recipe:q} \
            --seed {wildcards.seed} \
            --out {params.out:q} {params.options} \
            --log {log:q}
        """


# The same for a recipe that trains, which may be spread over several GPUs.
use rule quantize as train with:
    log:
        f"{RESULTS}/logs/train-{{model}}-{{recipe}}-seed{{seed}}.log",
    wildcard_constraints:
        recipe=one_of(TRAINED),
    threads: CONFIG.limits.threads * CONFIG.limits.training_processes
    resources:
        gpu=GPU * CONFIG.limits.training_processes,
    message:
        "train {wildcards.model}: {wildcards.recipe} seed {wildcards.seed}"


ruleorder: train > quantize
