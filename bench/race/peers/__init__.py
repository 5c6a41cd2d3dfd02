"""The loaders that ours is compared with, each doing in training what its users make it do: a module each.

Those that have no mixup of their own that fits are mixed by plain torch operations (`feed.PlainMix`). What a peer does
not do is in its note, which is printed below the figures.
"""

import importlib
import importlib.util

from rsbdali.bench.race.feeds import Feed, FeedSpec

# name → modules that it needs: those of its own and what they are installed by
REQUIRES = {
    "timm": {"timm": "timm"},
    "torchvision": {"torchvision": "torchvision"},
    "dali-basic": {"nvidia.dali": "nvidia-dali-cuda120"},
    "dali-exact": {"nvidia.dali": "nvidia-dali-cuda120"},
    "spdl": {"spdl.io": "spdl_io", "spdl.dataloader": "spdl_core"},
    "turboloader": {"turboloader": "turboloader"},
}
PEERS = tuple(REQUIRES)
NO_RANDAUGMENT = ("spdl", "turboloader")  # peers whose batches are not augmented as a recipe may ask


def missing(name: str) -> str | None:
    """Why a peer cannot take part here, None if it can."""
    packages = [package for module, package in REQUIRES[name].items() if not _is_installed(module)]
    return f"not installed: {', '.join(packages)}" if packages else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # find_spec imports the parents of a module
        return False


def build_peer(spec: FeedSpec) -> Feed:
    """The feed of a peer by its name. Only its own module is imported: each brings its own libraries."""
    feed: Feed = importlib.import_module(f"{__name__}.{spec.kind.replace('-', '_')}").build(spec)
    return feed
