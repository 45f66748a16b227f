"""The page: one file, whole, deterministic, and safe whatever the run's text says."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from potstill.report.page import build_report

_MAX_BYTES = 2_000_000
_EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\x00\ud800\n"


class _Page(HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def _poison(value):
    """The same JSON value with something hostile in front of every string."""
    if isinstance(value, dict):
        return {key: _poison(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_poison(part) for part in value]
    return _EVIL + value if isinstance(value, str) else value


def test_a_page_is_one_small_file_without_addresses(write_run, summary):
    """At most 2 MB; nothing in it names a place on the network but the names of formats."""
    path = build_report(write_run(summary))
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= _MAX_BYTES
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg"}
    page = _Page(text)
    assert not [tag for tag, attributes in page.tags if "src" in attributes]
    links = [attributes["href"] for tag, attributes in page.tags if tag in {"a", "link"}]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_same_files_in_same_bytes_out(write_run, summary):
    """The page holds no time of drawing and no random name."""
    directory = write_run(summary)
    first = build_report(directory).read_bytes()
    assert build_report(directory).read_bytes() == first


def test_sections_tables_and_charts_can_be_found_without_eyes(write_run, summary):
    """Landmarks, header cells, a text for every drawing; ids are unique."""
    page = _Page(build_report(write_run(summary)).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("main") == tags.count("header") == tags.count("footer") == 1
    assert tags.count("h1") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) >= 10
    assert all(a.get("aria-hidden") == "true" or (a.get("role") == "img" and a.get("aria-label")) for a in drawings)


@pytest.mark.parametrize(
    "missing",
    ["predictions", "label_example", "labels", "twin", "models", "stages", "training", "data", "warnings", "hardware"],
)
def test_a_page_without_a_part_is_still_a_page(write_run, summary, missing):
    """No part is needed by another."""
    del summary[missing]
    text = build_report(write_run(summary)).read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>")


def test_a_page_of_nothing_says_so(write_run):
    """A summary with a name only gives a page that claims nothing."""
    text = build_report(write_run({"recipe": "empty"})).read_text(encoding="utf-8")
    assert "No model was measured" in text
    assert "No question about this run" in text
    assert "None. Everything the recipe asked for was done as asked" in text


def test_draws_are_shown_as_draws(write_run, summary):
    """No tail bucket and no entropy is spoken of where the label tells neither."""
    summary["label_example"] |= {"draws": 16, "tail_mass": None, "entropy_nats": None, "true_next": "unheard"}
    page = build_report(write_run(summary)).read_text(encoding="utf-8")
    assert "as 16 draws from it show it" in page
    assert "was not drawn" in page
    assert "tail bucket</dfn>" not in page
    assert "of this distribution is" not in page


def test_hostile_strings_stay_text(write_run, summary):
    """Every string of the summary may be hostile: no tag, no attribute, no template of theirs comes to life."""
    clean = _Page(build_report(write_run(summary)).read_text(encoding="utf-8"))
    hostile = _Page(build_report(write_run(_poison(summary))).read_text(encoding="utf-8"))
    allowed = {tag for tag, _ in clean.tags} | {"br"}
    assert {tag for tag, _ in hostile.tags} <= allowed
    assert sum(tag == "script" for tag, _ in hostile.tags) == 1
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    shown = "".join(hostile.text)
    assert "<img src=x onerror=alert(2)>" in shown
    assert "{{ 7*7 }}" in shown
    assert "\u202e" not in shown
    assert "\x00" not in shown


def test_every_term_is_explained_once(write_run, summary):
    """The words a learner may not know have their sentence on the page."""
    text = build_report(write_run(summary)).read_text(encoding="utf-8")
    terms = re.findall(r"<dfn>([^<]+)</dfn>", text)
    assert len(terms) == len(set(terms))
    wanted = {"agrees", "Perplexity", "nats", "KL", "logit lens", "tail bucket", "Accuracy", "Cross-entropy", "entropy"}
    assert wanted <= set(terms)


def test_drawing_a_page_imports_no_torch(write_run, summary):
    """A report can be made where no machine learning is installed."""
    code = (
        "import sys, pathlib; from potstill.report.page import build_report; "
        "build_report(pathlib.Path(sys.argv[1])); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy.testing')))"
    )
    subprocess.run([sys.executable, "-c", code, str(write_run(summary))], check=True, timeout=300)
