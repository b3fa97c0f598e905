"""`make serve-demo`: one model served in four ways on this machine, and what each takes."""
