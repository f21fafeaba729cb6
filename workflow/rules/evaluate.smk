# The same batches as in quantize.smk. A job reads the packed folders and nothing that the quantizer had in memory.
for MODEL, NUMBER, RECIPES in jobs():

    rule:
        name:
            rule_name("evaluate", MODEL, NUMBER)
        input:
            reports=unit_files(MODEL, RECIPES, "report.json"),
            prepared=prepared_file(MODEL),
            tasks=task_files(),
        output:
            unit_files(MODEL, RECIPES, "evaluation.json"),
        log:
            log_of("evaluate", MODEL, NUMBER),
        benchmark:
            benchmark_of("evaluate", MODEL, NUMBER)
        threads: CONFIG.limits.threads
        resources:
            gpu=GPU,
        params:
            asked=asked(
                dtype=CONFIG.models[MODEL].dtype,
                add_bos=CONFIG.models[MODEL].add_bos,
                tasks={name: entry.model_dump() for name, entry in CONFIG.tasks.items()},
                perplexity={name: entry.model_dump() for name, entry in CONFIG.perplexity.items()},
                task_include=CONFIG.task_include,
                task_data=CONFIG.task_data,
                items=CONFIG.limits.items,
                batch_size=CONFIG.limits.batch_size,
                samples=CONFIG.limits.samples,
                device=CONFIG.device,
            ),
            source=source_hash(["r2q/evaluation", "r2q/models", "r2q/quantization"]),
            config=RUN_CONFIG,
            model=MODEL,
            recipes=",".join(RECIPES),
            out=model_folder,
        message:
            f"evaluate {MODEL}: {', '.join(RECIPES)}"
        shell:
            r"""
            python -m r2q evaluate \
                --config {params.config:q} \
                --prepared {input.prepared:q} \
                --model {params.model:q} \
                --recipes {params.recipes:q} \
                --out {params.out:q} \
                --log {log:q}
            """


rule evaluate:
    input:
        all_unit_files("evaluation.json"),
    message:
        "evaluate: done"
