"""DALI 2.4 ends by SIGSEGV on an image whose header is refused, in a CPU batch of 32 rows or more.

Usage: header_crash.py png|jpeg|bmp|jpeg2000 [ROWS]
"""

import io
import sys

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

kind, rows = sys.argv[1], int((*sys.argv, "64")[2])
file = io.BytesIO()
Image.effect_noise((60, 40), 50).convert("RGB").save(file, kind)
good = file.getvalue()
bad = {
    "png": good[:200],  # cut off
    "jpeg": good[: good.find(b"\xff\xc0") + 4] + b"\x40" + good[good.find(b"\xff\xc0") + 5 :],  # 64 bits a sample
    "bmp": good[:30] + b"\x40" + good[31:],  # an unknown compression
    "jpeg2000": good.replace(b"ihdr\0\0\0", b"ihdr\0\0\1", 1),  # another height in this box than in the codestream
}[kind]


@pipeline_def(batch_size=rows, num_threads=2, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
def pipe(turn):
    batch = [np.frombuffer(bad if row == turn * 7 % rows else good, np.uint8) for row in range(rows)]
    return fn.decoders.image(fn.external_source(lambda: batch, batch=True), device="cpu", output_type=types.RGB)


for turn in range(40):
    pipeline = pipe(turn)
    pipeline.build()
    try:
        pipeline.run()
    except RuntimeError as error:
        print(str(error).strip().splitlines()[-1])
