# What would make an evaluation fail; first in line, so that it is found before units are quantized. No job waits for it: as
# an `ancient` input, it made Snakemake 9.27.1 forget units whose parameters had changed whenever it ran again itself.
rule check:
    input:
        prepared=PLAN.of_model("prepared.json"),
        tokenizer=PLAN.tokenizer_files,
        tasks=PLAN.task_files,
        text=PLAN.texts("fidelity"),
    output:
        f"{RESULTS}/{{model}}/checked.json",
    log:
        f"{RESULTS}/logs/check-{{model}}.log",
    priority: 100
    conda:
        "../../environment.yml"
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_check,
        states=PLAN.states(PLAN.task_files, PLAN.texts("fidelity")),
    message:
        "check {wildcards.model}"
    shell:
        r"""
        python -m r2q check \
            --config {params.config:q} \
            --model {wildcards.model:q} \
            --out {output:q} \
            --log {log:q}
        """


# What the full-precision model makes of held-out text, once per model; the units are held against it.
rule reference:
    input:
        prepared=PLAN.of_model("prepared.json"),
        model=PLAN.model_files,
        text=PLAN.texts("fidelity"),
    output:
        f"{RESULTS}/{{model}}/reference.safetensors",
    log:
        f"{RESULTS}/logs/reference-{{model}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_reference,
        states=PLAN.states(PLAN.texts("fidelity")),
    message:
        "reference {wildcards.model}"
    shell:
        r"""
        python -m r2q reference \
            --config {params.config:q} \
            --prepared {input.prepared:q} \
            --model {wildcards.model:q} \
            --out {output:q} \
            --log {log:q}
        """


# Reads the packed folder, and nothing that the quantizer had in memory.
rule evaluate:
    input:
        report=f"{UNIT}/report.json",
        tasks=PLAN.task_files,
        reference=PLAN.reference,
    output:
        update(f"{UNIT}/lm_eval.json"),
        update(f"{UNIT}/items.json"),
        update(f"{UNIT}/evaluation.json"),  # the record last: Snakemake touches them in turn, and none may be newer
    log:
        f"{RESULTS}/logs/evaluate-{{model}}-{{recipe}}-seed{{seed}}.log",
    conda:
        "../../environment.yml"
    threads: CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_evaluate,
        states=PLAN.states(PLAN.task_files),
        out=folder_of_output,
        options=optional_inputs,
    message:
        "evaluate {wildcards.model}: {wildcards.recipe} seed {wildcards.seed}"
    shell:
        r"""
        python -m r2q evaluate \
            --config {params.config:q} \
            --model {wildcards.model:q} \
            --out {params.out:q} {params.options} \
            --log {log:q}
        """
