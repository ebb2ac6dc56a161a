"""Sends image files to a pxfast service, and prints what it answers about each; needs Python alone.

serve run pxfast.serving:build classifier=cifar10 eps=16
python examples/serving_client.py --url http://127.0.0.1:8000/ --save purified/ images/*.png
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def ask(url: str, content: bytes, patience: float = 60.0) -> dict[str, Any]:
    """The service's answer about the bytes of one image file.

    While the service is overloaded (status 503) the request is sent again, after longer and longer waits, for
    ``patience`` seconds; one answer may take as long. Raises ValueError with the service's words when it refuses the
    image, and OSError where it can't be reached.
    """
    wait, until = 0.05, time.monotonic() + patience
    while True:
        try:
            request = urllib.request.Request(url, data=content, method="POST")
            with urllib.request.urlopen(request, timeout=patience) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            if error.code == 503 and time.monotonic() + wait < until:
                time.sleep(wait)
                wait = min(2 * wait, 2.0)
                continue
            if error.code in (400, 408, 413):
                raise ValueError(json.load(error)["error"]) from error
            raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/")
    parser.add_argument("--save", type=Path, help="a folder for the purified images")
    arguments = parser.parse_args()
    saved = {path: arguments.save / f"{path.stem}.png" for path in arguments.images} if arguments.save else {}
    if len(set(saved.values())) < len(saved):
        parser.error("two images of one name can't be saved in one folder")
    refused = 0
    for path in arguments.images:
        try:
            answer = ask(arguments.url + ("?purified=1" if arguments.save else ""), path.read_bytes())
        except (ValueError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            refused += 1
            continue
        if arguments.save:
            arguments.save.mkdir(parents=True, exist_ok=True)
            saved[path].write_bytes(base64.b64decode(answer["purified"]))
        label, share = answer["label"], answer["probabilities"][answer["label"]]
        line = f"{path}: class {label} with {share:.0%}; without purification {answer['undefended_label']}"
        if answer["p_value"] is not None:
            line += f"; p-value {answer['p_value']:.4f}" + (", suspicious" if answer["suspicious"] else "")
        print(line)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
