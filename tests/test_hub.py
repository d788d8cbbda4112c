"Instructions from a hub: a server of our own that speaks the hub's protocol, asked by the real clients in a process of their own."
import json, random, re
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlparse

import pytest

GOOD = "hf_that_may_read"

def jsonl(rows): return "".join(json.dumps(r) + "\n" for r in rows).encode()

CONFIGS = "---\nconfigs:\n- config_name: short\n  data_files:\n  - {split: train, path: short/train.jsonl}\n  - {split: test, path: short/test.jsonl}\n" \
          "- config_name: long\n  data_files:\n  - {split: train, path: long/train.jsonl}\n---\n"
REPOS = {
    "GAIR/lima": {"train.jsonl": jsonl({"conversations": [f"Question {k}?", "An answer."], "source": "multi_turn"} for k in range(20))},
    "someone/chats": {"README.md": CONFIGS.encode()} | {f"{f}.jsonl": jsonl({"messages": [{"role": "user", "content": f"{f} {k}"}], "score": k} for k in range(n))
                                                      for f, n in {"short/train": 5, "short/test": 4, "long/train": 3}.items()},
    "someone/tools": {"train.jsonl": jsonl({"messages": [{"role": "user", "content": f"Add {k} and 2."}] + [{"role": "assistant", "content": None}, {"role": "tool", "content": "4"}] * (k == 1)} for k in range(3)),
                      "test.jsonl": jsonl({"messages": [{"role": "bard", "content": f"Hi {k}"}]} for k in range(2))},
}

class Hub(BaseHTTPRequestHandler):
    "Some data sets, which the bearer of one token may read."
    asked = []

    def answer(self, status, content=b"", **head):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | head).items(): self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    def do_GET(self):
        path, token = unquote(urlparse(self.path).path), self.headers.get("Authorization")
        what = re.fullmatch(r"(/api)?/datasets/(\w+/\w+)(?:/(resolve|tree|revision)/(\w+)(?:/(.*))?)?", path)
        if not what or what[2] not in REPOS: return self.answer(404, X_Error_Code="RepoNotFound")
        self.asked.append(token)
        files, kind, name, commit = REPOS[what[2]], what[3], what[5], "1" * 40
        if token != f"Bearer {GOOD}": return self.answer(403 if token else 401, X_Error_Code="GatedRepo", X_Error_Message="gated")
        if kind == "resolve": return self.answer(200, files[name], ETag=f'"{abs(hash(name))}"', X_Repo_Commit=commit) if name in files else self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if kind == "tree": found = [dict(type="file", path=f, size=len(c), oid="0" * 40) for f, c in files.items() if f.startswith(f"{name}/" if name else "")]
        else: found = dict(_id="0", id=what[2], sha=commit, private=False, gated="auto", disabled=False, downloads=0, likes=0, tags=[], siblings=[dict(rfilename=f) for f in files])
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_GET

    def log_message(self, *args): pass

@pytest.fixture
def ask(python, serve, tmp_path):
    "Draw from a source, in a process whose hub is this server: `(output, the last line of its errors)`. The output is what was drawn, and below it what was passed over."
    Hub.asked.clear()
    address = serve(Hub)
    def from_hub(source, n, token):
        code = f"import json; from dpo_nb.instructions import load_instructions; drawn = load_instructions({source!r}, num_instructions={n}); print(json.dumps([(i.text, i.reference, i.source) for i in drawn]), json.dumps(drawn.passed), sep='\\n')"
        done = python(code, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path), HF_TOKEN=token, TQDM_DISABLE="1")
        return done.stdout, done.stderr.strip().rpartition("\n")[2]
    return from_hub

def test_lima_is_fetched_with_the_token_and_its_draw_is_the_published_one(ask, tmp_path):
    said, error = ask("lima", 3, GOOD)
    assert json.loads(said.splitlines()[0]) == [[f"Question {k}?", "An answer.", "lima"] for k in random.Random(42).sample(range(20), 3)], error
    assert set(Hub.asked) == {f"Bearer {GOOD}"} and not any(GOOD.encode() in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())

@pytest.mark.parametrize("token", ["", "hf_of_a_stranger"])
def test_without_access_to_lima_the_error_says_the_way_on(ask, token):
    said, error = ask("lima", 3, token)
    assert not said and Hub.asked and "its authors want a licence accepted first" in error and "hf_of_a_stranger" not in error
    for way in ("https://huggingface.co/datasets/GAIR/lima", "HF_TOKEN", "the path of its train.jsonl"): assert way in error

def test_a_data_set_of_the_hub_by_configuration_and_split(ask):
    said, error = ask("someone/chats/short:test", None, GOOD)
    assert json.loads(said.splitlines()[0]) == [[f"short/test {k}", None, "someone/chats/short:test"] for k in range(4)], error
    assert len(json.loads(ask("someone/chats/long", None, GOOD)[0].splitlines()[0])) == 3

def test_a_row_of_another_form_is_passed_over_and_listed(ask):
    said, error = ask("someone/tools", None, GOOD)
    drawn, passed = map(json.loads, said.splitlines())
    assert [text for text, *_ in drawn] == ["Add 0 and 2.", "Add 2 and 2."], error
    assert passed == [["someone/tools", "row 2", "", "unreadable", "what the assistant says in `messages` must be text; found None"]]

def test_a_data_set_without_a_row_that_can_be_read_is_an_error(ask):
    said, error = ask("someone/tools:test", None, GOOD)
    assert not said and error.startswith("ValueError: someone/tools:test, row 1: a turn in `messages` needs a `role`") and "Correct them" in error

@pytest.mark.parametrize("source, why", [("someone/chats", ("'short'", "'long'")), ("someone/chats/short:dev", ("'train'", "'test'")),
                                         ("someone/nothing", ("Is it a folder here, or the exact name on the hub?", "HF_TOKEN"))])
def test_what_the_hub_does_not_have(ask, source, why):
    said, error = ask(source, None, GOOD)
    assert not said and error.startswith("ValueError: ") and all(w in error for w in why) and "'owner/name/config:split'" in error
