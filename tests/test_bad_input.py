"""What can go wrong, and what one is told. `python tests/test_bad_input.py` writes the page nbs/bad_input.md."""
import contextlib, gzip, hashlib, io, json, math, os, re, shutil, struct, subprocess, sys, tempfile, warnings
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1") # No case needs the hub

import pytest

from dpo_nb.records import *
from dpo_nb.tiny import Oracle, TinyWorld, tiny_path
from dpo_nb.instructions import load_instructions, unseen
from dpo_nb.models import load_lm
from dpo_nb.generate import generate
from dpo_nb.pairrm import PairRM
from dpo_nb.preferences import load_pairs, load_preferences, make_pairs, save_pairs
from dpo_nb.dpo import load_adapter, lora_config, merge_adapter, train_dpo
from dpo_nb.evaluate import compare, complete
from dpo_nb.recipes import recipes, run_recipe
from dpo_nb.cli import dpo_demo, dpo_evaluate, dpo_generate, dpo_pairs, dpo_rank, dpo_train

ROOT = Path(__file__).parents[1]
PAGE = ROOT/"nbs"/"bad_input.md"

@dataclass(frozen=True)
class Case:
    stage:str # The heading it stands under
    given:str # What somebody brings
    says:tuple[str,...] # Parts of what they are told: what, where, what to do
    error:type|None # `None` = it is no error, and what happens is told
    new:tuple[str,...] # Files that may be made all the same
    make:object # Makes the input in the working folder, and returns what does with it what a person would do

CASES = {}

def case(stage, given, *says, error=ValueError, new=(), **how):
    "Declare a case."
    def keep(make):
        assert given not in CASES, given
        CASES[given] = Case(stage, given, says, error, new, partial(make, **how))
        return make
    return keep

happens = partial(case, error=None)

def write(name, content):
    "A file in the working folder."
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content) if isinstance(content, bytes) else Path(name).write_text(content, encoding="utf-8", newline="")
    return name

def lines(*rows): return "".join(f"{json.dumps(r)}\n" for r in rows)

def script(f, *args): return lambda: f([*map(str, args)])

# What several cases need is made once.

@cache
def shelf(): return Path(tempfile.mkdtemp())

@cache
def lm(): return load_lm("tiny", device="cpu")

@cache
def asked(n=3): return TinyWorld().instructions("train", n)

def said_to(instruction_id, *texts): return [Response(instruction_id, k, t, 5, True, "m") for k, t in enumerate(texts)]

@cache
def answers(): return [r for i in asked() for r in said_to(i.id, "Glad to help!", "The word cat belongs to the animals.", "Um.")]

def turn(text, role="user"): return dict(role=role, content=text)

def pair(prompt="What is 2 + 3?", chosen="2 + 3 = 5.", rejected="2 + 3 = 6."):
    return dict(prompt=[turn(prompt)], chosen=[turn(chosen, "assistant")], rejected=[turn(rejected, "assistant")])

@cache
def adapter():
    train_dpo(lm(), [pair()], shelf()/"trained", lora_r=2, seen=asked())
    return shelf()/"trained"

def copy(source, name, **changed):
    "A folder with some files replaced (`None` = removed)."
    shutil.copytree(source, name)
    for file, content in changed.items():
        file = Path(name)/file.replace("__", ".")
        if content is None: file.unlink()
        else: write(file, content(file.read_bytes()) if callable(content) else content)
    return name

policy, ranker = partial(copy, tiny_path("policy"), "model"), partial(copy, tiny_path("ranker"), "judge")

def config(**new): return lambda old: json.dumps(json.loads(old) | new)

def tensors(change):
    "Safetensors with other tensors."
    from safetensors.torch import load, save
    return lambda old: save(change(load(old)), metadata={"format": "pt"})

