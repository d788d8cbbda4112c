"""What can go wrong, and what one is told: each case makes bad input in an empty folder and does what a person would do.

`python tests/test_bad_input.py` writes the page nbs/bad_input.md from these cases; `python tests/test_bad_input.py adapter` prints those with "adapter" in them."""
import contextlib, gzip, hashlib, io, json, math, os, re, shutil, signal, subprocess, sys, tempfile, time, warnings
from dataclasses import dataclass, replace
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from unittest.mock import patch

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import pytest

from dpo_nb.records import fingerprint, Instruction, Ranking, Response
from dpo_nb.journal import write_records
from dpo_nb.tiny import Oracle, tiny_path, TinyWorld
from dpo_nb.instructions import load_instructions, unseen
from dpo_nb.models import load_lm
from dpo_nb.endpoint import Endpoint
from dpo_nb.generation import generate
from dpo_nb.pairrm import PairRM
from dpo_nb.judges import load_judge
from dpo_nb.preferences import load_preferences, make_pairs, save_pairs
from dpo_nb.adapters import load_adapter, merge_adapter
from dpo_nb.dpo import train_dpo
from dpo_nb.evaluate import compare, wins
from dpo_nb.settings import Run
from dpo_nb.running import recipes, run_recipe
from dpo_nb.cli import dpo_demo, dpo_evaluate, dpo_generate, dpo_pairs, dpo_rank, dpo_run, dpo_train

PAGE = Path(__file__).parents[1]/"nbs"/"bad_input.md"

@dataclass(frozen=True)
class Case:
    stage:str # The heading it stands under
    given:str # What somebody brings
    says:str # Parts of what they are told, with " … " between: what, where, what to do
    error:type|None # `None` = it is no error, and what happens is told
    new:str # What the files begin with that are made, or made anew, all the same
    make:object # Makes the input, and returns what does with it what a person would do

CASES = {}

def case(stage, given, says, error=ValueError, new="-"):
    "Declare a case."
    def keep(make):
        assert given not in CASES, given
        CASES[given] = Case(stage, given, says, error, new, make)
        return make
    return keep

happens = partial(case, error=None)

# What is wrong with files, folders and tensors

def write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())

def lines(*rows): return "".join(f"{json.dumps(r)}\n" for r in rows)

def half(content): return content[:len(content) // 2]

def cut(name): write(name, half(Path(name).read_bytes()))

def config(**new): return lambda old: json.dumps(json.loads(old) | new)

def tensors(change):
    from safetensors.torch import load, save
    return lambda old: save(change(load(old)), metadata={"format": "pt"})

def without(part): return tensors(lambda t: {k: v for k, v in t.items() if part not in k})

def copy(source, folder, changed=()):
    "A folder in which some files are other ones, or are missing (`None`)."
    shutil.copytree(source, folder)
    for name, content in dict(changed).items():
        if content is None: Path(folder, name).unlink()
        else: write(f"{folder}/{name}", content(Path(folder, name).read_bytes()) if callable(content) else content)

@contextlib.contextmanager
def as_nobody():
    "Without the rights of root, if one has them."
    root = os.geteuid() == 0
    if root: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)

def locked(path, do):
    "Do something while nothing may be written to a folder, or a file may not be read."
    def told():
        imported()
        Path().chmod(0o755); mode = Path(path).stat().st_mode; Path(path).chmod(0o555 if Path(path).is_dir() else 0)
        try:
            with as_nobody(): return do()
        finally: Path(path).chmod(mode)
    return told

def mounted(path, options, do):
    "Do something while a folder is a small disk of its own."
    def told():
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=1m,{options}", "tmpfs", path], capture_output=True).returncode: pytest.skip("mounting takes the rights of root")
        try: return do()
        finally: subprocess.run(["umount", path], check=True)
    return told

def read_only(path, do): return mounted(path, "ro", do)

def full(path, do):
    "Do something while a disk has no room."
    def starved(): Path(path, "ballast").write_bytes(bytes(shutil.disk_usage(path).free)); return do()
    return mounted(path, "rw", starved)

def in_use(path, do):
    "Do something while another process works in a folder."
    def told():
        other = [sys.executable, "-c", f"from dpo_nb.journal import locked\nwith locked({path!r}): print(flush=True); input()"]
        with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            try: return do()
            finally: process.communicate("\n")
    return told

def warned(do):
    "The first warning."
    with warnings.catch_warnings(record=True) as said: warnings.simplefilter("always"); do()
    return str(next(w.message for w in said if w.category is UserWarning))

# What several cases need

@cache
def lm(): return load_lm("tiny", device="cpu")

def in_environment(run, **variables):
    with patch.dict(os.environ, variables): return run()

@cache
def pairrm(): return PairRM("tiny", device="cpu")

@cache
def asked(): return TinyWorld().instructions("train", 3)

def said_to(instruction, *texts, finished=True): return [Response(instruction.id, k, t, 5, finished, "m") for k, t in enumerate(texts)]

@cache
def answers(): return [r for i in asked() for r in said_to(i, "Glad to help!", "The word cat belongs to the animals.", "Um.")]

@cache
def ranked(): return Oracle().rank(asked(), answers())

def turn(text, role="user"): return dict(role=role, content=text)

def pair(prompt="What is 2 + 3?", chosen="2 + 3 = 5.", rejected="2 + 3 = 6."):
    return dict(prompt=[turn(prompt)], chosen=[turn(chosen, "assistant")], rejected=[turn(rejected, "assistant")])

SHELF = tempfile.TemporaryDirectory()

@cache
def imported(): dpo_generate([*TINY, "--output_dir", f"{SHELF.name}/imported"]) # What is imported on the way may lie where only root can read

@cache
def trained():
    train_dpo(lm(), [pair()], Path(SHELF.name)/"trained", lora_r=2, seen=asked())
    return Path(SHELF.name)/"trained"

def with_adapter(): copy(trained()/"adapter", "adapter")

SHORT = dict(responses_per_instruction=2, max_new_tokens=8)
TINY = "--recipe", "tiny", "--num_instructions", "2", "--responses_per_instruction", "2", "--max_new_tokens", "8"

def journal(file="responses.jsonl"): Path(file).parent.mkdir(exist_ok=True); generate(lm(), asked(), out=file, **SHORT)

def stages(): write_records("run/instructions.jsonl", asked()); journal("run/responses.jsonl")

# Questions

STAGES = {}
QUESTIONS = "Questions"
STAGES[QUESTIONS] = "`load_instructions`, `unseen`, and `dpo_generate --instructions`"

def file(given, name, content, says, **how):
    @case(QUESTIONS, given, says, **how)
    def _(): write(name, content); return lambda: load_instructions(name, num_instructions=None)

def is_read(given, name, content, says):
    @happens(QUESTIONS, given, says)
    def _():
        write(name, content)
        def told():
            drawn = load_instructions(name, num_instructions=None)
            return "; ".join([drawn.summary, *(f"{row}: {detail}" for _, row, _, _, detail in drawn.passed if detail)])
        return told

def drawn(given, says, source, n=4, **how):
    @case(QUESTIONS, given, says)
    def _(): write("questions.txt", "Why is the sky blue?\nWho was Ada Lovelace?\n"); return lambda: load_instructions(source() if callable(source) else source, num_instructions=n, **how)

drawn("a file that is not there", "no file 'question.csv' … Check its name", "question.csv")
drawn("the question itself in place of a file", "no file 'Why is the sky blue?' … a list of texts", "Why is the sky blue?")

@case(QUESTIONS, "a folder with no data in it", "notes is a folder without data … Give the file")
def _(): write("notes/notes.md", "Why?"); return lambda: load_instructions("notes")

@case(QUESTIONS, "a folder that is called like a file", "questions.csv is a folder without data … Give the file")
def _(): Path("questions.csv").mkdir(); return lambda: load_instructions("questions.csv")

