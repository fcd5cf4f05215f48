"""An app on the internet by way of gunicorn, without an open port of its own.

    nexusg relay                                     # in one terminal
    gunicorn -c examples/gunicorn/gunicorn.conf.py   # in another
    curl http://demo.localhost:8080/

With gunicorn 27 and gevent; see docs/gunicorn.md.
"""

from pathlib import Path

from nexusg.integrations.gunicorn import serve


HERE = Path(__file__).parent

wsgi_app = "app:application"
pythonpath = str(HERE)
worker_class = "gevent"
workers = 2
bind = "127.0.0.1:8000"
accesslog = "-"

pre_fork = serve(HERE / "config.yaml")
