"""A program, ``python tensorflow_variables.py CHECKPOINT SCOPE OUT``: a TensorFlow checkpoint's variables as .npz.

Run by ``pxfast/convert.py`` in a process of its own, so it imports nothing of pxfast, nor torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

NO_TENSORFLOW, NOT_FOUND, DAMAGED = 3, 4, 5  # exit statuses


def main(checkpoint: str, scope: str, out: str) -> int:
    """Write the variables whose names begin with ``scope``. Gives the exit status; prints what is damaged."""
    import numpy as np

    try:
        import tensorflow
    except ModuleNotFoundError:
        return NO_TENSORFLOW
    try:
        reader = tensorflow.train.load_checkpoint(checkpoint)
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(scope)]
        variables = {name: reader.get_tensor(name) for name in names}
    except tensorflow.errors.NotFoundError:
        return NOT_FOUND
    except Exception as error:  # IndexError, RuntimeError, its own: it depends on where the damage is
        print(error)
        return DAMAGED
    np.savez(out, **variables)
    return 0


if __name__ == "__main__":
    # TensorFlow must not import the modules beside this file, some of which have names of its own
    sys.path = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]
    sys.exit(main(*sys.argv[1:]))
