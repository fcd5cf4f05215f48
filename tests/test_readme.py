"""What README promises in code runs, and what it lists is complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from gevent.server import StreamServer
from gevent.socket import create_connection

from nexusg.config.loader import load, loads
from nexusg.config.reference import reference_markdown
from nexusg.relay.server import DevRelay
from nexusg.relay.settings import RelayConfig


if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECRET = "not a secret, but long enough for nobody to complain"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[DevRelay]:
    """A relay whose users come to one port."""
    with DevRelay(RelayConfig(secret=SECRET, certificates=tmp_path / "certs")) as relay:
        yield relay


def config_for(relay: DevRelay, text: str) -> str:
    """README's configuration, for this relay instead of the example's."""
    text = text.replace("wss://relay.example.com/connect", relay.url)
    text = text.replace("443:", f"{relay.public_ports[0]}:")
    return text.rstrip() + f"\n    tls: {{caFile: {relay.ca_file}}}\n"


def get(relay: DevRelay, host: str) -> bytes:
    """The answer to one HTTP request through the relay. Blocks."""
    user = create_connection(("127.0.0.1", relay.public_ports[0]), 5)
    user.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = b""
    while data := user.recv(65_536):
        answer += data
    user.close()
    return answer


def test_the_configuration_is_the_minimal_file_and_loads() -> None:
    """Ten lines or fewer, and nothing to complain about."""
    (text,) = blocks("yaml")
    assert len(text.splitlines()) <= 10
    assert text in (ROOT / "conf" / "minimal.yaml").read_text(encoding="utf-8")
    loaded = loads(text, "README.md", {"NEXUS_HMAC_SECRET": SECRET})
    assert loaded.warnings == ()


def test_further_settings_load() -> None:
    """Parts of a backend, as they are shown."""
    texts = blocks("yml")
    assert texts
    head = (
        "backends:\n  - name: web\n    hostnames: [app.example.com]\n"
        "    nexusAddresses: [wss://relay.example.com/connect]\n"
    )
    for text in texts:
        given = f'{head}    attestation: {{hmacSecret: "{SECRET}"}}\n{text}'
        warnings = loads(given, "README.md", {}).warnings
        assert [text for text in warnings if "does not exist" not in text] == []


def run_until_answered(code: str, scope: dict[str, Any], relay: DevRelay, host: str) -> bytes:
    """Run ``code`` in a greenlet until it has answered one request. Blocks."""
    program = gevent.Greenlet.spawn(exec, compile(code, "README.md", "exec"), scope)
    try:
        assert relay.wait_agents(1, 5)
        return get(relay, host)
    finally:
        program.kill()


def test_the_library_example_serves_a_user(
    relay: DevRelay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """README's program, word for word but for the port, answers through a real relay."""

    def serve(sock: Any, _: object) -> None:
        sock.recv(65_536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        sock.close()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXUS_HMAC_SECRET", SECRET)
    (yaml,) = blocks("yaml")
    (code,) = (block for block in blocks("python") if "connect_handler" in block)
    Path("config.yaml").write_text(config_for(relay, yaml), encoding="utf-8")
    service = StreamServer(("127.0.0.1", 0), serve)
    service.start()
    try:
        code = code.replace("8000", str(service.server_port))
        answer = run_until_answered(code, {"__name__": "readme"}, relay, "app.example.com")
    finally:
        service.stop()
    assert answer.endswith(b"hello")
    assert "StreamClosed" in capsys.readouterr().out


def test_the_example_in_memory_serves_a_user(
    relay: DevRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/in_memory.py answers without any local service."""
    monkeypatch.setenv("NEXUS_HMAC_SECRET", SECRET)
    path = tmp_path / "config.yaml"
    path.write_text(config_for(relay, blocks("yaml")[0]), encoding="utf-8")
    code = (ROOT / "examples" / "in_memory.py").read_text(encoding="utf-8")
    code = code.replace("sys.argv[1]", repr(str(path)))
    answer = run_until_answered(code, {"__name__": "__main__"}, relay, "app.example.com")
    assert b"Hello 127.0.0.1, this is app.example.com." in answer


def test_the_table_is_the_models() -> None:
    """The configuration table is generated."""
    assert reference_markdown().strip() in README


def test_links_lead_somewhere() -> None:
    """Every file that README links to is there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_in_conf_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped works, given the secrets it asks for."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "nexusg-dev"
    folder.mkdir()
    (folder / "secret").write_text(SECRET)
    files = sorted((ROOT / "conf").glob("*.yaml"))
    assert len(files) == 3
    for file in files:
        assert load(file, {"NEXUS_HMAC_SECRET": SECRET}).config.backends
