"""The README's table of results is the committed result's, to the letter."""

import subprocess
import sys


def test_the_table_of_results_is_that_of_the_committed_benchmark():
    done = subprocess.run([sys.executable, "benchmarks/readme_table.py", "--check"], check=False)
    assert done.returncode == 0, "python benchmarks/readme_table.py brings the README up to date"
