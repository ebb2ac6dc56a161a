"""The page of ``pxfast app``: what it computes, how it shows that, and the server on this machine alone."""
