"""How near the nearest of random directions lies: the cosine below which a penalty has nothing to push at."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv

from sae_cli.config.schema import OrthogonalityConfig


@lru_cache(maxsize=64)
def random_nearest(count: int, width: int, quantiles: tuple[float, ...] = (0.5,), signed: bool = True) -> list[float]:
    """Return quantiles of the (absolute) cosine of each of `count` random directions in R^width with its nearest.

    A cosine c has (1+c)/2 ~ Beta((width-1)/2, (width-1)/2); the nearest of count-1 is below c with probability
    F(c)^(count-1), |c| counting as two tails.
    """
    half = (width - 1) / 2
    tails = betaincinv(1, count - 1, 1 - np.array(quantiles)) / (1 if signed else 2)
    return (1 - 2 * betaincinv(half, half, tails)).tolist()


def with_threshold(settings: OrthogonalityConfig, count: int, width: int) -> OrthogonalityConfig:
    """Return the settings with threshold=null replaced by the median nearest cosine of as many random directions."""
    if settings.threshold is not None or min(count, width) < 2:
        return settings
    return replace(settings, threshold=random_nearest(count, width, signed=settings.signed)[0])
