"""`python -m bench` measures nanoft on this machine, beside what the machine can do at most; see __main__.py."""
