"""One conversion, or one comparison, as tasks of a Ray cluster.

``pip install bitnet-toolchain[ray]`` on every node. Source and output lie where every node sees them; both may be
addresses. A task whose worker dies is run again, a job that was done before ends at once, and the result has the bytes
that one machine writes.
"""

from __future__ import annotations

import json
import os
import tempfile

from . import _programs
from ._arguments import count_of, path_of
from ._errors import BitnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Optional

    from ._arguments import Path
    from ._programs import Progress, Report, Size

__all__ = ["convert", "verify"]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BitnetError(
            "usage", f"Ray cannot be imported: {error}", "pip install bitnet-toolchain[ray]"
        ) from None
    return ray


class _Cluster:
    """A connection to a cluster; one that stands already is used and kept."""

    def __init__(self, address: Optional[str]) -> None:
        self.ray = _ray()
        self.is_own = not self.ray.is_initialized()
        if self.is_own:
            self.ray.init(address=address, log_to_driver=False)

    def __enter__(self) -> Any:
        return self.ray

    def __exit__(self, *ended: object) -> None:
        if self.is_own:
            self.ray.shutdown()


def _absolute(place: str) -> str:
    """A path that means the same in every worker; an address stays."""
    return place if "://" in place else os.path.abspath(place)


def _run(
    ray: Any,
    work: Callable[..., Report],
    calls: list[tuple[dict[str, Any], int]],
    cpus: int,
    max_retries: int,
    progress: Optional[Progress],
) -> list[Report]:
    """Calls ``work`` as a task for the keywords of each of ``calls``, which have a size each. Reports in their order."""
    remote = ray.remote(num_cpus=cpus, max_retries=max_retries)(work)
    tasks = [remote.remote(**keywords) for keywords, _ in calls]
    sizes = {task: size for task, (_, size) in zip(tasks, calls)}
    total, done = sum(sizes.values()), 0
    waiting = list(tasks)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, BitnetError):
                    raise cause from None
                raise
            except ray.exceptions.RayError as error:
                message = f"a task was lost {max_retries + 1} times: {error}"
                raise BitnetError(
                    "network", " ".join(message.split()), "start again: finished jobs are kept"
                ) from None
            done += sum(sizes[task] for task in ready)
            if progress is not None:
                progress(done, total)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
    reports: list[Report] = ray.get(tasks)
    return reports


def _job(plan: str, index: int, threads: int) -> Report:
    return _programs.run_job(plan, index, threads=threads)


def _job_of_text(text: str, index: int, threads: int) -> Report:
    """Runs a job of a plan that is no file which every node sees."""
    with tempfile.TemporaryDirectory() as directory:
        plan = os.path.join(directory, "plan.json")
        with open(plan, "w", encoding="utf-8") as file:
            file.write(text)
        return _job(plan, index, threads)


def _share(artifact: str, against: str, options: dict[str, Any]) -> Report:
    return _programs.verify(artifact, against, **options)


def convert(
    src: Path,
    out: Path,
    to: str,
    *,
    split_max_size: Optional[Size] = None,
    address: Optional[str] = None,
    cpus: int = 1,
    max_retries: int = 5,
    progress: Optional[Progress] = None,
    force: bool = False,
    plan: Optional[Path] = None,
    embeddings: Optional[str] = None,
    allow_scale_rounding: bool = False,
    layout: Optional[str] = None,
    against: Optional[Path] = None,
    ternary_trained: bool = False,
) -> Report:
    """Convert on the nodes of a cluster: one task for each output file.

    ``split_max_size`` decides how many files, and so how many tasks, there are. ``address`` is that of the cluster;
    without it Ray's default applies (a local one is started if there is none). ``cpus`` are cores of a task.
    ``progress`` is called with ``(done, total)`` bytes after each job. The other keywords are those of
    :func:`bitnet_toolchain.convert`. Returns its report; the output has its bytes.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function, found {type(progress).__name__}")
    count_of(cpus, "cpus", 1, 1024)
    source, output = _absolute(path_of(src, "src")), _absolute(path_of(out, "out"))
    if not force and os.path.lexists(output):
        raise BitnetError("exists", f"{output}: the output exists", "pass force=True to replace it")
    if plan is None and "://" in output:
        with tempfile.TemporaryDirectory() as directory:
            return convert(
                source,
                output,
                to,
                split_max_size=split_max_size,
                address=address,
                cpus=cpus,
                max_retries=max_retries,
                progress=progress,
                force=force,
                plan=os.path.join(directory, "plan.json"),
                embeddings=embeddings,
                allow_scale_rounding=allow_scale_rounding,
                layout=layout,
                against=against,
                ternary_trained=ternary_trained,
            )
    where = _absolute(output.rstrip("/") + ".plan.json" if plan is None else path_of(plan, "plan"))
    planned = _programs.plan(
        source,
        output,
        to,
        split_max_size=split_max_size,
        plan=where,
        force=force or _is_plan(where),
        embeddings=embeddings,
        allow_scale_rounding=allow_scale_rounding,
        layout=layout,
        against=None if against is None else _absolute(path_of(against, "against")),
        ternary_trained=ternary_trained,
    )
    work: Callable[..., Report] = _job
    given: dict[str, Any] = {"plan": where}
    if "://" in output and "://" not in where:
        # nodes that share no file system have the plan from here
        with open(where, encoding="utf-8") as file:
            work, given = _job_of_text, {"text": file.read()}
    calls = [
        ({**given, "index": job["index"], "threads": cpus}, int(job["bytes"]))
        for job in planned["jobs"]
    ]
    with _Cluster(address) as ray:
        _run(ray, work, calls, cpus, max_retries, progress)
    report = _programs.finish(where, remove_parts=True, force=force)
    if plan is None:
        os.unlink(where)
    return report


def _is_plan(path: str) -> bool:
    """Whether a file is a plan, which a conversion that starts again may replace."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "plan_sha256" in found and "jobs" in found


def verify(
    artifact: Path,
    against: Path,
    *,
    shards: int = 8,
    address: Optional[str] = None,
    cpus: int = 1,
    max_retries: int = 5,
    progress: Optional[Progress] = None,
    **options: Any,
) -> Report:
    """Compare on the nodes of a cluster: one task for each of ``shards`` shares of the tensors.

    ``progress`` is called with ``(done, total)`` shares. ``options`` are keywords of :func:`bitnet_toolchain.verify`
    that a share may have. Returns the joined report: ``status`` is ``same`` or ``different``.
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function, found {type(progress).__name__}")
    count_of(cpus, "cpus", 1, 1024)
    count_of(shards, "shards", 1, 100_000)
    for name in ("shard", "threads"):
        if name in options:
            raise TypeError(f"verify() has no keyword {name!r}: use shards and cpus")
    if options.get("config") is not None:
        options["config"] = _absolute(path_of(options["config"], "config"))
    places = {
        "artifact": _absolute(path_of(artifact, "artifact")),
        "against": _absolute(path_of(against, "against")),
    }
    calls = [
        ({**places, "options": {**options, "shard": f"{share}/{shards}", "threads": cpus}}, 1)
        for share in range(1, shards + 1)
    ]
    with _Cluster(address) as ray:
        reports = _run(ray, _share, calls, cpus, max_retries, progress)
    return _programs.merge(reports)
