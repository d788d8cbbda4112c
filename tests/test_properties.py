"What must hold for any input, tried on many that hypothesis makes up: always the same ones, and others with --full."
import copy, itertools, json, tempfile, tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest, torch
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from dpo_nb import preferences
from dpo_nb.records import fingerprint, from_json, Instruction, plural, Ranking, Response, to_json
from dpo_nb.journal import Journal, read_journal, read_records, write_records
from dpo_nb.models import load_lm
from dpo_nb.prefix import make_tree, pack, share_prefixes, tree_mask
from dpo_nb.generation import pick
from dpo_nb.pairrm import pair_scores
from dpo_nb.preferences import load_pairs, make_pairs, pairs_of, RULES, save_pairs
from test_templates import added, lm_for

COMMON = dict(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("always the same", settings(max_examples=40, derandomize=True, **COMMON))
settings.register_profile("others each time", settings(max_examples=400, print_blob=True, **COMMON))
settings.load_profile("always the same")

def pytest_generate_tests(metafunc):
    if metafunc.config.getoption("--full") and hasattr(metafunc.function, "hypothesis"): settings.get_profile("others each time")(metafunc.function)

def folder(): return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) # Hundreds of journals are quick there

# Records

texts = st.text(max_size=20) | st.sampled_from(["", " ", "a\u2028b", "\x00", '"}\n{"', "e\u0301", "\U0001f600", "\ufeff", "<|im_end|>", "</s>"])
halves = st.builds(lambda a, half, b: a + half + b, texts, st.characters(categories=["Cs"]), texts)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | numbers | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)
details = st.dictionaries(texts, plain, max_size=3)

turns = st.lists(st.builds(lambda role, content: dict(role=role, content=content), st.sampled_from(["system", "user", "assistant"]), texts), max_size=3)
asked = texts.filter(str.strip).map(lambda text: [dict(role="user", content=text)])
instructions = st.builds(Instruction, st.builds(lambda a, b: a + b, turns, asked), texts, st.none() | texts)
responses = st.builds(Response, texts, st.integers(0, 9), texts, st.integers(0, 10**6), st.booleans(), texts, details, st.none() | st.integers(-2**63, 2**63 - 1))
rankings = st.builds(Ranking, texts, texts, st.lists(st.none() | numbers, max_size=6), texts, details)
records = instructions | responses | rankings

@given(records)
def test_a_record_is_one_line_and_comes_back(record):
    line = to_json(record)
    assert "\n" not in line and from_json(line, type(record)) == from_json(line.encode(), type(record)) == record

@given(st.lists(instructions, max_size=4))
def test_records_come_back_in_their_order(made):
    with folder() as here:
        write_records(Path(here)/"a.jsonl", made)
        assert read_records(Path(here)/"a.jsonl", Instruction) == made

@given(asked)
def test_an_id_is_of_the_messages_and_of_nothing_else(messages):
    i = Instruction(messages, "here", "an answer")
    assert i.id == Instruction(messages).id and (Instruction.ask(" " + i.text + "\n").id == Instruction.ask(i.text).id)
    assert Instruction([dict(role="system", content="Be brief."), *messages]).id != i.id

@given(st.lists(st.none() | numbers, max_size=7))
def test_ranks_are_places_as_in_sports(scores):
    ranks = Ranking("i", "judge", scores).ranks
    for s, r in zip(scores, ranks): assert r == (None if s is None else 1 + len([t for t in scores if t is not None and t > s]))

# Journals

unique = lambda rows: st.lists(rows, min_size=1, max_size=7, unique_by=lambda r: r.key)
rows_of_a_journal = st.sampled_from([(Response, responses), (Ranking, rankings)]).flatmap(lambda kind: st.tuples(st.just(kind[0]), unique(kind[1])))
kill = st.tuples(st.integers(1, 4), st.floats(0, 1), st.booleans()) # After so many appends, the last part of the file that is left, and whether the stage was complete before

def cut(path, share):
    "Leave the first line, which is written in one step, and a share of what is behind it."
    data = path.read_bytes()
    head = data.index(b"\n") + 1
    left = data[:head + round(share * (len(data) - head))]
    path.write_bytes(left)
    return left[head:left.rfind(b"\n") + 1].count(b"\n")