half = lambda old: old[:len(old)//2]

# Questions

QUESTIONS = "Questions"

def from_file(given, name, content, *says, **how):
    "A file of questions, and what is told of it."
    @case(QUESTIONS, given, *says, **how)
    def _():
        write(name, content)
        return lambda: load_instructions(name, n=None)

def read_from_file(given, name, content, *says, n=None, **how):
    "A file that is read, and what becomes of its rows."
    @happens(QUESTIONS, given, *says)
    def _():
        write(name, content)
        def told():
            drawn = load_instructions(name, n=n, **how)
            return "; ".join([f"Read. {drawn.summary}", *(f"{row}: {detail}" for _, row, _, _, detail in drawn.passed if detail)])
        return told

@case(QUESTIONS, "a file that is not there")
def _(): return lambda: load_instructions("question.csv")

@case(QUESTIONS, "a folder with no file of data in it")
def _(): Path("questions").mkdir(); write("questions/notes.md", "Why?"); return lambda: load_instructions("questions")

@case(QUESTIONS, "a folder that is called like a file")
def _(): Path("questions.csv").mkdir(); return lambda: load_instructions("questions.csv")

from_file("a CSV that is not UTF-8", "questions.csv", "question\nWhy is the sky blue?\nWo liegt Köln?\n".encode("latin-1"))
from_file("a CSV in UTF-16, as Excel's \"Unicode text\"", "questions.csv", "question\r\nWhy?\r\n".encode("utf-16"))
from_file("the same without the mark at its beginning", "questions.csv", "question\r\nWhy?\r\n".encode("utf-16-le"))
from_file("an Excel workbook that was renamed to .csv", "questions.csv", b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00")
from_file("an Excel workbook", "questions.xlsx", b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00")
from_file("a compressed file that is called .jsonl", "questions.jsonl", gzip.compress(lines(dict(question="Why?")).encode(), mtime=0))
from_file("a compressed file", "questions.jsonl.gz", gzip.compress(b"{}", mtime=0))
from_file("an empty file", "questions.csv", "")
from_file("a CSV with the names of columns alone", "questions.csv", "question,answer\n")
from_file("a CSV without a first line of names", "questions.csv", "Why is the sky blue?\nWho was Ada Lovelace?\n")
from_file("a CSV with two columns and no first line of names", "questions.csv", "1,Why is the sky blue?\n2,Who was Ada Lovelace?\n")
from_file("a CSV whose column has another name", "questions.csv", "Nr,Frage\n1,Why is the sky blue?\n")
from_file("a CSV in which two columns have the same name", "questions.csv", "question,question\nWhy?,Why not?\n")
from_file("a CSV with a comma in a text that has no quotes", "questions.csv", "question\nWhy is the sky blue?\nWhy, oh why?\n")
from_file("a CSV with a row that is too short", "questions.csv", "question,answer\nWhy?,So.\nWho?\n")
from_file("a CSV with a quote that never ends", "questions.csv", "question\nWhy?\n\"Who?\nWhere?\n")
from_file("a CSV with 2,000 columns, and no question among them", "questions.csv", ",".join(f"c{k}" for k in range(2000)) + "\n" + ",".join(["x"] * 2000) + "\n")
read_from_file("a CSV with semicolons, as Excel writes it in half of Europe", "questions.csv", "Nr;question\r\n1;Why is the sky blue?\r\n2;Who, then, was Ada?\r\n")
read_from_file("a CSV with a mark at its beginning and Windows' line ends", "questions.csv", "\ufeffquestion\r\nWhy is the sky blue?\r\n\r\n\"Who\r\nwas Ada?\"\r\n")
from_file("a line that is no JSON", "questions.jsonl", '{"question": "Why?"}\n{"question": "Who?}\n')
from_file("a comma behind the last field of a line", "questions.jsonl", '{"question": "Why?",}\n')
from_file("a comma behind the last row of a list", "questions.json", '[\n {"question": "Why?"},\n]\n')
from_file("a torn last line", "questions.jsonl", '{"question": "Why?"}\n{"quest')
from_file("a .json file with an object a line", "questions.json", lines(dict(question="Why?"), dict(question="Who?")))
from_file("a .json file that is one object", "questions.json", '{"data": [{"question": "Why?"}]}')
from_file("a .jsonl file that is one list over several lines", "questions.jsonl", '[\n  {"question": "Why?"},\n  {"question": "Who?"}\n]\n')
from_file("rows without a question", "questions.jsonl", lines(dict(id=1, titel="Why?"), dict(id=2, titel="Who?")))
from_file("questions that are null or blank", "questions.jsonl", lines(dict(question=None), dict(question=" "), dict(question="")))
read_from_file("a row that is a list, a number for a question, NaN, and null among good ones", "questions.jsonl", lines(dict(question="Why?"), ["Who?"], dict(question=42), dict(question=math.nan), dict(question=None)))
from_file("only numbers for questions", "questions.jsonl", lines(dict(question=42), dict(question=43)))
from_file("a role that does not exist", "chats.jsonl", lines(dict(messages=[turn("Hi", "bard")])))
from_file("a ShareGPT file with other keys", "chats.jsonl", lines(dict(conversations=[dict(speaker="human", text="Hi")])))
from_file("a turn without text", "chats.jsonl", lines(dict(messages=[dict(role="user")])))
from_file("a conversation as one text", "chats.jsonl", lines(dict(messages="user: Hi")))
from_file("conversations that are empty", "chats.jsonl", lines(dict(messages=[]), dict(messages=[turn("Hi", "assistant")])))
read_from_file("a conversation that ends with the assistant", "chats.jsonl", lines(dict(messages=[turn("Why?"), turn("So.", "assistant")])))
read_from_file("half of an emoji (a lone surrogate), and a whole one", "questions.jsonl", '{"question": "What does \\ud83d mean?"}\n{"question": "What does 😀 mean?"}\n')
read_from_file("half of an emoji in an answer", "questions.jsonl", '{"question": "What does it mean?", "answer": "\\ud83d"}\n{"question": "Why?"}\n')
from_file("a text file with NUL bytes", "questions.txt", b"Why?\nWho\0?\n")
from_file("a parquet file that is cut", "questions.parquet", b"PAR1" + bytes(40))
from_file("a CSV that is called .parquet", "questions.parquet", "question\nWhy?\n")

@case(QUESTIONS, "a parquet file with numbers in its column of questions")
def _():
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table(dict(question=[1., math.nan])), "questions.parquet")
    return lambda: load_instructions("questions.parquet")

@case(QUESTIONS, "fewer questions than are asked for")
def _(): write("questions.txt", "Why?\nWho?\nWhy?\n"); return lambda: load_instructions("questions.txt", n=50)

@case(QUESTIONS, "a file in which all questions are the same")
def _(): write("questions.txt", "Why?\n" * 9); return lambda: load_instructions("questions.txt", n=5)

@case(QUESTIONS, "only questions that are nearly the same")
def _(): write("questions.txt", "Why is the sky blue?\nWHY is the sky  blue\nwhy is the sky blue!\n"); return lambda: load_instructions("questions.txt", n=3, near=.8)

@case(QUESTIONS, "a question of 1 MB")
def _(): write("questions.txt", "Why? " * 200_000 + "\n"); return lambda: load_instructions("questions.txt", n=1, lm=lm(), max_tokens=448)

@case(QUESTIONS, "the number of questions as text")
def _(): write("questions.txt", "Why?\nWho?\n"); return lambda: load_instructions("questions.txt", n="2")

@case(QUESTIONS, "no questions at all are asked for")
def _(): return lambda: load_instructions("tiny", n=0)

@case(QUESTIONS, "a similarity of 80 in place of .8")
def _(): return lambda: load_instructions("tiny", near=80)

@case(QUESTIONS, "a similarity as text")
def _(): return lambda: load_instructions("tiny", near="0.8")

@case(QUESTIONS, "an empty list of questions")
def _(): return lambda: load_instructions([])

@case(QUESTIONS, "a list of numbers")
def _(): return lambda: load_instructions([1, 2])

@case(QUESTIONS, "a DataFrame in place of a list")
def _():
    import pandas as pd
    return lambda: load_instructions(pd.DataFrame(dict(question=["Why?"])))

@case(QUESTIONS, "a data set that is loaded already")
def _():
    from datasets import Dataset
    return lambda: load_instructions(Dataset.from_list([dict(question="Why?")]))

@case(QUESTIONS, "nothing (None) in place of a source")
def _(): return lambda: load_instructions(None)

@case(QUESTIONS, "the question itself in place of a file")
def _(): return lambda: load_instructions("Why is the sky blue?")

@case(QUESTIONS, "a part of the tiny world that does not exist")
def _(): return lambda: load_instructions("tiny:validation")

@case(QUESTIONS, "a split that a data set does not have")
def _():
    write("data/train.jsonl", lines(dict(question="Why?")))
    return lambda: load_instructions("data:dev")

@case(QUESTIONS, "a weight of 0 in a mixture")
def _(): write("questions.txt", "Why?\n"); return lambda: load_instructions({"tiny": 1, "questions.txt": 0}, n=4)

@case(QUESTIONS, "a weight as text in a mixture")
def _(): write("questions.txt", "Why?\n"); return lambda: load_instructions({"tiny": 1, "questions.txt": "1"}, n=4)

@case(QUESTIONS, "a mixture of one good and one missing file")
def _(): return lambda: load_instructions({"tiny": 1, "questions.txt": 1}, n=4)

@case(QUESTIONS, "no question is left that was not trained on")
def _(): write("questions.txt", "Why?\nWho?\n"); return lambda: unseen("questions.txt", load_instructions("questions.txt", n=None), n=2)

@case(QUESTIONS, "questions as texts where it says what was trained on")
def _(): return lambda: unseen("tiny:test", ["Why?"], n=2)

# The model

MODEL = "The model"

def from_folder(given, *says, load=lambda: load_lm("model", device="cpu"), **changed):
    "A copy of the tiny model in which something is wrong."
    @case(MODEL, given, *says)
    def _(): policy(**changed); return load

@case(MODEL, "a name that is no folder and not on the hub")
def _(): return lambda: load_lm("mistralai/Mistral-7B-Instuct")

@case(MODEL, "a file in place of a folder")
def _(): write("model.gguf", b"GGUF"); return lambda: load_lm("model.gguf")

@case(MODEL, "an empty folder")
def _(): Path("model").mkdir(); return lambda: load_lm("model")

from_folder("a folder without weights", model__safetensors=None)

@case(MODEL, "a pickle in place of safetensors")
def _(): policy(model__safetensors=None); write("model/pytorch_model.bin", b"PK"); return lambda: load_lm("model")

from_folder("weights that are cut", model__safetensors=half)
from_folder("weights of which one is missing", model__safetensors=tensors(lambda t: {k: v for k, v in t.items() if "layers.1.mlp.up" not in k}))
from_folder("weights of another size than config.json says", config__json=config(hidden_size=32))
from_folder("a config.json that is no JSON", config__json=b'{"model_type": "llama",')
from_folder("an architecture that transformers does not know", config__json=config(model_type="mistral9"))
from_folder("a model that needs code of its authors", config__json=config(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}))
from_folder("a model that is no language model", config__json=config(model_type="vit", architectures=["ViTModel"]))
from_folder("a folder without a tokenizer", tokenizer__json=None, tokenizer_config__json=None)
from_folder("a tokenizer.json that is cut", tokenizer__json=half)

@case(MODEL, "a tokenizer with more tokens than the model")
def _():
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(policy()); tokenizer.add_tokens([f"new{k}" for k in range(2000)]); tokenizer.save_pretrained("model")
    return lambda: load_lm("model")

from_folder("a chat template that raises", chat_template__jinja="{{ raise_exception('Only for tools') }}")
from_folder("a chat template with an error in it", chat_template__jinja="{% for m in messages %}{{ m['content'] }}")
from_folder("a chat template that leaves out what is said", chat_template__jinja="Hello")
from_folder("a chat template that prints the date in a format that it computes", chat_template__jinja="{% set f = '%d' %}{{ strftime_now(f) }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
from_folder("a precision that does not exist", load=lambda: load_lm("model", "float8"))
from_folder("a quantization that does not exist", load=lambda: load_lm("model", quantization="int4"))
from_folder("a device that is not there", load=lambda: load_lm("model", device="cuda:7"))

@case(MODEL, "an adapter in place of a model")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); return lambda: load_lm("adapter")

# Responses

RESPONSES = "Responses"

def wrong_sampling(given, *says, **sampling):
    @case(RESPONSES, given, *says)
    def _(): return lambda: generate(lm(), asked(), **sampling)

wrong_sampling("no responses are asked for", n=0)
wrong_sampling("a number of responses as text", n="5")
wrong_sampling("two and a half responses", n=2.5)
wrong_sampling("a temperature below 0", temperature=-1)
wrong_sampling("a temperature that is NaN", temperature=math.nan)
wrong_sampling("a temperature as text", temperature="0.8")
wrong_sampling("a top_p of 0", top_p=0)
wrong_sampling("more new tokens than the model has positions", max_new_tokens=512)
wrong_sampling("a seed that is no number", seed=None)
wrong_sampling("a batch of no instructions", batch_size=0)

@case(RESPONSES, "an empty list of instructions")
def _(): return lambda: generate(lm(), [])

@case(RESPONSES, "texts in place of instructions")
def _(): return lambda: generate(lm(), ["Name two fruits."])

@case(RESPONSES, "a single instruction in place of a list")
def _(): return lambda: generate(lm(), asked()[0])

@case(RESPONSES, "the name of a model in place of the model")
def _(): return lambda: generate("tiny", asked())

@case(RESPONSES, "the same instruction twice")
def _(): return lambda: generate(lm(), [*asked(), asked()[0]])

@case(RESPONSES, "a prompt that is longer than the model's context")
def _(): return lambda: generate(lm(), [*asked(), Instruction.ask("Name two fruits. " * 200)])

@case(RESPONSES, "a prompt of 1 MB")
def _(): return lambda: generate(lm(), [Instruction.ask("Name two fruits. " * 60_000)])

@case(RESPONSES, "an instruction without text")
def _(): return lambda: Instruction.ask("  ")

@case(RESPONSES, "an instruction that ends with the assistant's turn")
def _(): return lambda: Instruction([turn("Hi"), turn("Hello", "assistant")])

@case(RESPONSES, "a conversation that the template does not know: two turns of the user")
def _():
    policy(chat_template__jinja="{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('the roles must alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")
    return lambda: generate(load_lm("model", device="cpu"), [Instruction([turn("Hi"), turn("Why?")])])

@happens(RESPONSES, "control tokens inside a question")
def _():
    def told():
        token = lm().tokenizer.convert_ids_to_tokens(lm().end_id)
        ids = lm().encode([turn(f"What does {token} mean?")]).prompt
        return f"The question stays text: {token} is {len(ids) - len(lm().encode([turn('What does  mean?')]).prompt)} tokens of text, and the end token is there {ids.count(lm().end_id)} times, as in every prompt ({lm().encode([turn('?')]).prompt.count(lm().end_id)})."
    return told

@case(RESPONSES, "weights that are NaN")
def _():
    policy(model__safetensors=tensors(lambda t: {k: v * math.nan for k, v in t.items()}))
    return lambda: generate(load_lm("model", device="cpu"), asked())

# Journals and folders

FOLDERS = "Files of a run"
short = dict(n=2, max_new_tokens=8)

def journal(name="responses.jsonl"): generate(lm(), asked(), out=name, **short); return name

def changed_journal(given, change, *says):
    @case(FOLDERS, given, *says)
    def _():
        rows = Path(journal()).read_text().splitlines()
        write("responses.jsonl", "\n".join(change(rows)) + "\n")
        return lambda: generate(lm(), asked(), out="responses.jsonl", **short)

changed_journal("a line of a journal that is no JSON any more", lambda rows: [*rows[:2], rows[2][:-5], *rows[3:]])
changed_journal("a line of a journal without a field", lambda rows: [rows[0], rows[1].replace('"text":', '"txt":'), *rows[2:]])
changed_journal("a number as text in a journal", lambda rows: [rows[0], rows[1].replace('"index":0', '"index":"0"'), *rows[2:]])
changed_journal("a line that is twice in a journal", lambda rows: [*rows, rows[-1]])
changed_journal("a journal without its first line", lambda rows: rows[1:])

@case(FOLDERS, "a journal in UTF-16")
def _(): write("responses.jsonl", Path(journal()).read_text().encode("utf-16")); return lambda: generate(lm(), asked(), out="responses.jsonl", **short)

@case(FOLDERS, "a journal of another run: another temperature")
def _(): journal(); return lambda: generate(lm(), asked(), out="responses.jsonl", temperature=.1, **short)

@case(FOLDERS, "a journal of another run: other instructions")
def _(): journal(); return lambda: generate(lm(), asked()[:2], out="responses.jsonl", **short)

@case(FOLDERS, "a journal of another run: another model")
def _(): journal(); policy(tokenizer_config__json=lambda old: old + b" "); return lambda: generate(load_lm("model", device="cpu"), asked(), out="responses.jsonl", **short)

@case(FOLDERS, "a journal of another kind")
def _(): journal("rankings.jsonl"); return lambda: Oracle().rank(asked(), answers(), "rankings.jsonl")

@case(FOLDERS, "a file of one's own where the journal is to go")
def _(): write("notes.txt", "Do not lose this.\n"); return lambda: generate(lm(), asked(), out="notes.txt", **short)

@case(FOLDERS, "a folder where the journal is to go", error=IsADirectoryError)
def _(): Path("responses.jsonl").mkdir(); return lambda: generate(lm(), asked(), out="responses.jsonl", **short)

TINY = "--recipe", "tiny", "--num_instructions", "2", "--responses_per_instruction", "2", "--max_new_tokens", "8"

@case(FOLDERS, "a file where the folder of the run is to go", error=SystemExit)
def _(): write("mine", "Do not lose this.\n"); return script(dpo_generate, *TINY, "--output_dir", "mine")

@case(FOLDERS, "a folder of the run inside a file", error=SystemExit)
def _(): write("mine", "Do not lose this.\n"); return script(dpo_generate, *TINY, "--output_dir", "mine/run")

@case(FOLDERS, "a folder with a name that is too long", error=SystemExit)
def _(): return script(dpo_generate, *TINY, "--output_dir", "m" * 300)

@happens(FOLDERS, "a folder with spaces and characters of all kinds in its name", new=("Läufe mit 😀/instructions.jsonl", "Läufe mit 😀/responses.jsonl", "Läufe mit 😀/passed_over.csv"))
def _(): return script(dpo_generate, *TINY, "--output_dir", "Läufe mit 😀")

@case(FOLDERS, "a folder in which one may not write", error=SystemExit)
def _(): Path("locked").mkdir(); return locked("locked", script(dpo_generate, *TINY, "--output_dir", "locked"))

@case(FOLDERS, "a mount that is read-only", error=SystemExit)
def _(): Path("drive").mkdir(); return read_only("drive", script(dpo_generate, *TINY, "--output_dir", "drive/run"))

@case(FOLDERS, "a question file that one may not read", error=SystemExit)
def _(): write("questions.txt", "Why?\n"); return locked("questions.txt", script(dpo_generate, *TINY, "--dataset", "questions.txt"))

@case(FOLDERS, "dpo_rank before dpo_generate", error=SystemExit)
def _(): return script(dpo_rank, "--recipe", "tiny", "--output_dir", "run")

@case(FOLDERS, "dpo_pairs before dpo_rank", error=SystemExit)
def _(): write_records("run/instructions.jsonl", asked()); journal("run/responses.jsonl"); return script(dpo_pairs, "--recipe", "tiny", "--output_dir", "run")

@case(FOLDERS, "dpo_rank when dpo_generate was broken off", error=SystemExit)
def _():
    write_records("run/instructions.jsonl", asked()); journal("run/responses.jsonl")
    write("run/responses.jsonl", Path("run/responses.jsonl").read_text().replace('"complete": true', '"complete": false'))
    return script(dpo_rank, "--recipe", "tiny", "--output_dir", "run")

@case(FOLDERS, "an instructions.jsonl with an edited text", error=SystemExit)
def _():
    write_records("run/instructions.jsonl", asked()); journal("run/responses.jsonl")
    write("run/instructions.jsonl", Path("run/instructions.jsonl").read_text().replace(asked()[1].text, "Why?"))
    return script(dpo_rank, "--recipe", "tiny", "--output_dir", "run")

@case(FOLDERS, "the folder of a run of another recipe", error=SystemExit)
def _(): Run("run", recipes["tiny"]); return script(dpo_demo, "--output_dir", "run", "--beta", ".2")

@case(FOLDERS, "a recipe.json that is cut", error=SystemExit)
def _(): Run("run", recipes["tiny"]); write("run/recipe.json", half(Path("run/recipe.json").read_bytes())); return script(dpo_demo, "--output_dir", "run")

@case(FOLDERS, "a folder of one's own that has an adapter in it", error=SystemExit)
def _(): write("run/adapter/adapter_config.json", "{}"); return script(dpo_demo, "--output_dir", "run")

# The judge

JUDGE = "The judge"

def judge_folder(given, *says, **changed):
    @case(JUDGE, given, *says)
    def _(): ranker(**changed); return lambda: PairRM.load("judge")

@case(JUDGE, "a judge that is no folder and not on the hub")
def _(): return lambda: PairRM.load("llm-blender/PairMR")

@case(JUDGE, "a language model in place of PairRM")
def _(): policy(); return lambda: PairRM.load("model")

judge_folder("a PairRM folder without weights", model__safetensors=None)

@case(JUDGE, "a PairRM folder with a pickle in place of safetensors")
def _(): ranker(model__safetensors=None); write("judge/pytorch_model.bin", b"PK"); return lambda: PairRM.load("judge")

judge_folder("PairRM weights that are cut", model__safetensors=half)
judge_folder("PairRM weights with a tensor of another size", model__safetensors=tensors(lambda t: {k: v[:, :-1].contiguous() if "head_layer.1.weight" in k else v for k, v in t.items()}))
judge_folder("PairRM weights without a tensor", model__safetensors=tensors(lambda t: {k: v for k, v in t.items() if k != "head_layer.1.weight"}))
judge_folder("a PairRM folder without tokenizer", tokenizer__json=None)
judge_folder("PairRM with the tokenizer of a language model", tokenizer__json=lambda old: (tiny_path("policy")/"tokenizer.json").read_bytes())
judge_folder("a PairRM tokenizer that is cut", tokenizer__json=half)
judge_folder("a PairRM config.json that is no JSON", config__json=b"{")
judge_folder("a PairRM config.json that is a list", config__json=b"[]")
judge_folder("a PairRM config.json of another kind of model", config__json=config(model_type="bert"))
judge_folder("a PairRM config.json with other markers", config__json=config(cand1_prefix_id=7))

@cache
def pairrm(): return PairRM.load("tiny", device="cpu")

@case(JUDGE, "responses to other instructions")
def _(): return lambda: pairrm().rank(asked()[:2], answers())

@case(JUDGE, "responses with the same number twice")
def _(): return lambda: pairrm().rank(asked(), [*answers(), answers()[0]])

@case(JUDGE, "no responses")
def _(): return lambda: pairrm().rank(asked(), [])

@case(JUDGE, "the oracle of the tiny world for other questions", error=SystemExit)
def _(): write("questions.txt", "Why?\nWho?\nWhere?\n"); return script(dpo_demo, "--instructions", "questions.txt", "--num_instructions", "2", "--judge", "oracle", "--num_test_instructions", "1", "--near_duplicates", "none")

def told_of(rankings): return f"Scores: {', '.join(str(s if s is None else round(s, 2)) for r in rankings for s in r.scores)}"

@happens(JUDGE, "one response alone")
def _(): return lambda: (lambda r: f"{told_of(r)} ({r[0].detail['reason']})")(pairrm().rank(asked()[:1], said_to(asked()[0].id, "Hi")))

@happens(JUDGE, "responses that are all empty, or all the same")
def _(): return lambda: told_of(pairrm().rank(asked()[:2], [*said_to(asked()[0].id, "", ""), *said_to(asked()[1].id, "Hi", "Hi")]))

@happens(JUDGE, "a response that is longer than the judge can read")
def _(): return lambda: f"Read as far as it fits; `detail` says which were cut: {pairrm().rank(asked()[:1], said_to(asked()[0].id, 'Glad to help! ' * 2000, 'Hi'))[0].detail['truncated']}"

# Pairs

PAIRS = "Pairs"

@cache
def rankings(): return Oracle().rank(asked(), answers())

@case(PAIRS, "a ranking of other texts")
def _(): return lambda: make_pairs(asked(), [replace(r, text=r.text + "!") for r in answers()], rankings())

@case(PAIRS, "a ranking of fewer responses")
def _(): return lambda: make_pairs(asked(), [*answers(), replace(answers()[0], index=3)], rankings())

@case(PAIRS, "rankings for instructions that are not there")
def _(): return lambda: make_pairs(asked()[:2], answers()[:6], rankings())

@case(PAIRS, "rankings of two judges")
def _(): return lambda: make_pairs(asked(), answers(), [*rankings(), replace(rankings()[0], judge="me")])

@case(PAIRS, "a score that is NaN")
def _(): return lambda: Ranking(asked()[0].id, "me", [1., math.nan])

@case(PAIRS, "scores as text, made by hand")
def _(): return lambda: Ranking(asked()[0].id, "me", ["1", "2"])

def hand_made(given, scores, *says):
    @case(PAIRS, given, *says, error=SystemExit)
    def _():
        write_records("run/instructions.jsonl", asked()[:1]); generate(lm(), asked()[:1], out="run/responses.jsonl", **short)
        write("run/rankings.jsonl", lines(dict(journal="Ranking", format=1, complete=True, settings={})) + f'{{"instruction_id":"{asked()[0].id}","judge":"me","scores":{scores}}}\n')
        return script(dpo_pairs, "--recipe", "tiny", "--output_dir", "run")

hand_made("a journal of rankings with scores as text", '["1", "2"]')
hand_made("a journal of rankings with NaN", '[NaN, 1]')
hand_made("a journal of rankings with too few scores", '[1]')
hand_made("a journal of rankings without the fingerprint of the texts", '[1, 2]')

@case(PAIRS, "a rule that does not exist")
def _(): return lambda: make_pairs(asked(), answers(), rankings(), rule="best")

@case(PAIRS, "a margin below 0")
def _(): return lambda: make_pairs(asked(), answers(), rankings(), margin=-1)

@case(PAIRS, "a margin that is NaN")
def _(): return lambda: make_pairs(asked(), answers(), rankings(), margin=math.nan)

@case(PAIRS, "a margin that no pair has")
def _(): return lambda: make_pairs(asked(), answers(), rankings(), margin=9)

def no_pairs(given, texts, *says, finished=True):
    @case(PAIRS, given, *says)
    def _():
        made = [replace(r, finished=finished) for i in asked() for r in said_to(i.id, *texts)]
        return lambda: make_pairs(asked(), made, pairrm().rank(asked(), made))

no_pairs("responses that are all the same", ["Hi", "Hi", "Hi"])
no_pairs("responses that are all empty", ["", "", ""])
no_pairs("one response to each instruction", ["Hi"])
no_pairs("responses that were all cut at the limit", ["Hi", "Um."], finished=False)

@case(PAIRS, "no responses at all")
def _(): return lambda: make_pairs(asked(), [], [])

@case(PAIRS, "a folder that holds other pairs")
def _(): save_pairs(make_pairs(asked(), answers(), rankings()), "pairs"); return lambda: save_pairs(make_pairs(asked(), answers(), rankings(), rule="all"), "pairs")

def pair_file(given, name, content, *says, **how):
    @case(PAIRS, given, *says, **how)
    def _(): write(name, content); return lambda: load_preferences(name)

pair_file("pairs in a .txt file", "pairs.txt", "Why?\n")
pair_file("an empty file of pairs", "pairs.jsonl", "")
pair_file("a file of pairs without `rejected`", "pairs.jsonl", lines(dict(prompt="Why?", chosen="So.")))
pair_file("a pair whose prompt is null", "pairs.jsonl", lines(dict(prompt="Why?", chosen="So.", rejected="No."), dict(prompt=None, chosen="So.", rejected="No.")))
pair_file("a pair whose prompt is empty", "pairs.jsonl", lines(dict(prompt="Why?", chosen="So.", rejected="No."), dict(prompt=" ", chosen="So.", rejected="No.")))
pair_file("a pair whose chosen is NaN", "pairs.jsonl", lines(dict(prompt="Why?", chosen=math.nan, rejected="No.")))
pair_file("a pair that is a list", "pairs.jsonl", lines(["Why?", "So.", "No."]))
pair_file("a prompt that ends with the assistant", "pairs.jsonl", lines(dict(prompt=[turn("Hi"), turn("Hello", "assistant")], chosen="So.", rejected="No.")))
pair_file("a chosen side with two turns", "pairs.jsonl", lines(dict(prompt="Why?", chosen=[turn("So.", "assistant"), turn("Who?")], rejected=[turn("No.", "assistant")])))
pair_file("a CSV of pairs with semicolons and other names", "pairs.csv", "frage;gut;schlecht\nWhy?;So.;No.\n")
pair_file("a parquet file of pairs that is cut", "pairs.parquet", b"PAR1" + bytes(40))

@case(PAIRS, "pairs that are not there")
def _(): return lambda: load_preferences("pairs.jsonl")

@case(PAIRS, "a folder of pairs from which a file was removed")
def _(): save_pairs(make_pairs(asked(), answers(), rankings()), "pairs"); Path("pairs/pairs.parquet").unlink(); return lambda: load_preferences("pairs")

@case(PAIRS, "a folder of pairs whose parquet file is cut")
def _(): save_pairs(make_pairs(asked(), answers(), rankings()), "pairs"); write("pairs/pairs.parquet", half(Path("pairs/pairs.parquet").read_bytes())); return lambda: load_preferences("pairs")

@case(PAIRS, "a folder of pairs whose settings.json is cut")
def _(): save_pairs(make_pairs(asked(), answers(), rankings()), "pairs"); write("pairs/settings.json", half(Path("pairs/settings.json").read_bytes())); return lambda: load_preferences("pairs")

@case(PAIRS, "a folder without pairs")
def _(): write("pairs/notes.md", "Why?"); return lambda: load_preferences("pairs")

# Training

TRAINING = "Training"

def training(given, rows, *says, **settings):
    @case(TRAINING, given, *says)
    def _(): return lambda: train_dpo(lm(), rows, "run", **(dict(lora_r=2) | settings))

training("no pairs", [])
training("the name of a file in place of pairs", "pairs.jsonl")
training("pairs of texts in place of messages", [dict(prompt="Why?", chosen="So.", rejected="No.")])
training("a pair without a chosen side, among good ones", [pair(), dict(prompt=[turn("Why?")], chosen=None, rejected=[turn("No.", "assistant")])])
training("a pair without a prompt", [dict(chosen=[turn("So.", "assistant")], rejected=[turn("No.", "assistant")])])
training("a pair whose prompt is a conversation with an unknown role", [pair() | dict(prompt=[turn("Hi", "bard")])])
training("pairs whose two sides are the same", [pair(chosen="5.", rejected="5.")])
training("pairs whose chosen side is empty", [pair(chosen="")])
training("only pairs that are longer than max_length", [pair()], max_length=8)
training("a pair with a response of 1 MB", [pair(chosen="2 + 3 = 5. " * 90_000)], max_length=None)
training("LoRA targets that match nothing", [pair()], targets=["c_attn"])
training("LoRA targets as one text", [pair()], targets="q_proj")
training("a rank of 0", [pair()], lora_r=0)
training("a rank as text", [pair()], lora_r="16")
training("a learning rate of 0", [pair()], learning_rate=0.)
training("a learning rate that is NaN", [pair()], learning_rate=math.nan)
training("a learning rate as text", [pair()], learning_rate="5e-5")
training("a learning rate that is far too high", [pair(prompt=f"What is {a} + {b}?") for a in range(1, 5) for b in range(1, 5)], learning_rate=1e30, batch_size=2, num_epochs=4, max_grad_norm=0)
training("a negative number of epochs", [pair()], num_epochs=-1)
training("a batch of 0", [pair()], batch_size=0)
training("a beta of 0", [pair()], beta=0.)
training("a reference that does not exist", [pair()], reference="itself")
training("reference='start' without an adapter to start from", [pair()], reference="start")
training("a mistyped field of TRL", [pair()], loss_typ="ipo")
training("a loss that TRL does not know", [pair()], loss_type="dpo")
training("a field that is set elsewhere", [pair()], output_dir="there")
training("a field of TRL with a value of the wrong kind", [pair()], warmup_steps="many")
training("a report to a package that is not installed", [pair()], report_to="wandb")
training("what was trained on as texts", [pair()], seen=["Why?"])

@case(TRAINING, "a folder of a training with other settings")
def _(): shutil.copytree(adapter(), "run"); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2, beta=.5)

