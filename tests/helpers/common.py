"""What most tests share: the CPU as a device, the smallest keys of a recipe, the type of the fixture `image_tree`."""

from collections.abc import Callable
from pathlib import Path

import torch

CPU = torch.device("cpu")
TINY = {"model": "test_resnet", "img_size": 32, "test_img_size": 32}
Tree = Callable[..., Path]