file("a CSV file that is not UTF-8", "questions.csv", "question\nWhy is the sky blue?\nWo liegt Köln?\n".encode("latin-1"), "questions.csv, line 3 is not UTF-8 text … Save it as UTF-8")
file("a CSV file in UTF-16, as Excel's \"Unicode text\"", "questions.csv", "question\r\nWhy?\r\n".encode("utf-16"), "questions.csv, line 1 is not UTF-8 text … Save it as UTF-8")
file("a file in UTF-16 without the mark at its beginning", "questions.csv", "question\r\nWhy?\r\n".encode("utf-16-le"), "questions.csv, line 1 is not UTF-8 text … Save it as UTF-8")
file("a text file with NUL bytes", "questions.txt", b"Why?\nWho\0?\n", "questions.txt, line 2 is not UTF-8 text … Save it as UTF-8")
file("an Excel workbook", "questions.xlsx", b"PK\x03\x04\x14\0\6\0", "questions.xlsx is a zip archive or an Excel workbook … save it as 'CSV UTF-8'")
file("an Excel workbook that was renamed to .csv", "questions.csv", b"PK\x03\x04\x14\0\6\0", "questions.csv is a zip archive or an Excel workbook … save it as 'CSV UTF-8'")
file("a compressed file", "questions.jsonl.gz", gzip.compress(b"{}"), "questions.jsonl.gz is compressed by gzip … Unpack it")
file("a compressed file that is called .jsonl", "questions.jsonl", gzip.compress(b"{}"), "questions.jsonl is compressed by gzip … Unpack it")
file("a Word document", "questions.doc", b"\xd0\xcf\x11\xe0", "questions.doc: its name must end in .txt … Save it as one of them")
file("an empty file", "questions.csv", "", "questions.csv has no rows … Fill it, or give another file")
file("a CSV file with the names of its columns alone", "questions.csv", "question,answer\n", "questions.csv has no rows … Fill it")
file("a CSV file without a first line of names", "questions.csv", "1,Why is the sky blue?\n2,Who was Ada?\n", "questions.csv, line 2 … ['1', 'Why is the sky blue?'] … Call the right one `question`, in a CSV file in its first line")
file("a CSV file whose column has another name", "questions.csv", "Nr,Frage\n1,Why is the sky blue?\n", "questions.csv, line 2 … ['Nr', 'Frage'] … Call the right one `question`")
file("a CSV file with 2,000 columns and no question", "questions.csv", ",".join(f"c{k}" for k in range(2000)) + "\n" + ",".join("x" * 2000) + "\n", "questions.csv, line 2 … 'c2', … Call the right one")
file("a CSV file in which two columns have the same name", "questions.csv", "question,question\nWhy?,Why not?\n", "questions.csv, line 1: two of one name in ['question', 'question'] … a name of its own")
file("a CSV file with a comma in a text that has no quotes", "questions.csv", "question\nWhy is the sky blue?\nWhy, oh why?\n", "questions.csv, line 3: 2 fields for 1 name … stands in quotes")
file("a CSV file with semicolons and commas, and without a first line of names", "questions.csv", "1;Why is the sky blue?\n2;Who, then, was Ada?\n", "questions.csv, line 2: … ['1', 'Why is the sky blue?'] … Call the right one `question`, in a CSV file in its first line")
file("a CSV file with a row that is too short", "questions.csv", "question,answer\nWhy?,So.\nWho?\n", "questions.csv, line 3: 1 field for 2 names … The first line gives each column a name")
file("a CSV file with a quote that never ends", "questions.csv", "question\nWhy?\n\"Who?\nWhere?\n", "questions.csv, line 3: unexpected end of data … stands in quotes")
is_read("a CSV file with semicolons, as Excel writes it in half of Europe", "questions.csv", "Nr;question\r\n1;Why is the sky blue?\r\n2;Who, then, was Ada?\r\n", "2 instructions … passed over: none")
is_read("a CSV file with a mark at its beginning (BOM) and Windows' line ends (CRLF)", "questions.csv", "\ufeffquestion\r\nWhy is the sky blue?\r\n\r\n\"Who\r\nwas Ada?\"\r\n", "2 instructions … passed over: none")
file("a line that is no JSON", "questions.jsonl", '{"question": "Why?"}\n{"question": "Who?}\n', "questions.jsonl, line 2 is not JSON … character 14 … Correct it")
file("a comma after the last field of a line", "questions.jsonl", '{"question": "Why?",}\n', "questions.jsonl, line 1 is not JSON … Correct it")
file("a torn last line", "questions.jsonl", '{"question": "Why?"}\n{"quest', "questions.jsonl, line 2 is not JSON … Correct it")
file("a .jsonl file that is one list over several lines", "questions.jsonl", '[\n {"question": "Why?"},\n {"question": "Who?"}\n]\n', "questions.jsonl, line 1 is not JSON … one list belongs into a .json file")
file("a comma after the last row of a list", "questions.json", '[\n {"question": "Why?"},\n]\n', "questions.json, line … is not JSON … Correct it")
file("a .json file with an object a line", "questions.json", lines(dict(question="Why?"), dict(question="Who?")), "questions.json, line 2 is not JSON … an object in each line into a .jsonl file")
file("a .json file that is one object", "questions.json", '{"data": [{"question": "Why?"}]}', "questions.json must be a list of objects … Save that list alone")
file("a line with more brackets in brackets than can be read", "questions.jsonl", lines(dict(question="Why?")) + "[" * 100_000, "questions.jsonl has a row that is nested too deeply … Correct it")
file("a .jsonl file whose rows have no question", "questions.jsonl", lines(dict(id=1, title="Why?"), dict(id=2, title="Who?")), "questions.jsonl, line 1 … ['id', 'title'] … Call the right one `question`")
file("questions that are null or blank", "questions.jsonl", lines(dict(question=None), dict(question=" "), dict(question="")), "questions.jsonl … of 3 rows 0 can be used … 3 no question … give another source")
file("numbers in place of questions", "questions.jsonl", lines(dict(question=42), dict(question=43)), "questions.jsonl, line 1 … must be text; found 42 … Correct them")
is_read("a list, a number, NaN and null among good rows", "questions.jsonl", lines(dict(question="Why?"), ["Who?"], dict(question=42), dict(question=math.nan), dict(question=None)),
        "1 instruction; … 3 unreadable, 1 no question … line 2 … line 3 … line 4")
is_read("half of an emoji (a lone surrogate) in a question or an answer, and a whole emoji", "questions.jsonl", '{"question": "What is \\ud83d?"}\n{"question": "Why?", "answer": "\\ud83d"}\n{"question": "What is 😀?"}\n',
        "1 instruction; … line 1: `question` has half a character … line 2: `answer` has half a character")
file("a conversation with a role that does not exist", "chats.jsonl", lines(dict(messages=[turn("Hi", "bard")])), "chats.jsonl, line 1 … needs a `role` … 'role': 'bard' … Correct them")
file("a ShareGPT file with other keys", "chats.jsonl", lines(dict(conversations=[dict(speaker="human", text="Hi")])), "chats.jsonl, line 1 … needs a `role` (or `from`) … 'speaker': 'human' … Correct them")
file("a turn without text", "chats.jsonl", lines(dict(messages=[dict(role="user")])), "chats.jsonl, line 1 … must be text; found None … Correct them")
file("a conversation as one text", "chats.jsonl", lines(dict(messages="user: Hi")), "chats.jsonl, line 1 … must be a list of turns; found 'user: Hi' … Correct them")
file("conversations in which the user says nothing", "chats.jsonl", lines(dict(messages=[]), dict(messages=[turn("Hi", "assistant")])), "chats.jsonl … 2 no question … give another source")
is_read("a conversation that ends with the assistant: what it says last is a reference answer", "chats.jsonl", lines(dict(messages=[turn("Why?"), turn("So.", "assistant")])), "1 instruction; … passed over: none")
file("a parquet file that is cut", "questions.parquet", b"PAR1" + bytes(40), "questions.parquet is no parquet file … Save it again")
file("a CSV file that is called .parquet", "questions.parquet", "question\nWhy?\n", "questions.parquet is no parquet file … Save it again")

@case(QUESTIONS, "a parquet file with numbers in its column of questions", "questions.parquet, row 1 … must be text; found 1.0 … Correct them")
def _():
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table(dict(question=[1., math.nan])), "questions.parquet")
    return lambda: load_instructions("questions.parquet")

drawn("fewer questions than are asked for", "questions.txt: 50 instructions asked for … 2 can be used … Ask for fewer", "questions.txt", 50)
drawn("a list in which all questions are the same", "the list … 8 repeated … Ask for fewer", ["Why?"] * 9, 5)
drawn("questions that are nearly the same", "1 can be used … 2 near-duplicate … Ask for fewer", ["Why is the sky blue?", "WHY is the sky  blue", "why is the sky blue!"], 3, near_duplicates=.8)
drawn("no questions at all are asked for", "num_instructions is at least 1 … found 0", "tiny", 0)
drawn("a similarity of 80 in place of .8", "near_duplicates must be from .1 to 1 … None; found 80", "tiny", near_duplicates=80)
drawn("an empty list of questions", "the list … of 0 rows 0 can be used … give another source", [])
drawn("a list of numbers", "the list, row 1 … found 1 … Correct them", [1, 2])
drawn("None in place of a source", "a source is a file … found a NoneType", None)
drawn("a part of the tiny world that does not exist", "no split 'validation' … choose one of train, dev, test", "tiny:validation")
drawn("a weight of 0 in a mixture", "weight of questions.txt … found 0 … leave it out", {"tiny": 1, "questions.txt": 0})
drawn("a mixture with a file that is not there", "no file 'question.txt' … Check its name", {"tiny": 1, "question.txt": 1})

def table(**columns):
    import pandas as pd
    return pd.DataFrame(columns)

def data_set(*rows):
    from datasets import Dataset
    return Dataset.from_list([*rows])

drawn("a DataFrame in place of a list", "found a DataFrame … df['question'].tolist()", lambda: table(question=["Why?"]))
drawn("a data set that is loaded already", "found a Dataset … list(dataset)", lambda: data_set(dict(question="Why?")))

@case(QUESTIONS, "a question of 1 MB", "questions.txt … 1 too long … give another source")
def _(): write("questions.txt", "Why? " * 200_000 + "\n"); return lambda: load_instructions("questions.txt", num_instructions=1, lm=lm(), max_prompt_tokens=448)

@case(QUESTIONS, "a split that a data set does not have", "data:dev … train … 'folder:split'")
def _(): write("data/train.jsonl", lines(dict(question="Why?"))); return lambda: load_instructions("data:dev")

@case(QUESTIONS, "test questions that were all trained on", "questions.txt … 2 trained on … give another source")
def _(): write("questions.txt", "Why?\nWho?\n"); return lambda: unseen("questions.txt", load_instructions("questions.txt", num_instructions=None), num_instructions=2)

@case(QUESTIONS, "texts where it says what was trained on", "`seen` is a list of instructions or of their ids … found 'Why?'")
def _(): return lambda: unseen("tiny:test", ["Why?"], num_instructions=2)

# The model

MODEL = "The model"
STAGES[MODEL] = "`load_lm` and `Endpoint`, and `--model` of all scripts"

def model(given, says, load=lambda: load_lm("model", device="cpu"), **changed):
    @case(MODEL, given, says)
    def _(): copy(tiny_path("policy"), "model", {k.replace("__", "."): v for k, v in changed.items()}); return load

@case(MODEL, "a name that is no folder and not on the hub", "mistralai/Mistral-7B-Instuct … Is it a folder here, or the exact name … HF_TOKEN")
def _(): return lambda: load_lm("mistralai/Mistral-7B-Instuct")

@case(MODEL, "a GGUF file", "model.gguf cannot be loaded … not a valid JSON file … Is it a folder here")
def _(): write("model.gguf", b"GGUF"); return lambda: load_lm("model.gguf")