@case(TRAINING, "a folder of a training on other pairs")
def _(): shutil.copytree(adapter(), "run"); return lambda: train_dpo(lm(), [pair("What is 3 + 2?")], "run", lora_r=2)

@case(TRAINING, "a folder with an adapter of something else")
def _(): shutil.copytree(adapter()/"adapter", "run/adapter"); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2)

@case(TRAINING, "a training.json that is cut")
def _(): shutil.copytree(adapter(), "run"); write("run/training.json", half(Path("run/training.json").read_bytes())); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2)

@case(TRAINING, "a finished training whose training.jsonl is gone")
def _(): shutil.copytree(adapter(), "run"); Path("run/training.jsonl").unlink(); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2)

@case(TRAINING, "a finished training whose training.jsonl has a broken line")
def _(): shutil.copytree(adapter(), "run"); write("run/training.jsonl", '{"loss": '); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2)

@case(TRAINING, "a file where the folder of the training is to go")
def _(): write("run", "Do not lose this.\n"); return lambda: train_dpo(lm(), [pair()], "run", lora_r=2)

@case(TRAINING, "dpo_train before dpo_pairs", error=SystemExit)
def _(): return script(dpo_train, "--recipe", "tiny", "--output_dir", "run")

@case(TRAINING, "dpo_train with a file of pairs that is not there", error=SystemExit)
def _(): return script(dpo_train, "--recipe", "tiny", "--dataset", "pairs.jsonl", "--output_dir", "run")

