from mini.tasks import TASKS as MINI_TASKS
from mini.world import MODEL_NAMES as MINI_MODELS

WORLD_FILES = [
    f"{WORLD}/world.json",
    f"{WORLD}/train.txt",
    *[f"{WORLD}/tasks/{task.name}.{ending}" for task in MINI_TASKS for ending in ("yaml", "jsonl")],
]


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


rule prepare:
    input:
        models=[path for model in CONFIG.models for path in model_files(model)],
        tasks=task_files(),
    output:
        PREPARED,
    log:
        log_of("prepare"),
    benchmark:
        benchmark_of("prepare")
    params:
        asked=asked(
            models={name: entry.model_dump() for name, entry in CONFIG.models.items()},
            recipes=recipe_entries(CONFIG.recipes),
            tasks={name: entry.model_dump() for name, entry in CONFIG.tasks.items()},
            perplexity={name: entry.model_dump() for name, entry in CONFIG.perplexity.items()},
            calibration=None if CONFIG.calibration is None else CONFIG.calibration.source,
            training=training_text(),
            task_include=CONFIG.task_include,
            task_data=CONFIG.task_data,
        ),
        source=source_hash(["r2q/prepare.py", "r2q/models/targets.py", "r2q/evaluation/tasks.py"]),
        config=RUN_CONFIG,
    message:
        "prepare: check models, recipes and tasks"
    shell:
        r"""
        python -m r2q prepare \
            --config {params.config:q} \
            --out {output:q} \
            --log {log:q}
        """
