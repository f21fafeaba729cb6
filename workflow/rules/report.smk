# Scores, tables and figures: from here on nothing imports torch, but for the one figure that looks into the weights.
TABLES = expand("{folder}/tables/main.{ending}", folder=RESULTS, ending=["csv", "md", "tex"])
DRAWN = ["lattice"] * (CONFIG.lattice_units() is not None) + ["weight_error"] * CONFIG.quantizes()
FIGURES = expand("{folder}/{figure}.{ending}", folder=FIGURE_FOLDER, figure=DRAWN, ending=["png", "svg", "csv"])


rule collect:
    input:
        reports=all_unit_files("report.json"),
        evaluations=all_unit_files("evaluation.json"),
    output:
        scores=f"{RESULTS}/scores.csv",
        layers=f"{RESULTS}/layers.csv",
        provenance=f"{RESULTS}/provenance.json",
    log:
        log_of("collect"),
    benchmark:
        benchmark_of("collect")
    params:
        asked=asked(config={k: v for k, v in CONFIG.resolved().items() if k != "figures"}),
        source=source_hash(["r2q/report", "r2q/status.py"]),
        config=RUN_CONFIG,
        results=folder_of_output,
    message:
        "collect: gather all scores into {output.scores}"
    shell:
        r"""
        python -m r2q collect \
            --config {params.config:q} \
            --results {params.results:q} \
            --log {log:q}
        """


rule table:
    input:
        rules.collect.output.scores,
    output:
        report(TABLES[0], caption="../report/main.rst", category="Tables"),
        TABLES[1:],
    log:
        log_of("table"),
    benchmark:
        benchmark_of("table")
    params:
        source=source_hash(["r2q/report", "r2q/status.py"]),
        out=folder_of_output,
    message:
        "table: write {output[1]}"
    shell:
        r"""
        python -m r2q table \
            --scores {input:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure_lattice:
    input:
        all_unit_files("report.json"),
    output:
        report(f"{FIGURE_FOLDER}/lattice.png", caption="../report/lattice.rst", category="Figures"),
        f"{FIGURE_FOLDER}/lattice.svg",
        f"{FIGURE_FOLDER}/lattice.csv",
    log:
        log_of("figure_lattice"),
    benchmark:
        benchmark_of("figure_lattice")
    priority: -1
    params:
        asked=asked(figure=CONFIG.figures.lattice.model_dump(), recipes=recipe_entries(CONFIG.recipes)),
        source=source_hash(["r2q/report", "r2q/models", "r2q/quantization"]),
        config=RUN_CONFIG,
        results=run_folder,
        out=stem_of_output,
    message:
        "figure lattice: where the weights of one group map"
    shell:
        r"""
        python -m r2q figure lattice \
            --config {params.config:q} \
            --results {params.results:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure_weight_error:
    input:
        rules.collect.output.layers,
    output:
        report(f"{FIGURE_FOLDER}/weight_error.png", caption="../report/weight_error.rst", category="Figures"),
        f"{FIGURE_FOLDER}/weight_error.svg",
        f"{FIGURE_FOLDER}/weight_error.csv",
    log:
        log_of("figure_weight_error"),
    benchmark:
        benchmark_of("figure_weight_error")
    params:
        source=source_hash(["r2q/report"]),
        out=stem_of_output,
    message:
        "figure weight_error: relative weight error by layer and recipe"
    shell:
        r"""
        python -m r2q figure weight_error \
            --layers {input:q} \
            --out {params.out:q} \
            --log {log:q}
        """
