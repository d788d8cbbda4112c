"Settings of the test run."
import os, subprocess, sys
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

@pytest.fixture
def python():
    "Run Python code in a process of its own."
    def run(code, **env):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ | env)
    return run