@case(MODEL, "an empty folder for a model", "model cannot be loaded … Should have a `model_type` key in its config.json")
def _(): Path("model").mkdir(); return lambda: load_lm("model")

@case(MODEL, "an adapter in place of a model", "adapter is an adapter. Load its base model … load_adapter")
def _(): with_adapter(); return lambda: load_lm("adapter")

@case(MODEL, "a model with a pickle in place of safetensors", "model cannot be loaded … it has no safetensors … a pickle can run code")
def _(): copy(tiny_path("policy"), "model", {"model.safetensors": None}); write("model/pytorch_model.bin", b"PK"); return lambda: load_lm("model")

model("a model whose weights are cut", "model cannot be loaded … damaged … Fetch or copy them again", model__safetensors=half)
model("a model of which one tensor is missing", "model cannot be loaded … model.layers.1.mlp.up_proj.weight … Fetch or copy them again", model__safetensors=without("layers.1.mlp.up"))
model("a model with tensors of other sizes than config.json says", "model cannot be loaded … other sizes than its config.json … Fetch both again", config__json=config(hidden_size=32))
model("a config.json that is no JSON", "model cannot be loaded … config.json' is not a valid JSON file", config__json=b'{"model_type": "llama",')
model("an architecture that transformers does not know", "model cannot be loaded … `mistral9` … does not recognize this architecture", config__json=config(model_type="mistral9"))
model("a model that needs code of its authors", "model cannot be loaded … code of its authors … Take another model", config__json=config(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}))
model("a model of pictures", "model cannot be loaded … Unrecognized configuration class … AutoModelForCausalLM", config__json=config(model_type="vit", architectures=["ViTModel"]))
model("a model without a tokenizer", "model cannot be loaded … no tokenizer … Save one into the same folder", tokenizer__json=None, tokenizer_config__json=None)
model("a tokenizer.json that is cut", "model cannot be loaded … tokenizer.json … Fetch or copy it again", tokenizer__json=half)
model("a chat template that raises", "template of model refuses this conversation (user, assistant): Only for tools", chat_template__jinja="{{ raise_exception('Only for tools') }}")
model("a chat template with a mistake in it", "template of model refuses … endfor", chat_template__jinja="{% for m in messages %}{{ m['content'] }}")
model("a chat template that leaves out what is said", "template of model … 'answer' becomes 'Hello' … Correct it in chat_template.jinja", chat_template__jinja="Hello")
model("a chat template that prints the date in a format that it computes", "chat template computes a date's format … Write it into its `strftime_now(…)`",
      chat_template__jinja="{% set f = '%d' %}{{ strftime_now(f) }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
model("a precision that does not exist", "dtype must be 'auto', 'float32' … found 'float8'", lambda: load_lm("model", "float8"))
model("a quantization that does not exist", "quantization must be 'nf4' or None … found 'int4'", lambda: load_lm("model", quantization="int4"))
model("`sharded` in a single process", "sharded over several processes, and this is one. Start it by torchrun", lambda: load_lm("model", sharded=True))
model("`sharded` in 4 bit", "4-bit weights cannot be sharded … Leave quantization out, or load the model whole", lambda: in_environment(lambda: load_lm("model", quantization="nf4", sharded=True), WORLD_SIZE="2"))
model("a configuration of accelerate with FSDP", "accelerate is configured for FSDP, and only dpo_train … sharded=True", lambda: in_environment(lambda: load_lm("model"), ACCELERATE_USE_FSDP="True"))
model("a device that is not there", "no device 'cuda:7' here … Give 'cpu'", lambda: load_lm("model", device="cuda:7"))

@case(MODEL, "a tokenizer with more tokens than the model", "tokenizer of model has 2,895 tokens … the model knows 895 … Fetch the model's own")
def _():
    from transformers import AutoTokenizer
    copy(tiny_path("policy"), "model"); t = AutoTokenizer.from_pretrained("model"); t.add_tokens([f"new{k}" for k in range(2000)]); t.save_pretrained("model")
    return lambda: load_lm("model")

@case(MODEL, "a server's address without http", "begins with http:// or https:// … found 'localhost:8000'")
def _(): return lambda: Endpoint("localhost:8000", "any")

@case(MODEL, "a server's address with the key in it", "must hold no password … Give the key as OPENAI_API_KEY")
def _(): return lambda: Endpoint("http://localhost:8000?key=secret", "any")

@case(MODEL, "a server that is not there", "http://localhost:8000 … Check its address, and that it runs")
def _(): return lambda: generate(Endpoint("http://127.0.0.1:9", "any", key="-"), asked(), **SHORT)

class Page(BaseHTTPRequestHandler):
    "A server, but of web pages."
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b"<html>Welcome</html>")
    do_POST = do_GET
    def log_message(self, *_): pass

def served(page, do):
    "Do something with a server on this machine: address → what comes of it."
    def told():
        with ThreadingHTTPServer(("127.0.0.1", 0), page) as server:
            server.once = Lock()
            Thread(target=server.serve_forever, daemon=True).start()
            try: return do(f"http://127.0.0.1:{server.server_port}")
            finally: server.shutdown()
    return told

@case(MODEL, "a server that serves something else", "http://localhost:8000 … no answer of an OpenAI-compatible server … Check its address")
def _(): return served(Page, lambda url: generate(Endpoint(url, "any", key="-"), asked(), **SHORT))

class Locked(Page):
    "A server that wants another key."
    def do_GET(self): self.send_response(401); self.end_headers(); self.wfile.write(b'{"error": {"message": "Incorrect API key"}}')
    do_POST = do_GET

@case(MODEL, "a server that does not take the key", "answers 401 (Incorrect API key) … the key (OPENAI_API_KEY)")
def _(): return served(Locked, lambda url: generate(Endpoint(url, "any", key="-"), asked(), **SHORT))

# The hub

HUB = "The hub"
STAGES[HUB] = "whatever is named `owner/name`"

ASK_HUB = """
import json, os, socket, sys, time
from multiprocessing import get_context, TimeoutError
time.sleep = lambda seconds: None # The hub's client waits between its tries
silent = socket.create_server(("127.0.0.1", 0), backlog=99) # Takes every connection, and never answers
address = f"http://127.0.0.1:{silent.getsockname()[1]}"
os.environ |= dict(HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=sys.argv[1], HF_TOKEN="", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
import huggingface_hub.file_download as client
client._ETAG_RETRY_TIMEOUT = 1
from dpo_nb import PairRM, load_instructions, load_lm
from dpo_nb.adapters import adapter_folder
ways = dict(lima=lambda: load_instructions("lima"), data=lambda: load_instructions("someone/questions"), model=lambda: load_lm("someone/model"),
            judge=lambda: PairRM("someone/judge").check([]), adapter=lambda: adapter_folder("someone/adapter"))
def told(name):
    try: ways[name]()
    except ValueError as e: return str(e).replace(address, "https://huggingface.co")
def round():
    "Each in a process of its own: threads share the hub's client, and take it from each other."
    pool, found = get_context("fork").Pool(len(ways)), {}
    for name, t in {name: pool.apply_async(told, [name]) for name in ways}.items():
        try: found[name] = t.get(90)
        except TimeoutError: found[name] = "nothing, for 90 seconds"
    pool.terminate(); pool.join()
    return found
silently = round()
silent.close()
print(json.dumps(dict(silent=silently, gone=round())), flush=True)
"""

