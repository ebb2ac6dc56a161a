"""The modules in ``interpreted`` run kernels: on a GPU, or in the processes that test_kernels.py starts for them."""

from support.triton_device import can_run

collect_ignore = [] if can_run() else ["interpreted"]
