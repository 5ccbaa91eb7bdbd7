"""Logits of the tiny model in float32 by the reference, for tests/logits.rs.

    pip install torch==2.15.0 transformers==4.57.6 pillow==13.0.0 numpy==2.4.6 safetensors==0.8.0
    python tools/golden/tiny_logits.py

Writes tests/data/tiny_logits.safetensors. For each checkpoint (bf16, awq) and sample of
tests/data/samples there are

    <checkpoint>.<sample>.tokens  i32 [n - 1]         the tokens forced after the prompt
    <checkpoint>.<sample>.logits  f32 [n, vocab]      after the prompt and after each forced token
    <checkpoint>.<sample>.gain    f32 [n, 2]          how rounding errors reach the logits, see below

and for each JPEG file, of which no two decoders make the same pixels,

    pixels.<file>                 u8 [height, width, 3]

The model is transformers' own, with BF16 weights widened and AWQ weights dequantised to
(code - zero) * scale, both exact in float32. Pictures go through Qwen2VLImageProcessor; prompts are the
input_ids of samples.json.

A gain is the root mean square error of a row of logits, relative to the root mean square of the row,
that errors inside the model cause, to first order:

    gain[0]  for unit rounding errors (one part in one of every operation): sums of k products are
             off by their random walk, sqrt(k/6) of the size of the sum, whatever the order of the
             additions; norms, exponentials and elementwise steps by a few units
    gain[1]  for inputs of quantised matrices rounded to integers, with the largest of each group at 1

Both are measured: errors of a known size are drawn for every operation, the model runs with them,
and the change of the logits is divided by that size.
"""

import json
import math
import platform
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
import safetensors
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl import modeling_qwen2_vl as reference
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "tiny_model"))
import dequant  # noqa: E402

CHECKPOINTS = {"bf16": ROOT / "tests/data/tiny-bf16", "awq": ROOT / "engine/tiny_model"}
SAMPLES = ROOT / "tests/data/samples"
OUT = ROOT / "tests/data/tiny_logits.safetensors"
FORCED = 4
# Errors are drawn this large: far above float32's own, small enough to act linearly.
UNIT = 2.0**-16
DRAWS = 24


def load(path):
    """Either checkpoint as a float32 model."""
    config = json.loads((path / "config.json").read_text())
    quantization = config.pop("quantization_config", None)
    state = {}
    raw = load_file(path / "model.safetensors")
    for name, tensor in raw.items():
        base, leaf = name.rsplit(".", 1)
        if leaf == "qweight":
            parts = [raw[f"{base}.{part}"].numpy() for part in ("qweight", "qzeros", "scales")]
            weight = dequant.awq_dequant(*parts, quantization["group_size"])
            state[f"{base}.weight"] = torch.from_numpy(weight)
        elif leaf not in ("qzeros", "scales"):
            state[name] = tensor.float()
    quantised = {name[: -len(".qweight")] for name in raw if name.endswith(".qweight")}
    # Hub names to those of the class.
    rename = lambda n: "model." + n if n.startswith("visual.") else n.replace("model.", "model.language_model.", 1)
    skip = ("model_type", "torch_dtype", "transformers_version", "architectures")
    config = Qwen2VLConfig(**{k: v for k, v in config.items() if k not in skip})
    config._attn_implementation = "eager"
    model = Qwen2VLForConditionalGeneration(config).float().eval()
    model.load_state_dict({rename(name): tensor for name, tensor in state.items()}, strict=True)
    return model, {rename(name) for name in quantised}