@cache
def hub_says():
    "What is said of a hub that never answers, and of one that is gone."
    done = subprocess.run([sys.executable, "-c", ASK_HUB, f"{SHELF.name}/hub"], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr

def hub(given, how, what, says):
    @case(HUB, f"{given}, from a hub that {dict(silent='never answers', gone='is not there')[how]}", says)
    def _():
        def told():
            said = hub_says()
            assert isinstance(said, dict), said
            raise ValueError(said[how][what])
        return told

for how in ("silent", "gone"):
    hub("LIMA", how, "lima", "LIMA cannot be fetched … the hub cannot be reached, or does not answer … Accept its licence … or give the path")
    hub("a data set", how, "data", "someone/questions cannot be read as a data set: the hub cannot be reached, or does not answer … Is it a folder here")
    hub("a model", how, "model", "someone/model cannot be loaded … the hub cannot be reached, or does not answer … Is it a folder here")
    hub("a PairRM checkpoint", how, "judge", "someone/judge has no config.json, or the hub cannot be reached … Give llm-blender/PairRM or a folder")
    hub("an adapter", how, "adapter", "someone/adapter is no folder here, and the hub … cannot be reached, or does not answer")

# Responses

RESPONSES = "Responses"
STAGES[RESPONSES] = "`generate`, and `dpo_generate`"

def sampling(given, says, **how):
    @case(RESPONSES, given, says)
    def _(): return lambda: generate(lm(), asked(), **how)

sampling("no responses are asked for", "responses_per_instruction is 0. It must be at least 1", responses_per_instruction=0)
sampling("a temperature below 0", "temperature is -1.0 … at least 0", temperature=-1)
sampling("a temperature that is NaN", "temperature is nan", temperature=math.nan)
sampling("a top_p of 0", "top_p is 0.0 … above 0 and at most 1", top_p=0)
sampling("a batch of no instructions", "generation_batch is 0. It must be at least 1", generation_batch=0)
sampling("more new tokens than the model has positions", "tiny has room for 512 … lower max_new_tokens=512", max_new_tokens=512)

def to_answer(given, says, instructions):
    @case(RESPONSES, given, says)
    def _(): return lambda: generate(lm(), instructions(), **SHORT)

to_answer("texts in place of instructions", "'Name two fruits.' is no `Instruction` … `load_instructions` makes them from texts", lambda: ["Name two fruits."])
to_answer("the same instruction twice", "is in the list twice. Remove one", lambda: [*asked(), asked()[0]])
to_answer("a prompt that is longer than the model's context", "'Name two fruits. … 804 tokens, and tiny has room for 512. Shorten it", lambda: [*asked(), Instruction.ask("Name two fruits. " * 200)])
to_answer("a prompt of 1 MB", "'Name two fruits. … 240,004 tokens … Shorten it", lambda: [Instruction.ask("Name two fruits. " * 60_000)])
to_answer("an instruction that ends with the assistant's turn", "ends with the user's turn … belongs in `reference`", lambda: [Instruction([turn("Hi"), turn("Hello", "assistant")])])
to_answer("a message without text", "a `content` that is text … found {'role': 'user', 'content': None}", lambda: [Instruction([dict(role="user", content=None)])])

@case(RESPONSES, "a conversation that the chat template refuses", "template of model … (user, user) … the roles must alternate … the user and the assistant in turn")
def _():
    strict = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('the roles must alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    copy(tiny_path("policy"), "model", {"chat_template.jinja": strict})
    return lambda: generate(load_lm("model", device="cpu"), [Instruction([turn("Hi"), turn("Why?")])])

@case(RESPONSES, "a model whose weights are NaN", "computes NaN or infinity … its weights are damaged: fetch them again")
def _():
    copy(tiny_path("policy"), "model", {"model.safetensors": tensors(lambda t: {k: v * math.nan for k, v in t.items()})})
    return lambda: generate(load_lm("model", device="cpu"), asked())

@happens(RESPONSES, "control tokens inside a question", "stays text")
def _():
    def told():
        end = lm().tokenizer.convert_ids_to_tokens(lm().end_id)
        ids, usual = lm().encode([turn(f"What is {end}?")]).prompt, lm().encode([turn("What is it?")]).prompt
        assert ids.count(lm().end_id) == usual.count(lm().end_id) and end in lm().tokenizer.decode([i for i in ids if i not in lm().control_ids])
        return f"{end} in a question stays text: the prompt has no more control tokens than any other"
    return told

@happens(RESPONSES, "a model that answers with nothing", "0 tokens of text … counted")
def _():
    empty = said_to(asked()[0], "", "The word cat.")
    def told():
        fates = make_pairs(asked()[:1], empty, [Ranking(asked()[0].id, "me", [0., 1.], fingerprint([r.text for r in empty]))]).fates
        return f"A response of 0 tokens of text is a response: it is judged, and counted ({', '.join(fates.fate)})"
    return told

# The judge

JUDGE = "The judge"
STAGES[JUDGE] = "`PairRM`, `rank`, and `dpo_rank`"

def judge(given, says, **changed):
    @case(JUDGE, given, says)
    def _(): copy(tiny_path("ranker"), "judge", {k.replace("__", "."): v for k, v in changed.items()}); return lambda: PairRM("judge").rank(asked(), answers())

@case(JUDGE, "a judge that is no folder and not on the hub", "llm-blender/PairMR has no config.json, or the hub cannot be reached … Give llm-blender/PairRM")
def _(): return lambda: PairRM("llm-blender/PairMR").rank(asked(), answers())

@case(JUDGE, "a language model in place of PairRM", "model/config.json … is no PairRM's … model_type is llama … Fetch it again")
def _(): copy(tiny_path("policy"), "model"); return lambda: PairRM("model").rank(asked(), answers())

@case(JUDGE, "a PairRM folder with a pickle in place of safetensors", "judge has no model.safetensors … a folder like it, without pickles")
def _(): copy(tiny_path("ranker"), "judge", {"model.safetensors": None}); write("judge/pytorch_model.bin", b"PK"); return lambda: PairRM("judge").rank(asked(), answers())

judge("a PairRM folder without weights", "judge has no model.safetensors … Give llm-blender/PairRM", model__safetensors=None)
judge("PairRM weights that are cut", "judge/model.safetensors is damaged … Fetch it again", model__safetensors=half)
judge("PairRM weights with a tensor of another size", "judge/model.safetensors … size mismatch for head_layer.1.weight … Fetch it again",
      model__safetensors=tensors(lambda t: {k: v[:, :-1].contiguous() if k == "head_layer.1.weight" else v for k, v in t.items()}))
judge("PairRM weights without a tensor", "judge/model.safetensors … head_layer.1.weight … Fetch it again", model__safetensors=without("head_layer.1.weight"))
judge("a PairRM folder without a tokenizer", "judge has no spm.model … Give llm-blender/PairRM or a folder like it", tokenizer__json=None)
judge("PairRM with the tokenizer of a language model", "judge/tokenizer.json is damaged, or is no PairRM's … Fetch it again", tokenizer__json=lambda old: (tiny_path("policy")/"tokenizer.json").read_bytes())
judge("a PairRM tokenizer that is cut", "judge/tokenizer.json is damaged … Fetch it again", tokenizer__json=half)
judge("a PairRM config.json that is no JSON", "judge/config.json is damaged … JSON … Fetch it again", config__json=b"{")
judge("a PairRM config.json with other markers", "judge/tokenizer.json … the id of <|candidate1|> is 362, and 7 in config.json … Fetch it again", config__json=config(cand1_prefix_id=7))

@case(JUDGE, "responses to other instructions", "response 0 to instruction d47f41e14b3c621c belongs to no instruction here … Give that as well")
def _(): return lambda: pairrm().rank(asked()[:2], answers())

@case(JUDGE, "responses with the same number twice", "response 0 to instruction a2b85a941ded7c13 is there twice … Give the responses of one run")
def _(): return lambda: pairrm().rank(asked(), [*answers(), answers()[0]])

@case(JUDGE, "a recipe whose judge, the tiny world's oracle, knows nothing of the questions", "dpo_demo: the oracle knows the tiny world only … Give another judge", error=SystemExit)
def _(): write("questions.txt", "Why?\nWho?\nWhere?\n"); return lambda: dpo_demo("--instructions questions.txt --num_instructions 2 --judge oracle --num_test_instructions 1 --near_duplicates none".split())

@case(JUDGE, "a bicycle question for the ranker of the tiny world", "dpo_demo: the tiny world's ranker knows nothing of 'Which oil is for a chain?', nor of the others … Give another judge", error=SystemExit)
def _(): write("questions.txt", "How do I adjust the brakes of a bicycle?\nWhy do the brakes of my bicycle squeal?\nWhich oil is for a chain?\n"); return lambda: dpo_demo("--recipe tiny --instructions questions.txt --num_instructions 2 --num_test_instructions 1 --near_duplicates none".split())

def own_judge(given, says, name, code="def short(instruction, response): return -len(response.text)\n", file="my_judges.py"):
    @case(JUDGE, given, says)
    def _(): write(file, code); return lambda: load_judge(name).rank(asked(), answers())

own_judge("a file of judges that is not there", "there is no file 'my_judge.py' here … 'my_file.py:name'", "my_judge.py:short")
own_judge("a function that the file of judges does not have", "my_judges.py has nothing called 'shrt' … The nearest: short", "my_judges.py:shrt")
own_judge("a file of judges with a mistake", "my_judges.py cannot be run (SyntaxError … Try it alone: python my_judges.py", "my_judges.py:short", "def short(instruction, response) return 1\n")
own_judge("a judge that is a number", "my_judges.py:best is neither a function nor a `Judge`; found 7", "my_judges.py:best", "best = 7\n")
own_judge("a judge that fails for a response", "wrong, given response 0 to instruction … fails with ZeroDivisionError … Let it give None where it cannot say, or correct it", "my_judges.py:wrong", "def wrong(instruction, response): return 1 / 0\n")
own_judge("a judge that gives words", "a score of instruction … by wrong is 'good' … a finite number, or None", "my_judges.py:wrong", "def wrong(instruction, response): return 'good'\n")
own_judge("a judge that gives NaN", "score … by wrong is nan … a finite number, or None", "my_judges.py:wrong", "def wrong(instruction, response): return float('nan')\n")

@case(JUDGE, "a recipe that is in no file", "dpo_demo: there is no recipe 'mine'. Give one of tiny … 'my_recipes.py:name'", error=SystemExit)
def _(): return lambda: dpo_demo(["--recipe", "mine"])

@happens(JUDGE, "one response alone", "scores: None … PairRM compares two")
def _(): return lambda: (lambda r: f"scores: {r.scores[0]}; reason: {r.detail['reason']}")(pairrm().rank(asked()[:1], said_to(asked()[0], "Hi"))[0])

@happens(JUDGE, "responses that are all empty, or all the same", "scores: 0.0, 0.0; 0.0, 0.0")
def _(): return lambda: "scores: " + "; ".join(", ".join(map(str, r.scores)) for r in pairrm().rank(asked()[:2], [*said_to(asked()[0], "", ""), *said_to(asked()[1], "Hi", "Hi")]))

@happens(JUDGE, "a response that is longer than the judge can read", "truncated … [True, False]")
def _(): return lambda: f"it is read as far as it fits, and `detail` says so: truncated = {pairrm().rank(asked()[:1], said_to(asked()[0], 'Glad to help! ' * 2000, 'Hi'))[0].detail['truncated']}"

# Pairs

PAIRS = "Pairs"
STAGES[PAIRS] = "`make_pairs`, `load_preferences`, `dpo_pairs`, and `dpo_train --dataset`"

def made(given, says, instructions=asked, responses=lambda: answers(), rankings=lambda: ranked(), **how):
    @case(PAIRS, given, says)
    def _(): return lambda: make_pairs(instructions(), responses(), rankings(), **how)

made("a ranking of other texts", "the ranking of instruction a2b85a941ded7c13 by oracle is of other texts … Rename the old file", responses=lambda: [replace(r, text=r.text + "!") for r in answers()])
made("a ranking of fewer responses", "the ranking of instruction a2b85a941ded7c13 … is of other texts than these 4 … rank again", responses=lambda: [*answers(), replace(answers()[0], index=3)])
made("rankings of two judges", "ranked more than once. Give the rankings of one judge", rankings=lambda: [*ranked(), replace(ranked()[0], judge="me")])
made("a score that is NaN", "instruction a2b85a941ded7c13 … is nan … must be a finite number, or None", rankings=lambda: [Ranking(asked()[0].id, "me", [1., math.nan])])
made("scores as text", "instruction a2b85a941ded7c13 … is '1' … must be a finite number, or None", rankings=lambda: [Ranking(asked()[0].id, "me", ["1", "2"])])
made("a rule that does not exist", "pairs is 'best'. It must be one of best_worst, best_rest, all", pairs="best")
made("a margin below 0", "margin is -1. It must be 0 or more", margin=-1)
made("a margin that is NaN", "margin is nan. It must be 0 or more", margin=math.nan)
made("a margin that no pair has", "no pairs … tie … lower the margin", margin=9)
made("no responses at all", "no pairs from 0 responses … Sample more", responses=list, rankings=list)

def left(given, says, *texts, finished=True):
    "Responses of which no pair is left."
    @case(PAIRS, given, says)
    def _():
        responses = [r for i in asked() for r in said_to(i, *texts, finished=finished)]
        return lambda: make_pairs(asked(), responses, pairrm().rank(asked(), responses))

left("responses that are all the same", "no pairs from … same text as another … Sample more, at a higher temperature", "Hi", "Hi", "Hi")
left("responses that are all empty", "no pairs from … same text as another … Sample more, at a higher temperature", "", "", "")
left("one response to each instruction", "no pairs … not judged … Sample more", "Hi")
left("responses that were all cut at the limit", "no pairs … cut at the limit … a larger max_new_tokens", "Hi", "Um.", finished=False)

def by_hand(given, scores, says):
    @case(PAIRS, given, says, error=SystemExit)
    def _():
        write_records("run/instructions.jsonl", asked()[:1]); generate(lm(), asked()[:1], out="run/responses.jsonl", **SHORT)
        write("run/rankings.jsonl", lines(dict(journal="Ranking", format=1, complete=True, settings={})) + f'{{"instruction_id":"{asked()[0].id}","judge":"me","scores":{scores}}}\n')
        return lambda: dpo_pairs(["--recipe", "tiny", "--output_dir", "run"])

by_hand("a rankings.jsonl with scores as text", '["1", "2"]', "run/rankings.jsonl, line 2 … float | null, got str in scores[0] … Restore the line")
by_hand("a rankings.jsonl with NaN", "[NaN, 1]", "run/rankings.jsonl, line 2 … malformed … Restore the line")
by_hand("a rankings.jsonl with too few scores", "[1]", "the ranking of instruction a2b85a941ded7c13 by me is of other texts than these 2 … rank again")
by_hand("a rankings.jsonl that does not say which texts were ranked", "[1, 2]", "the ranking of instruction a2b85a941ded7c13 by me is of other texts than these … rank again")

GOOD = dict(prompt="Why?", chosen="So.", rejected="No.")

def pairs(given, name, content, says):
    @case(PAIRS, given, says)
    def _(): write(name, content); return lambda: load_preferences(name)

pairs("pairs in a .txt file", "pairs.txt", "Why?\n", "pairs.txt, line 1: it must have prompt, chosen, rejected; found 'Why?'")
pairs("an empty file of pairs", "pairs.jsonl", "", "pairs.jsonl has no rows … Fill it")
pairs("pairs without a rejected side", "pairs.jsonl", lines(dict(prompt="Why?", chosen="So.")), "pairs.jsonl, line 1: no `rejected` among prompt, chosen, or it is empty. Correct the row")
pairs("a CSV file of pairs with other names", "pairs.csv", "frage,gut,schlecht\nWhy?,So.,No.\n", "pairs.csv, line 2: no `prompt` among frage, gut, schlecht, or it is empty. Correct the row")
pairs("a pair whose prompt is null", "pairs.jsonl", lines(GOOD, GOOD | dict(prompt=None)), "pairs.jsonl, line 2 … `prompt` … Correct the row")
pairs("a pair whose prompt is blank", "pairs.jsonl", lines(GOOD, GOOD | dict(prompt=" ")), "pairs.jsonl, line 2 … `prompt` must end with what the user says … Correct the row")
pairs("a pair whose chosen side is NaN", "pairs.jsonl", lines(GOOD | dict(chosen=math.nan)), "pairs.jsonl, line 1 … `chosen` must be … found nan … Correct the row")
pairs("a pair that is a list", "pairs.jsonl", lines(["Why?", "So.", "No."]), "pairs.jsonl, line 1: it must have prompt, chosen, rejected; found ['Why?'")
pairs("a prompt that ends with the assistant", "pairs.jsonl", lines(GOOD | dict(prompt=[turn("Hi"), turn("Hello", "assistant")])), "pairs.jsonl, line 1 … `prompt` must end with what the user says … Correct the row")
pairs("a chosen side with two turns", "pairs.jsonl", lines(GOOD | dict(chosen=[turn("So.", "assistant"), turn("Who?")], rejected=[turn("No.", "assistant")])), "pairs.jsonl, line 1 … `chosen` must be one message … assistant, user … Earlier turns belong to `prompt`")
pairs("a parquet file of pairs that is cut", "pairs.parquet", b"PAR1" + bytes(40), "pairs.parquet cannot be read … again")

@case(PAIRS, "pairs that are not there", "no file … pairs.jsonl")
def _(): return lambda: load_preferences("pairs.jsonl")

@case(PAIRS, "a folder without pairs", "pairs is a folder without data")
def _(): write("pairs/notes.md", "Why?"); return lambda: load_preferences("pairs")

def kept(): save_pairs(make_pairs(asked(), answers(), ranked()), "pairs")

@case(PAIRS, "a folder that holds other pairs", "pairs holds other pairs (pairs: 'best_worst' there, 'all' now). Rename it")
def _(): kept(); return lambda: save_pairs(make_pairs(asked(), answers(), ranked(), pairs="all"), "pairs")

@case(PAIRS, "a folder of pairs from which a file was removed", "pairs/pairs.parquet cannot be read … Make it again")
def _(): kept(); Path("pairs/pairs.parquet").unlink(); return lambda: load_preferences("pairs")

@case(PAIRS, "a folder of pairs whose parquet file is cut", "pairs/pairs.parquet cannot be read … Make it again")
def _(): kept(); cut("pairs/pairs.parquet"); return lambda: load_preferences("pairs")

@case(PAIRS, "a folder `pairs` of one's own, with a pairs.jsonl in it", "pairs/settings.json is missing or damaged. Use another folder")
def _(): write("pairs/pairs.jsonl", lines(pair())); return lambda: save_pairs(make_pairs(asked(), answers(), ranked()), "pairs")

@case(PAIRS, "a folder of pairs whose settings.json is cut", "pairs/settings.json is missing or damaged. Use another folder")
def _(): kept(); cut("pairs/settings.json"); return lambda: load_preferences("pairs")

# Training

TRAINING = "Training"
STAGES[TRAINING] = "`train_dpo`, and `dpo_train`"

def training(given, says, rows=(pair(),), new="-", **settings):
    @case(TRAINING, given, says, new=new)
    def _(): return lambda: train_dpo(lm(), list(rows) if isinstance(rows, tuple) else rows, "run", **(dict(lora_r=2) | settings))

training("no pairs", "no pair to train on … Make some with `make_pairs`", ())
training("the name of a file in place of pairs", "row 0 (counted from 0): it must have prompt, chosen, rejected; found 'p'", "pairs.jsonl")
training("a pair without a chosen side among good ones", "row 1 (counted from 0): no `chosen` among … or it is empty. Correct the row, or remove it", (pair(), pair() | dict(chosen=None)))
training("a prompt with a role that does not exist", "row 0 … 'bard' … Correct the row", (pair() | dict(prompt=[turn("Hi", "bard")]),))
training("pairs whose two sides are the same", "no pair can be trained on … chosen and rejected are the same … Give other pairs", (pair(chosen="5.", rejected="5."),))
training("pairs whose chosen side is empty", "no pair can be trained on … the chosen response is empty … Give other pairs", (pair(chosen=""),))
training("only pairs that are longer than max_length", "no pair can be trained on … 17 tokens, and at most 8 fit … a larger max_length", max_length=8)
training("a response of 1 MB", "no pair can be trained on … 540,012 tokens, and at most 512 fit", (pair(chosen="2 + 3 = 5. " * 90_000),), max_length=None)
training("LoRA targets that match nothing", "no linear layer is called c_attn … Give some of down_proj … as `targets`", targets=["c_attn"])
training("a rank of 0", "lora_r must be a number above 0; found 0", lora_r=0)
training("a rank as text", "lora_r must be a number above 0; found '16'", lora_r="16")
training("a learning rate of 0", "learning_rate must be a number above 0; found 0.0", learning_rate=0.)
training("a learning rate that is NaN", "learning_rate must be a number above 0; found nan", learning_rate=math.nan)
training("a learning rate as text", "learning_rate must be a number … found '5e-5'", learning_rate="5e-5")
training("a learning rate that is far too high", "the loss is nan at step 2 … Lower the learning rate", tuple(pair(f"What is {a} + 1?") for a in range(8)), new="run/", learning_rate=1e30, batch_size=2, num_epochs=4, max_grad_norm=0)
training("a negative number of epochs", "num_epochs must be a number above 0; found -1", num_epochs=-1)
training("a negative number of looks", "looks must be 0 or more; found -1", looks=-1)
training("a batch of 0 pairs", "batch_size must be a number above 0; found 0", batch_size=0)
training("a beta of 0", "beta must be a number above 0; found 0.0", beta=0.)
training("a reference that does not exist", "reference must be 'base' … or 'start' … found 'itself'", reference="itself")
training("a mistyped field of TRL", "no field 'loss_typ'", loss_typ="ipo")
training("a loss that TRL does not know", "loss_type 'dpo' … sigmoid", loss_type="dpo")
training("a field that is set by another name", "output_dir is set by train_dpo … Leave it out", output_dir="there")
training("a field on which the restart depends", "train_sampling_strategy is set by train_dpo … Leave it out", train_sampling_strategy="group_by_length")
training("a learning rate under which the chosen responses become unlikely, and `stop_on_alarm`", "stopped by an alarm: … (step … start again without `stop_on_alarm`", tuple(pair(f"What is {a} + 1?") for a in range(40)), new="run/", learning_rate=.05, batch_size=4, num_epochs=2, stop_on_alarm=True)

@happens(TRAINING, "one pair that is too long among good ones", "left out: 1 of 2 pairs … row 1: 3,012 tokens … All: `.dropped`", new="run/")
def _(): return lambda: warned(lambda: train_dpo(lm(), [pair(), pair(chosen="2 + 3 = 5. " * 500)], "run", lora_r=2))

def again(given, says, change=lambda: None, rows=(pair(),), **settings):
    "The folder of a finished training, with which something is wrong."
    @case(TRAINING, given, says)
    def _(): copy(trained(), "run"); change(); return lambda: train_dpo(lm(), list(rows), "run", **(dict(lora_r=2) | settings))

again("the folder of a training with other settings", "run holds another training (beta: 0.1 there, 0.5 now) … or another folder", beta=.5)
again("the folder of a training on other pairs", "run holds another training (other pairs) … or another folder", rows=(pair("What is 3 + 2?"),))
again("a training.json that is cut", "run/training.json is damaged … Use another folder", lambda: cut("run/training.json"))
again("a folder with an adapter of something else", "run has 'adapter', but no training.json … Use another folder", lambda: Path("run/training.json").unlink())

def theirs(given, says, name, content, do, **how):
    "A file of the user's own where a script would write."
    @case(TRAINING, given, says, **how)
    def _(): write("pairs.jsonl", lines(pair())); write(name, content); return do

train_here = lambda: dpo_train(["--recipe", "tiny", "--dataset", "pairs.jsonl", "--output_dir", "."])
theirs("a file of one's own called training.jsonl", "has 'training.jsonl', but no training.json. Use another folder", "training.jsonl", lines(pair()), train_here, error=SystemExit)
theirs("a file of one's own called reference.jsonl", "reference.jsonl, line 1 does not begin a journal … choose another path", "reference.jsonl", lines(pair()), train_here, error=SystemExit)
theirs("a picture of one's own called curves.png", "has 'curves.png', but no training.json … Use another folder", "curves.png", b"PNG", train_here, error=SystemExit)
theirs("a file of one's own called training.json", "training.json is damaged, or something else wrote it. Use another folder", "training.json", '{"mine": 1}', train_here, error=SystemExit)

@happens(TRAINING, "a checkpoint that is torn", "starts again", new="run/")
def _():
    copy(trained(), "run"); shutil.rmtree("run/adapter"); [torn] = Path("run/checkpoints").iterdir(); cut(torn/"optimizer.pt")
    def told():
        before = (trained()/"adapter/adapter_model.safetensors").read_bytes()
        train_dpo(lm(), [pair()], "run", lora_r=2, seen=asked())
        assert Path("run/adapter/adapter_model.safetensors").read_bytes() == before
        return "it is passed over: the training starts again from the one before it, or from the beginning, and ends with the same adapter"
    return told

@case(TRAINING, "dpo_train before dpo_pairs", "dpo_train: run has no pairs … Run dpo_pairs with this --output_dir first", error=SystemExit)
def _(): return lambda: dpo_train(["--recipe", "tiny", "--output_dir", "run"])

# Adapters

ADAPTERS = "Adapters"
STAGES[ADAPTERS] = "`load_adapter`, `merge_adapter`, and `--adapter` of all scripts"

def adapter(given, says, load=lambda: load_adapter(lm(), "adapter"), **changed):
    @case(ADAPTERS, given, says)
    def _(): copy(trained()/"adapter", "adapter", {k.replace("__", "."): v for k, v in changed.items()}); return load

adapter("an adapter that is not there", "runs/mine/adaptor is no folder here … Give the folder `adapter` of a training", lambda: load_adapter(lm(), "runs/mine/adaptor"))
adapter("an adapter_config.json that is cut", "adapter is damaged, or does not fit … Fetch it again", adapter_config__json=half)
adapter("an adapter_config.json of a kind that PEFT does not know", "adapter is damaged, or does not fit … MAGIC … Fetch it again", adapter_config__json=config(peft_type="MAGIC"))
adapter("an adapter whose weights are cut", "adapter is damaged, or does not fit … Fetch it again", adapter_model__safetensors=half)
adapter("an adapter without one of its layers", "adapter is damaged, or does not fit … layers.1.self_attn.q_proj … Fetch it again", adapter_model__safetensors=without("layers.1.self_attn.q_proj"))
adapter("an adapter of another rank than its configuration says", "adapter is damaged, or does not fit … size mismatch … Fetch it again", adapter_config__json=config(r=16))
adapter("an adapter whose base.json is cut", "adapter/base.json is damaged … Fetch or train the adapter again", base__json=half)
adapter("an adapter whose base.json is another object", "adapter/base.json is damaged … Fetch or train the adapter again", base__json=b"{}")
adapter("an adapter that was begun by PiSSA", "adapter has a part of its model's weights (init_lora_weights: 'pissa') … Convert it", adapter_config__json=config(init_lora_weights="pissa"))
adapter("an adapter of another model", "adapter was trained on tiny … model has the weights … Load the model that it was trained on",
        lambda: (copy(tiny_path("policy"), Path(SHELF.name)/"model", {"model.safetensors": tensors(lambda t: {k: v + 1 for k, v in t.items()})}), load_adapter(replace_name(load_lm(Path(SHELF.name)/"model", device="cpu")), "adapter")))
adapter("an adapter of another model, and nothing that says of which", "adapter is damaged, or does not fit … layers. … load its own model",
        base__json=None, adapter_model__safetensors=tensors(lambda t: {k.replace("layers.1.", "layers.30."): v for k, v in t.items()}))
adapter("an adapter on a model that has one already", "tiny-dpo has an adapter already … `lm.base`", lambda: load_adapter(load_adapter(lm(), "adapter"), "adapter"))
adapter("a further training with another rank than the adapter has", "the adapter in adapter has another shape (r: 2 there, 4 now) … Give its `lora_r`", lambda: train_dpo(load_adapter(lm(), "adapter"), [pair()], "run", lora_r=4))
adapter("a merge in a precision that does not exist", "dtype must be 'auto', 'float32' … found 'int8'", lambda: merge_adapter("tiny", "adapter", "merged", dtype="int8"))
adapter("a merge into a model that is not there", "no/model has no config.json … Give the folder or the hub name", lambda: merge_adapter("no/model", "adapter", "merged"))

def replace_name(lm): lm.name = "model"; return lm

@case(ADAPTERS, "a pickle in place of an adapter's safetensors", "adapter has its weights in a pickle … Save them as safetensors")
def _(): copy(trained()/"adapter", "adapter", {"adapter_model.safetensors": None}); write("adapter/adapter_model.bin", b"PK"); return lambda: load_adapter(lm(), "adapter")

@case(ADAPTERS, "the folder of a training in place of its adapter", "run has no adapter_config.json … Give the folder `adapter` of a training")
def _(): copy(trained(), "run"); return lambda: load_adapter(lm(), "run")

@case(ADAPTERS, "a merge into a folder that holds something else", "merged holds something that `merge_adapter` did not make … Use another folder")
def _(): with_adapter(); write("merged/notes.md", "Do not lose this."); return lambda: merge_adapter("tiny", "adapter", "merged")

@happens(ADAPTERS, "an adapter of a model whose tokenizer was saved again by another version", "was trained with another configuration or tokenizer than model has")
def _():
    with_adapter(); copy(tiny_path("policy"), "model", {"tokenizer_config.json": lambda old: old + b" "})
    return lambda: warned(lambda: load_adapter(replace_name(load_lm("model", device="cpu")), "adapter"))

@happens(ADAPTERS, "an adapter without base.json, trained elsewhere", "nothing says what it was trained on")
def _():
    from dpo_nb.adapters import trained_on
    copy(trained()/"adapter", "adapter", {"base.json": None}); return lambda: warned(lambda: trained_on("adapter"))

# Evaluation

EVALUATION = "Evaluation"
STAGES[EVALUATION] = "`compare`, and `dpo_evaluate`"

def answered(): return dict(base=[said_to(i, "Um.")[0] for i in asked()], tuned=[said_to(i, "Glad to help!")[0] for i in asked()])

def comparison(given, says, instructions=asked, completions=answered, judge=Oracle, seen=list):
    @case(EVALUATION, given, says)
    def _(): return lambda: compare(instructions(), completions(), judge(), seen=seen())

comparison("instructions that were trained on", "2 of 3 instructions had been trained on … 'Write a thank-you note … see `unseen`", seen=lambda: asked()[:2])
comparison("texts where compare asks what was trained on", "`seen` is a list of instructions or of their ids … found 'Why?'", seen=lambda: ["Why?"])
comparison("completions in another order", "the completions of 'tuned' do not answer these 3 instructions … Make them with `complete`", completions=lambda: answered() | dict(tuned=answered()["tuned"][::-1]))
comparison("completions of one model alone", "two models are compared … found {'base'", completions=lambda: dict(base=answered()["base"]))
comparison("completions of three models", "two models are compared … found {'base'", completions=lambda: answered() | dict(third=answered()["base"]))
comparison("texts in place of completions", "the completions of 'base' must be `Response`s; found 'a' … Make them with `complete`", completions=lambda: dict(base=["a"] * 3, tuned=["b"] * 3))
comparison("no instructions to compare on", "no instruction to compare on. Draw some with `unseen`", list, lambda: dict(base=[], tuned=[]))
comparison("the name of a judge in place of the judge", "the judge must be a `Judge` … found 'oracle'", judge=lambda: "oracle")

@case(EVALUATION, "a journal with rankings of other answers", "the ranking of instruction a2b85a941ded7c13 by oracle is of other texts … rank again")
def _(): compare(asked(), answered(), Oracle(), [], "rankings.jsonl"); return lambda: compare(asked(), answered() | dict(tuned=answered()["base"]), Oracle(), [], "rankings.jsonl")

WHY = Instruction.ask("Why?")

@case(EVALUATION, "questions that the judge cannot judge", "no instruction was judged")
def _(): return lambda: wins(compare([WHY], dict(base=said_to(WHY, "So."), tuned=said_to(WHY, "No.")), Oracle(), seen=[]))

@happens(EVALUATION, "too few instructions to tell", "3 instructions are too few to tell … Compare on more")
def _(): return lambda: warned(lambda: wins(compare(asked(), answered(), Oracle(), seen=[])))

def evaluation(given, says, *flags):
    @case(EVALUATION, given, says, error=SystemExit)
    def _():
        with_adapter(); Path("results.csv").mkdir(); write("questions.txt", "".join(f"{i.text}\n" for i in asked()))
        return lambda: dpo_evaluate(["--recipe", "tiny", "--num_test_instructions", "2", "--max_new_tokens", "8", *flags])

MINE = "--adapter", "mine=adapter"
evaluation("dpo_evaluate without an adapter", "required: --adapter … --help")
evaluation("`--adapter adapter`: no name", "expected NAME=PATH … found 'adapter'", "--adapter", "adapter")
evaluation("`--adapter base=adapter`: the name of the base model", "not 'base' … found 'base=adapter'", "--adapter", "base=adapter")
evaluation("two adapters with the same name", "two adapters are called 'mine' … a name of its own", *MINE, *MINE)
evaluation("`--adapter mine=runs/mine`, which is not there", "runs/mine is no folder here … Give the folder `adapter` of a training", "--adapter", "mine=runs/mine")
evaluation("`--output_file results`: no ending", "--output_file results needs an ending: give results.csv", *MINE, "--output_file", "results")
evaluation("`--output_file results.csv`, which is a folder", "--output_file results.csv needs an ending", *MINE, "--output_file", "results.csv")

@case(EVALUATION, "`--output_file questions.csv`: the table of questions itself", "--output_file questions.csv is there already, and this script has not written it … Give another name", error=SystemExit)
def _():
    with_adapter(); write("questions.csv", "question\n" + "".join(f'"{i.text}"\n' for i in TinyWorld().instructions("test", 4)))
    return lambda: dpo_evaluate(["--recipe", "tiny", "--num_test_instructions", "2", "--max_new_tokens", "8", "--test_instructions", "questions.csv", "--evaluator", "oracle", *MINE, "--output_file", "questions.csv"])

evaluation("`--num_test_instructions 9999`: more than there are", "tiny:test … 9,999 instructions asked for … 400 can be used … Ask for fewer", *MINE, "--num_test_instructions", "9999")
evaluation("`--evaluator me/myself`, which is not there", "me/myself has no config.json, or the hub cannot be reached … Give llm-blender/PairRM", *MINE, "--evaluator", "me/myself")
evaluation("`--test_instructions questions.txt`, all of them trained on", "questions.txt … 3 trained on … give another source", *MINE, "--test_instructions", "questions.txt", "--evaluator", "oracle")

# Files of a run

FOLDERS = "Files of a run"
STAGES[FOLDERS] = "the journals and folders that every stage keeps"

def damaged(given, says, change):
    @case(FOLDERS, given, says)
    def _():
        journal(); write("responses.jsonl", "\n".join(change(Path("responses.jsonl").read_text().splitlines())) + "\n")
        return lambda: generate(lm(), asked(), out="responses.jsonl", **SHORT)

damaged("a line of a journal that is no JSON any more", "responses.jsonl, line 3 … malformed … Restore the line, or remove it", lambda rows: [*rows[:2], rows[2][:-5], *rows[3:]])
damaged("a line of a journal without one of its fields", "responses.jsonl, line 2 … missing required field text … Restore the line", lambda rows: [rows[0], rows[1].replace('"text":', '"txt":'), *rows[2:]])
damaged("a number as text in a journal", "responses.jsonl, line 2 … Expected int, got str in index … Restore the line", lambda rows: [rows[0], rows[1].replace('"index":0', '"index":"0"'), *rows[2:]])
damaged("a line that stands twice in a journal", "responses.jsonl, line 8 repeats response 1 to instruction d47f41e14b3c621c … Remove one", lambda rows: [*rows, rows[-1]])
damaged("a journal without its first line", "responses.jsonl, line 1 does not begin a journal of Responses … Restore that line", lambda rows: rows[1:])

def other(given, says, make=journal, **how):
    "Something else stands where the journal is to go."
    @case(FOLDERS, given, says)
    def _(): make(); return lambda: generate(lm(), how.get("asked", asked()), out="responses.jsonl", **SHORT | {k: v for k, v in how.items() if k != "asked"})

other("a journal in UTF-16", "responses.jsonl, line 1 does not begin a journal … choose another path", lambda: write("responses.jsonl", '{"format": 1}\n'.encode("utf-16")))
other("a journal of another run, with another temperature", "responses.jsonl was made with other settings (temperature: 0.8 there, 0.1 now) … write elsewhere, or rename this file", temperature=.1)
other("a journal of another run, with other instructions", "responses.jsonl was made with other settings (instructions: 3 there, 2 now) … write elsewhere", asked=asked()[:2])
other("a journal of rankings in place of responses", "responses.jsonl, line 1 does not begin a journal of Responses … choose another path", lambda: Oracle().rank(asked(), answers(), "responses.jsonl"))
other("a file of one's own where the journal is to go", "responses.jsonl, line 1 does not begin a journal … choose another path", lambda: write("responses.jsonl", "Do not lose this.\n"))

def generated(given, says, folder, make=lambda: None, around=lambda do: do, **how):
    @case(FOLDERS, given, says, **dict(error=SystemExit) | how)
    def _(): make(); return around(lambda: dpo_generate([*TINY, "--output_dir", folder]))

generated("a file where the folder of the run is to go", "dpo_generate: mine cannot be used … Choose another place", "mine", lambda: write("mine", "Do not lose this.\n"))
generated("a folder of the run inside a file", "dpo_generate: mine/run cannot be used … A file is where a folder should be", "mine/run", lambda: write("mine", "Do not lose this.\n"))
generated("a folder with a name that is too long", "dpo_generate: mmm … File name too long … Choose another place", "m" * 300)
generated("a folder in which one may not write", "dpo_generate: locked … Permission denied … You have not the right", "locked", lambda: Path("locked").mkdir(), partial(locked, "locked"))
generated("a mount that is read-only", "dpo_generate: drive/run … Read-only file system … Nothing can be written there", "drive/run", lambda: Path("drive").mkdir(), partial(read_only, "drive"))
generated("a folder on a disk that is full", "dpo_generate: drive/run … No space left on device … Make room there; the same command then goes on", "drive/run", lambda: Path("drive").mkdir(), partial(full, "drive"))
generated("a folder in which another process works", "dpo_generate: run is in use … Wait until it has ended, or give another folder", "run", around=partial(in_use, "run"))
generated("a folder with spaces and characters of all kinds in its name", "4 responses to 2 instructions … Läufe mit 😀/responses.jsonl", "Läufe mit 😀", error=None, new="Läufe mit 😀/")

@case(FOLDERS, "a file of questions that one may not read", "dpo_generate: questions.txt cannot be used (Permission denied) … You have not the right to read it", error=SystemExit)
def _(): write("questions.txt", "Why?\n"); return locked("questions.txt", lambda: dpo_generate([*TINY, "--instructions", "questions.txt"]))

class Interrupting(Page):
    "A server that, asked for a response, has this process stopped as Ctrl-C does."
    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'{"data": [{"id": "any"}]}')
    def do_POST(self):
        if self.server.once.acquire(blocking=False): signal.raise_signal(signal.SIGINT) # Several responses are asked for at a time
        time.sleep(1)

@case(FOLDERS, "Ctrl-C while responses are written", "(exit code 130) Stopped. The same command goes on where it was", error=SystemExit, new="run/")
def _():
    def stopped(url):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try: return dpo_generate([*TINY, "--endpoint", url, "--model", "any", "--output_dir", "run"])
        finally: signal.signal(signal.SIGINT, before)
    return served(Interrupting, stopped)

def stage(given, says, script, make=lambda: None, *flags):
    @case(FOLDERS, given, says, error=SystemExit)
    def _(): make(); return lambda: script(["--recipe", "tiny", "--output_dir", "run", *flags])

def edit(name, old, new): text = Path(name).read_text(); assert old in text; write(name, text.replace(old, new))

stage("dpo_rank before dpo_generate", "dpo_rank: run has no instructions.jsonl … Run dpo_generate with this --output_dir first", dpo_rank)
stage("dpo_pairs before dpo_rank", "dpo_pairs: run has no rankings.jsonl … Run dpo_rank with this --output_dir first", dpo_pairs, stages)
stage("`dpo_pairs --pairs worst`", "--pairs: invalid choice: 'worst' … 'best_worst', 'best_rest', 'all' … --help", dpo_pairs, lambda: None, "--pairs", "worst")
stage("dpo_rank when dpo_generate was broken off", "dpo_rank: run/responses.jsonl is not complete … Run the stage that makes it first", dpo_rank, lambda: (stages(), edit("run/responses.jsonl", '"complete": true', '"complete": false')))
stage("a text that was edited in instructions.jsonl", "dpo_rank: run/instructions.jsonl, line 2 … does not belong to these messages … Restore the line", dpo_rank, lambda: (stages(), edit("run/instructions.jsonl", asked()[1].text, "Why?")))
stage("the folder of a run of another recipe", "dpo_demo: run is the run of another recipe (beta: 0.1 there, 0.2 now) … use another folder", dpo_demo, lambda: Run("run", recipes["tiny"]), "--beta", ".2")
stage("a recipe.json that is cut", "dpo_demo: run/recipe.json is damaged … Restore it … dpo_generate", dpo_demo, lambda: (Run("run", recipes["tiny"]), cut("run/recipe.json")))
@case(FOLDERS, "`dpo_run notes`: a folder that is no run's", "dpo_run: notes is no run folder (it has no recipe.json). Give a recipe to begin one", error=SystemExit)
def _(): Path("notes").mkdir(); return lambda: dpo_run(["notes"])

stage("a folder of one's own with an adapter in it", "dpo_demo: run has no recipe.json, but it has adapter … Use another folder", dpo_demo, lambda: write("run/adapter/adapter_config.json", "{}"))

# Recipes and flags

RECIPES = "Recipes and flags"
STAGES[RECIPES] = "`run_recipe`, and the flags of all scripts"

def flags(given, says, script, *args):
    @case(RECIPES, given, says, error=SystemExit)
    def _(): return lambda: script([*args])

flags("`dpo_demo --learning-rate 1e-4`: a flag that does not exist", "unrecognized arguments: --learning-rate … Do you mean --learning_rate? … --help", dpo_demo, "--learning-rate", "1e-4")
@case(RECIPES, "`dpo_rank --threads -1`", "dpo_rank: threads must be above 0; found -1", error=SystemExit)
def _(): stages(); return lambda: dpo_rank(["--recipe", "tiny", "--output_dir", "run", "--threads", "-1"])

flags("`dpo_demo runs/mine`: a word without a flag", "unrecognized arguments: runs/mine … --help", dpo_demo, "runs/mine")
flags("`dpo_demo --recipe mistral`: a recipe that does not exist", "there is no recipe 'mistral'. Give one of tiny, mistral-7b-lima-pairrm", dpo_demo, "--recipe", "mistral")
flags("`dpo_demo --seed`: no value", "--seed: expected one argument … --help", dpo_demo, "--seed")
flags("`dpo_demo --seed -1`", "seed must be from 0 … found -1", dpo_demo, "--seed", "-1")
flags("`dpo_demo --num_instructions ten`", "--num_instructions: invalid int value: 'ten' … --help", dpo_demo, "--num_instructions", "ten")
flags("`dpo_demo --num_instructions 100000`: more than there are", "tiny … 100,000 instructions asked for … 2,000 can be used … Ask for fewer", dpo_demo, "--num_instructions", "100000")
flags("`dpo_demo --num_epochs 1,5`: a comma for the point", "--num_epochs: invalid float value: '1,5' … --help", dpo_demo, "--num_epochs", "1,5")
flags("`dpo_demo --learning_rate -1`", "learning_rate must be above 0; found -1.0", dpo_demo, "--learning_rate", "-1")
flags("`dpo_demo --learning_rate nan`", "learning_rate must be above 0; found nan", dpo_demo, "--learning_rate", "nan")
flags("`dpo_demo --margin -1`", "margin must be 0 or more; found -1.0", dpo_demo, "--margin", "-1")
flags("`dpo_demo --responses_per_instruction 1`", "responses_per_instruction must be at least 2 … a preference is between two", dpo_demo, "--responses_per_instruction", "1")
flags("`dpo_demo --temperature 0`", "temperature must be above 0 … are the same", dpo_demo, "--temperature", "0")
flags("`dpo_demo --threads 0`", "threads must be above 0; found 0", dpo_demo, "--threads", "0")
flags("`dpo_demo --max_new_tokens 512`: as many as the model has positions", "max_new_tokens is 512 … tiny has room for 512 tokens … Lower it", dpo_demo, "--max_new_tokens", "512")
flags("`dpo_demo --model no/model`, which is not there", "no/model cannot be loaded … Is it a folder here, or the exact name", dpo_demo, "--model", "no/model")
flags("`dpo_demo --reference start` without an adapter", "reference='start' … Give it as adapter", dpo_demo, "--reference", "start")
flags("`dpo_demo --dpo loss_type=ipo`: no JSON", "--dpo: expected a JSON object such as '{\"loss_type\": \"ipo\"}'; found 'loss_type=ipo'", dpo_demo, "--dpo", "loss_type=ipo")
flags("`dpo_demo --dpo '{\"loss_typ\": \"ipo\"}'`: a mistyped field of TRL", "no field 'loss_typ'", dpo_demo, "--dpo", '{"loss_typ": "ipo"}')
flags("`dpo_demo --dpo '{\"beta\": 0.2}'`: a setting of the recipe among TRL's fields", "beta is a setting of the recipe itself. Give it there", dpo_demo, "--dpo", '{"beta": 0.2}')
flags("`dpo_generate --instructions '{tiny: 1}'`: a mixture that is no JSON", "--instructions … expected a JSON object such as … found '{tiny: 1}'", dpo_generate, "--recipe", "tiny", "--instructions", "{tiny: 1}")
flags("`dpo_train --dataset pairs.jsonl`, which is not there", "no file … pairs.jsonl", dpo_train, "--recipe", "tiny", "--dataset", "pairs.jsonl")

def recipe(given, says, **fields):
    @case(RECIPES, given, says)
    def _(): return lambda: run_recipe(replace(recipes["tiny"], **fields), "run", say=lambda line: None)

recipe("a recipe with text for a number", "learning_rate of the recipe is '1e-4' … float", learning_rate="1e-4")
recipe("a recipe with half an instruction", "num_instructions of the recipe is 2.5 … int", num_instructions=2.5)
recipe("a recipe with None for a number", "batch_size of the recipe is None … int", batch_size=None)
recipe("a recipe with NaN for a number", "beta must be above 0; found nan", beta=math.nan)
recipe("a recipe with a text for yes or no", "allow_cut of the recipe is 'yes' … bool", allow_cut="yes")
recipe("a recipe without a model", "names no model … Give a folder, a name on the hub, or 'tiny'", model="")

@case(RECIPES, "the name of a recipe in place of the recipe", "expected a recipe; found 'tiny' … recipes['tiny']")
def _(): return lambda: run_recipe("tiny", "run")

# What is told, and that nothing is lost

def hashes(): return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path().rglob("*")) if p.is_file() and p.name != ".lock"}

