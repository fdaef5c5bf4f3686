from __future__ import annotations

import errno
import os
import stat
import time

import pytest

from shardc import files
from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.files import read_text, write_atomic


def refused(call, *args) -> Diagnostic:
    with pytest.raises(DiagnosticError) as caught:
        call(*args)
    assert caught.value.exit_code == 2
    (found,) = caught.value.diagnostics
    return found


def test_reads_utf8_with_and_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes("é = 1\r\n".encode())
    assert read_text(path) == "é = 1\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + "é".encode())
    assert read_text(path) == "é"


def test_missing_file(tmp_path):
    found = refused(read_text, tmp_path / "none.toml", "spec")
    assert found.code == "SH001"
    assert "spec" in found.message
    assert "none.toml" in found.message


@pytest.mark.parametrize("name", ["", "file/below", "x" * 300, "nul\0byte"])
def test_unreadable_path(tmp_path, name):
    (tmp_path / "file").write_text("")
    assert refused(read_text, os.path.join(tmp_path, name)).code == "SH002"


def test_size_limit(tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_bytes(b"x" * 101)
    monkeypatch.setattr(files, "MAX_BYTES", 101)
    assert len(read_text(path)) == 101
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    assert refused(read_text, path).code == "SH002"


def test_bad_byte_is_located_by_character(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes('a = 1\r\nné = "'.encode() + b'\xff"\r\nb = 2\r\n')
    found = refused(read_text, path)
    assert found.code == "SH003"
    assert "0xff" in found.message
    assert found.location is not None
    assert (found.location.line, found.location.column) == (2, 7)
    assert found.location.text == 'né = "\ufffd"'


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "plan.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_new_file_obeys_the_umask_and_an_old_one_keeps_its_permissions(tmp_path):
    path = tmp_path / "plan.json"
    before = os.umask(0o027)
    try:
        write_atomic(path, b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_atomic(path, b"two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_symbolic_link_stays_one(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_atomic(link, b"new")
    write_atomic(link, b"newer")
    assert link.is_symlink()
    assert target.read_bytes() == b"newer"


def test_a_device_is_written_in_place():
    write_atomic(os.devnull, b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("name", ["folder", "file/below", "none/below", "x" * 300, "nul\0byte"])
def test_what_cannot_be_written_is_a_diagnostic(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    assert refused(write_atomic, os.path.join(tmp_path, name), b"x").code == "SH004"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, step):
    path = tmp_path / "plan.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    found = refused(write_atomic, path, b"new")
    assert found.code == "SH004"
    assert "no space left" in found.message
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_an_interrupt_leaves_no_temporary(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "plan.json", b"new")
    assert os.listdir(tmp_path) == []


def test_a_journal_ends_a_torn_line_and_takes_back_what_has_no_room(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_bytes(b"one\nto")
    with files.journal(path) as add:
        add(b"two")
        assert path.read_bytes() == b"one\ntwo\n"

        def fail(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        assert refused(add, b"three").code == "SH004"
        monkeypatch.undo()
        add(b"four")
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    with pytest.raises(DiagnosticError, match="SH004"), files.journal(tmp_path):
        pass


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    old, young, other = (tmp_path / name for name in (".shardc-1-00.tmp", ".shardc-2-00.tmp", ".shardc-1-00.json"))
    folder, link = tmp_path / ".shardc-folder.tmp", tmp_path / ".shardc-link.tmp"
    folder.mkdir()
    link.symlink_to(other)
    for path in (old, young, other):
        path.write_text("half a pl")
    long_ago = time.time() - 2 * files._LEFT_OVER_S
    for path in (old, other, folder, link):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    write_atomic(tmp_path / "plan.json", b"new")
    # What another process may be writing now, and what is no such file, is left alone.
    left = [".shardc-1-00.json", ".shardc-2-00.tmp", ".shardc-folder.tmp", ".shardc-link.tmp", "plan.json"]
    assert sorted(os.listdir(tmp_path)) == left


def test_a_folder_and_a_journal_have_one_writer_at_a_time(tmp_path):
    with files.alone_in(tmp_path):
        found = refused(files.alone_in(tmp_path).__enter__)
        assert (found.code, found.help) == ("SH004", "wait until it has ended")
        assert found.message == f"cannot write to {tmp_path}: another process is doing so"
        (tmp_path / "below").mkdir()
        with files.alone_in(tmp_path / "below"):
            write_atomic(tmp_path / "plan.json", b"new")  # which needs no lock
    with files.alone_in(tmp_path), files.journal(tmp_path / "lines") as add:
        add(b"one")
        assert refused(files.journal(tmp_path / "lines").__enter__).code == "SH004"
    with files.journal(tmp_path / "lines") as add:
        add(b"two")
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
    assert refused(files.alone_in(tmp_path / "none").__enter__).message.endswith("none: no such file or directory")
