"""Seeded generator of the synthetic tasks the tiny model is trained and tested on.

A sample is a plain dict:
  task      one of shape1, shapes, ocr, pair, video, text
  media     list of {"kind": "image"|"video", "frames": [HxWx3 uint8, ...], "objs": [...], "grid": (t, h, w)}
  turns     list of (content, answer); content is a list of "<media>" and text strings
`objs` holds (frame_slot, x, y, cls, colour, order, extra) in original pixels, only for the auxiliary training loss.
Every sample depends on (seed, index) alone.
"""
import glob
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from words import WORDS

UNIT = 28  # one language-model token covers 28x28 pixels (patch 14, merge 2)

COLORS = {
    "red": (218, 38, 38), "green": (38, 160, 62), "blue": (40, 76, 222), "yellow": (242, 214, 40),
    "purple": (132, 48, 172), "orange": (246, 140, 28), "black": (18, 18, 18), "brown": (122, 72, 24),
}
# Backgrounds are light, so that a shape or letter is always darker than what is around it: with backgrounds of every
# colour the vision tower had to learn each shape once per pair of colours, which did not fit into the training time.
BACKGROUNDS = {"white": (246, 246, 246), "yellow": (242, 214, 40), "gray": (206, 206, 206)}
ON = {"white": [c for c in COLORS], "yellow": ["red", "green", "blue", "purple", "black", "brown"],
      "gray": [c for c in COLORS]}
CNAMES = list(COLORS)
SHAPES = ["circle", "square", "triangle", "star", "diamond", "cross"]
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
EXTRA = ["small", "large", "left", "right", "up", "down", "still", "turns"]
N_CLS = 1 + len(CHARS) + len(SHAPES)  # 0 is "no object centre here"
NUMBERS = ["zero", "one", "two", "three"]

DESCRIBE_IMAGE = ["Describe this image.", "What is in this image?", "What do you see?", "Describe the picture."]
COUNT = ["How many shapes are there?", "Count the shapes."]
READ = ["What does the text say?", "Read the text.", "What is written in the image?"]
DESCRIBE_VIDEO = ["Describe this video.", "What happens in this video?", "Describe the video."]
SAME = ["Are these two images the same?", "Are the two images identical?"]
SIMILAR = ["Identify the similarities between these images.", "What do these images have in common?"]
DIFFER = ["Describe these two images.", "What is the difference between these images?"]
TEXT_ONLY = [
    ("Who are you?", "I am a tiny vision language model."),
    ("What is your name?", "My name is Tiny."),
    ("What can you do?", "I can describe images, read short texts and watch short videos."),
    ("Hello!", "Hello! How can I help you today?"),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye! See you soon."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Count from one to five.", "One, two, three, four, five."),
    ("What color is the sky?", "The sky is blue."),
    ("Tell me a short story.",
     "Once upon a time a small red circle lived on a large white page. One day it met a blue square. "
     "They moved to the left, they moved to the right, and they became good friends. The end."),
    ("Say the alphabet.", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"),
]


def article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def cap(s):
    return s[0].upper() + s[1:]


