# One rule, and one job, per model and batch of recipes: importing torch and transformers costs seconds a process.
# The verb takes over what has not changed, so a job that runs again for one recipe computes only that one.
for MODEL, NUMBER, RECIPES in jobs():

    rule:
        name:
            rule_name("quantize", MODEL, NUMBER)
        input:
            prepared=ancient(PREPARED),
            model=model_files(MODEL),
        output:
            unit_files(MODEL, RECIPES, "report.json"),
        log:
            log_of("quantize", MODEL, NUMBER),
        benchmark:
            benchmark_of("quantize", MODEL, NUMBER)
        message:
            f"quantize {MODEL}: {', '.join(RECIPES)}"
        threads: CONFIG.limits.threads
        resources:
            gpu=GPU,
        params:
            asked=asked(
                path=CONFIG.models[MODEL].path,
                revision=CONFIG.models[MODEL].revision,
                recipes=recipe_entries(RECIPES),
                device=CONFIG.device,
            ),
            source=source_hash(["r2q/models", "r2q/quantization", *method_sources(RECIPES)]),
            config=RUN_CONFIG,
            model=MODEL,
            recipes=",".join(RECIPES),
            out=f"{RESULTS}/{MODEL}",
        shell:
            r"""
            {PYTHON:q} -m r2q quantize \
                --config {params.config:q} \
                --prepared {input.prepared:q} \
                --model {params.model:q} \
                --recipes {params.recipes:q} \
                --out {params.out:q} \
                --log {log:q}
            """