@happens(TRAINING, "one pair that is too long among good ones", new=...)
def _():
    def told():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_dpo(lm(), [pair(), pair(chosen="2 + 3 = 5. " * 500)], "run", lora_r=2)
        return str(next(w.message for w in said if "left out" in str(w.message)))
    return told

# Adapters

ADAPTERS = "Adapters"

def damaged(given, *says, base=lambda: lm(), **changed):
    @case(ADAPTERS, given, *says)
    def _(): copy(adapter()/"adapter", "adapter", **changed); return lambda: load_adapter(base(), "adapter")

@case(ADAPTERS, "an adapter that is not there")
def _(): return lambda: load_adapter(lm(), "runs/mine/adaptor")

@case(ADAPTERS, "the folder of the training in place of its adapter")
def _(): shutil.copytree(adapter(), "run"); return lambda: load_adapter(lm(), "run")

@case(ADAPTERS, "a file of an adapter in place of its folder")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); return lambda: load_adapter(lm(), "adapter/adapter_model.safetensors")

damaged("an adapter_config.json that is cut", adapter_config__json=half)
damaged("an adapter whose weights are cut", adapter_model__safetensors=half)
damaged("an adapter whose base.json is cut", base__json=half)
damaged("an adapter whose base.json is another object", base__json=b"{}")
damaged("an adapter without a layer that its configuration has", adapter_model__safetensors=tensors(lambda t: {k: v for k, v in t.items() if "layers.1.self_attn.q_proj" not in k}))
damaged("an adapter_config.json of a kind that PEFT does not know", adapter_config__json=config(peft_type="MAGIC"))
damaged("an adapter with another rank than its configuration says", adapter_config__json=config(r=16))

