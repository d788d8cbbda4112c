"Settings of the test run."
import ctypes, io, os, select, shutil, signal, struct, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread

import pytest
from filelock import FileLock

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1") # No test needs the hub, nor anybody to look at bars
signal.signal(signal.SIGINT, signal.default_int_handler) # A shell's background jobs do not hear Ctrl-C, and neither would what they start
from dpo_nb import cli # A light import: the libraries come with the first script

ROOT = Path(__file__).parents[1]

def pytest_addoption(parser): parser.addoption("--full", action="store_true", help="also the long runs")

def pytest_configure(config): config.addinivalue_line("markers", "full: takes long; runs with --full only")

def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"): return
    for item in items:
        if "full" in item.keywords: item.add_marker(pytest.mark.skip(reason="runs with --full"))

def pytest_terminal_summary(terminalreporter):
    found = [p for kind in ("passed", "failed") for report in terminalreporter.getreports(kind) for name, p in report.user_properties if name == "kills"]
    total = {k: sum(p.get(k, 0) for p in found) for k in ("kills", "rows kept", "rows lost", "rows doubled", "runs", "runs unequal")}
    if found: terminalreporter.write_line(", ".join(f"{n:,} {name}" for name, n in total.items()))

# The small run that is killed, starved of room and asked for twice

SCRIPTS = "dpo_generate", "dpo_rank", "dpo_pairs", "dpo_train", "dpo_evaluate"

def flags(script, run):
    "What a script is given for the small run: seconds of work, in several blocks of generation and several checkpoints."
    draw, rule, train, test = ("--num_instructions", 20, "--generation_batch", 1), ("--pairs", "best_rest"), ("--num_epochs", 1, "--batch_size", 4, "--gradient_accumulation", 2, "--dpo", '{"save_steps": 2}'), ("--num_test_instructions", 10)
    there = {"dpo_evaluate": ("--adapter", f"tuned={run}/adapter", "--output_file", f"{run}/evaluation.csv")}.get(script, ("--output_dir", run))
    own = dict(dpo_generate=draw, dpo_pairs=rule, dpo_train=train, dpo_evaluate=test, dpo_demo=(*draw, *rule, *train, *test)).get(script, ())
    return [str(a) for a in ("--recipe", "tiny", *there, *own)]

def start(script, *args, **how):
    "A script in a process group of its own."
    return subprocess.Popen([Path(sys.executable).parent/script, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, **how)

def signal_when(process, reached, number, seconds=300):
    "Send a process a signal the moment that something is reached."
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "the process ended before the signal"
        time.sleep(.002)
    process.send_signal(number)

def kill_when(process, reached, number=signal.SIGKILL):
    "The same, and wait for its end."
    signal_when(process, reached, number)
    return process.wait()

def call(script, *args):
    "A script in this process: its exit code, and what it said to the error stream."
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        try: getattr(cli, script)([*map(str, args)])
        except SystemExit as e: return e.code, said.getvalue()
    return 0, said.getvalue()

def lines(path): return path.read_bytes().count(b"\n") if path.exists() else 0

def kept(folder):
    "All that a run's folder holds, but for its lock and its checkpoints, of which only the names count."
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.name != ".lock"}
    return {name: p.read_bytes() if p.is_file() and "checkpoints" not in name else None for name, p in files.items() if name.count("/") < 2 or "checkpoints" not in name}

def differ(a, b):
    "What is not the same in two folders."
    a, b = kept(a), kept(b)
    return sorted(name for name in {*a, *b} if a.get(name, "") != b.get(name, ""))

class Watch:
    "Counts what happens in a folder while a block runs: a file is made, closed after writing, moved to its place, or removed (Linux's inotify)."
    EVENTS, NEW_FOLDER = 0x100 | 0x8 | 0x80 | 0x200, 0x40000100
    def __init__(self, folder): self.folder, self.seen, self.names, self.changed, self.over = Path(folder), 0, {}, Condition(), False
    def __enter__(self):
        self.libc = ctypes.CDLL(None)
        self.fd = self.libc.inotify_init1(0)
        assert self.fd >= 0, "this system has no inotify to spare"
        self.add(self.folder)
        self.thread = Thread(target=self.read, daemon=True); self.thread.start()
        return self
    def __exit__(self, *_): self.over = True; self.thread.join(); os.close(self.fd)
    def add(self, folder):
        self.names[self.libc.inotify_add_watch(self.fd, os.fsencode(folder), self.EVENTS)] = folder
        for f in folder.iterdir():
            if f.is_dir(): self.add(f)
    def read(self):
        while select.select([self.fd], [], [], 0 if self.over else .1)[0] or not self.over:
            data = os.read(self.fd, 1 << 16) if select.select([self.fd], [], [], 0)[0] else b""
            while data:
                which, mask, _, size = struct.unpack("iIII", data[:16])
                name, data = os.fsdecode(data[16:16 + size].rstrip(b"\0")), data[16 + size:]
                if mask & self.NEW_FOLDER == self.NEW_FOLDER:
                    with suppress(OSError): self.add(self.names[which]/name) # It may be gone already
                with self.changed: self.seen += 1; self.changed.notify()
    def wait(self, n, process):
        "Until n things happened; `False` if the process ended before."
        with self.changed:
            while self.seen < n:
                if process.poll() is not None: return False
                self.changed.wait(.02)
        return True

@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    "script → its folder after an unbroken small run, the folder as the script found it, and how much happened in between. Made once for all test processes."
    base = tmp_path_factory.getbasetemp()
    shelf = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)/"unbroken"
    shelf.mkdir(exist_ok=True)
    lock = FileLock(shelf/"lock")
    def run(script):
        after, before = shelf/script, shelf/"nothing"
        if script in SCRIPTS[1:]: before = run(SCRIPTS[SCRIPTS.index(script) - 1])[0]
        with lock:
            before.mkdir(exist_ok=True)
            if not after.exists():
                work = shelf/"work"
                shutil.copytree(before, work)
                with Watch(work) as watch: code, said = call(script, *flags(script, work))
                assert code == 0, said
                (shelf/f"{script}.events").write_text(str(watch.seen)); work.rename(after)
        return after, before, int((shelf/f"{script}.events").read_text())
    return run

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

def missing(reason):
    "Skip a test that wants something from outside which is not there. DPO_NB_NOTHING_MISSING says that all of it is there; then the test fails."
    (pytest.fail if os.environ.get("DPO_NB_NOTHING_MISSING") else pytest.skip)(reason)

@pytest.fixture(scope="session")
def smollm2():
    "The folder of a real chat model. It is made once a machine and kept in the user's cache; DPO_NB_SMOLLM2 names a folder that has it."
    from dpo_nb.data.smollm2 import is_whole, make
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")
    folder = Path(os.environ.get("DPO_NB_SMOLLM2") or cache/"dpo_nb"/"SmolLM2-135M-Instruct")
    if is_whole(folder): return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"): return make(folder)
    except Exception as e: missing(f"there is no SmolLM2 ({type(e).__name__}: {e})")

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