@given(rows_of_a_journal, st.lists(kill, max_size=4), st.randoms(use_true_random=False))
def test_a_journal_that_was_killed_at_any_byte_ends_as_one_that_never_was(made, kills, rng):
    (kind, rows), how = made, dict(seed=1)
    with folder() as here:
        unbroken, path = Journal(Path(here)/"unbroken.jsonl", kind, how), Path(here)/"killed.jsonl"
        unbroken.append(rows); assert unbroken.finish() == sorted(rows, key=lambda r: r.key)
        Journal(path, kind, how)
        for appends, share, complete in kills:
            j = Journal(path, kind, how)
            todo = [r for r in rows if r.key not in j.rows]; rng.shuffle(todo)
            for r in todo[:appends]: j.append([r])
            if len(j.rows) == len(rows) and (complete or j.complete): j.finish(); continue # What is finished was moved there as a whole
            whole = cut(path, share)
            j = Journal(path, kind, how)
            assert len(j.rows) == whole and all(r in rows for r in j.rows.values()) and not j.complete
            with pytest.raises(ValueError, match="is not complete"): read_journal(path, kind)
        j = Journal(path, kind, how)
        j.append([r for r in rows if r.key not in j.rows])
        assert {r.key: r for r in rows} == j.rows == Journal(path, kind, how).rows
        j.finish()
        assert path.read_bytes() == unbroken.path.read_bytes() and read_journal(path, kind) == sorted(rows, key=lambda r: r.key)

@given(unique(responses), st.data())
def test_a_row_is_written_once_and_a_refused_append_leaves_no_trace(rows, data):
    with folder() as here:
        j = Journal(Path(here)/"a.jsonl", Response)
        j.append(rows)
        before, again = j.path.read_bytes(), data.draw(st.sampled_from(rows))
        new = replace(again, index=again.index + 10)
        for bad in ([again], [new, again], [new, new], [new, replace(new, index=-1, text=data.draw(halves))]):
            with pytest.raises(ValueError, match="already has one of these rows|surrogate"): j.append(bad)
            assert j.path.read_bytes() == before and len(j.rows) == len(rows)
        j.append([new])
        assert Journal(j.path, Response).rows == {r.key: r for r in [*rows, new]}

@given(unique(responses), st.data())
def test_damage_in_the_middle_is_named_and_left_alone(rows, data):
    with folder() as here:
        j = Journal(Path(here)/"a.jsonl", Response)
        j.append(rows)
        lines = j.path.read_bytes().split(b"\n")
        n = data.draw(st.integers(1, len(rows)))
        lines[n] = lines[n][:data.draw(st.integers(0, len(lines[n]) - 1))]
        j.path.write_bytes(b"\n".join(lines))
        with pytest.raises(ValueError, match=f"a.jsonl, line {n + 1} is no Response"): Journal(j.path, Response)
        assert j.path.read_bytes() == b"\n".join(lines)

@given(details, details)
def test_other_settings_are_refused_and_named(old, new):
    with folder() as here:
        file, row = Path(here)/"a.jsonl", Response("a"*16, 0, "Yes.", 2, True)
        Journal(file, Response, old)
        Journal(file, Response, new).append([row]) # One without rows is begun anew
        assert Journal(file, Response, new).settings == new
        differ = sorted(k for k in {*old, *new} if (k in old) != (k in new) or old[k] != new[k])
        if not differ: return
        with pytest.raises(ValueError, match="was made with other settings") as e: Journal(file, Response, old)
        assert all(f"{k}: " in str(e.value) for k in differ[:5])
        assert Journal(file, Response, new).rows == {row.key: row}

# Which pairs a ranking gives

near = [None, 0., .1, .2, .1 + .2, .3, 1/3, 1., 1. + 2**-52, 2., -1.]
scores_of_one = st.none() | st.sampled_from([0., 1., 2.]) | st.sampled_from(near) | st.floats(-5, 5) # Many ties
margins = st.sampled_from([0., 1e-9, .1, .2, .3, 1.]) | st.floats(0, 3)
said = st.sampled_from(["Yes.", "Yes. ", "\nYes.", "No.", "", " ", "Perhaps."]) | texts
answer = st.tuples(said, scores_of_one, st.booleans())
rules, groups = st.sampled_from([*RULES]), st.lists(answer, min_size=1, max_size=6)

