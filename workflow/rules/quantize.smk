# Tokens for the recipes that look at text, once per model; only for models that have such a recipe.
for MODEL in [name for name in CONFIG.models if CONFIG.calibrates(name)]:

    rule:
        name:
            rule_name("calibrate", MODEL)
        input:
            prepared=prepared_file(MODEL),
            tokenizer=[file for file in model_files(MODEL) if file.endswith((".json", ".model", ".txt"))],
            text=calibration_text(),
        output:
            calibration_file(MODEL),
        log:
            log_of("calibrate", MODEL),
        benchmark:
            benchmark_of("calibrate", MODEL)
        params:
            asked=asked(
                path=CONFIG.models[MODEL].path,
                revision=CONFIG.models[MODEL].revision,
                add_bos=CONFIG.models[MODEL].add_bos,
                calibration=CONFIG.calibration.model_dump(exclude={"offload", "minimum_tokens"}),
            ),
            source=source_hash(["r2q/models/calibration.py", "r2q/files.py", "r2q/tokens.py"]),
            config=RUN_CONFIG,
            model=MODEL,
        message:
            f"calibrate {MODEL}"
        shell:
            r"""
            python -m r2q calibrate \
                --config {params.config:q} \
                --model {params.model:q} \
                --out {output:q} \
                --log {log:q}
            """


# One rule, and one job, per model and batch of recipes: importing torch and transformers costs seconds a process.
# The verb takes over what has not changed, so a job that runs again for one recipe computes only that one. A recipe that
# trains is a rule `train` of its own, the same verb with rows; it may be spread over several GPUs.
for MODEL, NUMBER, RECIPES in jobs():

    rule:
        name:
            rule_name(verb_of(RECIPES), MODEL, NUMBER)
        input:
            prepared=prepared_file(MODEL),
            model=model_files(MODEL),
            calibration=[calibration_file(MODEL)] if CONFIG.calibrates(MODEL) else [],
            training=[training_file(MODEL)] if trained(RECIPES) else [],
            start=unit_files(MODEL, starts(RECIPES), "report.json"),
        output:
            unit_files(MODEL, RECIPES, "report.json"),
        log:
            log_of(verb_of(RECIPES), MODEL, NUMBER),
        benchmark:
            benchmark_of(verb_of(RECIPES), MODEL, NUMBER)
        threads: CONFIG.limits.threads * processes_of(RECIPES)
        resources:
            gpu=GPU * processes_of(RECIPES),
        params:
            asked=asked(
                path=CONFIG.models[MODEL].path,
                revision=CONFIG.models[MODEL].revision,
                recipes=recipe_entries(RECIPES),
                device=CONFIG.device,
                calibration=CONFIG.calibration.model_dump() if CONFIG.calibrates(MODEL) else None,
            ),
            source=source_hash(
                ["r2q/quantize.py", "r2q/models", "r2q/quantization", "r2q/kernels", *method_sources(RECIPES)]
            ),
            calibration=f"--calibration {shlex.quote(calibration_file(MODEL))}" if CONFIG.calibrates(MODEL) else "",
            processes=processes_of(RECIPES),
            training=f"--training {shlex.quote(training_file(MODEL))}" if trained(RECIPES) else "",
            config=RUN_CONFIG,
            model=MODEL,
            recipes=",".join(RECIPES),
            out=model_folder,
        message:
            f"{verb_of(RECIPES)} {MODEL}: {', '.join(RECIPES)}"
        shell:
            r"""
            python -m r2q quantize \
                --config {params.config:q} \
                --prepared {input.prepared:q} \
                --model {params.model:q} \
                --recipes {params.recipes:q} \
                --out {params.out:q} {params.calibration} {params.training} \
                --log {log:q}
            """


rule quantize:
    input:
        all_unit_files("report.json"),
    message:
        "quantize: done"
