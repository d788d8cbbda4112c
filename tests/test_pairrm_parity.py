"PairRM against llm-blender 0.0.2, the package of its authors, on the same checkpoint: a random one in the exact form of the published two."
import os, random
from importlib.resources import files

import numpy as np
import pytest
import torch

from dpo_nb.pair_ranker import MARKERS
from dpo_nb.pairrm import PairRM
from dpo_nb.records import Ranking
from dpo_nb.data.train_tiny import demonstration
from dpo_nb.tiny import TinyWorld
from llm_blender_repaired import load_blender, reference_tokenizer, repaired, save_checkpoint

QUESTIONS = (files("dpo_nb.data")/"questions.txt").read_text(encoding="utf-8").splitlines()
UNICODE = ["Half a cup… ½ ™ and\u00a0no more", "Ｗｈｙ？　Ｂｅｃａｕｓｅ．", "naïve cafe\u0301 ﬁre Å ㎏ ①", "Well done 🎉👩‍🚀🇪🇺!", "漢字とかな 그리고 한글", "שלום مرحبا \u202eabc\u202c", "-----", "a\u200bb\ufeffc\x00d"]
SPACES = ["", " ", "\n\n", "  two  spaces \t and a tab\n", "\u3000"]
NAMES = ["[CLS] first", "the [PAD] inside [PAD]", "[MASK] and [UNK]"] # Special tokens that both leave as they are
INSERTED = [*MARKERS, "[SEP]", "＜|candidate2|＞"] # What our class drops from a text; the last one becomes a marker when it is normalized
LONG = " ".join(QUESTIONS * 3)

def cases(n=100):
    "Instructions with five responses each; every kind of awkward text comes many times."
    rng = random.Random(0)
    tiny = TinyWorld().instructions("test")[:n - len(QUESTIONS)]
    answers = [*QUESTIONS, *(demonstration(i, q, rng) for i in tiny for q in (1, .5, 0))]
    words = LONG.split()
    for k, source in enumerate([*QUESTIONS, *(i.text for i in tiny)]):
        texts = [" ".join(rng.sample(answers, rng.randint(1, 2))) for _ in range(5)]
        if k % 2: texts[0] = rng.choice(UNICODE)
        if k % 4 == 0: texts[1] = rng.choice(SPACES)
        if k % 5 == 0: texts[2] = texts[3]
        if k % 7 == 0: texts[4] = rng.choice(NAMES)
        if k % 3 == 0: texts[3] += rng.choice(INSERTED) + " is what I mean."
        if k % 6 == 0: source = f"{rng.choice(UNICODE)} {source}{rng.choice(INSERTED)}"
        if k % 40 == 1: texts[1] = " ".join(rng.sample(words, 900)) # Over its budget beside any instruction
        if k % 50 == 11: source = source + " " + " ".join(rng.sample(words, 1000)) # Over 1,224 tokens
        if k == 11: texts[1] = " ".join(rng.sample(words, 600)) # Both
        if k % 25 == 2: source = rng.choice(SPACES)
        yield source, texts

def without_markers(text):
    "llm-blender cannot read a marker inside a text. What our class drops from it is dropped for llm-blender too; `[SEP]` it drops itself."
    for marker in INSERTED: text = text.replace(marker, " ") if marker != "[SEP]" else text
    return text

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "`PairRM`, and `base` in the place of microsoft/deberta-v3-large."
    folded = "1⁄2 TM ... Why? Because. fire kg 1"
    texts = [*QUESTIONS, folded, *UNICODE, *(i.text for i in TinyWorld().instructions("train")[:500])]
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints"), texts, hidden_size=128, num_layers=2)

@pytest.fixture(scope="module")
def llm_blender():
    "The package, with its four repairs."
    pytest.importorskip("dataclasses_json", reason="llm-blender is not installed")
    with repaired() as llm_blender: yield llm_blender

@pytest.fixture(scope="module")
def blender(llm_blender, folder): return load_blender(llm_blender, folder/"PairRM", folder/"base")

