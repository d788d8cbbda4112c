"""How time and memory grow with the number of instructions, from records to saved pairs.

Each size runs in a process of its own: n instructions × 5 short responses are written to their files, read back, ranked by the oracle, turned into
pairs, saved and loaded. Time is CPU time of the stage, without making up the texts. Memory is the most that the process held at any moment, above what
it held after its imports. What the dataset itself needs is measured beside it: a second process holds the instructions, responses and rankings, as read
from their files, and does nothing else. Sizes double, so a growth in proportion has the exponent 1.

    python bench/size.py [--quick] [--figure nbs/images/size.png]
"""
import argparse, gc, json, math, random, resource, subprocess, sys, tempfile, time
from pathlib import Path

STAGES = ["write", "read", "rank", "pairs", "save", "load"]
STEP = 50 # Instructions that are answered between two appends

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * (1 if sys.platform == "linux" else 1 / 1024) # MiB

def question(world, k):
    "The k-th instruction: a system message makes it differ from all others; every twentieth is of another world, which the oracle cannot judge."
    from dpo_nb.records import Instruction
    text = f"What is the capital of country {k}?" if k % 20 == 19 else world[k % len(world)].text
    return Instruction([{"role": "system", "content": f"You are talking to person {k}."}, {"role": "user", "content": text}], "bench")

def answers(tiny, instruction, rng):
    "Five answers of mixed quality; one in ten is cut."
    from dpo_nb.data.train_tiny import demonstration
    from dpo_nb.records import Response
    say = lambda: demonstration(instruction, rng.random(), rng) if tiny.parse(instruction.text) else f"It is city {rng.randrange(1000)}."
    return [Response(instruction.id, i, text, len(text.split()) + 1, rng.random() > .1, "bench", dict(temperature=.8, top_p=1.), 42) for i, text in enumerate(say() for _ in range(5))]

def chain(folder, n):
    "CPU seconds of each stage."
    from dpo_nb.preferences import load_pairs, make_pairs, save_pairs
    from dpo_nb.records import Instruction, Response
    from dpo_nb.journal import Journal, read_journal, read_records, write_records
    from dpo_nb.tiny import Oracle, TinyWorld
    tiny, rng, spent = TinyWorld(), random.Random(0), dict.fromkeys(STAGES, 0.)
    def timed(stage, do):
        start = time.process_time(); made = do(); spent[stage] += time.process_time() - start
        return made
    world = tiny.instructions("train")
    instructions = [question(world, k) for k in range(n)]
    timed("write", lambda: write_records(folder/"instructions.jsonl", instructions))
    journal = timed("write", lambda: Journal(folder/"responses.jsonl", Response, dict(bench=n)))
    for k in range(0, n, STEP):
        block = [r for i in instructions[k:k + STEP] for r in answers(tiny, i, rng)]
        timed("write", lambda: journal.append(block))
    timed("write", journal.finish)
    del instructions, journal, block
    instructions = timed("read", lambda: read_records(folder/"instructions.jsonl", Instruction))
    responses = timed("read", lambda: read_journal(folder/"responses.jsonl", Response))
    rankings = timed("rank", lambda: Oracle().rank(instructions, responses, folder/"rankings.jsonl"))
    pairs = timed("pairs", lambda: make_pairs(instructions, responses, rankings))
    timed("save", lambda: save_pairs(pairs, folder/"pairs"))
    made = len(pairs.dataset), len(pairs.fates); del pairs
    loaded = timed("load", lambda: load_pairs(folder/"pairs"))
    assert made == (len(loaded.dataset), len(loaded.fates)) and made[1] == 5 * n and made[0] > .7 * n
    return dict(spent)

def hold(folder, n):
    "Nothing but the records."
    from dpo_nb.records import Instruction, Ranking, Response
    from dpo_nb.journal import read_journal, read_records
    held = read_records(folder/"instructions.jsonl", Instruction), read_journal(folder/"responses.jsonl", Response), read_journal(folder/"rankings.jsonl", Ranking)
    return dict(records=sum(map(len, held)))

def child(what, folder, n):
    "One measurement, after everything is imported and has run once at a small size."
    do = dict(chain=chain, hold=hold)[what]
    with tempfile.TemporaryDirectory() as small: chain(Path(small), 40)
    gc.collect(); before = peak()
    print(json.dumps(do(Path(folder), n) | dict(mib=peak() - before)))

