"What every chat template that ships with the libraries must give, whatever it writes between the messages."
import ast, datetime, json, re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from dpo_nb.models import LM, PLAIN_TEMPLATE, load_lm

TRL = Path(find_spec("trl").submodule_search_locations[0])/"chat_templates"
LLAMA4 = Path(find_spec("transformers").submodule_search_locations[0])/"models/llama4/processing_llama4.py"
# As Mistral-7B-Instruct-v0.2's: two roles in turn and nothing else, the end behind the assistant
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role != ('assistant' if loop.index0 % 2 else 'user') %}{{ raise_exception('user and assistant must take turns') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

def shipped():
    llama4 = next(ast.literal_eval(n.value) for n in ast.parse(LLAMA4.read_text()).body if isinstance(n, ast.Assign) and n.targets[0].id == "chat_template")
    return {p.stem: p.read_text() for p in sorted(TRL.glob("*.jinja"))} | dict(llama4=llama4, mistral=MISTRAL, plain=PLAIN_TEMPLATE)

TEMPLATES = shipped()
REFUSED = {"idefics3", "idefics3_training", "llava_next", "llava_next_training", "smolvlm", "smolvlm_training"} # A message is a list of texts and images
NO_SYSTEM = {"gemma", "gemma_training", "mistral"}
DATED = {"gptoss", "gptoss_training", "llama3_2", "muse_glimmer", "muse_glimmer_training"} # Llama 4's asks for the date and never prints it
THINKING = {n for n in TEMPLATES if n.startswith(("deepseek", "glm4moe", "nemotron", "qwen3_6", "qwen3_8")) or n in ("qwen3", "qwen3_training", "qwen3_5_think", "qwen3_5_think_training")}
READ = {n: t for n, t in TEMPLATES.items() if n not in REFUSED}

CONTROL = re.compile(r"<[|｜][^<>\s]+?[|｜]>|<[a-z_]+\|>|<\|[a-z_]+>|<(?:start|end)_of_[a-z]+>|</s>|</?(?:think|tool_call|tool_response)>")
SEEN = re.compile(r"</?(?:think|tool_call|tool_response)>") # In the vocabularies that have them, these are not marked as special
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" # Splits as Llama 3's and Qwen's do
CORPUS = ["You are a helpful assistant. system user assistant model\n\nWhat is the answer? It is five.\n"] * 3
HISTORY = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A plum."}, {"role": "user", "content": "Another one?"}]
ASKED, SAID = HISTORY[:1], "It is five."

@cache
def backend(kind):
    "A tokenizer over bytes, or a SentencePiece-like one; both put a `<s>` in front, as Llama's do."
    t = Tokenizer(models.BPE(byte_fallback=kind == "pieces"))
    if kind == "bytes":
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder, alphabet, fallback = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet(), []
    else:
        t.pre_tokenizer, alphabet, fallback = pre_tokenizers.Metaspace(prepend_scheme="first"), [], [f"<0x{b:02X}>" for b in range(256)]
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", *fallback], show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    made = json.loads(t.to_str())
    made["added_tokens"] = made["added_tokens"][:2] # Bytes are ordinary tokens
    return json.dumps(made)

def tokenizer_for(template, kind="bytes"):
    "A tokenizer that has the control tokens which the template names."
    t = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend(kind)), bos_token="<s>", eos_token="</s>")
    t.add_tokens([AddedToken(n, special=not SEEN.fullmatch(n), normalized=False) for n in sorted({*CONTROL.findall(template)} - {"</s>"})])
    t.chat_template = None if template == PLAIN_TEMPLATE else template
    return t

@cache
def tiny(): return load_lm("tiny").model

@cache
def lm_for(name, kind="bytes"): return LM(tiny(), tokenizer_for(TEMPLATES[name], kind), name)

def added(lm, ids): return [i for i in ids if i in lm.tokenizer.added_tokens_decoder]

every = pytest.mark.parametrize("name", READ)
both = pytest.mark.parametrize("kind", ["bytes", "pieces"])

def test_there_is_something_to_test():
    assert len(READ) > 60 and REFUSED < {*TEMPLATES}
    assert DATED | {"llama4"} == {n for n, t in TEMPLATES.items() if "strftime_now(" in t}
    assert all(len(CONTROL.findall(t)) > 1 for n, t in READ.items() if n not in ("mistral", "plain"))

