"""The exponential of the mean loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

from oumi_kernel.contracts import EvaluationBatch


class Perplexity:
    """Perplexity: exp of the mean negative log-likelihood of the supervised tokens."""

    def __init__(self) -> None:
        self._total, self._tokens = 0.0, 0

    def update(self, batch: EvaluationBatch) -> None:
        """Add the losses of a batch."""
        self._total += float(batch.losses.double().sum())
        self._tokens += len(batch.losses)

    def compute(self) -> Mapping[str, float]:
        """Return the perplexity so far."""
        mean = self._total / self._tokens if self._tokens else math.nan
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf}
