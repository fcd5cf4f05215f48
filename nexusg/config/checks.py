"""What a single value must look like. Each check says what is wrong, or returns None.

No check repeats a value that may hold a secret. None looks at the file system or the network.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .hostnames import is_route_key, never_matches, normalize_pattern


if TYPE_CHECKING:
    from .setting import Check


UNIX = "unix:"
TLS = "tls://"
WSGI = "wsgi:"

AUTO = "auto"  #: of a count: as many as the machine has processors

MAX_WORKERS = 512  # a slip of the finger must not fill the process table

_MAX_PORT = 65535
_MAX_SECONDS = 1_000_000_000  # 31 years: "never" for a timer, and small enough for every clock
_SHORTEST_PACE, _LONGEST_PACE = 0.05, 3600  # a typing mistake must not become a flood
_MAX_UNIX_PATH = 107  # bytes of sun_path on Linux without its final zero
_MAX_QUOTED = 60  # characters; the message names the line, where the rest can be read
_PORT = re.compile(r"[0-9]{1,5}|[A-Za-z][A-Za-z0-9-]*")  # a service name is a port, too


def quoted(text: str) -> str:
    """``text`` as it may stand in a log line: in quotes, cut, and without control characters."""
    if len(text) > _MAX_QUOTED:
        text = text[: _MAX_QUOTED - 1] + "…"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def port(value: int) -> str | None:
    """A TCP or UDP port."""
    return None if 0 < value <= _MAX_PORT else f"{value} is not a port (1 to {_MAX_PORT})"


def duration(value: float) -> str | None:
    """Seconds that cannot be negative."""
    if value < 0:
        return "must not be negative"
    return seconds(value)


def seconds(value: float) -> str | None:
    """Seconds, of which zero and less stand for the default."""
    return None if value <= _MAX_SECONDS else f"must be at most {_MAX_SECONDS} seconds"


def pace(value: float) -> str | None:
    """Seconds of something that is done again and again."""
    if _SHORTEST_PACE <= value <= _LONGEST_PACE:
        return None
    return f"must be {_SHORTEST_PACE} to {_LONGEST_PACE} seconds"


def at_least(least: int) -> Check:
    """An integer with a lower bound."""

    def check(value: int) -> str | None:
        return None if value >= least else f"must be at least {least}"

    return check


def between(least: int, most: int) -> Check:
    """An integer with two bounds."""

    def check(value: int) -> str | None:
        return None if least <= value <= most else f"must be {least} to {most}"

    return check


def workers(value: int | str) -> str | None:
    """A number of processes, or AUTO."""
    if value == AUTO or (isinstance(value, int) and 1 <= value <= MAX_WORKERS):
        return None
    return f"must be 1 to {MAX_WORKERS}, or {AUTO}"


def not_blank(value: str) -> str | None:
    """A text with something in it."""
    return None if value.strip() else "must not be blank"


def hostname(value: str) -> str | None:
    """A host name or wildcard that a backend claims (PROTOCOL.md section 10.2)."""
    name = normalize_pattern(value)
    if not name:
        return "is a blank host name"
    if is_route_key(name):
        return f"{quoted(name)} is reserved for port claims: use tcpPorts or udpRoutes"
    return None


def pattern(value: str) -> str | None:
    """A host name or wildcard of a port mapping, or a route key."""
    return None if normalize_pattern(value) else "is a blank host name or pattern"


def variable(value: str) -> str | None:
    """A name of an environment variable. Never quoted: a forgotten space joins it to its value."""
    if value and not re.search(r"[=:\s]", value):
        return None
    return 'is no name of a variable: write "NAME: value" with a space'


def wildcard(value: str) -> str | None:
    """Advice on a pattern that no name will ever match (PROTOCOL.md section 10.5)."""
    if never_matches(normalize_pattern(value)):
        return f'{quoted(value)} matches no name: a wildcard is "*." and a name with a dot in it'
    return None


def target(value: str) -> str | None:
    """A local service: ``host:port``, ``[v6]:port``, ``unix:/path``, ``unix:@abstract``,
    ``tls://host:port`` or ``wsgi:module:attribute``."""
    if not value.strip():
        return 'is a blank target: write "host:port"'
    if value.startswith(UNIX):
        return _unix_path(value[len(UNIX) :])
    if is_wsgi(value):
        return _application(value[len(WSGI) :])
    if is_tls(value):
        address = value[len(TLS) :]
        return _address(address, TLS) if "/" not in address else _no_url(value)
    return _no_url(value) if "/" in value else _address(value)


def is_tls(value: str) -> bool:
    """Whether a target is a service that speaks TLS."""
    return value.startswith(TLS)


def is_wsgi(value: str) -> bool:
    """Whether a target is an application in this process."""
    return value.startswith(WSGI)