@case(ADAPTERS, "a pickle in place of the adapter's safetensors")
def _(): copy(adapter()/"adapter", "adapter", adapter_model__safetensors=None); write("adapter/adapter_model.bin", b"PK"); return lambda: load_adapter(lm(), "adapter")

@case(ADAPTERS, "an adapter of another model")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); policy(tokenizer_config__json=lambda old: old + b" "); return lambda: load_adapter(load_lm("model", device="cpu"), "adapter")

@case(ADAPTERS, "an adapter of another model, and nothing that says of which")
def _():
    copy(adapter()/"adapter", "adapter", base__json=None, adapter_model__safetensors=tensors(lambda t: {k.replace("layers.1.", "layers.30."): v for k, v in t.items()}))
    return lambda: load_adapter(lm(), "adapter")

@case(ADAPTERS, "an adapter on a model that has one already")
def _(): return lambda: load_adapter(load_adapter(lm(), adapter()/"adapter"), adapter()/"adapter")

@case(ADAPTERS, "a further training with another rank than the adapter has")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); return lambda: train_dpo(load_adapter(lm(), "adapter"), [pair()], "run", lora_r=4)

@case(ADAPTERS, "a merge into a folder that holds something else")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); write("merged/notes.md", "Do not lose this."); return lambda: merge_adapter("tiny", "adapter", "merged")

