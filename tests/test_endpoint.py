"Responses from a server: a real one, which is killed like its client, and small ones that fail in every way a server can."
import asyncio, json, os, random, signal, socket, subprocess, sys, time, urllib.request, warnings
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Lock

import pytest

from conftest import ROOT, kill_when
from dpo_nb.cli import dpo_generate
from dpo_nb.generation import generate
from dpo_nb.endpoint import Endpoint
from dpo_nb.models import load_lm
from dpo_nb.running import recipes, run_recipe
from dpo_nb.records import Instruction, Response
from dpo_nb.journal import Journal, read_journal
from dpo_nb.data.train_tiny import demonstration
from dpo_nb.tiny import TinyWorld, tiny_path

ASKED = TinyWorld().instructions("dev")[:24]
HOW = dict(responses_per_instruction=2, temperature=0, max_new_tokens=64)
CLIENT = """
import sys
from dpo_nb.generation import generate
from dpo_nb.endpoint import Endpoint
from dpo_nb.tiny import TinyWorld
url, model, out = sys.argv[1:]
generate(Endpoint(url, model, concurrency=4), TinyWorld().instructions("dev")[:24], out=out, responses_per_instruction=2, temperature=0, max_new_tokens=64)
"""

def client(*args): return subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, args)], cwd=ROOT, stderr=subprocess.DEVNULL)

def rows(path): return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

