"""Runs the checks that are named, or all of them, and prints a line for each part. Exit status 1: one failed.

A check whose package is missing is left out with a line that begins with `skipped:`.
"""

import importlib
import sys
import time
import traceback

# check, module, the packages that it needs
CHECKS = [
    ("curl", "curl_client", []),
    ("openai", "openai_client", ["openai"]),
    ("langchain", "langchain_client", ["langchain_openai"]),
    ("lm-eval", "lm_eval_client", ["lm_eval", "transformers"]),
    ("load", "load", []),
]


def main(names):
    unknown = set(names) - {name for name, *_ in CHECKS}
    if unknown:
        print(f"error: expected {', '.join(name for name, *_ in CHECKS)}, found {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    failed = 0
    for name, module, packages in CHECKS:
        if names and name not in names:
            continue
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipped: {name}: the package {', '.join(missing)} is not installed", flush=True)
            continue
        started = time.monotonic()
        try:
            for part in importlib.import_module(module).check():
                print(f"{name}: {part} ok ({time.monotonic() - started:.1f} s)", flush=True)
                started = time.monotonic()
        except Exception:
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    import importlib.util

    sys.exit(main(sys.argv[1:]))
