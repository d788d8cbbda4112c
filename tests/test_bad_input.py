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

def says(instruction_id, *texts): return [Response(instruction_id, k, t, 5, True, "m") for k, t in enumerate(texts)]

@cache
def answers(): return [r for i in asked() for r in says(i.id, "Glad to help!", "The word cat belongs to the animals.", "Um.")]

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
        print(f"[{c.stage}] {name}  ({kind}{', NEW ' + str(new) if new else ''}{', CHANGED ' + str(changed) if changed else ''}, {time.process_time()-t:.1f} s)\n      {told if kind != 'exit 2' else told.strip()}"[:900])
