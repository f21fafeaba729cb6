"""gather the records of all training into training.csv, gradients.csv and drift.csv

r2q collect-training --config results/embedded/config.yaml --out results/embedded
"""

from r2q.verbs import Config, Results


def collect_training(config: Config, out: Results) -> None:
    from r2q.report.training import gather_training

    gather_training(config, out)
