# Rows for the recipes that train: once per model, the same for all of them; only for models with such a recipe.
# Training itself is a part of the rule `quantize`, where a recipe that trains is a job of its own.
for MODEL in [name for name in CONFIG.models if trained(CONFIG.recipes_of(name))]:

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
                --model {params.model:q} \
                --out {output:q} \
                --log {log:q}
            """
