"""Small picture files and the pixels that the reference makes of them, for tests/vision/.

    pip install pillow==13.0.0
    python tools/golden/pillow_decode.py > tests/data/pillow_decode.json

The reference is `to_rgb` of qwen-vl-utils 0.0.14 on what Pillow opens. A case holds the file and
the RGB bytes, both base64; `tolerance` is 0 for lossless formats, else the largest difference that
another decoder of the same file may make in one value.
"""

import base64
import io
import json
import random
import struct
import sys
import zlib

import PIL
from PIL import Image, features

W, H = 21, 13
rng = random.Random(7)
cases = []


def to_rgb(image):
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


def add(desc, data, tolerance=0):
    image = Image.open(io.BytesIO(data))
    mode = image.mode
    rgb = to_rgb(image)
    b64 = lambda b: base64.b64encode(b).decode()
    cases.append({"desc": desc, "mode": mode, "width": rgb.width, "height": rgb.height, "tolerance": tolerance,
                  "file": b64(data), "rgb": b64(rgb.tobytes())})


def png(color_type, depth, chunks=b"", palette=False):
    """A PNG of random samples, written by hand: Pillow cannot write all of them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    row = (W * channels * depth + 7) // 8
    raw = b"".join(b"\0" + bytes(rng.randrange(256) for _ in range(row)) for _ in range(H))
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, color_type, 0, 0, 0))
    if palette:
        out += chunk(b"PLTE", bytes(rng.randrange(256) for _ in range(3 * 2**depth)))
    for kind, body in chunks or []:
        out += chunk(kind, body)
    return out + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def noise(mode):
    n = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 2, "1": 1}[mode]
    if mode == "1":
        return noise("L").convert("1")
    return Image.frombytes(mode, (W, H), bytes(rng.randrange(256) for _ in range(W * H * n)))


def smooth(mode):
    n = len(Image.new(mode, (1, 1)).getbands())
    values = [(x * (5 + c) + y * (9 - c) + 30 * c) % 256 for y in range(H) for x in range(W) for c in range(n)]
    return Image.frombytes(mode, (W, H), bytes(values))


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


for depth in (1, 2, 4, 8, 16):
    add(f"PNG grey {depth} bit", png(0, depth))
for depth in (8, 16):
    add(f"PNG grey {depth} bit, transparent colour", png(0, depth, [(b"tRNS", b"\0\x50")]))
    add(f"PNG grey and alpha {depth} bit", png(4, depth))
    add(f"PNG RGB {depth} bit", png(2, depth))
    add(f"PNG RGB {depth} bit, transparent colour", png(2, depth, [(b"tRNS", b"\0\1\0\2\0\3")]))
    add(f"PNG RGBA {depth} bit", png(6, depth))
for depth in (1, 2, 4, 8):
    add(f"PNG palette {depth} bit", png(3, depth, palette=True))
    add(f"PNG palette {depth} bit, transparent entries", png(3, depth, [(b"tRNS", b"\0\x80")], palette=True))
add("PNG RGB with gamma", png(2, 8, [(b"gAMA", struct.pack(">I", 100000))]))
exif = Image.Exif()
exif[0x112] = 6
add("PNG RGB with EXIF orientation", save(noise("RGB"), "PNG", exif=exif))
add("PNG animated", save(noise("RGB"), "PNG", save_all=True, append_images=[noise("RGB")]))

palette = noise("RGB").quantize(16)
add("GIF", save(palette, "GIF"))
add("GIF transparent", save(palette, "GIF", transparency=3))
add("GIF interlaced off", save(palette, "GIF", interlace=0))
add("GIF grey", save(noise("L"), "GIF"))
add("GIF animated", save(noise("RGB"), "GIF", save_all=True, append_images=[noise("RGB")]))

for mode in ("1", "L", "RGB"):
    add(f"BMP {mode}", save(noise(mode), "BMP"))
add("BMP palette", save(palette, "BMP"))
add("BMP RGBA", save(noise("RGBA"), "BMP"))

for mode in ("1", "L", "RGB", "RGBA", "I;16", "CMYK"):
    add(f"TIFF {mode}", save(noise(mode), "TIFF"), int(mode == "CMYK"))
for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
    add(f"TIFF RGB {how}", save(noise("RGB"), "TIFF", compression=how))
for orientation in range(2, 9):
    add(f"TIFF orientation {orientation}", save(noise("RGB"), "TIFF", tiffinfo={0x112: orientation}))

add("WebP lossless RGB", save(noise("RGB"), "WEBP", lossless=True))
add("WebP lossless RGBA", save(noise("RGBA"), "WEBP", lossless=True, exact=True))
add("WebP lossless animated",
    save(noise("RGB"), "WEBP", lossless=True, save_all=True, append_images=[noise("RGB")]))
add("WebP lossy RGB", save(smooth("RGB"), "WEBP"), 2)
add("WebP lossy RGBA", save(smooth("RGBA"), "WEBP"), 2)

add("JPEG grey", save(noise("L"), "JPEG"), 2)
for name in ("4:4:4", "4:2:2", "4:2:0"):
    add(f"JPEG {name} smooth", save(smooth("RGB"), "JPEG", subsampling=name), 4)
    add(f"JPEG {name} noise", save(noise("RGB"), "JPEG", subsampling=name, quality=95), 4)
add("JPEG progressive", save(smooth("RGB"), "JPEG", progressive=True), 4)
add("JPEG CMYK", save(smooth("CMYK"), "JPEG"), 4)
add("JPEG with EXIF orientation", save(smooth("RGB"), "JPEG", exif=exif), 4)
add("JPEG with restarts", save(smooth("RGB"), "JPEG", restart_marker_blocks=1), 4)

json.dump({"script": "tools/golden/pillow_decode.py", "pillow": PIL.__version__,
           "libjpeg_turbo": features.version("libjpeg_turbo"), "webp": features.version("webp"),
           "python": sys.version.split()[0], "cases": cases}, sys.stdout, indent=1)