@pytest.mark.parametrize("name", sorted(REFUSED))
def test_messages_that_are_no_plain_text_are_refused(name):
    with pytest.raises(ValueError, match="does not write messages of plain text|refuses this conversation"): lm_for(name)

@every
@both
def test_prompt_and_completion_are_the_templates_own(name, kind):
    lm = lm_for(name, kind)
    e, cut = lm.encode(ASKED, SAID), lm.encode(ASKED, SAID, finished=False)
    whole = lm._template([*ASKED, {"role": "assistant", "content": SAID}])
    assert (whole[:len(e.prompt + e.completion)] == e.prompt + e.completion) == (name not in THINKING)
    assert e.prompt == lm.encode(ASKED).prompt == lm.encode(ASKED, "Six.").prompt
    assert e.completion == cut.completion + [lm.end_id] and lm.end_id not in cut.completion
    assert lm.decode(e.completion).strip() == SAID
    assert (e.prompt + e.completion).count(lm.tokenizer.bos_token_id) == ("bos_token" in TEMPLATES[name] or name == "plain")

@every
@both
def test_text_never_becomes_a_control_token(name, kind):
    lm = lm_for(name, kind)
    tokens = [t.content for t in lm.tokenizer.added_tokens_decoder.values()]
    hostile = f"Hi{''.join(tokens)} {' '.join(tokens)}\n{lm.tokenizer.decode(lm.encode(HISTORY).prompt)}"
    history = lambda text: [{"role": "system", "content": text}, {"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": text}]
    assert added(lm, lm.encode(history(hostile)).prompt) == added(lm, lm.encode(history("Hi")).prompt)
    completion = lm.encode(ASKED, hostile).completion
    assert [i for i in completion if i in lm.control_ids] == [lm.end_id]
    assert lm.decode(completion).strip() == (hostile.replace("▁", " ") if kind == "pieces" else hostile).strip() # To SentencePiece the two are one

@every
def test_a_response_of_the_model_gets_its_own_tokens_back(name):
    lm = lm_for(name)
    seen = [t.content for t in lm.tokenizer.added_tokens_decoder.values() if not t.special]
    written = lm.tokenizer(lm.space + f"{''.join(seen)} five{''.join(seen)}", add_special_tokens=False).input_ids
    assert lm.encode(ASKED, lm.decode(written)).completion == [*written, lm.end_id]

@every
@both
def test_system_text_and_history_are_there(name, kind):
    lm = lm_for(name, kind)
    assert lm.system == (name not in NO_SYSTEM)
    written = lm.decode(lm.encode([{"role": "system", "content": "Answer in Latin."}, *HISTORY]).prompt)
    places = [written.find(text) for text in ("Answer in Latin.", *(m["content"] for m in HISTORY))]
    assert -1 not in places and places == sorted(places)
    if not lm.system: assert "Answer in Latin.\n\nName a fruit." in written

@every
def test_tomorrow_gives_the_same_ids(name, monkeypatch):
    lm, ids, raw = lm_for(name), [], []
    for day in (1, 2):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None): return cls(2031, 5, day)
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        ids.append(lm.encode(HISTORY, SAID))
        raw.append(lm.tokenizer.apply_chat_template(HISTORY, chat_template=TEMPLATES[name], tokenize=False))
    assert ids[0] == ids[1]
    assert (raw[0] != raw[1]) == (name in DATED)

@every
def test_an_adapted_model_has_the_same_template(name):
    first = lm_for(name)
    again = LM(tiny(), first.tokenizer, "again")
    for what in ("end_id", "opening", "lead", "space", "system", "stop_text", "stop_ids"): assert getattr(again, what) == getattr(first, what), what
    assert again.settings["template"] == first.settings["template"] and (first.stop_text != "") == (name == "plain")

def test_mistral_takes_no_system_message_and_no_two_turns_of_one():
    lm = lm_for("mistral")
    assert lm.decode(lm.encode(ASKED).prompt) == "[INST] Name a fruit. [/INST]"
    with pytest.raises(ValueError, match=r"refuses this conversation \(user, user\): user and assistant must take turns"): lm.encode([*ASKED, *ASKED])
