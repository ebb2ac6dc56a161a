"""A deployed classifier behind a purifier: batches, replicas and HTTP by Ray Serve (the extra ``ray``)."""

from .deployment import application, build
from .protected import Answer, Protected

__all__ = ["Answer", "Protected", "application", "build"]
