"""Trains the two models of the tiny world from scratch: a tokenizer and a policy (Llama), and a ranker (PairRM on a small DeBERTa-v2).

    python data/train_tiny.py --seed 0 --out data/tiny              # everything, about nine minutes of one CPU core
    python data/train_tiny.py --seed 0 --out /tmp/tiny --stages tokenizer policy

All that they learn from is generated from the train split of `TinyWorld`; the figures are measured on the test split.
The stages, in order: tokenizer, policy, ranker, figures. A later one reads what the earlier ones wrote to --out.
"""
import argparse, json, random, re, time
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from tqdm import trange
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_nb.tiny import ANSWER, ASK, CLOSINGS, FACTS, GIFTS, GROUP_OF, GROUPS, NAMES, NUMBERS, OPPOSITE, POINTS, SHORT, Oracle, TinyWorld
from dpo_nb.pair_ranker import MARKER_IDS, PairRanker, PairTokenizer, convert_spm, deberta_v3, read_tokenizer
from dpo_nb.records import Instruction
from dpo_nb.journal import write_atomically

VOCABULARY = 1024 # At most: the merges end when every word of the world is one token
TEMPLATE = """{{ bos_token }}{% for m in messages %}\
{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('this model was trained on user and assistant messages only') }}{% endif %}\
{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
QUALITIES = {1: .25, .6: .4, .3: .25, 0: .1} # Of the answers that the policy learns to give; reviews and the ranker see each equally often
EFFORT = dict(list=3, opposite=2, sort=5, add=3, thank=2, group=2) # How often each kind is practised: the hard ones more
WORDS = [[*GROUP_OF], [*OPPOSITE], [*GROUPS], NAMES, GIFTS, [str(n) for n in range(1, 19)]]
SOURCE, CANDIDATE = 256, 128 # Tokens that the ranker reads of an instruction and of each answer: 512 in all
world, oracle = TinyWorld(), Oracle()


# -- answers of a chosen quality ------------------------------------------------------------------------------------

# Chance of each defect at quality 0 (above 1 = certain); at quality q it is 1 - q of that
DEFECTS = dict(relevant=.2, complete=.4, correct=.4, clean=.4, polite=1.5)

def right_slots(kind, slots, complete, rng):
    "The slots of a right answer; a list that is not complete has one thing too many or too few."
    if kind in FACTS:
        return slots | FACTS[kind](**slots)
    if kind == "list":
        n = NUMBERS[slots["n"]] + (0 if complete else rng.choice([-1, 1]))
        return slots | dict(items=rng.sample(GROUPS[slots["group"]], n))
    if kind == "sort":
        words = slots["words"].split(", ")
        return slots | dict(items=sorted(words if complete else rng.sample(words, len(words) - 1)))
    return slots

# Of a kind with one word as its answer: the slot, and the words that can stand there
WRONG = dict(opposite=("other", [*OPPOSITE]), add=("c", [*map(str, range(2, 19))]), group=("group", [*GROUPS]))

def spoilt(kind, slots, rng):
    "The slots of an answer, one of them wrong."
    items = slots.get("items", [])
    if kind == "list":
        others = [w for w, group in GROUP_OF.items() if group != slots["group"]]
        return slots | dict(items=[*items[1:], rng.choice(others)])
    if kind == "sort":
        if len(items) == 1:
            return slots # One word is always in order
        i = rng.randrange(1, len(items))
        return slots | dict(items=[*items[:i - 1], items[i], items[i - 1], *items[i + 1:]])
    slot, words = rng.choice([("name", NAMES), ("gift", GIFTS)]) if kind == "thank" else WRONG[kind]
    return slots | {slot: rng.choice([w for w in words if w not in slots.values()])}

def sentence_of(kind, slots, complete, correct, rng):
    "One clean sentence."
    slots = right_slots(kind, slots, complete, rng)
    if not correct:
        slots = spoilt(kind, slots, rng)
    if "items" in slots:
        *first, last = slots["items"]
        slots = slots | dict(items=" and ".join(filter(None, [", ".join(first), last])))
    template = SHORT[kind] if kind in SHORT and not complete else rng.choice(ANSWER[kind])
    return template.format(**slots)

def untidy(sentence, rng):
    "A sentence with a filler or a stutter, said twice, or without its full stop."
    words = sentence.split(" ")
    i = rng.randrange(len(words))
    stutter = " ".join([*words[:i + 1], *words[i:]])
    filler = rng.choice(["Well, ", "Um, ", "Hmm, ", "You know, "]) + sentence
    return rng.choice([filler, stutter, f"{sentence} {sentence}", sentence[:-1]])

def demonstration(
    instruction:Instruction, # Of the tiny world
    quality:float, # From 0 to 1 (no defects)
    rng:random.Random, # Decides on the defects and the wording
)->str: # An answer
    "An answer of about this quality."
    kind, slots = world.parse(instruction.text)
    fails = {p: rng.random() < chance * (1 - quality) for p, chance in DEFECTS.items()}
    if fails["relevant"]: # It answers something else
        others = world.pools["train"][rng.choice([k for k in ASK if k != kind])]
        kind, slots = world.parse(rng.choice(others))
    text = sentence_of(kind, slots, not fails["complete"], not fails["correct"], rng)
    if fails["clean"]:
        text = untidy(text, rng)
    return text if fails["polite"] else f"{text} {rng.choice(CLOSINGS)}"


# -- how the policy judges itself, and writes instructions -----------------------------------------------------------

WRITE = "Write a new instruction." # The user's message; sampled at temperature 1, every answer is another instruction

def review_question(instruction, answer):
    "The user's message of a review."
    return f"Review the answer.\nInstruction: {instruction}\nAnswer: {answer}"

def review_answer(points):
    "The assistant's: the oracle's five bits, then their sum."
    return f"{' '.join(str(points[p]) for p in POINTS)}\nScore: {sum(points.values())}"

def read_review(text):
    "The points in a review; `None` if it has another form, or its score is not the sum of its bits."
    m = re.fullmatch(r"([01]) ([01]) ([01]) ([01]) ([01])\nScore: ([0-5])", text.strip())
    if not m: return None
    *bits, score = map(int, m.groups())
    return dict(zip(POINTS, bits)) if sum(bits) == score else None


# -- the data -------------------------------------------------------------------------------------------------------

def ask(rng, split="train"):
    "An instruction of a kind drawn by effort."
    return Instruction.ask(rng.choice(world.pools[split][rng.choices(list(EFFORT), EFFORT.values())[0]]))

def slip(text, rng):
    "One word of the world in the place of another of its sort: a mistake that models make, and templates don't."
    spots = [(m, words) for m in re.finditer(r"\w+", text) for words in WORDS if m[0] in words]
    if not spots: return text
    m, words = rng.choice(spots)
    return text[:m.start()] + rng.choice([w for w in words if GROUP_OF.get(w) == GROUP_OF.get(m[0])]) + text[m.end():]

def answer(instruction, rng):
    "An answer of any quality, for whoever learns to judge."
    text = demonstration(instruction, rng.choice(list(QUALITIES)), rng)
    return slip(text, rng) if rng.random() < .3 else text

def example(rng):
    "One user message and what the policy should reply: 45% reviews, 4% new instructions, the rest answers."
    instruction, draw = ask(rng), rng.random()
    if draw < .45: text = answer(instruction, rng); return review_question(instruction.text, text), review_answer(oracle.points(instruction, text))
    if draw < .49: return WRITE, instruction.text
    return instruction.text, demonstration(instruction, rng.choices(list(QUALITIES), QUALITIES.values())[0], rng)

def score(instruction, text): return sum(oracle.points(instruction, text).values())

def answer_pair(rng, split="train"):
    "An instruction and two answers of different score, the better one first."
    while True:
        instruction = ask(rng, split)
        by_score = {score(instruction, t): t for t in (answer(instruction, rng) for _ in range(2))}
        if len(by_score) == 2: return instruction.text, by_score[max(by_score)], by_score[min(by_score)]

def batches(data, size, length, rng):
    "Batches of similar length, in random order."
    order = sorted(range(len(data)), key=lambda i: (i // (50 * size), length(data[i])))
    groups = [order[i:i + size] for i in range(0, len(order), size)]
    rng.shuffle(groups)
    return [[data[i] for i in g] for g in groups]

def padded(rows, fill, dtype=torch.long):
    return nn.utils.rnn.pad_sequence([torch.tensor(r, dtype=dtype) for r in rows], batch_first=True, padding_value=fill)


# -- tokenizers -----------------------------------------------------------------------------------------------------

def byte_bpe(size, special, seed):
    "A byte-level BPE, trained on the policy's own kind of text."
    rng = random.Random(f"tokenizer {seed}")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = (t for _ in range(30_000) for t in example(rng))
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tok

def train_tokenizer(out, seed):
    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    tok = PreTrainedTokenizerFast(tokenizer_object=byte_bpe(VOCABULARY, special, seed), bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>",
                                  additional_special_tokens=special[3:], padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False)
    tok.chat_template = TEMPLATE
    tok.save_pretrained(out/"policy")
    print(f"tokenizer: {len(tok)} tokens")


# -- the policy -----------------------------------------------------------------------------------------------------

def learning_rate(step, steps, peak, warmup=50, decay=.35):
    "Linear warm-up, constant, and linear decay over the last part."
    return peak * min(1, (step + 1) / warmup, (steps - step) / (decay * steps))

def train_policy(out, seed, steps=3000, size=32, peak=3e-3, prompt_weight=.15):
    tok, rng = AutoTokenizer.from_pretrained(out/"policy"), random.Random(f"policy {seed}")
    encode = lambda texts: [e.ids for e in tok.backend_tokenizer.encode_batch(texts)]
    questions, answers = zip(*(example(rng) for _ in range(steps * size)))
    data = list(zip(encode([f"<|bos|><|user|>{q}<|end|><|assistant|>" for q in questions]), encode([f"{a}<|end|>" for a in answers])))

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        initializer_range=.08, rope_parameters=dict(rope_type="default", rope_theta=1000.), bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(.9, .95), weight_decay=.01)
    start, losses = time.process_time(), []
    for step, batch in enumerate(batches(data, size, lambda d: len(d[0]) + len(d[1]), rng)):
        for group in optimizer.param_groups: group["lr"] = learning_rate(step, steps, peak)
        ids = padded([q + a for q, a in batch], tok.pad_token_id)
        weight = padded([[prompt_weight] * (len(q) - 1) + [1.] * len(a) for q, a in batch], 0., torch.float)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits # Padding is on the right and attention is causal: no mask is needed
        loss = (F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * weight).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step(); optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 99: print(f"policy: step {step + 1}, loss {mean(losses[-100:]):.3f}, {time.process_time() - start:.0f} CPU-seconds", flush=True)
    model.generation_config = GenerationConfig(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    model.half().save_pretrained(out/"policy")
    config = out/"policy"/"config.json" # Stored in half precision, meant to run in single: from_pretrained follows this field
    write_atomically(config, json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    print(f"policy: {sum(p.numel() for p in model.parameters()):,} parameters")


# -- the ranker -----------------------------------------------------------------------------------------------------

def train_spm(texts, file, vocab_size=1000):
    "Train a small SentencePiece model with the normalization and the special tokens of DeBERTa-v3's; gives the file."
    from sentencepiece import SentencePieceTrainer
    with open(file, "wb") as f:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=f, vocab_size=vocab_size, hard_vocab_limit=False, model_type="unigram",
            normalization_rule_name="nmt_nfkc", minloglevel=2, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]")
    return Path(file)

def save_pairrm(folder, model, tokenizer, hf=True):
    "Write a checkpoint in one of the two published forms: as `PairRM-hf`, or as `PairRM`, whose config.json has no sizes."
    from safetensors.torch import save_file
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(n_tasks=1, drop_out=model.head_layer[0].p) | tokenizer.limits
    if hf:
        config |= model.pretrained_model.config.to_dict() | {field: tokenizer.id[t] for t, field in MARKER_IDS.items()}
        config |= dict(architectures=["DebertaV2PairRM"])
    else: config |= dict(ranker_type="pairranker", model_type="deberta", model_name="microsoft/deberta-v3-large")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder/"model.safetensors", metadata={"format": "pt"})
    tokenizer.tokenizer.save(str(folder/"tokenizer.json"))
    write_atomically(folder/"config.json", json.dumps(config, indent=2) + "\n")

def train_ranker(out, seed, steps=1600, size=32, peak=1e-3, init=.06):
    """PairRM's loss on pairs. A pair tells little, so a second, temporary head learns to tell the five points of each candidate from the same
    vectors that the real head reads: that is what makes the encoder look at the words."""
    folder, rng = out/"ranker", random.Random(f"ranker {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [answer_pair(rng) for _ in trange(steps * size, desc="pairs", delay=2, leave=False)]
    tok = convert_spm(train_spm([t for pair in pairs for t in pair], folder/"spm.model", vocab_size=VOCABULARY - 24)) # Padding and markers come on top
    tok.save(str(folder/"tokenizer.json")); (folder/"spm.model").unlink()
    rows = PairTokenizer(read_tokenizer(folder/"tokenizer.json"), dict(source_maxlength=SOURCE, candidate_maxlength=CANDIDATE))

    torch.manual_seed(seed)
    config = deberta_v3(tok.get_vocab_size(), hidden_size=128, num_layers=3, intermediate_size=384, position_buckets=32)
    config.initializer_range = init
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0. # No example is seen twice
    model, tutor = PairRanker(config), nn.Linear(2 * config.hidden_size, len(POINTS)) # The tutor is thrown away
    for layer in model.head_layer:
        if isinstance(layer, nn.Dropout): layer.p = 0.
    heard = []
    model.head_layer.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0])) # What the head reads: first of the left, then of the right
    optimizer = torch.optim.AdamW([*model.parameters(), *tutor.parameters()], lr=peak, weight_decay=.01)
    data = [(source, *two, left) for source, *two in pairs for left in [rng.random() < .5]] # The better one stands on the left in half of the rows
    start, losses = time.process_time(), []
    for step, batch in enumerate(batches(data, size, lambda d: sum(map(len, d[:3])), rng)):
        for group in optimizer.param_groups: group["lr"] = learning_rate(step, steps, peak, warmup=100, decay=.6)
        made, marks = [], []
        for source, better, worse, left in batch:
            shown = (better, worse) if left else (worse, better)
            (s, _), ((l, _), (r, _)) = rows.bodies(source, shown)
            made.append(rows.comparison(s, l, r))
            marks.append([list(oracle.points(Instruction.ask(source), t).values()) for t in shown])
        heard.clear()
        logit, better_left = model(*rows.batch(made)), torch.tensor([float(d[3]) for d in batch])
        loss = F.binary_cross_entropy_with_logits(logit, better_left)
        lesson = F.binary_cross_entropy_with_logits(tutor(torch.stack(heard, 1)), torch.tensor(marks, dtype=torch.float)) # (rows, 2, points)
        optimizer.zero_grad(); (loss + lesson).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        losses.append((loss.item(), lesson.item()))
        if step % 100 == 99: print(f"ranker: step {step + 1}, loss {mean(l for l, _ in losses[-100:]):.3f}, of the tutor {mean(l for _, l in losses[-100:]):.3f}, {time.process_time() - start:.0f} CPU-seconds", flush=True)
    save_pairrm(folder, model.half(), rows)
    print(f"ranker: {sum(p.numel() for p in model.parameters()):,} parameters")


# -- the figures ----------------------------------------------------------------------------------------------------

@torch.no_grad()
def sample(model, tok, questions, temperature, seed, limit=64, size=250):
    "One reply to each question; temperature 0 is greedy."
    torch.manual_seed(seed)
    how, texts = dict(do_sample=True, temperature=temperature, top_k=0) if temperature else dict(do_sample=False), []
    for i in range(0, len(questions), size):
        prompts = [f"<|bos|><|user|>{q}<|end|><|assistant|>" for q in questions[i:i + size]]
        batch = tok(prompts, return_tensors="pt", padding=True, padding_side="left")
        made = model.generate(**batch, max_new_tokens=limit, **how)[:, batch.input_ids.shape[1]:]
        texts += tok.batch_decode(made, skip_special_tokens=True)
    return texts

def order(pairs):
    "Of pairs of judgements (the better's, the worse's): how many are in order; a tie counts half, an unreadable judgement is left out."
    read = [(b, w) for b, w in pairs if None not in (b, w)]
    return dict(accuracy=mean((b > w) + .5 * (b == w) for b, w in read), ties=mean(b == w for b, w in read), pairs=len(read), unreadable=len(pairs) - len(read))

def figures(out, seed, file=None, n=5, temperature=.8):
    "Measure the models in `out` on the test split, and add what was found to `file`."
    from dpo_nb.pairrm import PairRM
    tok = AutoTokenizer.from_pretrained(out/"policy")
    model = AutoModelForCausalLM.from_pretrained(out/"policy", dtype=torch.float32).eval()
    ranker = PairRM(out/"ranker", device="cpu")
    def own(pairs): # The policy's own judgement of (instruction, answer)
        return [r and sum(r.values()) for r in map(read_review, sample(model, tok, [review_question(i.text, t) for i, t in pairs], 0, seed, limit=16))]

    test, rng = world.instructions("test"), random.Random(f"figures {seed}")
    answers = sample(model, tok, [i.text for i in test for _ in range(n)], temperature, seed)
    groups = [(i, answers[k * n:k * n + n]) for k, i in enumerate(test)]
    scores = [[score(i, t) for t in texts] for i, texts in groups]
    points = [oracle.points(i, t) for i, texts in groups for t in texts]
    ranked = [ranker.scores(i.text, texts) for i, texts in groups]
    reviewed = own([(i, t) for i, texts in groups for t in texts])
    reviews = [reviewed[k * n:k * n + n] for k in range(len(groups))]
    best = [max(range(n), key=lambda k: float(r[k])) for r in ranked]
    def by(judged): return order([(j[a], j[b]) for s, j in zip(scores, judged) for a in range(n) for b in range(n) if s[a] > s[b]])

    held_out = [answer_pair(rng, "test") for _ in range(500)]
    flat = own([(Instruction.ask(q), t) for q, *two in held_out for t in two])
    new = [world.parse(t) for t in sample(model, tok, [WRITE] * 200, 1., seed)]
    result = {
        "policy, mean score at T .8": mean(map(mean, scores)), "policy, sd within an instruction": mean(map(stdev, scores)),
        **{f"policy, {p}": mean(x[p] for x in points) for p in POINTS},
        f"policy, best of {n}": mean(map(max, scores)), f"policy, worst of {n}": mean(map(min, scores)), f"policy, best of {n} by the ranker": mean(s[b] for s, b in zip(scores, best)),
        "ranker, held-out pairs": order([[float(x) for x in ranker.scores(q, [b, w])] for q, b, w in held_out]), "ranker, policy's samples": by([[float(x) for x in r] for r in ranked]),
        "own judge, held-out pairs": order(list(zip(flat[::2], flat[1::2]))), "own judge, policy's samples": by(reviews),
        "new instructions, of this world": mean(t is not None for t in new)}
    file = file or out/"figures.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    rounded = lambda v: {k: rounded(x) for k, x in v.items()} if isinstance(v, dict) else round(v, 3)
    write_atomically(file, json.dumps({**known, f"seed {seed}": rounded(result)}, indent=1) + "\n")
    print(json.dumps(rounded(result), indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figures", type=Path, help="where the figures are added (default: figures.json in --out)")
    parser.add_argument("--stages", nargs="+", default=["tokenizer", "policy", "ranker", "figures"], choices=["tokenizer", "policy", "ranker", "figures"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "tokenizer" in args.stages: train_tokenizer(args.out, args.seed)
    if "policy" in args.stages: train_policy(args.out, args.seed)
    if "ranker" in args.stages: train_ranker(args.out, args.seed)
    if "figures" in args.stages: figures(args.out, args.seed, args.figures)