@case(ADAPTERS, "a merge in a precision that does not exist")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); return lambda: merge_adapter("tiny", "adapter", "merged", dtype="int8")

@case(ADAPTERS, "a merge into a model that is not there")
def _(): shutil.copytree(adapter()/"adapter", "adapter"); return lambda: merge_adapter("no/model", "adapter", "merged")

# Evaluation

EVALUATION = "Evaluation"

class OneScore:
    "A judge that does not do what a judge does."
    name = "mine"
    def rank(self, instructions, responses, out=None): return [Ranking(i.id, "mine", [1.]) for i in instructions]

def both(k=0): return dict(base=[said_to(i.id, "Um.")[0] for i in asked()], tuned=[said_to(i.id, "Glad to help!")[0] for i in asked()])

@case(EVALUATION, "instructions that were trained on")
def _(): return lambda: compare(asked(), both(), Oracle(), seen=asked()[:2])

@case(EVALUATION, "completions of other instructions")
def _(): return lambda: compare(asked(), both() | dict(tuned=both()["tuned"][::-1]), Oracle(), seen=[])

@case(EVALUATION, "completions of one model alone")
def _(): return lambda: compare(asked(), dict(base=both()["base"]), Oracle(), seen=[])

@case(EVALUATION, "completions of three models")
def _(): return lambda: compare(asked(), both() | dict(third=both()["base"]), Oracle(), seen=[])

