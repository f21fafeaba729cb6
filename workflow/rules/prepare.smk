# The embedded models' text and tasks; refuses checkpoints that were not trained on it.
rule world:
    input:
        expand(
            "mini/models/{model}/{file}",
            model=MINI_MODELS,
            file=["model.safetensors", "tokenizer.json", "provenance.json"],
        ),
    output:
        WORLD_FILES,
    log:
        log_of("world"),
    benchmark:
        benchmark_of("world")
    params:
        source=source_hash(["mini/world.py"]),
        out=folder_of_output,
    message:
        "world: write the text and the tasks of the embedded models"
    shell:
        r"""
        python -m mini.world \
            --out {params.out:q} \
            --models mini/models \
            2>&1 | tee {log:q}
        """


# Trains the embedded models anew, from this repository alone; not part of `all`, on a GPU: snakemake pretrain
# The models that the other rules read are the committed ones in mini/models; these go elsewhere, to be compared or copied.
rule pretrain:
    output:
        directory("results/prepared/pretrained"),
    log:
        log_of("pretrain"),
    benchmark:
        benchmark_of("pretrain")
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


# Makes the folder of a model that comes as a GGUF file, here, on the hub or in a package; models of the same file, and
# all runs, share it.
for MODEL in {made_folder(entry): name for name, entry in CONFIG.models.items() if entry.is_gguf}.values():

    rule:
        name:
            rule_name("source", MODEL)
        input:
            [CONFIG.models[MODEL].path] if CONFIG.models[MODEL].kind == "gguf" else [],
        output:
            made_files(MODEL),
        log:
            log_of("source", MODEL),
        benchmark:
            benchmark_of("source", MODEL)
        priority: 10
        params:
            state=json.dumps(model_state(MODEL)),
            source=source_hash(["r2q/models/source.py", "r2q/models/gguf_file.py"]),
            config=RUN_CONFIG,
            model=MODEL,
            out=folder_of_output,
        message:
            f"source {MODEL}"
        shell:
            r"""
            python -m r2q source \
                --config {params.config:q} \
                --model {params.model:q} \
                --out {params.out:q} \
                --log {log:q}
            """


# A job per model, so that a new model leaves the others alone. Its recipes are no part of `asked`: those that come later
# are held against what this job found, when Snakemake reads the config (`check_before_work` above).
for MODEL in CONFIG.models:

    rule:
        name:
            rule_name("prepare", MODEL)
        input:
            model_files(MODEL),
        output:
            prepared_file(MODEL),
        log:
            log_of("prepare", MODEL),
        benchmark:
            benchmark_of("prepare", MODEL)
        priority: 10
        params:
            asked=asked(
                path=CONFIG.models[MODEL].path,
                revision=CONFIG.models[MODEL].revision,
                add_bos=CONFIG.models[MODEL].add_bos,
            ),
            state=json.dumps(model_state(MODEL)),
            source=source_hash(["r2q/prepare.py", "r2q/models/checks.py", "r2q/models/fingerprint.py"]),
            config=RUN_CONFIG,
            model=MODEL,
        message:
            f"prepare {MODEL}"
        shell:
            r"""
            python -m r2q prepare \
                --config {params.config:q} \
                --model {params.model:q} \
                --out {output:q} \
                --log {log:q}
            """


rule prepare:
    input:
        [prepared_file(model) for model in CONFIG.models],
    message:
        "prepare: done"
