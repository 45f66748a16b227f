"""Files are whole or not there; artefacts say what they are and notice damage."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from potstill.core.artefact import MANIFEST, fingerprint_of, read_manifest, seal, verify_files
from potstill.core.durable import read_json, replacing, write_json, write_text
from potstill.core.errors import InputError


@pytest.fixture
def artefact(tmp_path):
    write_text(tmp_path / "a.txt", "alpha")
    write_text(tmp_path / "deep" / "b.txt", "beta")
    write_text(tmp_path / "scratch.txt", "left out")
    seal(
        tmp_path,
        kind="test",
        fingerprint="f" * 64,
        settings={"x": 1},
        inputs={},
        started=datetime.now(UTC),
        seconds=1.5,
        peak_memory_bytes=7,
        leave_out=["scratch.txt"],
    )
    return tmp_path


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_killed_while_writing_the_old_file_stays(tmp_path):
    """A real process, killed with SIGKILL between the write and the rename."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from potstill.core.durable import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_json_refuses_nan_and_names_damage(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path / "absent.json")


def test_a_manifest_lists_files_and_leaves_out_scratch(artefact):
    manifest = read_manifest(artefact)
    assert manifest is not None
    assert set(manifest.files) == {"a.txt", "deep/b.txt"}
    verify_files(artefact, manifest, contents=True)


def test_damage_is_found_and_named(artefact):
    manifest = read_manifest(artefact)
    (artefact / "a.txt").write_text("alphA")
    verify_files(artefact, manifest, contents=False)
    with pytest.raises(InputError, match=r"a\.txt: has other bytes"):
        verify_files(artefact, manifest, contents=True)
    (artefact / "a.txt").write_text("alph")
    with pytest.raises(InputError, match=r"a\.txt: has 4 bytes where its manifest says 5"):
        verify_files(artefact, manifest, contents=False)
    (artefact / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt: is missing"):
        verify_files(artefact, manifest, contents=False)


def test_no_manifest_means_no_artefact_and_a_foreign_one_is_refused(tmp_path):
    assert read_manifest(tmp_path) is None
    write_json(tmp_path / MANIFEST, {"kind": "other"})
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(tmp_path)


def test_the_fingerprint_depends_on_everything_and_on_no_order():
    base = fingerprint_of("kind", {"a": 1, "b": 2}, {"in": "x"}, 1)
    assert base == fingerprint_of("kind", {"b": 2, "a": 1}, {"in": "x"}, 1)
    others = [
        fingerprint_of("kind2", {"a": 1, "b": 2}, {"in": "x"}, 1),
        fingerprint_of("kind", {"a": 1, "b": 3}, {"in": "x"}, 1),
        fingerprint_of("kind", {"a": 1, "b": 2}, {"in": "y"}, 1),
        fingerprint_of("kind", {"a": 1, "b": 2}, {"in": "x"}, 2),
    ]
    assert len({base, *others}) == 5
