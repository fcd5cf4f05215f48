"""A Flask application on the internet: without a port, and without a server beside this process.

    python examples/flask_app.py config.yaml [certificate.pem]

With a certificate (and its key in the same file) it serves https, end to end encrypted. The
configuration needs no ``portMappings``. It needs ``pip install flask``.
"""

from __future__ import annotations

from gevent import monkey


monkey.patch_all()  # so that a request that waits, for a database perhaps, holds up no other

import sys  # noqa: E402

import flask  # noqa: E402

import nexusg  # noqa: E402


app = flask.Flask(__name__)


@app.get("/")
def index() -> str:
    """Tell users who they are."""
    return f"Hello {flask.request.remote_addr}, this is {flask.request.url}\n"


@app.post("/count")
def count() -> dict[str, int]:
    """An upload of any size, read as it comes."""
    size = 0
    while piece := flask.request.stream.read(65536):
        size += len(piece)
    return {"bytes": size}


def main(config_file: str, certificate: str | None = None) -> None:
    """Serve until Ctrl-C. Blocks."""
    config = nexusg.load_config(config_file, mapped=True).config
    tls = nexusg.TlsTerminate(cert_file=certificate)
    with nexusg.Agent(config, wsgi=nexusg.Served(app, tls), on_event=print) as agent:
        agent.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