def pixels(processor, sample):
    """The arguments of the model for the pictures of a sample."""
    open_rgb = lambda file: Image.open(SAMPLES / file).convert("RGB")
    images, videos = [], []
    for message in sample["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image":
                images.append(open_rgb(part["image"]))
            elif part["type"] == "video":
                videos.append([np.asarray(open_rgb(file)) for file in part.get("frames", part["video"])])
    out = {}
    if images:
        batch = processor(images=images, return_tensors="pt")
        out.update(pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"])
    if videos:
        done = [
            processor._preprocess(
                frames, do_resize=True, size=processor.size, resample=processor.resample, do_rescale=True,
                rescale_factor=processor.rescale_factor, do_normalize=True, image_mean=processor.image_mean,
                image_std=processor.image_std, patch_size=processor.patch_size,
                temporal_patch_size=processor.temporal_patch_size, merge_size=processor.merge_size)
            for frames in videos
        ]
        out["pixel_values_videos"] = torch.cat([torch.from_numpy(np.asarray(p, np.float32)) for p, _ in done])
        out["video_grid_thw"] = torch.tensor([list(grid) for _, grid in done])
    return out


class Noise:
    """Errors in a model: rounding of every operation, or rounding of the inputs of `quantised`."""

    def __init__(self, model, quantised, group):
        self.rounding = self.inputs = 0.0
        self.generator = torch.Generator()
        self.group, self.last = group, None
        for name, module in model.named_modules():
            if name in quantised:
                module.register_forward_pre_hook(self.rounded_input)
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(self.linear)
            elif isinstance(module, torch.nn.Conv3d):
                module.register_forward_hook(self.patch_embed)
            elif isinstance(module, torch.nn.LayerNorm) or type(module).__name__ == "Qwen2RMSNorm":
                module.register_forward_hook(self.norm)
            elif type(module).__name__ in ("QuickGELUActivation", "GELUActivation", "GELU", "SiLU", "SiLUActivation"):
                module.register_forward_hook(lambda _m, _i, y: self.relative(y, 5.0))
            elif type(module).__name__ in ("Qwen2VLDecoderLayer", "Qwen2VLVisionBlock"):
                module.register_forward_hook(self.block)
            elif type(module).__name__ == "VisionRotaryEmbedding":
                module.register_forward_hook(lambda _m, _i, angles: self.relative(angles, 1.0))
            elif type(module).__name__ == "Qwen2VLRotaryEmbedding":
                module.register_forward_hook(self.rope)
        plain = reference.eager_attention_forward
        reference.eager_attention_forward = lambda *args, **kwargs: self.attention(plain, *args, **kwargs)

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator)

    def relative(self, y, units):
        return y if self.rounding == 0 else y * (1 + self.rounding * units * self.normal(y))

    def walk(self, y, sizes, k):
        """`y` off by the random walk of a sum of `k` terms, with `sizes` the sum of their squares."""
        return y + self.rounding * self.normal(y) * (k / 6 * (sizes + y * y)).sqrt()

    def linear(self, module, inputs, y):
        if self.rounding == 0:
            return y
        sizes = torch.nn.functional.linear(inputs[0] ** 2, module.weight**2)
        return self.walk(y, sizes, module.in_features)

    def patch_embed(self, module, inputs, y):
        if self.rounding == 0:
            return y
        sizes = torch.nn.functional.conv3d(inputs[0] ** 2, module.weight**2, stride=module.stride)
        return self.walk(y, sizes, module.weight[0].numel())

    def norm(self, _module, _inputs, y):
        if self.rounding == 0:
            return y
        # One error of the mean of squares for the row, and a few units of each element.
        row = self.normal(y[..., :1]) * math.sqrt(y.shape[-1]) / 6
        return y * (1 + self.rounding * (row + 3 * self.normal(y)))

    def block(self, _module, _inputs, y):
        return (self.relative(y[0], 1.0), *y[1:]) if isinstance(y, tuple) else self.relative(y, 1.0)

    def rope(self, module, inputs, y):
        if self.rounding == 0:
            return y
        (cos, sin), positions = y, inputs[1]
        angles = positions[..., None].float() * module.inv_freq
        off = self.rounding * torch.cat((angles, angles), -1) * self.normal(cos)
        return self.relative(cos - sin * off, 2.0), self.relative(sin + cos * off, 2.0)

    def attention(self, plain, module, query, key, value, attention_mask, scaling, **kwargs):
        if self.rounding == 0:
            return plain(module, query, key, value, attention_mask, scaling, **kwargs)
        key = reference.repeat_kv(key, module.num_key_value_groups)
        value = reference.repeat_kv(value, module.num_key_value_groups)
        scores = query @ key.transpose(2, 3)
        scores = self.walk(scores, query**2 @ (key**2).transpose(2, 3), query.shape[-1]) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, :, : key.shape[-2]]
        weights = self.relative(scores.softmax(-1), 6.0)
        out = self.walk(weights @ value, weights**2 @ value**2, key.shape[-2])
        return out.transpose(1, 2).contiguous(), weights

    def rounded_input(self, _module, inputs):
        if self.inputs == 0:
            return inputs
        # Layers that share an input share its rounding.
        if self.last is None or self.last[0] is not inputs[0]:
            x = inputs[0]
            groups = x.reshape(*x.shape[:-1], -1, self.group)
            step = groups.abs().amax(-1, keepdim=True)
            noise = torch.rand(groups.shape, generator=self.generator) - 0.5
            self.last = (x, (groups + self.inputs * step * noise).reshape(x.shape))
        return (self.last[1],)