def measure(what, folder, n):
    "This process stays small: on Linux, the peak of a process begins at that of the process which started it."
    done = subprocess.run([sys.executable, __file__, "--child", what, str(folder), str(n)], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])

def exponent(sizes, values):
    "The slope of a straight line through the logarithms."
    x, y = [[math.log(v) for v in vs] for vs in (sizes, values)]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx)**2 for a in x)

def draw(rows, file):
    import matplotlib; matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    sizes = [r["n"] for r in rows]
    straight = lambda ax, values: ax.plot(sizes, [values[-1] * n / sizes[-1] for n in sizes], color="#999999", ls=":", lw=1.5, label="in proportion", zorder=1)
    total = [r["seconds"] for r in rows]
    straight(left, total); left.plot(sizes, total, "o-", color="#1b3a5c", lw=2, label="all stages")
    for stage, colour in zip(STAGES, ["#4c956c", "#8ab17d", "#c8553d", "#e09f3e", "#7b5ea7", "#b8a1d9"]): left.plot(sizes, [r[stage] for r in rows], ".-", color=colour, lw=1, ms=5, label=stage)
    straight(right, [r["mib"] for r in rows])
    right.plot(sizes, [r["mib"] for r in rows], "o-", color="#1b3a5c", lw=2, label="most held, all stages")
    right.plot(sizes, [r["needs"] for r in rows], "s-", color="#c8553d", lw=1.5, ms=4, label="the records alone")
    right.plot(sizes, [r["disk"] for r in rows], "^-", color="#4c956c", lw=1.5, ms=4, label="all files on disk")
    for ax, unit, columns in ((left, "CPU seconds", 4), (right, "MiB", 2)):
        ax.set(xscale="log", yscale="log", xlabel="instructions, 5 responses each", ylabel=unit)
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes]); ax.minorticks_off(); ax.yaxis.set_major_formatter("{x:,g}")
        ax.set_ylim(top=ax.get_ylim()[1] * 4)
        ax.grid(alpha=.3); ax.legend(fontsize=8, frameon=False, ncol=columns, loc="upper left"); ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout(); fig.savefig(file, dpi=110); plt.close(fig)

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--figure", help="draw the growth into this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child: return child(*given.child[:2], int(given.child[2]))
    sizes, rows = [500, 1000, 2000] if given.quick else [3125, 6250, 12500, 25000, 50000], []
    print(f"{'instructions':>12}{'CPU s':>8} = {''.join(f'{s:>8}' for s in STAGES)}{'MiB':>9}{'records':>9}{'on disk':>9}{'MiB/records':>13}", flush=True)
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure("chain", folder, n)
            needs = measure("hold", folder, n)["mib"]
            disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
        rows.append(row | dict(n=n, seconds=sum(row[s] for s in STAGES), needs=needs, disk=disk)); r = rows[-1]
        print(f"{n:>12,}{r['seconds']:>8.2f}   {''.join(f'{r[s]:>8.2f}' for s in STAGES)}{r['mib']:>9.1f}{needs:>9.1f}{disk:>9.1f}{r['mib'] / needs:>13.2f}", flush=True)
    grows = {k: exponent(sizes, [r[k] for r in rows]) for k in ("seconds", "mib", *STAGES)}
    first, last = rows[0], rows[-1]
    more = {k: 1024 * (last[k] - first[k]) / (last["n"] - first["n"]) for k in ("mib", "needs")}
    print(f"\nGrowth as a power of the size: CPU time {grows['seconds']:.2f} ({', '.join(f'{s} {grows[s]:.2f}' for s in STAGES)}), memory {grows['mib']:.2f}.\n"
          f"Each further instruction takes {more['mib']:.1f} KiB at the peak; its records alone take {more['needs']:.1f} KiB.")
    if given.figure: draw(rows, given.figure)
    at = {f"seconds_{last['n']}": round(last["seconds"], 1), f"mb_{last['n']}": round(last["mib"] * 2**20 / 1e6, 1)}
    print(json.dumps(dict(time_exponent=round(grows["seconds"], 3), memory_exponent=round(grows["mib"], 3), **at, times_dataset=round(last["mib"] / last["needs"], 2),
                          times_dataset_growth=round(more["mib"] / more["needs"], 2))))

if __name__ == "__main__": main()
