"""Standard errors that lm-eval does not give."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
SEED = 1234
CHUNK = 1 << 22  # counts drawn at once: bounds the memory of long tasks


def bootstrap(pairs: Sequence[tuple[float, float]], metric: str) -> float | None:
    """Standard error of a ratio of sums over documents, by resampling the documents.

    lm-eval reports "N/A" for these metrics. Documents, not words, are drawn: words of one page are not independent.

    Args:
        pairs: per document, its log-likelihood (nats) and its length (words or bytes).
        metric: `word_perplexity`, `byte_perplexity` (exp of minus the ratio) or `bits_per_byte` (minus the
            ratio, in bits).

    Returns:
        Standard deviation over 1000 resamples with a fixed seed; None for fewer than two documents.
    """
    if len(pairs) < 2:
        return None
    values = np.asarray(pairs, dtype=np.float64)  # [documents, 2]
    documents = len(values)
    random = np.random.default_rng(SEED)
    sums, step = [], max(1, CHUNK // documents)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        counts = random.multinomial(documents, np.full(documents, 1 / documents), size=size)  # [size, documents]
        sums.append(counts @ values)
    totals = np.concatenate(sums)  # [RESAMPLES, 2]
    ratio = totals[:, 0] / totals[:, 1]
    with np.errstate(over="ignore", invalid="ignore"):
        replicates = -ratio / math.log(2) if metric == "bits_per_byte" else np.exp(-ratio)
        error = float(replicates.std(ddof=1))
    return error if math.isfinite(error) else None


def delta_exp_mean(values: Sequence[float]) -> float | None:
    """Standard error of exp(mean(values)) by the delta method: exp(mean) x sd / sqrt(n); None for fewer than two."""
    if len(values) < 2:
        return None
    array = np.asarray(values, dtype=np.float64)
    return float(np.exp(array.mean()) * array.std(ddof=1) / math.sqrt(len(array)))


def error_of_mean(values: Sequence[float]) -> float | None:
    """Standard error of a mean: sd / sqrt(n); None for fewer than two."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
