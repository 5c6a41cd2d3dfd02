"""Our own loader with RandAugment in DALI's graph as well: the first design, beside the kernels that took its place."""

import dataclasses

from rsbdali.bench.race.feeds import FeedSpec, RsbdaliFeed


def build(spec: FeedSpec) -> RsbdaliFeed:
    """The `dali-exact` decode mode of our `TrainLoader`."""
    return RsbdaliFeed(dataclasses.replace(spec, decode="dali-exact"))
