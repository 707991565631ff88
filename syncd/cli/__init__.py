"""The command line: options → `run_…`, which returns a result → two printers, for people and for `--json`.

in      what was typed, the configuration
out     data on stdout, talk on stderr, an exit status
never   imports anything heavy before a command needs it: `syncd status` answers in under 0.3 s of CPU
read    main.py → common.py → one file for each group of commands
"""