def main():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    samples = json.loads((SAMPLES / "samples.json").read_text())
    out = {}
    for file in sorted(SAMPLES.glob("*.jpg")):
        out[f"pixels.{file.name}"] = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    for name, path in CHECKPOINTS.items():
        plain = reference.eager_attention_forward
        model, quantised = load(path)
        processor = Qwen2VLImageProcessor.from_pretrained(path)
        noise = Noise(model, quantised, 128)
        for sample in samples:
            ids = sample["generated_ids" if name == "bf16" else f"generated_ids_{name}"]
            forced = ids[: min(FORCED, sample["n_generated"] - 1)]
            tokens = torch.tensor([sample["input_ids"] + forced])
            kwargs = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens), **pixels(processor, sample))
            rows = slice(len(sample["input_ids"]) - 1, None)
            run = lambda: model(**kwargs).logits[0, rows].clone()
            with torch.no_grad():
                logits = run()
                assert logits.argmax(-1).tolist() == ids[: len(forced) + 1], sample["id"]
                scale = logits.double().square().mean(-1).sqrt()
                gain = []
                for kind in ("rounding", "inputs"):
                    total = torch.zeros(len(forced) + 1, dtype=torch.float64)
                    for draw in range(DRAWS):
                        noise.generator.manual_seed(draw)
                        noise.last = None
                        setattr(noise, kind, UNIT)
                        total += (run() - logits).double().square().mean(-1)
                        setattr(noise, kind, 0.0)
                    gain.append((total / DRAWS).sqrt() / UNIT / scale)
            key = f"{name}.{sample['id']}"
            out[f"{key}.tokens"] = torch.tensor(forced, dtype=torch.int32)
            out[f"{key}.logits"] = logits.contiguous()
            out[f"{key}.gain"] = torch.stack(gain, -1).float().contiguous()
            print(key, "scale", [round(x, 2) for x in scale.tolist()],
                  "gain", [[round(x, 2) for x in row] for row in torch.stack(gain, -1).tolist()])
        reference.eager_attention_forward = plain
    crc = lambda file: f"{zlib.crc32(file.read_bytes()):08x}"
    manifest = {
        "script": "tools/golden/tiny_logits.py",
        "torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__,
        "numpy": np.__version__, "safetensors": safetensors.__version__, "python": platform.python_version(),
        "unit": str(UNIT), "draws": str(DRAWS),
        # CRC-32 of what the numbers were made from.
        "bf16": crc(CHECKPOINTS["bf16"] / "model.safetensors"),
        "awq": crc(CHECKPOINTS["awq"] / "model.safetensors"),
        "samples": crc(SAMPLES / "samples.json"),
    }
    save_file(out, OUT, metadata=manifest)
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
