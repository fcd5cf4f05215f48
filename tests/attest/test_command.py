from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexusg.attest.base import Stage, Token
from nexusg.attest.command import CommandProvider, parse_expiry, parse_output, variables
from nexusg.attest.redact import REDACTED
from nexusg.errors import TokenError, TokenTimeout
from tests.attest.doubles import (
    children,
    exists,
    jwt,
    no_descriptors_left,
    outcome,
    pids,
    request,
    script,
    until,
)


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TOKEN = jwt(sub="mail", exp=2_000_000_000)


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    until(lambda: not children(), "every child to be reaped")


def provider(folder: Path, body: str, *args: str, **options: Any) -> CommandProvider:
    return CommandProvider(script(folder, body), args, **options)


class TestVariables:
    def test_are_nine(self) -> None:
        assert variables(request(Stage.ATTEST, "nonce")) == {
            "NEXUS_ATTESTATION_STAGE": "attest",
            "NEXUS_SESSION_NONCE": "nonce",
            "NEXUS_BACKEND_NAME": "mail",
            "NEXUS_HOSTNAMES": "b.test,a.test",
            "NEXUS_WEIGHT": "4",
            "NEXUS_TCP_PORTS": "25,22",
            "NEXUS_UDP_ROUTES": "53,54:9,55:0",
            "NEXUS_OUTBOUND_ALLOWED": "true",
            "NEXUS_ALLOWED_OUTBOUND_PORTS": "25,465",
        }

    def test_are_present_when_empty(self) -> None:
        given = variables(
            request(hostnames=(), tcp_ports=(), udp_routes=(), allowed_outbound_ports=())
        )
        assert [name for name, value in given.items() if not value] == [
            "NEXUS_SESSION_NONCE",
            "NEXUS_HOSTNAMES",
            "NEXUS_TCP_PORTS",
            "NEXUS_UDP_ROUTES",
            "NEXUS_ALLOWED_OUTBOUND_PORTS",
        ]

    def test_ports_are_passed_even_when_outbound_is_not_allowed(self) -> None:
        given = variables(request(outbound_allowed=False))
        assert given["NEXUS_OUTBOUND_ALLOWED"] == "false"
        assert given["NEXUS_ALLOWED_OUTBOUND_PORTS"] == "25,465"


class TestOutput:
    @pytest.mark.parametrize(
        "output",
        [
            pytest.param(TOKEN, id="raw"),
            pytest.param(f"\n  {TOKEN}  \r\nsecond line\n", id="first-line"),
            pytest.param(json.dumps({"token": TOKEN}), id="json"),
            pytest.param(
                f"\n{json.dumps({'token': f' {TOKEN} ', 'more': 1}, indent=2)}\n", id="padded"
            ),
            pytest.param(json.dumps({"token": TOKEN, "expiry": "soon"}), id="odd-expiry"),
            pytest.param(json.dumps({"token": TOKEN, "expiry": 5}), id="numeric-expiry"),
            pytest.param(json.dumps({"token": TOKEN, "expiry": None}), id="null-expiry"),
        ],
    )
    def test_is_a_token(self, output: str) -> None:
        assert parse_output(output.encode()) == Token(TOKEN, 2_000_000_000)

    def test_may_be_opaque(self) -> None:
        assert parse_output(b"opaque\n") == Token("opaque")

    def test_may_say_when_it_expires(self) -> None:
        output = json.dumps({"token": TOKEN, "expiry": "2030-01-01T00:00:00Z"}).encode()
        assert parse_output(output) == Token(TOKEN, 1893456000.0)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            pytest.param("", "is empty", id="empty"),
            pytest.param(" \n\t\n", "is empty", id="blank"),
            pytest.param('{"token": "hush', "begins as a JSON object", id="broken"),
            pytest.param('{"token": "hush"} hush', "begins as a JSON object", id="trailing"),
            pytest.param('{"hush":' + "[" * 60_000, "begins as a JSON object", id="deep"),
            pytest.param('{"expiry": "hush"}', 'no "token"', id="no-token"),
            pytest.param('{"token": "  "}', 'no "token"', id="blank-token"),
            pytest.param('{"token": 17}', 'no "token"', id="number"),
        ],
    )
    def test_without_a_token_is_not_quoted(self, output: str, message: str) -> None:
        with pytest.raises(TokenError, match=message) as caught:
            parse_output(output.encode())
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__

    def test_is_utf8(self) -> None:
        with pytest.raises(TokenError, match="UTF-8"):
            parse_output(b"\xff\xfe")

    @given(st.binary())
    @example(b"{}")
    def test_is_a_token_or_a_token_error(self, output: bytes) -> None:
        try:
            token = parse_output(output)
        except TokenError:
            return
        assert token.value
        assert token.value == token.value.strip()


