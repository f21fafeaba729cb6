"""draw where each weight of one group maps, recipe beside recipe

r2q figure-lattice --config results/embedded/config.yaml --results results/embedded --out figures/embedded/lattice
"""

from r2q.verbs import Config, Results, Stem

HEAVY = True


def figure_lattice(config: Config, results: Results, out: Stem) -> None:
    from r2q.report.figure import lattice

    lattice(config, results, out)