def by_hand(scores, may_win, margin):
    "The three rules, from their definition: every pair of responses is looked at."
    wins = {(i, j) for i, j in itertools.product(range(len(scores)), repeat=2)
            if scores[i] is not None and scores[j] is not None and may_win[i] and scores[i] - scores[j] > margin}
    best = [i for i, _ in wins if not any(scores[k] > scores[i] or scores[k] == scores[i] and k < i for k, _ in wins)]
    rest = {(i, j) for i, j in wins if i in best}
    worst = {(i, j) for i, j in rest if not any(scores[k] < scores[j] or scores[k] == scores[j] and k < j for _, k in rest)}
    return dict(all=wins, best_rest=rest, best_worst=worst)

@given(st.lists(st.tuples(scores_of_one, st.booleans()), max_size=7), margins)
def test_the_rules_are_what_their_definition_says(given_, margin):
    scores, may_win = [s for s, _ in given_], [w for _, w in given_]
    expected = by_hand(scores, may_win, margin)
    found = {name: rule(scores, may_win, margin) for name, rule in RULES.items()}
    for name, pairs in found.items(): assert set(pairs) == expected[name] and len(pairs) == len(set(pairs))
    assert set(found["all"]) >= set(found["best_rest"]) >= set(found["best_worst"]) and len(found["best_worst"]) <= 1
    assert (len(found["all"]) > 0) == (len(found["best_worst"]) > 0)

def one(answers, question="Why?"):
    "An instruction, its responses and their ranking."
    i = Instruction.ask(question)
    return i, [Response(i.id, k, text, 1, done, "m") for k, (text, _, done) in enumerate(answers)], Ranking(i.id, "judge", [s for _, s, _ in answers], fingerprint([t for t, _, _ in answers]))

def worth(answers):
    "What each judged text is worth: the exact mean of its scores, rounded once."
    found = {}
    for text, score, _ in answers:
        if score is not None: found.setdefault(text.strip(), []).append(Fraction(score))
    return {text: float(sum(scores) / len(scores)) for text, scores in found.items()}

# The funnel

WORDS = {"not judged", "same text as another", "chosen", "rejected", "chosen and rejected", "not used by the rule", "nothing to compare with", "tie", "cut at the limit", "only cut ones are better"}

@given(groups, rules, margins, st.booleans())
def test_every_response_has_one_fate_that_agrees_with_the_pairs(answers, rule, margin, allow_cut):
    rows, fates = pairs_of(*one(answers), RULES[rule], margin, allow_cut)
    value = worth(answers)
    assert [(k, s) for _, k, s, _ in fates] == [(k, s) for k, (_, s, _) in enumerate(answers)]
    word = {k: w for _, k, _, w in fates}
    assert set(word.values()) <= WORDS
    for k, (text, score, _) in enumerate(answers): assert (word[k] == "not judged") == (score is None)
    stands = {k: answers[k][0].strip() for k in word if word[k] not in ("not judged", "same text as another")}
    assert sorted(stands.values()) == sorted(value) # Each judged text is there once
    for row in rows:
        chosen, rejected = ((row[side][0]["content"], row[f"{side}_score"]) for side in ("chosen", "rejected"))
        assert chosen[0].strip() != rejected[0].strip() and chosen[1] - rejected[1] > margin
        assert (chosen[1], rejected[1]) == (value[chosen[0].strip()], value[rejected[0].strip()])
        assert row["chosen_finished"] or allow_cut
        for side in ("chosen", "rejected"): assert row[f"{side}_finished"] == any(done for text, s, done in answers if s is not None and text.strip() == row[side][0]["content"].strip())
    for side in ("chosen", "rejected"):
        assert {stands[k] for k in stands if side in word[k].split()} == {row[side][0]["content"].strip() for row in rows}

