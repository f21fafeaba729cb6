# Scores, tables, figures, claims and the page: from here on nothing imports torch, but for `lattice` and `latency`,
# which read weights.
TABLES = [f"{RESULTS}/tables/{name}.{ending}" for name in PLAN.tables for ending in ("csv", "md", "tex")]
SIGNED = f"{RESULTS}/tables/tables.sha256"
DRAWN = [f"{FIGURES}/{name}.{ending}" for name in PLAN.drawn for ending in ("png", "svg", "csv", "sha256")]
CLAIMS = [f"{RESULTS}/tables/claims.{ending}" for ending in ("csv", "md", "sha256") if TRAINED]


rule collect:
    input:
        reports=PLAN.files("report.json"),
        evaluations=PLAN.files("evaluation.json", "items.json"),
    output:
        scores=f"{RESULTS}/scores.csv",
        layers=f"{RESULTS}/layers.csv",
        by_item=f"{RESULTS}/items.csv",
        provenance=f"{RESULTS}/provenance.json",
        sha256=f"{RESULTS}/collected.sha256",
    log:
        f"{RESULTS}/logs/collect.log",
    conda:
        "../../environment.yml"
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
    conda:
        "../../environment.yml"
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


# Where every weight of one group went, out of the packed checkpoints.
rule lattice:
    input:
        reports=PLAN.files("report.json"),
    output:
        table=f"{RESULTS}/lattice.csv",
        sha256=f"{RESULTS}/lattice.sha256",
    log:
        f"{RESULTS}/logs/lattice.log",
    priority: -1
    conda:
        "../../environment.yml"
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_lattice,
        results=run_folder,
    message:
        "lattice: where the weights of one group go"
    shell:
        r"""
        python -m r2q lattice \
            --config {params.config:q} \
            --results {params.results:q} \
            --out {output.table:q} \
            --log {log:q}
        """


# What packed checkpoints take beside their twins: one after the other in one job, with all processors, so that no other one
# runs at the same time.
rule latency:
    input:
        reports=PLAN.files("report.json", units=PLAN.timed),
    output:
        table=f"{RESULTS}/latency.csv",
        sha256=f"{RESULTS}/latency.sha256",
    log:
        f"{RESULTS}/logs/latency.log",
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or CONFIG.limits.threads
    resources:
        gpu=GPU,
    params:
        config=RUN_CONFIG,
        asked=PLAN.asked_latency,
        results=run_folder,
    message:
        "latency: time packed checkpoints beside their twins"
    shell:
        r"""
        python -m r2q latency \
            --config {params.config:q} \
            --results {params.results:q} \
            --out {output.table:q} \
            --log {log:q}
        """


# Full precision as others have it, before any other row is trusted: tables, figures and claims wait for it.
rule controls:
    input:
        PLAN.csv_of("scores"),
        f"{RESULTS}/provenance.json",
        published=published_files,
    output:
        table=f"{RESULTS}/tables/controls.csv",
        sha256=f"{RESULTS}/tables/controls.sha256",
    log:
        f"{RESULTS}/logs/controls.log",
    conda:
        "../../environment.yml"
    params:
        code=PLAN.asked_report,
        states=PLAN.states(published_files),
        results=run_folder,
        published=published_folder,
    message:
        "controls: hold full precision against published numbers"
    shell:
        r"""
        python -m r2q controls \
            --results {params.results:q} \
            --published {params.published:q} \
            --out {output.table:q} \
            --log {log:q}
        """


rule table:
    input:
        PLAN.csv_of("scores", "layers", "training", "latency"),
        controls=rules.controls.output.table,
    output:
        report(TABLES, caption="../report/tables.rst", category="Tables"),
        SIGNED,
    log:
        f"{RESULTS}/logs/table.log",
    conda:
        "../../environment.yml"
    params:
        code=PLAN.asked_report,
        states=PLAN.states(published_files),
        results=run_folder,
        published=published_folder,
        out=folder_of_output,
    message:
        "table: write {params.out}"
    shell:
        r"""
        python -m r2q table \
            --results {params.results:q} \
            --published {params.published:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule figure:
    input:
        PLAN.csv_of_figure,
        controls=rules.controls.output.table,
    output:
        report(f"{FIGURES}/{{figure}}.png", caption="../report/figure.rst", category="Figures"),
        f"{FIGURES}/{{figure}}.svg",
        f"{FIGURES}/{{figure}}.csv",
        f"{FIGURES}/{{figure}}.sha256",
    log:
        f"{RESULTS}/logs/figure-{{figure}}.log",
    wildcard_constraints:
        figure=one_of(PLAN.drawn),
    conda:
        "../../environment.yml"
    params:
        code=PLAN.asked_report,
        results=run_folder,
        out=stem_of_output,
    message:
        "figure {wildcards.figure}"
    shell:
        r"""
        python -m r2q figure {wildcards.figure:q} \
            --results {params.results:q} \
            --out {params.out:q} \
            --log {log:q}
        """


rule claims:
    input:
        PLAN.csv_of("training", "drift", "scores"),
        controls=rules.controls.output.table,
    output:
        report(f"{RESULTS}/tables/claims.csv", caption="../report/claims.rst", category="Tables"),
        f"{RESULTS}/tables/claims.md",
        f"{RESULTS}/tables/claims.sha256",
    log:
        f"{RESULTS}/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        asked=PLAN.asked_claims,
        results=run_folder,
        out=stem_of_output,
        subject=CONFIG.claims.subject,
        against=["--against", *CONFIG.claims.against] if CONFIG.claims.against else [],
    message:
        "claims: hold the claims about training against the numbers"
    shell:
        r"""
        python -m r2q claims \
            --results {params.results:q} \
            --out {params.out:q} \
            --subject {params.subject:q} {params.against:q} \
            --log {log:q}
        """


rule page:
    input:
        PLAN.csv_of("scores", "latency"),
        f"{RESULTS}/provenance.json",
        CLAIMS,
        DRAWN,
    output:
        page=report(f"{RESULTS}/report.html", caption="../report/page.rst", category="Page"),
        sha256=f"{RESULTS}/report.sha256",
    log:
        f"{RESULTS}/logs/page.log",
    conda:
        "../../environment.yml"
    params:
        code=PLAN.asked_report,
        results=run_folder,
        figures=figures_folder,
    message:
        "page: write {output.page}"
    shell:
        r"""
        python -m r2q page {params.results:q} \
            --figures {params.figures:q} \
            --out {output.page:q} \
            --log {log:q}
        """