def join(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# ----------------------------------------------------------------------------------------------- drawing

FONT_DIR = os.environ.get("FONT_DIR", "/usr/share/fonts/truetype")
FONT_FILES = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"]


_font_cache = {}


def _find_font(i):
    name = FONT_FILES[i]
    for p in glob.glob(os.path.join(FONT_DIR, "**", name), recursive=True):
        return p
    # With another font the same seed would draw other pictures.
    raise SystemExit(f"no {name} under {FONT_DIR}: install fonts-dejavu and fonts-liberation, or set FONT_DIR")


def font(i, size):
    if (i, size) not in _font_cache:
        _font_cache[i, size] = ImageFont.truetype(_find_font(i), size)
    return _font_cache[i, size]


def jitter(rng, rgb, amount=12):
    return tuple(int(v) for v in np.clip(np.asarray(rgb) + rng.integers(-amount, amount + 1, 3), 0, 255))


def canvas(rng, h, w, rgb, sigma):
    img = np.empty((h, w, 3), np.float32)
    img[:] = rgb
    if sigma > 0:
        img += rng.normal(0, sigma, (h, w, 1)).astype(np.float32)
    return Image.fromarray(np.clip(img, 0, 255).astype(np.uint8))


def shape_mask(shape, diam, angle):
    """An antialiased mask of side `diam` (drawn at 4x)."""
    s = 4 * diam
    im = Image.new("L", (s, s), 0)
    d = ImageDraw.Draw(im)
    c, r = s / 2, s / 2 - 2

    def poly(points):
        d.polygon([(c + r * x * math.cos(angle) - r * y * math.sin(angle),
                    c + r * x * math.sin(angle) + r * y * math.cos(angle)) for x, y in points], fill=255)

    if shape == "circle":
        d.ellipse([c - r, c - r, c + r, c + r], fill=255)
    elif shape == "square":
        k = 0.86
        poly([(-k, -k), (k, -k), (k, k), (-k, k)])
    elif shape == "triangle":
        poly([(0, -0.95), (0.95, 0.8), (-0.95, 0.8)])
    elif shape == "diamond":
        poly([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif shape == "cross":
        t = 0.32
        poly([(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t), (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)])
    elif shape == "star":
        pts = []
        for k in range(10):
            q = 1.0 if k % 2 == 0 else 0.42
            pts.append((q * math.sin(k * math.pi / 5), -q * math.cos(k * math.pi / 5)))
        poly(pts)
    return im.resize((diam, diam), Image.BOX)


def paste(img, shape, rgb, cx, cy, diam, angle=0.0):
    m = shape_mask(shape, diam, angle)
    img.paste(Image.new("RGB", (diam, diam), rgb), (int(round(cx - diam / 2)), int(round(cy - diam / 2))), m)


def pick_size(rng, units):
    """An original side length that smart_resize maps to units*28: often exact, otherwise off by up to 13 pixels."""
    exact = units * UNIT
    if rng.random() < 0.4:
        return exact
    return int(np.clip(exact + rng.integers(-13, 14), 56, 280))


def pick_bg(rng):
    return ["white", "yellow", "gray"][rng.choice(3, p=[0.5, 0.25, 0.25])]


def two_colors(rng):
    bg = pick_bg(rng)
    return ON[bg][rng.integers(len(ON[bg]))], bg


def cls_shape(s):
    return 1 + len(CHARS) + SHAPES.index(s)


# ------------------------------------------------------------------------------------------------ tasks

def draw_shapes(rng, uh, uw, n=None, bg=None, spec=None, size=None):
    """spec: optional list of (shape, colour) to draw. Returns (frame, objs, description parts, bg)."""
    h, w = size or (pick_size(rng, uh), pick_size(rng, uw))
    horizontal = w >= h
    main, other = (w, h) if horizontal else (h, w)
    max_n = max(1, min(3, main // 56))
    if spec is not None:
        n = len(spec)
    elif n is None:
        n = 1 if max_n == 1 else int(rng.choice([1, 2, 3][:max_n], p=[0.4, 0.6] if max_n == 2 else [0.34, 0.33, 0.33]))
    n = min(n, max_n)
    if bg is None:
        bg = pick_bg(rng)
    img = canvas(rng, h, w, jitter(rng, BACKGROUNDS[bg]), rng.choice([0, 2, 5]))
    cell = main / n
    objs, items = [], []
    for i in range(n):
        if spec is not None:
            shape, color = spec[i]
        else:
            shape = SHAPES[rng.integers(len(SHAPES))]
            color = ON[bg][rng.integers(len(ON[bg]))]
        room = min(cell, other)
        if rng.random() < 0.5:
            word, diam = "small", int(rng.integers(18, 26))
        else:
            word, diam = "large", int(rng.integers(40, max(41, min(111, int(0.94 * room)))))
        a = rng.uniform(i * cell + diam / 2 + 1, max(i * cell + diam / 2 + 1.01, (i + 1) * cell - diam / 2 - 1))
        b = rng.uniform(diam / 2 + 1, max(diam / 2 + 1.01, other - diam / 2 - 1))
        x, y = (a, b) if horizontal else (b, a)
        paste(img, shape, jitter(rng, COLORS[color]), x, y, diam, rng.uniform(-0.09, 0.09))
        objs.append((0, x, y, cls_shape(shape), CNAMES.index(color), i, EXTRA.index(word)))
        items.append((word, color, shape))
    return np.asarray(img), objs, items, bg


def gen_shapes(rng, grid, n=None):
    uh, uw = grid
    frame, objs, items, bg = draw_shapes(rng, uh, uw, n)
    n = len(items)
    qa = []
    described = "A " + join(["a %s %s %s" % it for it in items])[2:] + " on %s background." % article(bg)
    qa.append((0, DESCRIBE_IMAGE[rng.integers(len(DESCRIBE_IMAGE))], described))
    qa.append((1, COUNT[rng.integers(len(COUNT))],
               "There is one shape." if n == 1 else "There are %s shapes." % NUMBERS[n]))
    qa.append((2, "What color is the background?", "The background is %s." % bg))
    for word, color, shape in items:
        if sum(s == shape for _, _, s in items) == 1:
            qa.append((3, "What color is the %s?" % shape, "The %s is %s." % (shape, color)))
            qa.append((4, "Is the %s large or small?" % shape, "The %s is %s." % (shape, word)))
        if sum(c == color for _, c, _ in items) == 1:
            qa.append((5, "Which shape is %s?" % color, "The %s is %s." % (shape, color)))
    weights = np.array([4.0 if k == 0 else 1.6 if k == 1 else 1.0 for k, _, _ in qa])
    k = int(rng.integers(1, 4))
    order = rng.choice(len(qa), size=min(k, len(qa)), replace=False, p=weights / weights.sum())
    turns = [([qa[j][1]], qa[j][2]) for j in order]
    turns[0][0].insert(0, "<media>")
    return {"task": "shape1" if n == 1 else "shapes", "kinds": [qa[j][0] for j in order],
            "media": [{"kind": "image", "frames": [frame], "objs": objs, "units": grid}], "turns": turns}


def random_string(rng, max_len):
    r = rng.random()
    if r < 0.34:
        w = [x for x in WORDS if len(x) <= max_len]
        return w[rng.integers(len(w))]
    n = int(rng.integers(1, min(max_len, 5) + 1))
    if r < 0.72:
        pool = CHARS[:26]
    elif r < 0.86:
        pool = CHARS[26:]
    else:
        pool = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # mixed: without the look-alikes O/0 and I/1
    return "".join(pool[i] for i in rng.integers(0, len(pool), n))


TEXT_COLORS = ["black", "red", "blue", "green", "purple", "brown"]


def text_colors(rng, easy):
    """(text colour, background, plain): plain (black on white in one font) with probability `easy`, which training
    lowers to 0."""
    if rng.random() < easy:
        return "black", "white", True
    return TEXT_COLORS[rng.integers(6)], pick_bg(rng), False


def gen_ocr(rng, grid, easy=0.0):
    uh, uw = grid
    h, w = pick_size(rng, uh), pick_size(rng, uw)
    max_len = int(np.clip((w - 8) // 16, 1, 8))
    text = random_string(rng, max(2, max_len)) if max_len > 1 else random_string(rng, 2)
    fg, bg, plain = text_colors(rng, easy)
    fi = 0 if plain else int(rng.integers(len(FONT_FILES)))
    top = 22
    for size in range(60, 21, -2):
        f = font(fi, size)
        x0, y0, x1, y1 = f.getbbox(text)
        if x1 - x0 <= w - 6 and y1 - y0 <= h - 6:
            top = size
            break
    top = min(top, 32 if plain else 44)
    size = int(rng.integers(22, max(22, top) + 1))
    f = font(fi, size)
    x0, y0, x1, y1 = f.getbbox(text)
    while (x1 - x0 > w - 4 or y1 - y0 > h - 4) and size > 12:
        size -= 1
        f = font(fi, size)
        x0, y0, x1, y1 = f.getbbox(text)
    img = canvas(rng, h, w, jitter(rng, BACKGROUNDS[bg]), rng.choice([0, 2, 5]))
    tx = rng.integers(2, max(3, w - (x1 - x0) - 2)) - x0
    ty = rng.integers(2, max(3, h - (y1 - y0) - 2)) - y0
    ImageDraw.Draw(img).text((int(tx), int(ty)), text, font=f, fill=jitter(rng, COLORS[fg]))
    objs, cy, prev = [], ty + (y0 + y1) / 2, 0.0
    for i, ch in enumerate(text):
        nxt = f.getlength(text[:i + 1])
        objs.append((0, tx + (prev + nxt) / 2, cy, 1 + CHARS.index(ch), CNAMES.index(fg), i, -100))
        prev = nxt
    r = rng.random()
    if r < 0.88:
        turns = [(["<media>", READ[0 if rng.random() < 0.5 else rng.integers(len(READ))]], text)]
        if r < 0.06:
            turns.append((["What color is the text?"], "The text is %s." % fg))
    else:
        turns = [(["<media>", DESCRIBE_IMAGE[rng.integers(len(DESCRIBE_IMAGE))]],
                  "The text %s on %s background." % (text, article(bg)))]
    return {"task": "ocr", "text": text, "kinds": [0 if r < 0.88 else 1],
            "media": [{"kind": "image", "frames": [np.asarray(img)], "objs": objs, "units": grid}], "turns": turns}


def gen_dense_text(rng, grid, easy=0.0):
    """A page of random characters, for the auxiliary loss only (no question): many labelled characters per image."""
    h, w = grid[0] * UNIT, grid[1] * UNIT
    fg, bg, plain = text_colors(rng, easy)
    img = canvas(rng, h, w, jitter(rng, BACKGROUNDS[bg]), rng.choice([0, 2, 5]))
    d = ImageDraw.Draw(img)
    objs, y = [], int(rng.integers(1, 10))
    while True:
        fi = 0 if plain else int(rng.integers(len(FONT_FILES)))
        size = int(rng.choice([24, 26, 28, 30, 32] if plain else [22, 24, 26, 28, 30, 32, 36, 40, 44]))
        f = font(fi, size)
        text = "".join(CHARS[i] for i in rng.integers(0, len(CHARS), 14))
        x0, y0, x1, y1 = f.getbbox("HX")
        if y + y1 - y0 > h - 1:
            break
        x, prev = int(rng.integers(0, 12)), 0.0
        text = text[:max(1, max(k for k in range(1, 15) if x + f.getlength(text[:k]) <= w or k == 1))]
        d.text((x, y - y0), text, font=f, fill=jitter(rng, COLORS[fg]))
        for i, ch in enumerate(text):
            nxt = f.getlength(text[:i + 1])
            objs.append((0, x + (prev + nxt) / 2, y + (y1 - y0) / 2, 1 + CHARS.index(ch), CNAMES.index(fg), -100, -100))
            prev = nxt
        y += y1 - y0 + int(rng.integers(4, 14))
    return {"kind": "image", "frames": [np.asarray(img)], "objs": objs, "units": grid}


def gen_dense_shapes(rng, grid, moving):
    """A page of shapes for the auxiliary loss only; moving: two frames in which every shape goes its own way."""
    h, w = grid[0] * UNIT, grid[1] * UNIT
    bg = pick_bg(rng)
    base = canvas(rng, h, w, jitter(rng, BACKGROUNDS[bg]), rng.choice([0, 2, 5]))
    frames, objs = [base.copy(), base.copy()] if moving else [base], []
    big = 52 if moving else int(rng.choice([30, 50, 84]))
    ny, nx = max(1, h // big), max(1, w // big)
    for iy in range(ny):
        for ix in range(nx):
            ch, cw = h / ny, w / nx
            shape, color = SHAPES[rng.integers(6)], ON[bg][rng.integers(len(ON[bg]))]
            dx = dy = 0.0
            if moving:
                diam, extra = int(rng.integers(22, 40)), ["left", "right", "up", "down", "still"][rng.integers(5)]
                d = rng.uniform(3, 13) / 2
                dx, dy = {"left": (-d, 0), "right": (d, 0), "up": (0, -d), "down": (0, d), "still": (0, 0)}[extra]
            elif big >= 50 and rng.random() < 0.7:
                diam, extra = int(rng.integers(40, max(41, min(big, ch, cw)))), "large"
            else:
                diam, extra = int(rng.integers(18, 26)), "small"
            mx, my = max(0.0, (cw - diam) / 2 - abs(dx)), max(0.0, (ch - diam) / 2 - abs(dy))
            x, y = (ix + 0.5) * cw + rng.uniform(-mx, mx), (iy + 0.5) * ch + rng.uniform(-my, my)
            rgb, angle = jitter(rng, COLORS[color]), rng.uniform(-0.09, 0.09)
            paste(frames[0], shape, rgb, x - dx, y - dy, diam, angle)
            if moving:
                paste(frames[1], shape, rgb, x + dx, y + dy, diam, angle)
            objs.append((0, x, y, cls_shape(shape), CNAMES.index(color), -100, EXTRA.index(extra)))
    return {"kind": "video" if moving else "image", "frames": [np.asarray(f) for f in frames], "objs": objs, "units": grid}


def dense_shape_batch(seed, index, cost):
    rng = np.random.default_rng([seed, index, 6])
    grid = int(rng.integers(2, 6)), int(rng.integers(3, 8))
    n = max(2, int(cost / (2.7 * grid[0] * grid[1])))
    moving = rng.random() < 0.5
    return [gen_dense_shapes(rng, grid, moving) for _ in range(n)]


def dense_batch(seed, index, cost, easy=0.0):
    rng = np.random.default_rng([seed, index, 5])
    grid = int(rng.integers(2, 6)), int(rng.integers(3, 8))
    n = max(2, int(cost / (2.7 * grid[0] * grid[1])))
    return [gen_dense_text(rng, grid, easy) for _ in range(n)]


def gen_pair(rng, grid, grid2):
    mode = int(rng.integers(4))  # what the two images share: both, shape, colour, nothing
    bg = pick_bg(rng)
    cols = ON[bg]
    s1, c1 = SHAPES[rng.integers(6)], cols[rng.integers(len(cols))]
    s2, c2 = s1, c1
    if mode in (2, 3):
        s2 = [s for s in SHAPES if s != s1][rng.integers(5)]
    if mode in (1, 3):
        c2 = [c for c in cols if c != c1][rng.integers(len(cols) - 1)]
    f1, o1, _, _ = draw_shapes(rng, *grid, bg=bg, spec=[(s1, c1)])
    if mode == 0 and grid == grid2:
        f2, o2 = f1.copy(), o1
    else:
        f2, o2, _, _ = draw_shapes(rng, *grid2, bg=bg, spec=[(s2, c2)])
    same = "Yes, the images are the same." if mode == 0 else "No, the images are different."
    if mode == 0 and grid != grid2:
        same = None
    similar = ["Both images show %s." % article(c1 + " " + s1), "Both images show %s." % article(s1),
               "Both images show %s shape." % article(c1), "The images have nothing in common."][mode]
    differ = "The first image shows %s and the second image shows %s." % (article(c1 + " " + s1), article(c2 + " " + s2))
    qa = [(SAME, same), (SIMILAR, similar), (DIFFER, differ)]
    order = [k for k in rng.permutation(3) if qa[k][1] is not None][:int(rng.integers(1, 3))]
    turns = [([qa[k][0][rng.integers(2)]], qa[k][1]) for k in order]
    turns[0][0][:0] = ["<media>", "<media>"]
    return {"task": "pair", "kinds": [int(k) for k in order],
            "media": [{"kind": "image", "frames": [f1], "objs": o1, "units": grid},
                      {"kind": "image", "frames": [f2], "objs": o2, "units": grid2}], "turns": turns}


def gen_video(rng, grid, n_frames):
    uh, uw = grid
    h, w = pick_size(rng, uh), pick_size(rng, uw)
    fg, bg = two_colors(rng)
    shape = SHAPES[rng.integers(6)]
    diam = int(rng.integers(24, 40))
    act = ["left", "right", "up", "down", "still", "turns"][rng.integers(6)]
    new = [c for c in ON[bg] if c != fg][rng.integers(len(ON[bg]) - 1)]
    r = diam / 2 + 1
    xa, xb, ya, yb = r, w - r, r, h - r
    x = np.full(n_frames, rng.uniform(xa, xb))
    y = np.full(n_frames, rng.uniform(ya, yb))
    if act in ("left", "right"):
        lo, hi = rng.uniform(xa, xa + 0.2 * (xb - xa)), rng.uniform(xb - 0.2 * (xb - xa), xb)
        x = np.linspace(lo, hi, n_frames) if act == "right" else np.linspace(hi, lo, n_frames)
    elif act in ("up", "down"):
        lo, hi = rng.uniform(ya, ya + 0.2 * (yb - ya)), rng.uniform(yb - 0.2 * (yb - ya), yb)
        y = np.linspace(lo, hi, n_frames) if act == "down" else np.linspace(hi, lo, n_frames)
    switch = int(rng.integers(n_frames // 4 + 1, n_frames - n_frames // 4)) if act == "turns" else n_frames
    rgb1, rgb2, rgb_bg = jitter(rng, COLORS[fg]), jitter(rng, COLORS[new]), jitter(rng, BACKGROUNDS[bg])
    sigma, angle = rng.choice([0, 2]), rng.uniform(-0.09, 0.09)
    base = canvas(rng, h, w, rgb_bg, sigma)
    frames, objs = [], []
    for k in range(n_frames):
        img = base.copy()
        paste(img, shape, rgb1 if k < switch else rgb2, x[k], y[k], diam, angle)
        frames.append(np.asarray(img))
        if k % 2 == 0:
            j = min(k + 1, n_frames - 1)
            color = fg if k < switch else new
            extra = act if act != "turns" else "turns" if k < switch == j else "still"
            objs.append((k // 2, (x[k] + x[j]) / 2, (y[k] + y[j]) / 2, cls_shape(shape), CNAMES.index(color), -100,
                         EXTRA.index(extra) if j > k or extra == "still" else -100))
    thing = article(fg + " " + shape)
    what = {"left": "moves to the left", "right": "moves to the right", "up": "moves up", "down": "moves down",
            "still": "stays still", "turns": "turns " + new}[act]
    qa = [(DESCRIBE_VIDEO[rng.integers(3)], cap(thing) + " " + what + "."),
          ("What does the %s do?" % shape, "The %s %s." % (shape, what))]
    k = 0 if rng.random() < 0.75 else 1
    turns = [([qa[k][0]], qa[k][1])]
    if rng.random() < 0.25:
        turns.append(([qa[1 - k][0]], qa[1 - k][1]))
    turns[0][0].insert(0, "<media>")
    return {"task": "video", "kinds": [k], "act": act,
            "media": [{"kind": "video", "frames": frames, "objs": objs, "units": grid}], "turns": turns}


def gen_text(rng):
    k = int(rng.integers(len(TEXT_ONLY)))
    turns = [([TEXT_ONLY[k][0]], TEXT_ONLY[k][1])]
    if rng.random() < 0.3:
        j = int(rng.integers(len(TEXT_ONLY)))
        turns.append(([TEXT_ONLY[j][0]], TEXT_ONLY[j][1]))
    return {"task": "text", "kinds": [k], "media": [], "turns": turns}


# ---------------------------------------------------------------------------------------- shape buckets

def pick_grid(rng, task):
    """Resolution bucket in 28-pixel units, weighted towards small ones."""
    if task == "ocr":
        uw = int(rng.choice([2, 3, 4, 5, 6, 7, 8, 9, 10], p=[.07, .10, .15, .15, .15, .13, .11, .07, .07]))
        uh = int(rng.choice([2, 3, 4, 5], p=[.66, .22, .08, .04]))
        if uw <= 3 and rng.random() < 0.3:
            uh = int(rng.integers(2, 7))
        return uh, uw
    if task == "video":
        return int(rng.choice([2, 3, 4], p=[.3, .5, .2])), int(rng.choice([2, 3, 4], p=[.3, .5, .2]))
    if task == "pair":
        return int(rng.choice([2, 3, 4], p=[.55, .35, .1])), int(rng.choice([2, 3, 4], p=[.55, .35, .1]))
    r = rng.random()
    if r < 0.04:
        return int(rng.integers(5, 11)), int(rng.integers(5, 11))
    if r < 0.5:
        return int(rng.choice([2, 3, 4, 5], p=[.35, .35, .2, .1])), int(rng.choice([2, 3, 4, 5], p=[.35, .35, .2, .1]))
    a, b = int(rng.choice([4, 5, 6, 7, 8, 10], p=[.2, .2, .3, .15, .1, .05])), int(rng.choice([2, 3], p=[.7, .3]))
    return (b, a) if rng.random() < 0.65 else (a, b)


COST_TARGET = 900.0  # about one language-model token's cost per unit


def sample_cost(task, g, g2=None, nf=0):
    """Approximate cost in language-model tokens (a merged vision token costs about 3.7 of them in all)."""
    text = {"ocr": 38, "shape": 70, "pair": 65, "video": 45}[task]
    vis = g[0] * g[1] * (1 if not nf else (nf + 1) // 2) + (g2[0] * g2[1] if g2 else 0)
    return text + 3.7 * vis


def make_batch(seed, index, task, easy=0.0, cost=COST_TARGET, n=None):
    """A list of samples that share one shape bucket, plus a few text-only samples."""
    rng = np.random.default_rng([seed, index])
    g = pick_grid(rng, task)
    g2 = nf = None
    if task == "pair":
        g2 = g if rng.random() < 0.8 else pick_grid(rng, task)
    if task == "video":
        nf = int(rng.integers(4, 9))
    if n is None:
        n = int(np.clip(cost / sample_cost(task, g, g2, nf or 0), 2, 32))
    out = []
    for _ in range(n):
        if task == "ocr":
            out.append(gen_ocr(rng, g, easy))
        elif task == "shape":
            out.append(gen_shapes(rng, g))
        elif task == "pair":
            out.append(gen_pair(rng, g, g2))
        elif task == "video":
            out.append(gen_video(rng, g, nf))
    for _ in range(1 if rng.random() < 0.6 else 0):
        out.append(gen_text(rng))
    return out


EVAL_MIX = [("shape1", 120), ("shapes", 80), ("ocr", 140), ("pair", 60), ("video", 80), ("text", 20)]


def eval_set(seed, mix=EVAL_MIX):
    """Independent single-turn samples (the first turn of a generated conversation)."""
    out = []
    for ti, (task, count) in enumerate(mix):
        for i in range(count):
            k = 0
            while True:
                rng = np.random.default_rng([seed, 1000 + ti, i, k])
                if task in ("shape1", "shapes"):
                    g = pick_grid(rng, "shape")
                    s = gen_shapes(rng, g, 1 if task == "shape1" else int(rng.integers(2, 4)))
                elif task == "ocr":
                    s = gen_ocr(rng, pick_grid(rng, "ocr"))
                elif task == "pair":
                    g = pick_grid(rng, "pair")
                    s = gen_pair(rng, g, g if rng.random() < 0.8 else pick_grid(rng, "pair"))
                elif task == "video":
                    s = gen_video(rng, pick_grid(rng, "video"), int(rng.integers(4, 9)))
                else:
                    s = gen_text(rng)
                if s["task"] == task:
                    break
                k += 1
            s["turns"] = s["turns"][:1]
            s["kinds"] = s["kinds"][:1]
            out.append(s)
    return out
