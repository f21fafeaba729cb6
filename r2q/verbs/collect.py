"""gather a run into scores.csv, layers.csv and provenance.json

r2q collect --config results/embedded/config.yaml --out results/embedded
"""

from r2q.verbs import Config, Results


def collect(config: Config, out: Results) -> None:
    from r2q.report.collect import collect

    collect(config, out)
