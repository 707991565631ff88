"""Open Inference V2 over HTTP: requests become tensors, answers become bytes, mistakes become the protocol's errors.

in      requests of any number of clients · the versions that the predictors serve
out     answers that say which version gave them · errors as JSON · figures for `/metrics` and statistics
never   computes on the event loop · holds more bytes or requests than its limits say · follows a name into a path
read    app.py (routes, limits) → answering.py (one request in a worker) → tensors.py, encodings.py → models.py
"""
