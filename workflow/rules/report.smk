# Scores, tables and figures: from here on nothing imports torch, but for the one figure that looks into the weights.
TABLES = expand("{folder}/tables/main.{ending}", folder=RESULTS, ending=["csv", "md", "tex"])
DRAWN = ["lattice"] * (CONFIG.lattice_units() is not None) + ["weight_error"] * CONFIG.quantizes()
FIGURE_FILES = expand("{folder}/{figure}.{ending}", folder=FIGURES, figure=DRAWN, ending=["png", "svg", "csv"])


rule collect:
    input:
        reports=PLAN.files("report.json"),
        evaluations=PLAN.files("evaluation.json"),
    output:
        scores=f"{RESULTS}/scores.csv",
        layers=f"{RESULTS}/layers.csv",
        provenance=f"{RESULTS}/provenance.json",
        sha256=f"{RESULTS}/collected.sha256",
    log:
        f"{RESULTS}/logs/collect.log",
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_collect,
        out=folder_of_output,
    message:
        "collect: gather all scores into {output.scores}"
    shell:
        r"""
        python -m r2q collect \
            --config {params.config:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule table:
    input:
        rules.collect.output.scores,
    output:
        report(TABLES[0], caption="../report/main.rst", category="Tables"),
        TABLES[1:],
    log:
        f"{RESULTS}/logs/table.log",
    params:
        code=PLAN.asked_report,
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
        reports=PLAN.files("report.json"),
    output:
        report(f"{FIGURES}/lattice.png", caption="../report/lattice.rst", category="Figures"),
        f"{FIGURES}/lattice.svg",
        f"{FIGURES}/lattice.csv",
    log:
        f"{RESULTS}/logs/figure_lattice.log",
    priority: -1
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_figure_lattice,
        results=run_of_input,
        out=stem_of_output,
    message:
        "figure lattice: where the weights of one group map"
    shell:
        r"""
        python -m r2q figure-lattice \
            --config {params.config:q} \
            --results {params.results:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure_weight_error:
    input:
        rules.collect.output.layers,
    output:
        report(f"{FIGURES}/weight_error.png", caption="../report/weight_error.rst", category="Figures"),
        f"{FIGURES}/weight_error.svg",
        f"{FIGURES}/weight_error.csv",
    log:
        f"{RESULTS}/logs/figure_weight_error.log",
    params:
        code=PLAN.asked_report,
        out=stem_of_output,
    message:
        "figure weight_error: relative weight error by layer and recipe"
    shell:
        r"""
        python -m r2q figure-weight-error \
            --layers {input:q} \
            --out {params.out:q} \
            --log {log:q}
        """


# What training has to show: nothing of it is asked for where no recipe trains.
TRAINING_FIGURES = [f"{FIGURES}/{name}.{ending}" for name in ("training", "drift") for ending in ("png", "svg", "csv")]
CLAIMS = [f"{RESULTS}/tables/claims.csv", f"{RESULTS}/tables/claims.md"]


rule collect_training:
    input:
        reports=PLAN.files("report.json", units=PLAN.trained),
    output:
        steps=f"{RESULTS}/training.csv",
        gradients=f"{RESULTS}/gradients.csv",
        drift=f"{RESULTS}/drift.csv",
        sha256=f"{RESULTS}/trained.sha256",
    log:
        f"{RESULTS}/logs/collect_training.log",
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_collect_training,
        out=folder_of_output,
    message:
        "collect-training: gather the records of training"
    shell:
        r"""
        python -m r2q collect-training \
            --config {params.config:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure_training:
    input:
        rules.collect_training.output.steps,
    output:
        report(TRAINING_FIGURES[0], caption="../report/training.rst", category="Figures"),
        TRAINING_FIGURES[1:3],
    log:
        f"{RESULTS}/logs/figure_training.log",
    params:
        code=PLAN.asked_report,
        out=stem_of_output,
    message:
        "figure training: gradient norm and loss by step"
    shell:
        r"""
        python -m r2q figure-training \
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
        f"{RESULTS}/logs/figure_drift.log",
    params:
        code=PLAN.asked_report,
        out=stem_of_output,
    message:
        "figure drift: distance to full precision before and after training"
    shell:
        r"""
        python -m r2q figure-drift \
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
        f"{RESULTS}/logs/claims.log",
    params:
        code=PLAN.asked_report,
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


TRAINING = [*rules.collect_training.output, *TRAINING_FIGURES, *CLAIMS] if TRAINED else []
