# Rows for the recipes that train: once per model, the same for all of them; only for models with such a recipe.
# Training itself is the rules `train`, which quantize.smk makes: the same verb as for all other recipes.
for MODEL in TEACHERS:

    rule:
        name:
            rule_name("teacher_data", MODEL)
        input:
            prepared=prepared_file(MODEL),
            model=model_files(MODEL),
            texts=task_files(),
        output:
            training_file(MODEL),
        log:
            log_of("teacher_data", MODEL),
        benchmark:
            benchmark_of("teacher_data", MODEL)
        threads: CONFIG.limits.threads
        resources:
            gpu=GPU,
        params:
            asked=asked(
                path=CONFIG.models[MODEL].path,
                revision=CONFIG.models[MODEL].revision,
                add_bos=CONFIG.models[MODEL].add_bos,
                device=CONFIG.device,
                training=CONFIG.training.model_dump(),
            ),
            source=source_hash(
                ["r2q/training/teacher_data.py", "r2q/training/data.py", "r2q/files.py", "r2q/tokens.py"]
            ),
            config=RUN_CONFIG,
            model=MODEL,
        message:
            f"teacher-data {MODEL}"
        shell:
            r"""
            python -m r2q teacher-data \
                --config {params.config:q} \
                --prepared {input.prepared:q} \
                --model {params.model:q} \
                --out {output:q} \
                --log {log:q}
            """


# What training has to show: nothing of it is asked for where no recipe trains.
TRAINING_FIGURES = [
    f"{FIGURE_FOLDER}/{name}.{ending}" for name in ("training", "drift") for ending in ("png", "svg", "csv")
]
CLAIMS = [f"{RESULTS}/tables/claims.csv", f"{RESULTS}/tables/claims.md"]
TRAINING = [*TRAINING_FIGURES, *CLAIMS] if TEACHERS else []


rule collect_training:
    input:
        [
            path
            for model in CONFIG.models
            for path in unit_files(model, trained(CONFIG.recipes_of(model)), "report.json")
        ],
    output:
        steps=f"{RESULTS}/training.csv",
        gradients=f"{RESULTS}/gradients.csv",
        drift=f"{RESULTS}/drift.csv",
    log:
        log_of("collect_training"),
    benchmark:
        benchmark_of("collect_training")
    params:
        asked=asked(recipes=recipe_entries(trained(CONFIG.recipes))),
        source=source_hash(["r2q/report", "r2q/status.py"]),
        config=RUN_CONFIG,
        results=folder_of_output,
    message:
        "collect-training: gather the records of training"
    shell:
        r"""
        python -m r2q collect-training \
            --config {params.config:q} \
            --results {params.results:q} \
            --log {log:q}
        """


rule figure_training:
    input:
        rules.collect_training.output.steps,
    output:
        report(TRAINING_FIGURES[0], caption="../report/training.rst", category="Figures"),
        TRAINING_FIGURES[1:3],
    log:
        log_of("figure_training"),
    benchmark:
        benchmark_of("figure_training")
    params:
        source=source_hash(["r2q/report"]),
        out=stem_of_output,
    message:
        "figure training: gradient norm and loss by step"
    shell:
        r"""
        python -m r2q figure training \
            --steps {input:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure_drift:
    input:
        rules.collect_training.output.drift,
    output:
        report(TRAINING_FIGURES[3], caption="../report/drift.rst", category="Figures"),
        TRAINING_FIGURES[4:],
    log:
        log_of("figure_drift"),
    benchmark:
        benchmark_of("figure_drift")
    params:
        source=source_hash(["r2q/report"]),
        out=stem_of_output,
    message:
        "figure drift: distance to full precision before and after training"
    shell:
        r"""
        python -m r2q figure drift \
            --layers {input:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule claims:
    input:
        steps=rules.collect_training.output.steps,
        drift=rules.collect_training.output.drift,
        scores=f"{RESULTS}/scores.csv",
    output:
        report(CLAIMS[0], caption="../report/claims.rst", category="Tables"),
        CLAIMS[1:],
    log:
        log_of("claims"),
    benchmark:
        benchmark_of("claims")
    params:
        source=source_hash(["r2q/report", "r2q/status.py"]),
        out=stem_of_output,
    message:
        "claims: hold the claims about training against the numbers"
    shell:
        r"""
        python -m r2q claims \
            --steps {input.steps:q} \
            --drift {input.drift:q} \
            --scores {input.scores:q} \
            --out {params.out:q} \
            --log {log:q}
        """
