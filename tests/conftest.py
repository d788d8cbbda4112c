"Settings of the test run."
import os, signal, subprocess, sys, time
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

os.environ["HF_HUB_OFFLINE"] = "1" # no test needs the hub
ROOT = Path(__file__).parents[1]

def pytest_addoption(parser): parser.addoption("--full", action="store_true", help="also the long runs")

def pytest_configure(config): config.addinivalue_line("markers", "full: takes long; runs with --full only")

def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"): return
    for item in items:
        if "full" in item.keywords: item.add_marker(pytest.mark.skip(reason="runs with --full"))

def kill_when(process, reached, how=signal.SIGKILL, seconds=300):
    "Send a process a signal the moment that something is reached, and wait for its end."
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "the process ended before it could be killed"
        time.sleep(.002)
    process.send_signal(how)
    return process.wait()

@pytest.fixture
def python():
    "Run Python code in a process of its own."
    def run(code, **env):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | env)
    return run

@pytest.fixture
def foreign_checkpoint(tmp_path):
    "A random Llama of another size, with a tokenizer of its own and no chat template."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
    from importlib.resources import files
    folder, questions = tmp_path/"model", (files("dpo_nb.data")/"questions.txt").read_text().splitlines()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(questions, trainers.BpeTrainer(vocab_size=500, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    set_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=2048, bos_token_id=None, eos_token_id=0, pad_token_id=None, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(folder); tokenizer.save_pretrained(folder)
    return folder

@pytest.fixture
def serve():
    "Start a server on this machine: a handler's class → the address."
    servers = []
    def start(handler):
        servers.append(server := ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"
    yield start
    for server in servers: server.shutdown(); server.server_close()