@given(groups, rules, margins, st.booleans())
def test_why_a_response_is_in_no_pair_is_true(answers, rule, margin, allow_cut):
    _, fates = pairs_of(*one(answers), RULES[rule], margin, allow_cut)
    value, word = worth(answers), {k: w for _, k, _, w in fates}
    of = {k: value[answers[k][0].strip()] for k in word if word[k] not in ("not judged", "same text as another")}
    won = lambda k: answers[k][2] or allow_cut
    for k, w in word.items():
        others = [v for o, v in of.items() if o != k]
        if k in of: assert (not others) == (w == "nothing to compare with")
        if w == "tie": assert all(abs(of[k] - v) <= margin for v in others)
        if w == "cut at the limit": assert not won(k) and any(of[k] - v > margin for v in others)
        if w == "only cut ones are better": assert any(v - of[k] > margin and not won(o) for o, v in of.items()) and not any(v - of[k] > margin and won(o) for o, v in of.items())
        if w == "not used by the rule": assert rule != "all" and (won(k) and any(of[k] - v > margin for v in others) or any(v - of[k] > margin and won(o) for o, v in of.items()))

@given(groups, rules, margins, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_responses_does_not_matter(answers, rule, margin, allow_cut, rng):
    "Up to which of two equally good responses is taken: with every pair, that plays no part either."
    def result(answers):
        rows, fates = pairs_of(*one(answers), RULES[rule], margin, allow_cut)
        side = lambda row, name: (row[f"{name}_score"], *([row[name][0]["content"].strip()] if rule == "all" else []))
        return sorted((side(row, "chosen"), side(row, "rejected")) for row in rows), sorted(w for *_, w in fates)
    shuffled = rng.sample(answers, len(answers))
    assert result(answers) == result(shuffled)

@given(groups, margins, st.booleans())
def test_a_wider_rule_only_adds_pairs(answers, margin, allow_cut):
    sides = lambda rule, margin: {(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in pairs_of(*one(answers), RULES[rule], margin, allow_cut)[0]}
    assert sides("all", margin) >= sides("best_rest", margin) >= sides("best_worst", margin)
    assert sides("all", 0.) >= sides("all", margin)

many = st.lists(st.tuples(groups, st.booleans()), min_size=1, max_size=5)

def dataset(groups):
    "Several instructions, of which some were not judged at all."
    made = [one(answers, f"Question {n}?") for n, (answers, _) in enumerate(groups)]
    return [i for i, _, _ in made], [r for _, rs, _ in made for r in rs], [ranking for (_, _, ranking), (_, judged) in zip(made, groups) if judged]

@given(many, rules, margins, st.booleans(), st.randoms(use_true_random=False))
def test_a_dataset_does_not_depend_on_order_or_on_parts(groups, rule, margin, allow_cut, rng):
    instructions, responses, rankings = dataset(groups)
    how = dict(pairs=rule, margin=margin, allow_cut=allow_cut)
    try: pairs = make_pairs(instructions, responses, rankings, **how)
    except ValueError as e: assert f"no pairs from {plural(len(responses), 'response')}:" in str(e); return
    assert pairs.funnel.responses.sum() == len(pairs.fates) == len(responses)
    assert list(zip(pairs.fates.instruction_id, pairs.fates["index"])) == [r.key for r in responses]
    assert (pairs.fates.score.notna() == [s is not None for (answers, judged) in groups for s in [s if judged else None for _, s, _ in answers]]).all()
    assert [i for i in pairs.dataset["instruction_id"]] == sorted(pairs.dataset["instruction_id"], key=[i.id for i in instructions].index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "CHUNK", rng.choice([1, 2, 3]))
        again = make_pairs(rng.sample(instructions, len(instructions)), rng.sample(responses, len(responses)), rng.sample(rankings, len(rankings)), **how)
    assert again.settings == pairs.settings
    by_text = lambda table: sorted(map(json.dumps, table))
    assert by_text(again.dataset.to_list()) == by_text(pairs.dataset.to_list()) and by_text(again.fates.values.tolist()) == by_text(pairs.fates.values.tolist())

@given(many.filter(lambda groups: any(judged for _, judged in groups)), rules)
def test_pairs_come_back_from_their_files(groups, rule):
    try: pairs = make_pairs(*dataset(groups), pairs=rule)
    except ValueError: assume(False)
    with folder() as here, pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "CHUNK", 2)
        there = load_pairs(save_pairs(pairs, Path(here)/"pairs"))
        assert there.dataset.to_list() == pairs.dataset.to_list() == [json.loads(line) for line in (Path(here)/"pairs/pairs.jsonl").read_bytes().split(b"\n")[:-1]]
        assert there.fates.equals(pairs.fates) and there.settings == pairs.settings and there.dataset.features == pairs.dataset.features
        before = {p.name: p.read_bytes() for p in (Path(here)/"pairs").iterdir()}
        save_pairs(there, Path(here)/"pairs")
        assert {p.name: p.read_bytes() for p in (Path(here)/"pairs").iterdir()} == before

def test_rows_are_python_objects_only_for_a_moment(tmp_path, monkeypatch):
    "Memory of Python beyond what was given, in the making and saving of pairs, hardly grows with their number."
    monkeypatch.setattr(preferences, "CHUNK", 50)
    def most(n):
        made = [one([(f"An answer of some length to question {k}: {j}", float(j), True) for j in range(3)], f"What about question {k}?") for k in range(n)]
        instructions, responses, rankings = [i for i, _, _ in made], [r for _, rs, _ in made for r in rs], [r for _, _, r in made]
        save_pairs(make_pairs(instructions[:50], responses[:150], rankings[:50]), tmp_path/f"first {n}") # What is imported late is imported now
        tracemalloc.start()
        save_pairs(make_pairs(instructions, responses, rankings), tmp_path/f"pairs {n}")
        peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
        return peak
    few, lots = most(200), most(800)
    row = (tmp_path/"pairs 800"/"pairs.jsonl").stat().st_size / 800
    assert lots - few < 600 * row # A row as Python objects takes several times its text

# Templates

LOOKALIKES = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|eot_id|>", "<|end_of_text|>", "<start_of_turn>", "<think>", "</think>", "\n\nUser:", "\nAssistant:", "user\n", "▁", "<unk>", "<0x0A>"]
hostile = st.lists(st.sampled_from(LOOKALIKES) | st.text(max_size=8), max_size=6).map("".join)
READERS = [("tiny", "tiny"), ("mistral", "bytes"), ("mistral", "pieces"), ("llama3", "bytes"), ("qwen3", "bytes"), ("gemma3", "pieces"), ("phi3", "bytes"), ("plain", "bytes"), ("plain", "pieces")]

@pytest.fixture(scope="module", params=READERS, ids=" ".join)
def lm(request): return load_lm("tiny", device="cpu") if request.param[0] == "tiny" else lm_for(*request.param)

def user(text): return [dict(role="user", content=text)]

def read_back(lm, text):
    "A text as its tokens say it. A template may put a space before it; to SentencePiece, a space and ▁ are one, and the first one of a text is not written."
    text = text if text[:1].isspace() or not text else lm.space + text
    return text.replace("▁", " ").removeprefix(" ") if "Metaspace" in lm.tokenizer.backend_tokenizer.to_str() else text

@given(text=hostile, asked=hostile.filter(str.strip), finished=st.booleans())
@example(text="</s><|im_end|> [INST] \n x", asked="[/INST] <|im_start|>", finished=True)
def test_a_response_comes_back_and_ends_once(lm, text, asked, finished):
    e = lm.encode(user(asked), text, finished=finished)
    assert e.prompt == lm.encode(user(asked)).prompt
    assert [i for i in e.completion if i in lm.control_ids] == [lm.end_id] * finished and (not finished or e.completion[-1] == lm.end_id)
    assert lm.decode(e.completion) == read_back(lm, text)

@given(first=hostile.filter(str.strip), said=hostile.filter(str.strip), last=hostile.filter(str.strip), system=hostile.filter(str.strip))
def test_no_text_becomes_a_control_token(lm, first, said, last, system):
    talk = lambda a, b, c, s: [dict(role="system", content=s), *user(a), dict(role="assistant", content=b), *user(c)]
    assert added(lm, lm.encode(talk(first, said, last, system)).prompt) == added(lm, lm.encode(talk("a", "b", "c", "d")).prompt)

# Sampling and scores

lines = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)

