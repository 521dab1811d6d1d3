"""The programs as functions. Each returns the object that the program prints with ``--json``."""

from __future__ import annotations

import os

from . import _native
from ._arguments import encodable, path_of
from ._errors import BitnetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Optional, Union

    from ._arguments import Path

    Progress = Callable[[int, int], object]
    Report = dict[str, Any]
    Size = Union[int, str]


def _flags(**options: object) -> list[str]:
    """``threads=2`` as ``--threads=2``, ``force=True`` as ``--force``; ``None`` and ``False`` are left out."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, os.PathLike):
            words.append(f"{flag}={os.fsdecode(value)}")
        elif isinstance(value, (str, int)):
            words.append(f"{flag}={value}")
        else:
            raise TypeError(f"{name}: expected a str or a whole number, found {type(value).__name__}")
    for word in words:
        encodable(word, word.split("=")[0])
        if "\0" in word:
            raise BitnetError("usage", f"expected a text without zero bytes, found {word!r}")
    return words


def _call(program: str, words: list[str], progress: Optional[Progress] = None) -> Report:
    import json

    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function, found {type(progress).__name__}")
    status, text = _native.call(program, words, progress)
    try:
        report: Report = json.loads(text)
    except ValueError:
        raise BitnetError("internal", f"{program} printed no JSON object: {text[:200]!r}") from None
    if status != 2:
        return report
    error = report.get("error")
    if error is None:
        failed = [check for check in report.get("checks", []) if check.get("status") == "error"]
        check = failed[0] if failed else {}
        code, detail = check.get("code") or "malformed", check.get("detail")
        raise BitnetError(code, f"{check.get('name', program)}: {detail}")
    raise BitnetError(error["code"], error["message"], error["hint"])


def convert(
    src: Path,
    out: Path,
    to: Optional[str] = None,
    *,
    force: bool = False,
    progress: Optional[Progress] = None,
    threads: Optional[int] = None,
    embeddings: Optional[str] = None,
    allow_scale_rounding: bool = False,
    unfold: bool = False,
    split_max_size: Optional[Size] = None,
    layout: Optional[str] = None,
    against: Optional[Path] = None,
    ternary_trained: bool = False,
    stream: bool = False,
    dry_run: bool = False,
) -> Report:
    """Convert a checkpoint to a packed format, or one packed format to another.

    The keywords have the names of the flags of ``bitnet-convert``; there is none for ``--sign``. ``to`` names the target
    (:func:`targets` lists them); without it the name of ``out`` decides. ``progress`` is called with ``(done, total)`` bytes of the output, in this thread; an
    exception that it raises ends the conversion and is raised here. An output appears whole or not at all.

    Returns the report: ``status``, ``lossless``, ``source``, ``output`` with the files and their sha256,
    ``ternary_sha256``, ``tensors``, ``seconds``, ``peak_rss_bytes``.

    Raises BitnetError, for example with the code ``exists``, ``not-ternary`` or ``scale-rounding``.
    """
    words = _flags(
        json=True,
        output=path_of(out, "out"),
        to=to,
        force=force,
        threads=threads,
        embeddings=embeddings,
        allow_scale_rounding=allow_scale_rounding,
        unfold=unfold,
        split_max_size=split_max_size,
        layout=layout,
        against=against,
        ternary_trained=ternary_trained,
        stream=stream,
        dry_run=dry_run,
    )
    return _call("bitnet-convert", [*words, "--", path_of(src, "src")], progress)


def verify(
    artifact: Path,
    against: Optional[Path] = None,
    *,
    certificate: Optional[Path] = None,
    logits: bool = False,
    golden: Optional[Path] = None,
    logits_from: Optional[Path] = None,
    prompts: Optional[Path] = None,
    kernel: Optional[str] = None,
    shard: Optional[str] = None,
    junit: Optional[Path] = None,
    html: Optional[Path] = None,
    markdown: Optional[Path] = None,
    force: bool = False,
    baseline: Optional[Path] = None,
    config: Optional[Path] = None,
    layout: Optional[str] = None,
    artifact_layout: Optional[str] = None,
    ternary_trained: bool = False,
    stream: bool = False,
    threads: Optional[int] = None,
    progress: Optional[Progress] = None,
) -> Report:
    """Prove that a converted model has the weights and the results of its source.

    The keywords have the names of the flags of ``bitnet-verify``; there is none for ``--trusted-keys``.
    ``report["status"]`` is ``same`` or ``different``;
    ``report["checks"]`` has the first difference of each check. ``progress`` is called with ``(done, total)`` bytes of
    the trits that are compared.

    Raises BitnetError if the comparison could not be made.
    """
    words = _flags(
        json=True,
        against=against,
        certificate=certificate,
        logits=logits,
        golden=golden,
        logits_from=logits_from,
        prompts=prompts,
        kernel=kernel,
        shard=shard,
        junit=junit,
        html=html,
        markdown=markdown,
        force=force,
        baseline=baseline,
        config=config,
        layout=layout,
        artifact_layout=artifact_layout,
        ternary_trained=ternary_trained,
        stream=stream,
        threads=threads,
    )
    return _call("bitnet-verify", [*words, "--", path_of(artifact, "artifact")], progress)


def inspect(
    model: Path,
    *,
    tensors: bool = False,
    readers: bool = False,
    layout: Optional[str] = None,
    against: Optional[Path] = None,
    ternary_trained: bool = False,
    stream: bool = False,
) -> Report:
    """Show what a model file holds: family, configuration, formats, sizes; with ``tensors`` every tensor."""
    words = _flags(
        json=True,
        tensors=tensors,
        readers=readers,
        layout=layout,
        against=against,
        ternary_trained=ternary_trained,
        stream=stream,
    )
    return _call("bitnet-convert", ["inspect", *words, "--", path_of(model, "model")])


def targets() -> Report:
    """Targets, sources, exact pairs and model families: what ``bitnet-convert list`` prints."""
    return _call("bitnet-convert", ["list", "--json"])


def doctor(
    model: Path,
    *,
    certificate: Optional[Path] = None,
    strict: bool = False,
    no_run: bool = False,
    layout: Optional[str] = None,
    ternary_trained: bool = False,
    threads: Optional[int] = None,
) -> Report:
    """Find faults in a model without a source: what ``bitnet-verify doctor`` prints."""
    words = _flags(
        json=True,
        certificate=certificate,
        strict=strict,
        no_run=no_run,
        layout=layout,
        ternary_trained=ternary_trained,
        threads=threads,
    )
    return _call("bitnet-verify", ["doctor", *words, "--", path_of(model, "model")])


def merge(reports: Iterable[Union[Path, Mapping[str, Any]]]) -> Report:
    """Join the reports of all shares of a comparison (``verify(..., shard="1/4")``).

    Each report is what :func:`verify` returned, or the path of a file with its JSON.
    """
    import json
    import tempfile
    from collections.abc import Mapping

    if isinstance(reports, (str, os.PathLike, Mapping)):
        found = type(reports).__name__
        raise TypeError(f"reports: expected a list of reports or paths, found {found}")
    with tempfile.TemporaryDirectory() as directory:
        paths = []
        for number, report in enumerate(reports):
            if not isinstance(report, Mapping):
                paths.append(path_of(report, "reports"))
                continue
            path = os.path.join(directory, f"report-{number}.json")
            try:
                text = json.dumps(dict(report))
            except (TypeError, ValueError) as error:
                message = f"reports: report {number}: expected the report of verify(): {error}"
                raise TypeError(message) from None
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            paths.append(path)
        try:
            return _call("bitnet-verify", ["merge", "--json", "--", *paths])
        except BitnetError as error:
            # the files are gone when the message is read: their names say which report is meant
            message = error.message.replace(os.path.join(directory, ""), "")
            raise BitnetError(error.code, message, error.hint) from None


def plan(
    src: Path,
    out: Path,
    to: str,
    *,
    split_max_size: Optional[Size] = None,
    plan: Optional[Path] = None,
    force: bool = False,
    embeddings: Optional[str] = None,
    allow_scale_rounding: bool = False,
    layout: Optional[str] = None,
    against: Optional[Path] = None,
    ternary_trained: bool = False,
) -> Report:
    """Plan a conversion as jobs for many machines. Reads headers only.

    The plan is written to ``plan``, by default ``OUT.plan.json``. Returns the report: ``plan`` (the path),
    ``plan_sha256``, ``jobs`` with ``index``, ``file`` and ``bytes``, ``total_bytes``, ``peak_memory_bytes``. Pass the
    report or the path to :func:`run_job` and :func:`finish`.
    """
    output = path_of(out, "out")
    if plan is None:
        plan = output.rstrip("/") + ".plan.json"
    words = _flags(
        json=True,
        output=output,
        to=to,
        split_max_size=split_max_size,
        plan=path_of(plan, "plan"),
        force=force,
        embeddings=embeddings,
        allow_scale_rounding=allow_scale_rounding,
        layout=layout,
        against=against,
        ternary_trained=ternary_trained,
    )
    return _call("bitnet-convert", ["plan", *words, "--", path_of(src, "src")])


def _plan_path(plan: Union[Path, Mapping[str, Any]]) -> str:
    if isinstance(plan, (str, os.PathLike)):
        return path_of(plan, "plan")
    try:
        path = plan["plan"]
    except (KeyError, TypeError, IndexError):
        found = type(plan).__name__
        raise TypeError(f"plan: expected a path or the report of plan(), found {found}") from None
    return path_of(path, "plan")


def run_job(
    plan: Union[Path, Mapping[str, Any]],
    index: Union[int, Iterable[int]],
    *,
    threads: Optional[int] = None,
    progress: Optional[Progress] = None,
) -> Report:
    """Run one job of a plan, or several. A job that was done before is skipped.

    Jobs may run at the same time, in any order and on any machine that sees source and output.
    """
    import operator
    from collections.abc import Iterable

    indices = list(index) if isinstance(index, Iterable) else [index]
    if not indices:
        raise BitnetError("usage", "index: expected the number of a job, found none")
    words = _flags(json=True, threads=threads)
    words += [f"--index={operator.index(each)}" for each in indices]
    return _call("bitnet-convert", ["job", *words, "--", _plan_path(plan)], progress)


def finish(
    plan: Union[Path, Mapping[str, Any]],
    *,
    remove_parts: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
) -> Report:
    """Join what the jobs of a plan wrote. The result has the bytes that :func:`convert` writes.

    May be called again: if the output is complete, nothing is written and the report has ``already_finished``.

    Raises BitnetError with the code ``missing-part``, which names the jobs to run again.
    """
    words = _flags(json=True, remove_parts=remove_parts, force=force, threads=threads)
    return _call("bitnet-convert", ["finish", *words, "--", _plan_path(plan)])


def push(
    out: Path,
    repository: str,
    *,
    revision: Optional[str] = None,
    private: bool = False,
    message: Optional[str] = None,
    dry_run: bool = False,
) -> Report:
    """Upload an output with its certificate and a model card to ``hf://OWNER/NAME``."""
    words = _flags(json=True, revision=revision, private=private, message=message, dry_run=dry_run)
    places = [path_of(out, "out"), path_of(repository, "repository")]
    return _call("bitnet-convert", ["push", *words, "--", *places])
