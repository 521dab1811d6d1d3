"""Run one conversion as Ray tasks: plan, run a task for each output file on the nodes of a cluster, and join the parts.

    python scripts/cluster/ray_convert.py SRC OUT --to gguf-tq2_0 --split-max-size 4G [--address auto]

A task whose worker dies is run again; a job that was finished ends at once.
Needs Ray, `bitnet-convert` (on the PATH of every node, or --program), and SRC, OUT and the plan beside OUT on a file system that every node
sees, or in an object store (s3://BUCKET/OUT) whose credentials every node has in its environment.
"""

import argparse
import json
import os
import subprocess
import sys

import ray


def call(program, *words):
    """Runs the program; gives its JSON object, or raises with its message."""
    ran = subprocess.run([program, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    answer = json.loads(ran.stdout)
    if ran.returncode != 0:
        error = answer["error"]
        raise RuntimeError(f"{error['code']}: {error['message']}; {error['hint'] or ''}")
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="SRC, as `bitnet-convert` takes it")
    parser.add_argument("output", help="OUT, a file or a directory")
    parser.add_argument("--to", required=True, help="target format")
    parser.add_argument("--split-max-size", help="bytes of one output file, and so of one task")
    parser.add_argument("--address", help="of the Ray cluster; without it one is started on this machine")
    parser.add_argument("--program", default="bitnet-convert", help="path of bitnet-convert on every node")
    parser.add_argument("--cpus", type=int, default=1, help="cores of a task")
    given = parser.parse_args()

    plan = given.output.rstrip("/") + ".plan.json"
    if "://" not in plan:
        plan = os.path.abspath(plan)
    words = ["plan", given.source, "-o", given.output, "--to", given.to, "--plan", plan, "--force"]
    if given.split_max_size:
        words += ["--split-max-size", given.split_max_size]
    planned = call(given.program, *words)
    ray.init(address=given.address, log_to_driver=False)

    @ray.remote(num_cpus=given.cpus, max_retries=5)
    def job(index):
        return call(given.program, "job", plan, "--index", str(index), "--threads", str(given.cpus))

    waiting = [job.remote(each["index"]) for each in planned["jobs"]]
    total = len(waiting)
    while waiting:
        done, waiting = ray.wait(waiting)
        ray.get(done)
        print(f"{total - len(waiting)} of {total} jobs are done", file=sys.stderr)
    report = call(given.program, "finish", plan, "--remove-parts")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
