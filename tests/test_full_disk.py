"A disk that gets full: one line says which file and what to do, nothing that was there is damaged, and with room again the same command ends with the bytes of an unbroken run."
import random, shutil, subprocess

import pytest

from conftest import SCRIPTS, call, differ, flags, kept

BLOCK = 4096 # A small disk in memory gives its room away in pages of this size

@pytest.fixture
def disk(tmp_path):
    "A disk of 32 MB."
    folder = tmp_path/"disk"; folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", folder], capture_output=True, text=True)
    if mount.returncode: pytest.skip(f"a small disk can be made by root only: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)

def fill(disk, left):
    "Leave so many pages."
    (disk/"ballast").write_bytes(b"\0" * BLOCK * (shutil.disk_usage(disk).free // BLOCK - left))

def pages(folder): return sum(-(-p.stat().st_size // BLOCK) for p in folder.rglob("*") if p.is_file())

def starve(script, disk, unbroken, left):
    "Run a script with so many pages left; make room; run it again."
    after, before, _ = unbroken(script)
    run, old = disk/"run", kept(before)
    shutil.copytree(before, run)
    fill(disk, left)
    code, said = call(script, *flags(script, run))
    assert code == 2 and said.count("\n") == 1 and said.startswith(f"{script}: {run}"), said
    assert "cannot be used (" in said and "No space left on device" in said and "Make room there; the same command then goes on where it was." in said, said
    there = kept(run)
    assert {name: there[name] for name in old} == old
    (disk/"ballast").unlink()
    assert call(script, *flags(script, run)) == (0, "") and differ(run, after) == []

@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_disk_is_said_and_nothing_is_lost(script, disk, unbroken):
    after, before, _ = unbroken(script)
    starve(script, disk, unbroken, random.Random(script).randrange((pages(after) - pages(before)) // 2))

@pytest.mark.full
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("script", [*SCRIPTS, "dpo_demo"])
def test_a_disk_may_be_full_at_any_moment(script, seed, disk, unbroken):
    after, before, _ = unbroken(script)
    starve(script, disk, unbroken, random.Random(f"{seed} {script}").randrange(pages(after) - pages(before)))

@pytest.mark.parametrize("script", ["dpo_pairs", "dpo_evaluate"])
def test_what_is_done_stays_on_a_full_disk(script, disk, unbroken):
    run, after = disk/"run", unbroken(script)[0]
    shutil.copytree(after, run)
    fill(disk, 0)
    assert call(script, *flags(script, run))[0] == 2 and differ(run, after) == []
