"""Triton kernels, each beside its plain-torch twin, which says the same in a few lines and is its test.

``step``: a step of a Schedule. ``choose``: the fused choice of a pixel's values. ``mixture``: the fused mixture
log-likelihood, forward and backward. ``tiles``: the recorded choices of tiles. ``launch``: a kernel call as a value.

The modules import triton; this package itself does not, so that pxfast works without it.
"""
