# Reads the packed folder, and nothing that the quantizer had in memory.
rule evaluate:
    input:
        report=f"{UNIT}/report.json",
        tasks=PLAN.task_files,
    output:
        update(f"{UNIT}/evaluation.json"),
        update(f"{UNIT}/lm_eval.json"),
    log:
        f"{RESULTS}/logs/evaluate-{{model}}-{{recipe}}-seed{{seed}}.log",
    threads: CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_evaluate,
        out=folder_of_output,
    message:
        "evaluate {wildcards.model}: {wildcards.recipe} seed {wildcards.seed}"
    shell:
        r"""
        python -m r2q evaluate \
            --config {params.config:q} \
            --model {wildcards.model:q} \
            --out {params.out:q} \
            --log {log:q}
        """
