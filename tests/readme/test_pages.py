"""The tables of the pages are those of the committed results."""

import subprocess
import sys


def test_the_tables_of_the_pages_are_those_of_the_results():
    done = subprocess.run([sys.executable, "benchmarks/pages.py", "--check"], check=False)
    assert done.returncode == 0, "python benchmarks/pages.py brings the pages up to date"