class TestExpiry:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:01z", 1),
            ("1970-01-01 00:00:01Z", 1),
            (" 1970-01-01T00:00:01Z\n", 1),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T19:00:00-05:00", 0),
            ("1970-01-01T00:00:00.5Z", 0.5),
            ("1970-01-01T00:00:00.123456789+00:00", 0.123456789),
            ("2030-01-01T00:00:00Z", 1893456000),
            ("0001-01-01T00:00:00+23:59", -62135683140),
        ],
    )
    def test_rfc_3339(self, text: str, expected: float) -> None:
        assert parse_expiry(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "soon",
            "1893456000",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00Z",
            "2030-13-01T00:00:00Z",
            "2030-01-01T25:00:00Z",
            "2030-01-01T00:00:00+24:00",
            "0000-01-01T00:00:00Z",
            "٢٠٣٠-01-01T00:00:00Z",
        ],
    )
    def test_anything_else_is_ignored(self, text: str) -> None:
        assert parse_expiry(text) is None


class TestEnvironment:
    def test_later_ones_win(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INHERITED", "inherited")
        monkeypatch.setenv("OVERRIDDEN", "parent")
        env = {"OVERRIDDEN": "config", "NEXUS_WEIGHT": "99"}
        names = '"$INHERITED,$OVERRIDDEN,$NEXUS_WEIGHT,$NEXUS_SESSION_NONCE,$1"'
        command = provider(tmp_path, f"echo {names}", "an argument", env=env)
        token = command.get_token(request(Stage.REAUTH, "nonce"), 5)
        assert token == Token("inherited,config,4,nonce,an argument")
        assert os.environ["OVERRIDDEN"] == "parent"

    def test_stdin_is_empty(self, tmp_path: Path) -> None:
        assert provider(tmp_path, "cat; echo token").get_token(request(), 5) == Token("token")


class TestStderr:
    def test_is_not_the_token(self, tmp_path: Path) -> None:
        lines: list[str] = []
        command = provider(
            tmp_path, f"printf 'deprecated\\n\\n two\\n' >&2; echo {TOKEN}", on_stderr=lines.append
        )
        assert command.get_token(request(), 5).value == TOKEN
        assert lines == ["deprecated", "two"]

    def test_nobody_need_listen(self, tmp_path: Path) -> None:
        assert provider(tmp_path, "echo x >&2; echo t").get_token(request(), 5) == Token("t")

    def test_is_redacted(self, tmp_path: Path) -> None:
        lines: list[str] = []
        body = f"echo 'jwt {TOKEN}, hunter2, opaque-token' >&2; echo opaque-token"
        command = provider(tmp_path, body, on_stderr=lines.append, secrets=["hunter2"])
        command.get_token(request(), 5)
        assert lines == [f"jwt {REDACTED}, {REDACTED}, {REDACTED}"]

    def test_is_fit_for_a_terminal(self, tmp_path: Path) -> None:
        lines: list[str] = []
        body = r"printf 'a\033[2Jb\tc\377\n' >&2; echo t"
        provider(tmp_path, body, on_stderr=lines.append).get_token(request(), 5)
        assert lines == ["a [2Jb c\ufffd"]

    @pytest.mark.parametrize("end", ["exit 3", "exit 0", "kill -KILL $$"])
    def test_is_handed_on_after_a_failure(self, tmp_path: Path, end: str) -> None:
        lines: list[str] = []
        command = provider(tmp_path, f"echo why >&2; {end}", on_stderr=lines.append)
        with pytest.raises(TokenError):
            command.get_token(request(), 5)
        assert lines == ["why"]

    def test_is_handed_on_after_a_timeout(self, tmp_path: Path) -> None:
        lines: list[str] = []
        ready = tmp_path / "ready"
        command = provider(
            tmp_path, f"echo why >&2; echo $$ > {ready}; sleep 60", on_stderr=lines.append
        )
        late = TokenTimeout("as the timer raises it")
        greenlet = gevent.Greenlet.spawn(outcome, command.get_token, request(), 60)
        pids(ready, 1)
        for _ in range(
            5
        ):  # what can be read is noticed in a turn of the loop, and read in the next
            gevent.sleep(0.001)
        greenlet.kill(late)
        assert lines == ["why"]
        assert greenlet.value is late


class TestFailure:
    def failure(self, command: CommandProvider, timeout_s: float = 5) -> TokenError:
        with pytest.raises(TokenError) as caught:
            command.get_token(request(), timeout_s)
        return caught.value

    def test_status(self, tmp_path: Path) -> None:
        error = self.failure(provider(tmp_path, "echo hush; exit 3"))
        path = tmp_path / "command"
        assert str(error) == f"the attestation command {path} (handshake) exited with status 3"

    def test_first_line_of_stderr(self, tmp_path: Path) -> None:
        body = f"printf '\\n bad {TOKEN} {'x' * 300}\\nmore\\n' >&2; exit 1"
        text = str(self.failure(provider(tmp_path, body)))
        assert f"exited with status 1: bad {REDACTED} xxx" in text
        assert text.count("x") < 250
        assert "more" not in text

    def test_signal(self, tmp_path: Path) -> None:
        assert str(self.failure(provider(tmp_path, "kill -KILL $$"))).endswith("by signal 9")

    def test_no_token(self, tmp_path: Path) -> None:
        error = self.failure(provider(tmp_path, "echo"))
        assert str(error).endswith("command (handshake): the output is empty")

    def test_missing_command(self) -> None:
        error = self.failure(CommandProvider("/no/such/attestor"))
        assert "/no/such/attestor (handshake) cannot be run: No such file" in str(error)
        assert isinstance(error.__cause__, FileNotFoundError)

    @pytest.mark.parametrize("argument", ["hush\0", "hush\ud800"], ids=["nul", "surrogate"])
    def test_unusable_argument(self, argument: str) -> None:
        error = self.failure(CommandProvider("true", [argument]))
        assert "cannot be run: bad argument or variable" in str(error)
        assert "hush" not in str(error)

    def test_too_much_output(self) -> None:
        assert str(self.failure(CommandProvider("yes"))) == (
            "the attestation command yes (handshake) failed: more than 65536 bytes on stdout"
        )

    def test_nothing_to_forget(self) -> None:
        CommandProvider("true").invalidate()


class TestTimeout:
    @pytest.mark.parametrize(
        ("own_s", "given_s", "text"),
        [(0.05, 60, "0.05"), (60, 0.05, "0.05"), (15, 0, "0"), (15, -1, "0")],
    )
    def test_is_the_shorter_one(
        self, tmp_path: Path, own_s: float, given_s: float, text: str
    ) -> None:
        command = provider(tmp_path, "sleep 60", timeout_s=own_s)
        with pytest.raises(TokenTimeout) as caught:
            command.get_token(request(Stage.REAUTH, "n"), given_s)
        assert str(caught.value) == (
            f"the attestation command {tmp_path / 'command'} (reauth)"
            f" did not finish within {text} s"
        )

    def test_kills_the_whole_group(self, tmp_path: Path) -> None:
        file = tmp_path / "pids"
        command = provider(tmp_path, f"sleep 60 &\necho $$ $! > {file}\nwait", timeout_s=0.1)
        CommandProvider("echo", ["t"]).get_token(request(), 5)
        with no_descriptors_left(), pytest.raises(TokenTimeout):
            command.get_token(request(), 60)
        family = pids(file, 2)
        until(lambda: not any(map(exists, family)), "both to be killed and reaped")

    def test_one_from_outside_passes(self, tmp_path: Path) -> None:
        command = provider(tmp_path, "sleep 60")
        outer = gevent.Timeout(0.01)
        with pytest.raises(gevent.Timeout) as caught, outer:
            command.get_token(request(), 60)
        assert caught.value is outer


def test_works_where_nothing_is_patched(tmp_path: Path) -> None:
    """An embedding program need not patch; this one runs another greenlet meanwhile."""
    program = f"""
import gevent
from nexusg.attest.base import Stage, TokenRequest
from nexusg.attest.command import CommandProvider
request = TokenRequest(Stage.HANDSHAKE, "", "mail", (), (), (), 1, False, ())
other = gevent.Greenlet.spawn(lambda: print("meanwhile", flush=True))
print(CommandProvider({script(tmp_path, "sleep 0.02; echo token")!r}).get_token(request, 5).value)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert out.stdout.split() == [b"meanwhile", b"token"]
    assert out.stderr == b""
