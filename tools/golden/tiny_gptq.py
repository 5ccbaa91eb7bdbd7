"""Makes tests/data/tiny-gptq-int4 and -int8: the decoder layers of the tiny model's GPTQ checkpoints.

Everything else in those checkpoints equals engine/tiny_model/model.safetensors bit for bit (checked
here), so tests put the two files side by side under one index.

Usage: python3 tiny_gptq.py DIR_OF_TINY_MODELS REPOSITORY
"""

import json
import struct
import sys
from pathlib import Path


def load(path):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    return {
        name: (t["dtype"], t["shape"], data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]])
        for name, t in header.items()
    }


def main(models, repository):
    shared = load(repository / "engine/tiny_model/model.safetensors")
    for name in ["gptq-int4", "gptq-int8"]:
        tensors = load(models / name / "model.safetensors")
        own = {k: v for k, v in tensors.items() if k.startswith("model.layers.")}
        assert all(shared[k] == v for k, v in tensors.items() if k not in own)
        header, offset = {}, 0
        for k in sorted(own):
            dtype, shape, data = own[k]
            header[k] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        out = repository / "tests/data" / f"tiny-{name}"
        out.mkdir(exist_ok=True)
        (out / "config.json").write_bytes((models / name / "config.json").read_bytes())
        with open(out / "decoder.safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.writelines(own[k][2] for k in sorted(own))


main(Path(sys.argv[1]), Path(sys.argv[2]))
