import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sih.errors import SihError
from sih.texts import datafiles
from sih.texts.datafiles import DataFile, located, read_lines


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def source(tmp_path, monkeypatch):
    """`source(contents, promised)`: a data file `some.txt` behind a loopback address, with a promised sha256."""
    served = tmp_path / "served"
    served.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("SIH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SIH_DATA", raising=False)

    def offer(contents: bytes, promised: bytes | None = None):
        (served / "some.txt").write_bytes(contents)
        digest = hashlib.sha256(contents if promised is None else promised).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/some.txt"
        monkeypatch.setitem(datafiles.FILES, "some.txt", DataFile(url, digest, "none"))
        return served / "some.txt"

    yield offer
    server.shutdown()
    server.server_close()


def test_fetched_once_then_kept(source, tmp_path):
    served = source(b"text")
    file = located("some.txt")
    assert file == tmp_path / "cache" / "data" / "some.txt"
    assert file.read_bytes() == b"text"
    served.unlink()
    assert located("some.txt") == file


def test_other_contents_at_the_source_are_refused_and_not_kept(source, tmp_path):
    source(b"changed", promised=b"text")
    with pytest.raises(SihError, match="does not serve the pinned contents"):
        located("some.txt")
    assert not (tmp_path / "cache" / "data" / "some.txt").exists()


def test_a_changed_copy_is_refused(source, tmp_path, monkeypatch):
    source(b"text")
    (tmp_path / "some.txt").write_bytes(b"edited")
    monkeypatch.setenv("SIH_DATA", str(tmp_path))
    with pytest.raises(SihError, match=r"sha256 .*, expected .*; delete it to fetch some\.txt again"):
        located("some.txt")


def test_no_network_says_what_to_do(source, monkeypatch):
    source(b"text").unlink()
    with pytest.raises(SihError, match=r"make data.*set SIH_DATA"):
        located("some.txt")
    monkeypatch.setitem(datafiles.FILES, "some.txt", DataFile("http://127.0.0.1:9/x", "0" * 64, "none"))
    with pytest.raises(SihError, match=r"make data.*set SIH_DATA"):
        located("some.txt")


def test_a_users_own_file_needs_no_sha256(source, tmp_path):
    source(b"text")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    assert located("some.txt", str(tmp_path / "mine.txt")) == tmp_path / "mine.txt"
    with pytest.raises(SihError, match="no such data file"):
        located("some.txt", str(tmp_path / "nothing.txt"))


def test_lines_end_at_newlines_alone(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("one\u2028two\nthree\x0b\n\n".encode())
    assert read_lines(file) == ["one\u2028two", "three\x0b", ""]
    file.write_bytes(b"\xff")
    with pytest.raises(SihError, match="expected a text file in UTF-8"):
        read_lines(file)