@cache
def told(given):
    "What one is told in a case, in a folder of its own."
    c, out, err = CASES[given], io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        do = c.make()
        before = hashes()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: text, kind = do(), None
            except pytest.skip.Exception as e: return e.msg, pytest.skip.Exception, []
            except (Exception, SystemExit) as e: text, kind = str(e), type(e)
        after = hashes()
        lost = [f for f in before | after if before.get(f) != after.get(f) and not f.startswith(c.new)]
        if kind is SystemExit: text = f"(exit code {text}) " * (text != "2") + "\n".join(line for line in err.getvalue().strip().splitlines() if not line.startswith("usage: "))
        elif kind is None and text is None: text = out.getvalue().strip()
        text = str(text).replace(f"{Path(folder).resolve()}/", "").replace(f"{SHELF.name}/", "")
    return re.sub(r"http://127\.0\.0\.1:\d+", "http://localhost:8000", text), kind, lost

@pytest.mark.parametrize("given", CASES)
def test_one_is_told_what_is_wrong_and_where_and_what_to_do_and_nothing_is_lost(given):
    c, (text, kind, lost) = CASES[given], told(given)
    if kind is pytest.skip.Exception: pytest.skip(text)
    assert kind is None if c.error is None else kind is not None and issubclass(kind, c.error), (kind, text)
    assert [part for part in c.says.split(" … ") if part not in text] == [], text
    assert text.strip() and "\n" not in text.strip() and "Traceback" not in text, text
    assert lost == []