class Served:
    "`transformers serve` of the tiny model on this machine."
    def __init__(self, home):
        (home/"hub").mkdir(parents=True)
        self.env, self.port, self.model = os.environ | dict(HF_HOME=str(home), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"), free_port(), str(tiny_path("policy"))
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        serve = [Path(sys.executable).with_name("transformers"), "serve", self.model, "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(serve, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self):
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server did not start"
            try: return urllib.request.urlopen(f"{self.url}/health").close()
            except OSError: time.sleep(.2)
        raise AssertionError("the server takes too long")

    def kill(self): self.process.kill(); self.process.wait()

@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(tmp_path_factory.mktemp("home"))
    server.start(); server.wait()
    yield server
    server.kill()

def written(responses): return {r.key: (r.text, r.n_tokens, r.finished) for r in responses}

@pytest.fixture(scope="module")
def local(): return written(generate(load_lm("tiny", device="cpu"), ASKED, **HOW))

def test_a_server_writes_what_the_model_writes_here(served, local, tmp_path):
    responses = generate(Endpoint(served.url, served.model), ASKED, out=tmp_path/"responses.jsonl", **HOW)
    assert [r.key for r in responses] == [(i.id, k) for i in ASKED for k in range(2)]
    assert written(responses) == local
    assert read_journal(tmp_path/"responses.jsonl", Response) == sorted(responses, key=lambda r: r.key)
    with pytest.raises(ValueError, match="other"): generate(Endpoint(served.url, "other", max_retries=0), ASKED, **HOW)

def test_a_client_that_is_killed_goes_on(served, local, tmp_path):
    out = tmp_path/"responses.jsonl"
    assert kill_when(client(served.url, served.model, out), lambda: rows(out) >= 10) == -signal.SIGKILL
    kept = Journal(out, Response).rows
    assert 10 <= len(kept) < 48 and kept.keys() <= local.keys()
    with open(out, "ab") as f: f.write(b'{"instruction_id":"12')
    generate(Endpoint(served.url, served.model), ASKED, out=out, **HOW)
    there = read_journal(out, Response)
    assert len(there) == 48 and written(there) == local
    assert all(r == kept[r.key] for r in there if r.key in kept)

def test_a_server_that_is_killed_is_waited_for(served, local, tmp_path):
    out = tmp_path/"responses.jsonl"
    waiting = client(served.url, served.model, out)
    while rows(out) < 10: assert waiting.poll() is None; time.sleep(.002)
    served.kill()
    kept = rows(out)
    served.start()
    assert kept < 48 and waiting.poll() is None
    served.wait()
    assert waiting.wait(timeout=120) == 0
    there = read_journal(out, Response)
    assert len(there) == 48 and written(there) == local


class Server(BaseHTTPRequestHandler):
    "An OpenAI-compatible server that says what it is told, until a subclass has it fail."
    protocol_version, models, lock = "HTTP/1.1", ["m"], Lock()
    def __init_subclass__(cls): cls.bodies, cls.when = [], []
    def log_message(self, *_): pass
    def say(self, what, status=200, **headers):
        content = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items(): self.send_header(name.replace("_", "-"), value)
        self.end_headers(); self.wfile.write(content)
    def do_GET(self): self.say(dict(data=[dict(id=m) for m in self.models])) if self.path == "/v1/models" else self.say(b"no such page", 404)
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions": return self.say(b"no such page", 404)
        with self.lock: self.bodies.append(body); self.when.append(time.monotonic()); k = len(self.bodies)
        self.answer(body, k)
    def answer(self, body, k): self.done(body["messages"][-1]["content"])
    def done(self, text, how="stop", tokens=5, **message): self.say(dict(choices=[dict(message=dict(content=text, **message), finish_reason=how)], usage=dict(completion_tokens=tokens)))

def fails(*first, then=None):
    "A server whose first answers are these."
    class Failing(Server):
        def answer(self, body, k):
            act = first[k - 1] if k <= len(first) else then
            act(self) if act else super().answer(body, k)
    return Failing

def error(status, message="it is said why", **headers): return lambda self: self.say(dict(error=dict(message=message, type="t", param=None, code=None)), status, **headers)

def drop(self):
    self.send_response(200); self.send_header("Content-Length", "1000"); self.end_headers()
    self.wfile.write(b'{"choices": [{"mess'); self.close_connection = True

def stall(self): time.sleep(2)

def ask(url, out=None, asked=ASKED[:6], model="m", n=1, max_new_tokens=64, **how): return generate(Endpoint(url, model, **how), asked, responses_per_instruction=n, out=out, max_new_tokens=max_new_tokens)

def refused(call, *parts):
    "The message of an error, which has all these parts."
    with pytest.raises(ValueError) as e: call()
    for part in parts: assert part in str(e.value), str(e.value)
    assert "\n" not in str(e.value)
    return str(e.value)

def test_before_the_run_begins(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-top-secret")
    class Nowhere(Server):
        def do_GET(self): self.say(b"<html>not here</html>", 404)
    class Page(Server):
        def do_GET(self): self.say(b"<html>Welcome</html>", Content_Type="text/html")
    class Locked(Server):
        def do_GET(self): self.say(dict(error=dict(message=f"Incorrect API key provided: {self.headers['Authorization']}")), 401)
    class Strict(Server):
        models = ["llama3:latest", "mistral"]
        def answer(self, body, k): self.say(dict(error=dict(message=f"The model `{body['model']}` does not exist.")), 404) if body["model"] not in self.models else super().answer(body, k)
    out, began = tmp_path/"responses.jsonl", time.monotonic()
    refused(lambda: ask(f"http://127.0.0.1:{free_port()}", out), "(APIConnectionError: [Errno 111] Connection refused). Check its address, and that it runs", f"What has come is in {out}")
    refused(lambda: ask(serve(Nowhere)), "/v1 answers 404 (<html>not here</html>). Check its address")
    refused(lambda: ask(serve(Page)), "no answer of an OpenAI-compatible server (JSONDecodeError")
    assert "sk-top-secret" not in refused(lambda: ask(serve(Locked)), "answers 401 (Incorrect API key provided: Bearer …). Check", "the key (OPENAI_API_KEY)")
    refused(lambda: ask(f"{serve(Server)}/openai"), "/openai answers 404 (no such page)")
    with pytest.warns(UserWarning, match="does not list 'llama3'. It lists llama3:latest, mistral."):
        refused(lambda: ask(serve(Strict), model="llama3"), "answers 404 (The model `llama3` does not exist). Check its address, the model's name")
    assert time.monotonic() - began < 60 and len(ask(serve(Strict), model="mistral", n=2)) == 12

def test_a_server_that_lists_other_names_than_it_answers_to(serve):
    with pytest.warns(UserWarning, match="does not list 'mine'. It lists m."): assert len(ask(serve(fails()), model="mine")) == 6

@pytest.mark.parametrize("failure", [error(408), error(409), error(429), error(500), error(502), error(503), drop, stall], ids="408 409 429 500 502 503 dropped stalled".split())
def test_what_passes_is_tried_again(serve, tmp_path, failure):
    handler = fails(failure, failure)
    responses = ask(serve(handler), tmp_path/"responses.jsonl", timeout=.5, concurrency=1)
    assert [r.text for r in responses] == [i.text for i in ASKED[:6]] and len(handler.bodies) == 8
    assert handler.bodies[0] == handler.bodies[1] == handler.bodies[2] # The same request, its seed too
    assert handler.when[1] - handler.when[0] > .37 and handler.when[2] - handler.when[1] > .74

@pytest.mark.parametrize("after", [lambda: "1.5", lambda: formatdate(time.time() + 2.5, usegmt=True)], ids=["seconds", "date"])
def test_retry_after_is_honoured(serve, after):
    handler = fails(lambda self: error(429, Retry_After=after())(self))
    assert len(ask(serve(handler), concurrency=1)) == 6
    assert 1.4 < handler.when[1] - handler.when[0] < 20

@pytest.mark.parametrize("failure, why", [
    (error(429, "Rate limit reached"), "answers 429 (Rate limit reached). Check its log"), (error(500), "answers 500 (it is said why)"),
    (drop, "(APIConnectionError: "), (stall, "(APITimeoutError"), (error(429, Retry_After="3600"), "answers 429")], ids="429 500 dropped stalled hour".split())
def test_what_does_not_pass_says_what_is_kept_and_goes_on(serve, tmp_path, failure, why):
    out, ok = tmp_path/"responses.jsonl", lambda self: self.done("kept")
    handler = fails(ok, ok, ok, then=failure)
    began = time.monotonic()
    refused(lambda: ask(serve(handler), out, concurrency=1, timeout=.3, max_retries=1), why, f"What has come is in {out}; the same call goes on from there.")
    assert time.monotonic() - began < 20 and len(Journal(out, Response).rows) == 3
    later = fails()
    responses = ask(serve(later), out)
    assert [r.text for r in responses] == ["kept"] * 3 + [i.text for i in ASKED[3:6]] and len(later.bodies) == 3

def test_a_server_that_hangs_is_not_waited_for_for_hours(serve, monkeypatch):
    monkeypatch.setattr("dpo_nb.endpoint.WAITING", .3)
    began = time.monotonic()
    refused(lambda: ask(serve(fails(then=stall)), timeout=.3), "(TimeoutError", "raise timeout")
    assert time.monotonic() - began < 10

@pytest.mark.parametrize("failure, why", [
    (lambda self: self.say(b'{"choices": [{"message'), "no answer of an OpenAI-compatible server"), (lambda self: self.say(b"<html>Bad gateway</html>", Content_Type="text/html"), "JSONDecodeError"),
    (lambda self: self.say(b'\xff\xfe{"a"}'), "no answer of an OpenAI-compatible server"), (lambda self: self.say(dict(choices=[dict(message=dict(content="Hi"), finish_reason="stop")])), "KeyError: 'usage'"),
    (lambda self: self.say(dict(choices=[dict(message=dict(content=["Hi"]), finish_reason="stop")], usage=dict(completion_tokens=1))), "no answer of an OpenAI-compatible server"),
    (error(401, "the key has expired"), "answers 401 (the key has expired)"), (error(404, "the model was unloaded"), "answers 404 (the model was unloaded)"),
    (error(429, "You exceeded your current quota", x_should_retry="false"), "answers 429 (You exceeded your current quota)")], ids="half html bytes usage content 401 404 quota".split())
def test_what_never_passes_stops_at_once(serve, tmp_path, failure, why):
    handler, out = fails(lambda self: self.done("kept"), then=failure), tmp_path/"responses.jsonl"
    refused(lambda: ask(serve(handler), out, concurrency=1), why, f"What has come is in {out}")
    assert len(handler.bodies) == 2 and len(Journal(out, Response).rows) == 1

class Short(Server):
    "A context of 1,000 characters."
    def answer(self, body, k):
        size = len(body["messages"][-1]["content"])
        self.say(dict(error=dict(message=f"This model's maximum context length is 1000 tokens, but there are {size}.")), 400) if size > 1000 else super().answer(body, k)

def test_a_prompt_that_is_too_long_costs_nothing_else(serve, tmp_path):
    out, asked = tmp_path/"responses.jsonl", [Instruction.ask("Sort: " + "apple, " * 300), *ASKED]
    with pytest.warns(UserWarning, match=f"withholds 2 responses, the latest to instruction {asked[0].id}.*maximum context length is 1000.*responses.jsonl"): responses = ask(serve(Short), out, asked, n=2)
    assert [r.key for r in responses] == [(i.id, k) for i in asked for k in range(2)]
    missing = [r for r in responses if r.withheld]
    assert [r.key for r in missing] == [(asked[0].id, k) for k in range(2)] and "1000 tokens, but there are 210" in missing[0].withheld
    assert [(r.text, r.n_tokens, r.finished, r.model) for r in missing] == [("", 0, False, "m")] * 2
    assert read_journal(out, Response) == sorted(responses, key=lambda r: r.key)
    with warnings.catch_warnings(record=True) as said: # Nobody is there any more, and nothing is asked
        warnings.simplefilter("always")
        assert ask("http://127.0.0.1:1", out, asked, n=2) == responses and len(said) == 1
    out.write_text("".join(line for line in out.read_text().splitlines(keepends=True) if "maximum context" not in line))
    handler = fails()
    assert len(ask(serve(handler), out, asked, n=2)) == 50 and len(handler.bodies) == 2 and Journal(out, Response).complete

def test_what_the_server_withholds_is_no_response(serve, tmp_path):
    def several(self): self.say(dict(choices=[dict(message=dict(content=None, tool_calls=[{}]), finish_reason="tool_calls")], usage=dict(completion_tokens=9)))
    out, withheld = tmp_path/"responses.jsonl", [lambda self: self.done("I wo", "content_filter"), lambda self: self.done(None), lambda self: self.done(None, "length"), several]
    handler = fails(*withheld, lambda self: self.done("", tokens=1), lambda self: self.done("It is", "length"))
    with pytest.warns(UserWarning, match="withholds 4 responses"): responses = ask(serve(handler), out, ASKED, n=2, concurrency=1)
    assert [bool(r.withheld) for r in responses] == [True] * 4 + [False] * 44 and read_journal(out, Response) == sorted(responses, key=lambda r: r.key)
    assert [(r.text, r.n_tokens, r.finished) for r in responses[4:7]] == [("", 1, True), ("It is", 5, False), (ASKED[3].text, 5, True)]

def test_what_an_earlier_version_left_is_taken_in(serve, tmp_path):
    "Its second journal: the head of the first, and lines of their own. The name of a setting was another one, and a line may be torn."
    out, old = tmp_path/"responses.jsonl", tmp_path/"responses_withheld.jsonl"
    withheld = [lambda self: self.done(None, "content_filter")]
    with pytest.warns(UserWarning, match="withholds 1 response,"): responses = ask(serve(fails(*withheld)), out, concurrency=1)
    whole = out.read_bytes()
    head, *rows = [json.loads(line) for line in whole.splitlines()]
    head["settings"] = {"n" if k == "responses_per_instruction" else k: v for k, v in head["settings"].items()}
    there = [{k: v for k, v in row.items() if k != "withheld"} for row in rows if not row["withheld"]]
    reasons = [dict(instruction_id=row["instruction_id"], index=row["index"], reason=row["withheld"]) for row in rows if row["withheld"]]
    def write(path, rows, journal, torn=""): path.write_text("".join(json.dumps(row) + "\n" for row in (head | dict(journal=journal), *rows)) + torn)
    for torn in ("", '{"instruction_id":"12'):
        write(out, there, "Response"); write(old, reasons, "Withheld", torn)
        with pytest.warns(UserWarning, match="withholds 1 response,"): assert ask("http://127.0.0.1:1", out) == responses
        assert out.read_bytes() == whole and not old.exists()
    out.unlink(); write(old, reasons, "Withheld") # What was withheld at another limit says nothing about this one
    assert not any(r.withheld for r in ask(serve(fails()), out, max_new_tokens=5)) and old.exists()

def test_a_request_that_the_server_never_takes_stops_soon(serve, tmp_path):
    handler, out = fails(then=error(400, "temperature must be 1")), tmp_path/"responses.jsonl"
    refused(lambda: ask(serve(handler), out, ASKED, n=2), "withholds 20 responses", "(400: temperature must be 1)", f"What has come is in {out}")
    assert len(handler.bodies) < 48 and not Journal(out, Response).rows
    refused(lambda: ask(serve(fails(then=error(400))), out=None, asked=ASKED[:2]), "withholds 2 responses")

def test_the_limit_under_its_other_name(serve):
    class Newer(Server):
        def answer(self, body, k):
            if "max_tokens" in body: return self.say(dict(error=dict(message="Use 'max_completion_tokens' instead.", param="max_tokens", code="unsupported_parameter")), 400)
            self.done("It is", "length") if body["max_completion_tokens"] == 7 else self.say(b"", 500)
    responses = ask(serve(Newer), asked=ASKED, n=3, max_new_tokens=7)
    assert len(responses) == 72 and sum("max_tokens" in b for b in Newer.bodies) <= 16 and responses[0].sampling["max_new_tokens"] == 7

def test_any_text_goes_through_the_journal(serve, tmp_path):
    texts = ["\x00\x07\x1b[31m", "\u2028\u2029\x85\ufeff", '"\\\r\n\t', "😀 \U0010ffff", "half \ud83d of it", " \n"]
    class Odd(Server):
        def answer(self, body, k): self.done(texts[[i.text for i in ASKED].index(body["messages"][-1]["content"])])
    out = tmp_path/"responses.jsonl"
    responses = ask(serve(Odd), out)
    assert [r.text for r in responses] == [t.replace("\ud83d", "\ufffd") for t in texts]
    assert ask("http://127.0.0.1:1", out) == responses

def test_so_many_at_a_time_and_no_more(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-top-secret")
    class Counting(Server):
        under_way, most, keys = 0, 0, set()
        def answer(self, body, k):
            with self.lock: Counting.under_way += 1; Counting.most = max(self.most, self.under_way); self.keys.add(self.headers["Authorization"])
            time.sleep(.05)
            with self.lock: Counting.under_way -= 1
            super().answer(body, k)
    url, out = serve(Counting), tmp_path/"responses.jsonl"
    async def in_a_notebook(): return ask(url, out, ASKED, n=2, concurrency=5)
    responses = asyncio.run(in_a_notebook()) # Where a loop is running already
    assert Counting.most == 5 and len(responses) == len(Counting.bodies) == 48
    assert len({b["seed"] for b in Counting.bodies}) == 48 and Counting.keys == {"Bearer sk-top-secret"}
    assert not any(s in f.read_text() for f in tmp_path.iterdir() for s in ("secret", "127.0.0.1"))

def test_ctrl_c_stops_at_once_and_keeps_what_has_come(serve, tmp_path):
    class Slow(Server):
        def answer(self, body, k): time.sleep(30) if k > 20 else super().answer(body, k)
    out = tmp_path/"responses.jsonl"
    process = client(serve(Slow), "m", out)
    while rows(out) < 20: assert process.poll() is None; time.sleep(.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=25) != 0
    assert len(Journal(out, Response).rows) == 20

# The whole job

class Demonstrator(Server):
    "Answers questions of the tiny world, sometimes well and sometimes badly, and one not at all."
    models = ["tiny"]
    def answer(self, body, k):
        rng = random.Random(body["seed"])
        if body["seed"] % 40 == 0: return self.done(None, "content_filter")
        self.done(demonstration(Instruction.ask(body["messages"][-1]["content"]), rng.random(), rng))

def test_a_run_whose_responses_come_from_a_server(serve, tmp_path):
    url, said = serve(Demonstrator), []
    r = replace(recipes["tiny"], endpoint=url, num_instructions=20, num_test_instructions=20, num_epochs=1)
    with pytest.warns(UserWarning, match="withholds"): result = run_recipe(r, tmp_path/"run", said.append)
    responses = read_journal(tmp_path/"run"/"responses.jsonl", Response)
    missing = [r for r in responses if r.withheld]
    assert len(responses) == 100 == len(result.pairs.fates) and missing
    assert not any(p["chosen"][0]["content"] == "" or p["rejected"][0]["content"] == "" for p in result.pairs.dataset)
    assert f"withheld by the server: {len(missing)} response" in result.notes[0]
    assert len(result.comparison.table) == 20 and result.training.pairs > 20

def test_the_script_asks_a_real_server(served, tmp_path, capsys):
    asked = ["--recipe", "tiny", "--num_instructions", "4", "--responses_per_instruction", "2", "--output_dir", str(tmp_path/"run")]
    dpo_generate([*asked, "--endpoint", served.url, "--model", served.model])
    assert "8 responses to 4 instructions" in capsys.readouterr().out
    assert len(read_journal(tmp_path/"run"/"responses.jsonl", Response)) == 8
    with pytest.raises(SystemExit): dpo_generate([*asked, "--endpoint", served.url, "--model", served.model, "--quantization", "nf4"])
    assert "quantization is for a model that is loaded here" in capsys.readouterr().err

STOPPED = """
import gc, openai, signal, sys, time
from threading import Timer, enumerate
from dpo_nb.endpoint import Endpoint
url, stopped = sys.argv[1], 0
endpoint = Endpoint(url, "m", key="", concurrency=8)
for k in range(40): # At 40 moments, from the first connection on
    try:
        Timer(k * .002, signal.raise_signal, [signal.SIGINT]).start()
        endpoint.ask_each({n: ([], 0) for n in range(8)}, lambda key, answer: None, temperature=0., top_p=1., max_new_tokens=1); time.sleep(1)
    except KeyboardInterrupt: stopped += 1
    gc.collect()
time.sleep(.2)
print(stopped, *[thread.name for thread in enumerate()])
"""

def test_ctrl_c_while_a_server_connects_says_nothing(serve):
    class Silent(Server):
        def answer(self, body, k): time.sleep(.5); self.say(dict(choices=[dict(message=dict(content="So."), finish_reason="stop")], usage=dict(completion_tokens=1)))
    address = serve(Silent).replace("127.0.0.1", "localhost") # So that it has to be looked up
    done = subprocess.run([sys.executable, "-c", STOPPED, address], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "40 MainThread\n", "")
