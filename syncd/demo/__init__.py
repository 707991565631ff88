"""The demo: the whole line, live, on this machine; real training, real daemons, killed for real.

in      nothing but this machine: no network, no root
out     a picture in the terminal, or one JSON object (run.DemoResult)
never   reaches into a room: it types the commands that a user types and reads what a user reads
read    run.py (the story) → processes.py (daemons and scripts) → picture.py (the terminal)
        train.py and client.py are the user's own two scripts, the only ones here that import torch
"""
