"""The status room: what the daemon is doing, for people, programs and Prometheus; it changes nothing.

in      what the roles tell of themselves (`Source`)
out     /livez · /readyz · /v1/status · /metrics, on an own Unix socket (0660) or on loopback
never   answers another host's name over TCP · listens beyond loopback · blocks the daemon's loop
read    document.py (the shape) → app.py → metrics.py → server.py; client.py is the light reader for `syncd status`
"""
