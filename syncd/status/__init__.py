"""The status room: what the daemon is doing, for people, programs and Prometheus; and what people tell it to do.

in      what the roles tell of themselves (`Source`) · the events in state.db
out     /livez · /readyz · /v1/status · /v1/events · /metrics · /openapi.json, commands to a followed model (POST)
never   answers another host's name over TCP · listens beyond loopback without a token · blocks the daemon's loop
read    document.py (the shape) → access.py (who may) → app.py → stream.py → metrics.py → server.py, connection.py;
        client.py is the light one for `syncd status` and the commands
"""