@given(lines, st.floats(0, 1, exclude_max=True), st.floats(.05, 5))
def test_a_token_is_drawn_where_the_number_falls(logits, u, temperature):
    token = pick(torch.tensor([logits]), torch.tensor([u], dtype=torch.float64), temperature).item()
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0)
    below = p[:token].sum().item()
    assert p[token] > 0 and below - 1e-12 <= u <= below + p[token].item() + 1e-12

@given(st.lists(lines.filter(lambda line: len(line) > 2).map(lambda line: line[:3]), min_size=1, max_size=4), st.floats(0, 1, exclude_max=True), st.floats(.05, 5))
def test_a_row_is_drawn_as_if_it_were_alone(rows, u, temperature):
    numbers = torch.full((len(rows),), u, dtype=torch.float64)
    together = pick(torch.tensor(rows), numbers, temperature).tolist()
    assert together == [pick(torch.tensor([row]), numbers[:1], temperature).item() for row in rows]
    assert pick(torch.tensor(rows), numbers, 0).tolist() == [row.index(max(row)) for row in rows]
    p = torch.softmax(torch.tensor(rows, dtype=torch.float64) / temperature, -1)
    best = pick(torch.tensor(rows), numbers, temperature, top_k=1)
    assert torch.equal(p.gather(1, best[:, None])[:, 0], p.amax(-1))