@case(EVALUATION, "texts in place of responses")
def _(): return lambda: compare(asked(), dict(base=["a"] * 3, tuned=["b"] * 3), Oracle(), seen=[])

@case(EVALUATION, "no instructions")
def _(): return lambda: compare([], dict(base=[], tuned=[]), Oracle(), seen=[])

@case(EVALUATION, "the name of a judge in place of the judge")
def _(): return lambda: compare(asked(), both(), "oracle", seen=[])

@case(EVALUATION, "a judge that gives one score where two are compared")
def _(): return lambda: compare(asked(), both(), OneScore(), seen=[])

@case(EVALUATION, "a journal of the judge's rankings of other answers")
def _(): compare(asked(), both(), Oracle(), [], "rankings.jsonl"); return lambda: compare(asked(), both() | dict(tuned=both()["base"]), Oracle(), [], "rankings.jsonl")

@case(EVALUATION, "what was trained on as texts in place of instructions")
def _(): return lambda: compare(asked(), both(), Oracle(), seen=["Why?"])

@happens(EVALUATION, "questions that the judge cannot judge")
def _():
    from dpo_nb.evaluate import wins, verdict
    why = [Instruction.ask("Why?")]
    return lambda: verdict(compare(why, dict(base=said_to(why[0].id, "So."), tuned=said_to(why[0].id, "No.")), Oracle(), seen=[]))

@happens(EVALUATION, "too few instructions to tell")
def _():
    from dpo_nb.evaluate import wins
    def told():
        with warnings.catch_warnings(record=True) as said: warnings.simplefilter("always"); wins(compare(asked(), both(), Oracle(), seen=[]))
        return str(said[0].message)
    return told

