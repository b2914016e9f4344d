"""`python -m bench` measures nanoft on this machine, with the machine's own ceilings beside it; see __main__.py."""
