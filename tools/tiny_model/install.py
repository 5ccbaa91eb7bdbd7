"""Copies a tiny model from a working directory to its places in this repository, or back.

    python install.py ROOT           ROOT/awq, ROOT/bf16, ROOT/samples into the repository
    python install.py --back ROOT    the other way, to start from the repository's files

    ROOT/awq        engine/tiny_model       embedded in the program
    ROOT/bf16       tests/data/tiny-bf16    vocab.json and merges.txt, which repeat tokenizer.json, only in awq
    ROOT/samples    tests/data/samples
"""
import argparse
import os
import shutil

REPOSITORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CHECKPOINT = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
              "chat_template.json", "preprocessor_config.json", "generation_config.json"]


def copy(source, target, names):
    os.makedirs(target, exist_ok=True)
    for name in names:
        shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
    print(len(names), "files to", os.path.relpath(target))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--back", action="store_true")
    p.add_argument("root")
    a = p.parse_args()
    awq, bf16, samples = (os.path.join(a.root, x) for x in ("awq", "bf16", "samples"))
    engine, small, data = (os.path.join(REPOSITORY, x) for x in
                           ("engine/tiny_model", "tests/data/tiny-bf16", "tests/data/samples"))
    repeated = ["vocab.json", "merges.txt"]
    without = [n for n in CHECKPOINT if n not in repeated]
    if a.back:
        copy(engine, awq, CHECKPOINT)
        copy(small, bf16, without)
        copy(engine, bf16, repeated)
        copy(data, samples, os.listdir(data))
        return
    copy(awq, engine, CHECKPOINT)
    copy(bf16, small, without)
    shutil.rmtree(data)  # pictures of other samples must not stay
    copy(samples, data, os.listdir(samples))


if __name__ == "__main__":
    main()