@pytest.mark.filterwarnings("ignore:.*when decoding RankerConfig")
def test_scores_and_ranks_are_llm_blenders(blender, folder):
    from llm_blender.gpt_eval.utils import get_ranks_from_scores
    asked = list(cases())
    theirs = blender.rank([without_markers(s) for s, _ in asked], [[without_markers(t) for t in texts] for _, texts in asked], return_scores=True, batch_size=1)
    judge = PairRM(folder/"PairRM", device="cpu")
    judged = judge.judge_each(asked)
    ours = np.array([scores for scores, _ in judged])
    cut = sum(any(d["truncated"]) for _, d in judged), sum(d["source_truncated"] for _, d in judged)
    tied = sum(len(set(scores)) < 5 for scores in ours.tolist())
    print(f"\n{len(asked)} instructions, {cut[1]} of them truncated, {cut[0]} with a truncated response, {tied} with a tie; "
          f"scores: standard deviation {theirs.std():.2f}, largest difference {abs(ours - theirs).max():.1e}")
    assert len(asked) == 100 and min(*cut, tied) >= 2 and theirs.std() > .5
    assert abs(ours - theirs).max() < 1e-4
    assert [Ranking("", "", s).ranks for s in ours.tolist()] == get_ranks_from_scores(theirs).tolist()
    for (source, texts), (scores, _) in list(zip(asked, judged))[::7]: np.testing.assert_allclose(judge.scores(source, texts), scores, atol=1e-5)

@pytest.mark.parametrize("source, texts", [("Why?", ["It <|candidate1|> is.", "No."]), ("Why? <|source|>", ["It is.", "No."])])
def test_llm_blender_cannot_read_a_marker(blender, folder, source, texts):
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"): blender.rank([source], [texts], batch_size=1)
    assert PairRM(folder/"PairRM", device="cpu").scores(source, texts)[0] != 0

def test_the_converted_form_gives_its_logits(llm_blender, folder):
    "`PairRM-hf` was made by llm-blender's `DebertaV2PairRM`, so it is made by that here too."
    from llm_blender.blender.blender_utils import tokenize_pair
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM
    from safetensors.torch import load_file
    judge, tokenizer = PairRM(folder/"PairRM", device="cpu"), reference_tokenizer(folder/"base")
    tokenizer.add_tokens(MARKERS)
    config, ids = judge.checkpoint.model.pretrained_model.config, tokenizer.convert_tokens_to_ids(MARKERS)
    config.update(dict(zip(["source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id"], ids)) | dict(n_tasks=1, drop_out=.05, sep_token_id=tokenizer.sep_token_id))
    made = DebertaV2PairRM(config)
    made.load_state_dict(load_file(folder/"PairRM"/"model.safetensors"))
    made.save_pretrained(folder/"PairRM-hf"); tokenizer.save_pretrained(folder/"PairRM-hf")
    theirs, judge = DebertaV2PairRM.from_pretrained(folder/"PairRM-hf").eval(), PairRM(folder/"PairRM-hf", device="cpu")
    for source, texts in list(cases())[:12]:
        logits = judge.judge_each([(source, texts[:2])])[0][1]["logits"]
        source, a, b = (without_markers(t).replace("[SEP]", " ") for t in (source, *texts[:2]))
        with torch.no_grad(): pair = theirs(**tokenize_pair(tokenizer, [source] * 2, [a, b], [b, a])).logits
        assert abs(pair - torch.tensor([logits[0][1], logits[1][0]])).max() < 1e-4

@pytest.mark.skipif(os.environ.get("DPO_NB_HUB") != "1", reason="needs the hub: set DPO_NB_HUB=1 (fetches 1.7 GB for each form)")
@pytest.mark.parametrize("name", ["llm-blender/PairRM", "llm-blender/PairRM-hf"])
def test_the_published_weights_give_the_published_numbers(python, name):
    "Those of the authors' notebook and of the checkpoint's page."
    done = python(PUBLISHED, HF_HUB_OFFLINE="0", CHECKPOINT=name)
    assert done.returncode == 0, done.stderr

PUBLISHED = """
import os
from dpo_nb.pairrm import PairRM
from dpo_nb.records import Ranking
judge = PairRM(os.environ["CHECKPOINT"], device="cpu")
pairs = judge.judge_each([("hello!", ["hi!", "f**k off!"]), ("I love you!", ["I hate you!", "I love you, too!"])])
logits = [detail["logits"][0][1] for _, detail in pairs]
assert max(abs(a - b) for a, b in zip(logits, [1.9003021717, -1.2547134161])) < 1e-3, logits
for source, texts, ranks in [("hello, how are you!", ["get out!", "hi! I am fine, thanks!", "bye!"], [3, 1, 2]),
                             ("I love you!", ["I love you too!", "I hate you!", "Thanks! You're a good guy!"], [1, 3, 2])]:
    found = Ranking("", "pairrm", judge.scores(source, texts)).ranks
    assert found == ranks, found
"""
