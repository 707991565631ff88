"""The daemon: the roles of one configuration in one process, supervised.

in      the configuration, signals, systemd's watchdog
out     published and followed models, the status endpoint, log lines on stderr
never   lets one role's failure reach another · needs the network to start · touches a predictor
crash   everything that matters is in the store, the node folder or state.db: the next start goes on from there
read    run.py (start, signals, end) → roles.py (what the configuration makes run) → supervise.py
"""
