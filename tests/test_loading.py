"Loading from a hub that refuses: a real server on this machine, a real client, and one clear line."
import json, shutil
from http.server import BaseHTTPRequestHandler

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo_nb.models import load_lm, nf4
from dpo_nb.tiny import tiny_path

GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}

@pytest.fixture
def hub(serve):
    "A hub with one repository for each way to be refused. It notes what it was asked for."
    asked, tiny, commit = [], tiny_path("policy"), "0" * 40
    class Hub(BaseHTTPRequestHandler):
        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for k, v in {"X-Repo-Commit": commit, "ETag": f'"{self.path.rpartition("/")[2]}"', "Content-Length": str(len(body)), **headers}.items(): self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD": self.wfile.write(body)
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            if self.path.startswith("/api/"): return self.answer(404, **{"X-Error-Code": "RepoNotFound"} if "nobody" in self.path else {"X-Error-Code": "EntryNotFound"})
            kind, file = self.path.split("/")[1], self.path.rpartition("/")[2]
            if kind == "nobody": return self.answer(401, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            if kind == "gated": return self.answer(403 if self.headers.get("Authorization") else 401, **GATED)
            if kind == "expired": return self.answer(401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
            if kind == "coded" and file == "config.json": return self.answer(200, json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}).encode())
            if file.endswith(".safetensors") or not (tiny/file).exists(): return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            self.answer(200, (tiny/file).read_bytes())
        do_HEAD = do_POST = do_GET
        def log_message(self, *_): pass
    return serve(Hub), asked

def refused(python, name, endpoint, tmp_path, revision=None, **env):
    env = dict(HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path/"home"), HF_TOKEN="") | env
    done = python(f"from dpo_nb.models import load_lm\ntry: load_lm({name!r}, revision={revision!r})\nexcept ValueError as e: print(e)", **env)
    assert done.returncode == 0 and done.stdout.startswith(f"{name} cannot be loaded: ") and done.stdout.count("\n") == 1, done.stderr[-3000:] + done.stdout
    return done.stdout

@pytest.mark.parametrize("token", ["", "hf_secret"])
def test_a_gated_model_names_its_page_and_the_ways_on(hub, python, tmp_path, token):
    said = refused(python, "gated/model", hub[0], tmp_path, HF_TOKEN=token)
    for part in ("https://huggingface.co/gated/model", "HF_TOKEN", "Colab or Kaggle"): assert part in said
    assert "hf_secret" not in said and ("Bearer hf_secret" in {a for _, a in hub[1]}) == bool(token)

def test_a_token_that_the_hub_refuses(hub, python, tmp_path):
    assert "refuses the token" in refused(python, "expired/model", hub[0], tmp_path, HF_TOKEN="hf_old")

def test_a_name_that_does_not_exist(hub, python, tmp_path):
    assert "exact name on the hub" in refused(python, "nobody/model", hub[0], tmp_path)

@pytest.mark.parametrize("revision", [None, "main"])
def test_pickles_are_not_read_and_nobody_is_asked_to_convert_them(hub, python, tmp_path, revision):
    said = refused(python, "pickles/model", hub[0], tmp_path, revision)
    assert "no safetensors" in said and "pickle can run code" in said
    assert any(path.endswith("model.safetensors") for path, _ in hub[1])
    assert not [path for path, _ in hub[1] if "discussions" in path or "spaces" in path or path.endswith(".bin")]

def test_code_of_others_is_not_run(hub, python, tmp_path):
    assert "needs code of its authors" in refused(python, "coded/model", hub[0], tmp_path)

@pytest.mark.parametrize("offline", ["1", pytest.param("0", marks=pytest.mark.full)]) # The client tries again for a minute
def test_no_connection(python, tmp_path, offline):
    assert "Is it a folder here" in refused(python, "some/model", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE=offline)

def test_four_bit_as_saved_follows_the_precision(tmp_path):
    "A checkpoint that was saved in 4 bit and bfloat16, asked for in 4 bit and float16."
    AutoModelForCausalLM.from_pretrained(tiny_path("policy"), dtype=torch.bfloat16, quantization_config=nf4(torch.bfloat16)).save_pretrained(tmp_path)
    for f in tiny_path("policy").glob("*token*"): shutil.copy(f, tmp_path)
    saved, fresh = load_lm(tmp_path, "float16", "cpu", "nf4"), load_lm("tiny", "float16", "cpu", "nf4")
    assert saved.settings["quantization"] == "nf4"
    assert torch.bfloat16 not in {t.dtype for t in [*saved.model.parameters(), *saved.model.buffers()]}
    ids = torch.tensor([fresh.encode([{"role": "user", "content": "Name two fruits."}]).prompt])
    with torch.no_grad(): a, b = (m.model(ids).logits.float() for m in (saved, fresh))
    assert a.isfinite().all() and (a - b).abs().max() < .1 * b.std()
