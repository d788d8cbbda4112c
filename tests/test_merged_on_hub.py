"A merged model on a hub, served by this machine to a real client: it is known what it was trained on, also without a connection."
import json, re
from http.server import BaseHTTPRequestHandler

import pytest

from dpo_nb.records import Instruction, digest
from dpo_nb.instructions import traces
from dpo_nb.tiny import tiny_path

COMMIT, TOKEN, SEEN = "a" * 40, "hf_that_may_read", traces([Instruction.ask("Name two fruits.")])

@pytest.fixture
def hub(serve):
    "The tiny model as `me/plain`, and once more, with a `base.json`, as `me/merged`. It notes what was asked for."
    asked, files = [], {f.name: f.read_bytes() for f in tiny_path("policy").iterdir() if f.is_file()}
    repos = {"me/plain": files, "me/merged": files | {"base.json": json.dumps(dict(model="tiny", weights="w", instructions=SEEN)).encode()}}
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = re.fullmatch(rf"/(me/\w+)/resolve/(?:main|{COMMIT})/([^/]+)", self.path)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            body = repos[path[1]].get(path[2]) if path and known else None
            asked.append(self.path)
            self.send_response(404 if body is None else 200)
            if body is None: self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            for k, v in {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(self.path)}"', "Content-Length": str(len(body or b""))}.items(): self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD" and body: self.wfile.write(body)
        do_HEAD = do_POST = do_GET
        def log_message(self, *_): pass
    return serve(Hub), asked

@pytest.fixture
def ask(hub, python, tmp_path):
    def run(expression, name, **env):
        env = dict(HF_ENDPOINT=hub[0], HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path), HF_TOKEN=TOKEN, TQDM_DISABLE="1") | env
        done = python(f"import json\nfrom dpo_nb.adapters import *\nfrom dpo_nb.dpo import *\nfrom dpo_nb.models import load_lm\nname = {name!r}\nprint(json.dumps({expression}))", **env)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout), done.stderr
    return run

LOADED = "trained_on(load_lm(name, device='cpu'))"

@pytest.mark.parametrize("name, seen", [("me/merged", SEEN), ("me/plain", {})])
def test_what_a_model_of_the_hub_was_trained_on(hub, ask, name, seen):
    assert ask(LOADED, name)[0] == seen
    assert f"/{name}/resolve/{COMMIT}/base.json" in hub[1]
    assert ask("trained_on(name)", name)[0] == seen
    assert ask("base_identity(name)", name)[0] == dict(weights=COMMIT)
    hub[1].clear()
    said, errors = ask(LOADED, name, HF_HUB_OFFLINE="1") # The client has kept the file, or that there is none
    assert said == seen and not hub[1] and "not known" not in errors

def test_without_a_connection_it_is_said_that_nothing_is_known(ask):
    said, errors = ask("trained_on(name)", "me/merged", HF_HUB_OFFLINE="1")
    assert said == {} and "the hub cannot be reached, so whether me/merged has a base.json is not known" in errors

def test_a_name_that_the_hub_does_not_have(python, ask):
    with pytest.raises(AssertionError, match="me/merged cannot be read: .*exact name"): ask("trained_on(name)", "me/merged", HF_TOKEN="")
