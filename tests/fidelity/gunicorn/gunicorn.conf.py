"""Fewer workers than clients, so that requests wait for one; see front.py."""

workers = 4
worker_class = "sync"
backlog = 512


def post_fork(_, worker):
    import front
    front.start_background(worker.age)
