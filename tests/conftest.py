"Settings of the test run."
import os, signal, subprocess, sys, time
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1" # no test needs the hub
ROOT = Path(__file__).parents[1]

def pytest_addoption(parser): parser.addoption("--full", action="store_true", help="also the long runs")

def pytest_configure(config): config.addinivalue_line("markers", "full: takes long; runs with --full only")

def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"): return
    for item in items:
        if "full" in item.keywords: item.add_marker(pytest.mark.skip(reason="runs with --full"))

def kill_when(process, reached, how=signal.SIGKILL, seconds=300):
    "Send a process a signal the moment that something is reached, and wait for its end."
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, "the process ended before it could be killed"
        time.sleep(.002)
    process.send_signal(how)
    return process.wait()

@pytest.fixture
def python():
    "Run Python code in a process of its own."
    def run(code, **env):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | env)
    return run