# The page

HEAD = """# What can go wrong, and what you are told

> Bad input, stage by stage, with the words that come back

A message says what happened, where (the file, the row, the field), and what to do. Nothing of yours is changed or lost by an error: each case below is run by `tests/test_bad_input.py`, which also compares every file before and after. In a notebook a message is an exception, nearly always a `ValueError`; a script prints it as one line (below its usage, if a flag is wrong) and its exit code is 2, or 128 and the number of the signal that stopped it. Where something is no error, *no error* stands in front of what happens instead.

This page is written by `python tests/test_bad_input.py`. A name of hundreds of letters is cut here.
"""

def escaped(text):
    "A text as it should stand in a table of markdown."
    text = text if len(text) <= 700 else text[:699] + "…"
    return re.sub(r"([\\`*<>|$]|(?<!\w)_|_(?!\w)|--)", r"\\\1", " ".join(text.split()))

def row(given):
    text, kind, _ = told(given)
    if kind is pytest.skip.Exception: return next((line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {given} |")), "")
    return f"| {given} | {'*no error:* ' if CASES[given].error is None else ''}{escaped(text)} |"

def page():
    counts = {stage: sum(c.stage == stage for c in CASES.values()) for stage in STAGES}
    parts = [HEAD, "\n" + ", ".join(f"[{stage}](#{stage.lower().replace(' ', '-')}) ({n})" for stage, n in counts.items()) + "\n"]
    for stage, what in STAGES.items():
        parts.append(f"\n## {stage}\n\nIn {what}.\n\n| what you gave | what you are told |\n|---|---|\n")
        parts += [row(given) + "\n" for given, c in CASES.items() if c.stage == stage]
    return "".join(parts)

@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="some words are Python's, and the page shows those of 3.11")
def test_the_page_says_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python tests/test_bad_input.py"

def test_there_are_many_cases_in_every_stage():
    counts = {stage: sum(c.stage == stage for c in CASES.values()) for stage in STAGES}
    assert sum(counts.values()) == len(CASES) >= 80 and min(counts.values()) >= 10

if __name__ == "__main__":
    if sys.argv[1:]:
        for given, c in CASES.items():
            if re.search(sys.argv[1], f"{c.stage}: {given}"): print(f"{c.stage}: {given}\n    {told(given)}")
    else: PAGE.write_text(page(), encoding="utf-8")
