"""Checksums of Pillow's bicubic resize, for tests/vision/.

    pip install pillow==13.0.0 numpy
    python tools/golden/pillow_resize.py > tests/data/pillow_resize.json

Each case is [in_width, in_height, out_width, out_height, seed, crc32]. The picture is made of
`seed` by `synthetic` below, which the test repeats; crc32 is that of the resized RGB bytes.
"""

import random
import sys
import zlib

import numpy as np
import PIL
from PIL import Image

CASES = 260


def synthetic(width, height, seed):
    """RGB values by seed mod 3: noise, a ramp with a fine pattern, or noise of 0 and 255."""
    y, x, c = np.indices((height, width, 3), dtype=np.uint32)
    h = x * np.uint32(2654435761) ^ y * np.uint32(2246822519) ^ (c + np.uint32(seed)) * np.uint32(3266489917)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    if seed % 3 == 0:
        v = h
    elif seed % 3 == 1:
        v = 7 * x + 13 * y + 50 * c + x * y % 17
    else:
        v = np.where(h & 128, 255, 0)
    return (v & 255).astype(np.uint8)


def sizes():
    yield from [
        (1, 1, 28, 28), (1, 200, 28, 5600), (200, 1, 560, 28), (1, 7, 28, 196), (28, 28, 28, 28), (2, 2, 56, 56),
        (3000, 20, 28, 28), (20, 3000, 28, 28), (1920, 1080, 28, 28), (56, 84, 1372, 2044), (4000, 3, 1, 1),
        (640, 480, 644, 476), (1365, 2048, 1372, 2044), (500, 28, 56, 28), (28, 500, 28, 56), (500, 56, 28, 56),
        (29, 29, 28, 28), (27, 27, 28, 28), (1, 28, 28, 28), (28, 1, 28, 28), (13, 2600, 28, 2604), (7, 7, 1, 1),
        (17, 5, 5, 17), (333, 333, 332, 334), (2, 1000, 3, 999),
    ]
    rng = random.Random(20240829)
    side = lambda top: int(round(2 ** rng.uniform(0, np.log2(top))))
    while True:
        w, h = side(700), side(700)
        kind = rng.randrange(5)
        ow = w if kind == 0 else 28 * rng.randint(1, 18) if kind < 4 else side(500)
        oh = h if kind == 1 else 28 * rng.randint(1, 18) if kind < 4 else side(500)
        yield w, h, ow, oh


rows = []
for seed, (w, h, ow, oh) in zip(range(CASES), sizes()):
    out = Image.fromarray(synthetic(w, h, seed)).resize((ow, oh), Image.Resampling.BICUBIC)
    rows.append(f"  [{w}, {h}, {ow}, {oh}, {seed}, {zlib.crc32(out.tobytes())}]")
print('{"script": "tools/golden/pillow_resize.py",')
print(f' "pillow": "{PIL.__version__}", "numpy": "{np.__version__}", "python": "{sys.version.split()[0]}",')
print(' "cases": [\n' + ",\n".join(rows) + "\n ]}")
