"""`python -m rsbdali.tools.doctor.decode_check cpu|gpu FOLDER`: does DALI decode a JPEG as Pillow does?

For `doctor`, in a child.
"""

import sys
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def
from PIL import Image
from torch.utils.dlpack import from_dlpack

from rsbdali.errors import counted
from rsbdali.pipelines.decode import decode

WORST = 8  # levels: decoders round the inverse transform differently, 1 to 3 is usual


def main(device: str, folder: str) -> None:
    """Write a JPEG into `folder`, decode it by DALI and by Pillow, and say how far they are apart.

    Raises:
        SystemExit: they differ by more than 8 levels.
    """
    path = Path(folder) / "check.jpg"
    red_HW, green_HW = np.mgrid[0:240, 0:320].astype(np.uint8)
    Image.fromarray(np.stack([red_HW, green_HW, 255 - red_HW], axis=2)).save(path, quality=90)
    theirs_HWC = _by_dali(path, device).astype(np.int16)
    with Image.open(path) as image:
        apart = int(np.abs(theirs_HWC - np.asarray(image.convert("RGB"))).max())
    if apart > WORST:
        sys.exit(f"its pixels differ from Pillow's by {counted(apart, 'level')}")
    how = f"at most {counted(apart, 'level')} apart" if apart else "exactly"
    sys.stdout.write(f"a JPEG decodes as by Pillow ({how})\n")


def _by_dali(path: Path, device: str) -> np.ndarray:
    encoded = np.fromfile(path, np.uint8)

    @pipeline_def(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None)
    def graph() -> object:
        return decode(fn.external_source(source=lambda: [encoded], batch=True), device=device)

    pipe = graph()
    pipe.build()
    (images,) = pipe.run()
    pixels: np.ndarray = from_dlpack(images[0]).cpu().numpy()
    return pixels


if __name__ == "__main__":
    main(*sys.argv[1:])