EVALUATE = "--recipe", "tiny", "--num_test_instructions", "2", "--max_new_tokens", "8"

def evaluation(given, *flags, says=()):
    @case(EVALUATION, given, *says, error=SystemExit)
    def _(): shutil.copytree(adapter()/"adapter", "adapter"); return script(dpo_evaluate, *EVALUATE, *flags)

evaluation("dpo_evaluate without an adapter")
evaluation("an adapter without a name", "--adapter", "adapter")
evaluation("an adapter that is called base", "--adapter", "base=adapter")
evaluation("two adapters with the same name", "--adapter", "mine=adapter", "--adapter", "mine=adapter")
evaluation("an adapter that is not there, in dpo_evaluate", "--adapter", "mine=runs/mine")
evaluation("an output file without an ending", "--adapter", "mine=adapter", "--output_file", "results")
evaluation("more test questions than there are", "--adapter", "mine=adapter", "--num_test_instructions", "9999")
evaluation("an evaluator that is not there", "--adapter", "mine=adapter", "--judge", "me/myself")

@case(EVALUATION, "a folder where the output file is to go", error=SystemExit)
def _(): shutil.copytree(adapter()/"adapter", "adapter"); Path("results.csv").mkdir(); return script(dpo_evaluate, *EVALUATE, "--adapter", "mine=adapter", "--output_file", "results.csv")

@case(EVALUATION, "test questions that were all trained on", error=SystemExit)
def _():
    shutil.copytree(adapter()/"adapter", "adapter"); write("questions.txt", "".join(f"{i.text}\n" for i in asked()))
    return script(dpo_evaluate, *EVALUATE, "--adapter", "mine=adapter", "--test_instructions", "questions.txt", "--judge", "tiny")

# Recipes and flags

RECIPES = "Recipes and flags"

def flags(given, f, *args, says=()):
    @case(RECIPES, given, *says, error=SystemExit)
    def _(): return script(f, *args)

flags("a flag that does not exist", dpo_demo, "--learning-rate", "1e-4")
flags("a recipe that does not exist", dpo_demo, "--recipe", "mistral")
flags("a flag without its value", dpo_demo, "--seed")
flags("text for a number", dpo_demo, "--num_instructions", "ten")
flags("half an epoch too many: a comma for the point", dpo_demo, "--num_epochs", "1,5")
flags("a negative learning rate", dpo_demo, "--learning_rate", "-1")
flags("a learning rate of nan", dpo_demo, "--learning_rate", "nan")
flags("one response to an instruction", dpo_demo, "--responses_per_instruction", "1")
flags("a temperature of 0 for sampling", dpo_demo, "--temperature", "0")
flags("a seed below 0", dpo_demo, "--seed", "-1")
flags("a negative margin", dpo_demo, "--margin", "-1")
flags("a rule for pairs that does not exist", dpo_pairs, "--recipe", "tiny", "--rule", "worst")
flags("fields of TRL that are no JSON", dpo_demo, "--dpo", "loss_type=ipo")
flags("a mistyped field of TRL in a recipe", dpo_demo, "--dpo", '{"loss_typ": "ipo"}')
flags("a setting of the recipe among TRL's fields", dpo_demo, "--dpo", '{"beta": 0.2}')
flags("a mixture that is no JSON", dpo_generate, "--recipe", "tiny", "--dataset", "{tiny: 1}")
flags("a model that is not there", dpo_demo, "--model", "no/model")
flags("more new tokens than the model has positions, in a recipe", dpo_demo, "--max_new_tokens", "512")
flags("more instructions than there are", dpo_demo, "--num_instructions", "100000")
flags("text where a word is left over", dpo_demo, "runs/mine")
flags("0 threads", dpo_demo, "--threads", "0")

def recipe(given, *says, **fields):
    @case(RECIPES, given, *says)
    def _(): return lambda: run_recipe(replace(recipes["tiny"], **fields), "run", say=lambda line: None)

recipe("a recipe with text for a number", learning_rate="1e-4")
recipe("a recipe with a half number of instructions", num_instructions=2.5)
recipe("a recipe with None for a number", batch_size=None)
recipe("a recipe with NaN for a number", beta=math.nan)
recipe("a recipe with a text for yes or no", allow_cut="yes")
recipe("a recipe without a model", model="")

@case(RECIPES, "a recipe with a field that does not exist", error=TypeError)
def _(): return lambda: replace(recipes["tiny"], learning_rat=1e-4)

@case(RECIPES, "the name of a recipe in place of the recipe")
def _(): return lambda: run_recipe("tiny", "run")

# What must be so, for a case to be one

@contextlib.contextmanager
def as_nobody():
    "Without the rights of root."
    if os.geteuid(): yield; return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

def locked(path, do):
    "Do something while a file or folder has no rights."
    def told():
        Path().chmod(0o755); mode = Path(path).stat().st_mode; Path(path).chmod(0 if Path(path).is_file() else 0o555)
        try:
            with as_nobody(): return do()
        finally: Path(path).chmod(mode)
    return told

def read_only(path, do):
    "Do something while a folder is a mount that can only be read."
    def told():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", path], check=True, capture_output=True)
        try: return do()
        finally: subprocess.run(["umount", path], check=True)
    return told

# Run and tell

class Said(Exception):
    "What a script says when it ends with 2."

def outcome(c):
    "What one is told, and whether anything was wrong with how."
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        do = c.make()
        before = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path().rglob("*") if p.is_file()}
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as w: told, kind = do(), None
        except SystemExit as e: told, kind = err.getvalue(), f"exit {e.code}"
        except BaseException as e: told, kind = str(e), type(e).__name__
        after = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path().rglob("*") if p.is_file()}
        return told, kind, {k for k in before if after.get(k) != before[k]}, set(after) - set(before)

if __name__ == "__main__":
    import time
    for name, c in CASES.items():
        if len(sys.argv) > 1 and not re.search(sys.argv[1], c.stage + name): continue
        t = time.process_time()
        try: told, kind, changed, new = outcome(c)
        except Exception as e: told, kind, changed, new = repr(e), "CASE BROKEN", "", ""
        print(f"[{c.stage}] {name}  ({kind}{', NEW ' + str(new) if new else ''}{', CHANGED ' + str(changed) if changed else ''}, {time.process_time()-t:.1f} s)\n      {told if kind != 'exit 2' else told.strip()}"[:1200])