@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.floats(-9, 9, width=32), min_size=n, max_size=n), min_size=n, max_size=n)), st.randoms(use_true_random=False))
def test_pairrm_scores_weigh_both_orders(rows, rng):
    logits = torch.tensor(rows)
    n, scores = len(rows), pair_scores(logits)
    by_hand = [sum(rows[i][j] - rows[j][i] for j in range(n)) / n for i in range(n)]
    torch.testing.assert_close(scores, torch.tensor(by_hand), atol=1e-4, rtol=1e-5)
    assert torch.equal(pair_scores(logits.T.contiguous()), -scores) and abs(scores.sum().item()) < 1e-3
    order = rng.sample(range(n), n)
    torch.testing.assert_close(pair_scores(logits[order][:, order]), scores[order], atol=1e-4, rtol=1e-5)

# Shared prefixes

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)
starting = st.lists(st.tuples(tokens, st.integers(0, 8)), min_size=1, max_size=6)

@given(starting)
def test_a_tree_has_each_row_with_its_ancestors_and_its_labels(drawn):
    rows, starts = [r for r, _ in drawn], [min(s, len(r)) for r, s in drawn]
    tree = make_tree(rows, starts)
    sees = tree_mask(torch.tensor(tree.end)).tolist()
    for row, start, places in zip(rows, starts, tree.places):
        assert [tree.ids[n] for n in places] == row and [tree.depth[n] for n in places] == [*range(len(row))]
        assert all(tree.label[places[k - 1]] == row[k] for k in range(max(start, 1), len(row)))
        for k, n in enumerate(places): assert [j for j, seen in enumerate(sees[n]) if seen] == places[:k + 1]
    assert len(tree.ids) <= sum(map(len, rows))

@given(starting, st.integers(1, 30))
def test_bins_hold_each_row_once_and_keep_their_limit(drawn, limit):
    rows = [r for r, _ in drawn]
    bins = pack(rows, limit)
    assert sorted(r for b in bins for r in b) == [*range(len(rows))]
    assert all(len(make_tree([rows[r] for r in b], [start] * len(b)).ids) <= limit for start in (0, 9) for b in bins if len(b) > 1) # All is scored, or nothing

@pytest.fixture(scope="module")
def both():
    "A random Llama as TRL has it, and its twin on shared prefixes."
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed
    from trl.trainer.utils import add_fused_lm_head
    set_seed(0)
    usual = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=.3))
    shared = copy.deepcopy(usual)
    for model in (usual, shared): add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    assert share_prefixes(shared, 12) == ""
    return usual, shared

@given(drawn=starting)
def test_shared_prefixes_give_what_trl_gives(both, drawn):
    width, found = max(len(row) for row, _ in drawn), []
    assume(width > 1) # Of rows of one token nothing is scored
    pad = lambda values, fill: values + [fill] * (width - len(values))
    batch = dict(input_ids=[pad(r, 0) for r, _ in drawn], attention_mask=[pad([1] * len(r), 0) for r, _ in drawn], labels=[pad([-100] * min(s, len(r)) + r[s:], -100) for r, s in drawn])
    for model in both:
        model.zero_grad()
        out = model(**{k: torch.tensor(v) for k, v in batch.items()}, fused_lm_head=True)
        (out.log_probs * torch.linspace(-1, 1, out.log_probs.numel()).view_as(out.log_probs)).sum().backward()
        found.append([out.log_probs, out.entropy, out.mean_logits, out.label_mask, *(p.grad for p in model.parameters())])
    for a, b in zip(*found): assert (a.float() - b.float()).abs().max() <= 1e-5 * max(1, a.float().abs().max())
