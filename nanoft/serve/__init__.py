"""A trained model at work: for programs (api.py), over HTTP (server.py, worker.py), in a browser (page.html)."""