def _address(value: str, scheme: str = "") -> str | None:
    """``host:port``; ``scheme`` stands before it."""
    host, colon, service = value.rpartition(":")
    if not colon or value.endswith("]"):
        example = f"{scheme}{value}:{443 if scheme else 80}"
        return f"{quoted(scheme + value)} has no port: write {quoted(example)}"
    shown = quoted(scheme + value)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return f'{shown} has too many colons: write an IPv6 address as "{scheme}[::1]:80"'
    if not _PORT.fullmatch(service):
        return f'{shown} has no valid port: write "{scheme}host:port"'
    return port(int(service)) if service.isdigit() else None


def _no_url(value: str) -> str:
    """What to write instead of a URL, whose parts may be secret."""
    scheme, _, _ = value.partition("://")
    if scheme.lower() in ("https", "wss", "tls"):
        return 'is no target: write "tls://host:port", without a path'
    return 'is no target: write "host:port" without a scheme or path'


def _application(value: str) -> str | None:
    """``module`` or ``module:attribute``, both of which may be dotted."""
    module, colon, attribute = value.partition(":")
    parts = [*module.split("."), *(attribute.split(".") if colon else ())]
    if all(part.isidentifier() for part in parts):
        return None
    return 'names no application: write "wsgi:module:attribute", as in wsgi:myshop.wsgi:app'


def _unix_path(path: str) -> str | None:
    if not path.startswith(("/", "@")) or len(path) == 1:
        return 'must be "unix:" and an absolute path, or "unix:@" and an abstract name'
    if len(path.encode(errors="replace")) > _MAX_UNIX_PATH:
        return f"is longer than the {_MAX_UNIX_PATH} bytes of a unix socket's name"
    return None


def url_path(value: str) -> str | None:
    """The path of an HTTP request, with its query."""
    if not value.startswith("/"):
        return 'must begin with "/"'
    return header(value)


def header(value: str) -> str | None:
    """A text that may stand in the head of an HTTP request."""
    return None if re.fullmatch(r"[!-~]*", value) else "must be ASCII without spaces"


def absolute_path(value: str) -> str | None:
    """The path of a file or directory that does not depend on where the agent was started."""
    return None if not value.strip() or value.strip().startswith("/") else 'must begin with "/"'


def authorizer_url(value: str) -> str | None:
    """The base URL of an authorizer, which is sent what nobody else may read."""
    try:
        url = urlsplit(value.strip())
        scheme, host, number = url.scheme, url.hostname, url.port  # each may raise
    except ValueError:
        scheme, host, number = "", None, None
    if not host or number == 0 or scheme not in ("https", "http"):
        return 'is no address of an authorizer: write "https://host"'
    if "@" in url.netloc or url.query or url.fragment:
        return "must hold no user, password, query or fragment"
    if scheme == "http" and not is_loopback(host):
        return "must begin with https://, because tokens come from there"
    return None


def tcti(value: str) -> str | None:
    """Advice on the way to a TPM."""
    if value.strip() == "device:/dev/tpm0":
        return "shuts out every other program: use device:/dev/tpmrm0"
    return None


def relay_address(value: str) -> str | None:
    """Advice on the URL of a relay. What it may hold beside the host stays unsaid."""
    try:
        url = urlsplit(value)
        scheme, host, number = url.scheme, url.hostname, url.port  # each may raise
    except ValueError:
        scheme, host, number = "", None, None
    if not host or number == 0:
        return 'cannot be dialled: write "wss://host:port/connect"'
    if scheme not in ("wss", "ws"):
        return f"cannot be dialled: its scheme is {quoted(scheme)}; write wss"
    if "@" in url.netloc:
        return "cannot be dialled: it holds a user or password, and relays take tokens only"
    if scheme == "ws" and not is_loopback(host):
        return "sends the token without encryption: use wss"
    return None


def listen_address(value: str) -> str | None:
    """Advice on the address of a listener: ``host:port``, ``:port`` or ``unix:/path``."""
    if value.strip().startswith(UNIX):
        problem = _unix_path(value.strip()[len(UNIX) :])
        return problem and f"{problem}: the listener will stay off"
    host, colon, service = value.strip().rpartition(":")
    if colon and service.isdigit() and int(service) <= _MAX_PORT and "/" not in host:
        return None
    return 'is not "host:port": the listener will stay off'


def outbound_port(value: int) -> str | None:
    """Advice on a port for outbound connections."""
    problem = port(value)
    return problem and f"{problem}: the relay will reject the token"


def https(value: str) -> str | None:
    """Advice on a URL that the relay takes only with https (PROTOCOL.md section 2.4)."""
    if not value or re.match(r"(?i)https://[^/]", value):
        return None
    return "must begin with https://, or the relay will reject the token"


def listens_locally(value: str) -> bool:
    """Whether only this host can reach a listener. A name does not count: it may mean anything."""
    host, _, _ = value.strip().rpartition(":")
    return value.strip().startswith(UNIX) or is_loopback(host.strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or address, is this host and no other."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
