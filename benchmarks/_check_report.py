"""The report of `subquad check`: markdown that can be pasted into an issue as it is."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ._evaluation import SEED, Finding, is_gpu
from .records import environment

DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))  # where Linux says what it drives


def report(ops: tuple[str, ...], findings: list[Finding], device: torch.device) -> str:
    """What was checked, where, what came out, and how to see each failure again."""
    failed = [finding for finding in findings if not finding.passed]
    verdict = f"{len(failed)} of {len(findings)} rows fail" if failed else "everything within budget"
    lines = [f"## subquad check: {verdict}", "", *_circumstances(device)]
    near = [finding for finding in findings if not finding.far]
    for op in ops:
        rows = [finding for finding in near if finding.op == op]
        if rows:
            num_cases = max(finding.num_cases for finding in rows)
            lines += ["", f"### {op}, forward and backward; cases: {num_cases}", "", *_rows(rows)]
    far = [finding for finding in findings if finding.far]
    if far:
        lines += ["", "### beyond 2^31 elements", "", *_rows(far)]
    lines += [f"\nskipped: {line}" for line in _skipped(findings)]
    if failed:
        lines += ["", "### failures", ""]
        for finding in failed:
            for case, reason in _reasons(finding):
                lines.append(
                    f"- {_name(finding)}{case and ', '}{case}: {reason}; again: `{_again(finding, case, device)}`"
                )
    return "\n".join(lines)


def _circumstances(device: torch.device) -> Iterator[str]:
    facts = environment(device, SEED)
    for title in ("machine", "versions"):
        values = ", ".join(f"{name} {value}" for name, value in facts[title].items() if value is not None)
        yield f"- {title}: {values}"
    if is_gpu(device):
        major, minor = torch.cuda.get_device_capability(device)
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        software = f"CUDA {torch.version.cuda}, HIP {torch.version.hip}"
        yield f"- device: {device}, compute capability {major}.{minor}, {memory:.0f} GB, {software}"
        yield f"- driver: {_driver()}"
    yield f"- commit: {facts['commit']}"


def _driver() -> str:
    for path in DRIVERS:
        if path.exists():
            return path.read_text().partition("\n")[0]
    return "not said by this system"


def _rows(findings: list[Finding]) -> Iterator[str]:
    columns = ("op", "backend", "dtype", "cases", "error", "budget", "worst in", "runs of a case", "verdict")
    yield _line(columns)
    yield _line("---" for _ in columns)
    for x in findings:
        runs = f"{x.repeats}, {len(x.unequal)} differ" if x.unequal else f"{x.repeats}, equal" if x.repeats > 1 else "1"
        numbers = (f"{x.error:.1e}", f"{x.budget:.1e}") if x.where else ("", "")
        yield _line((x.op, x.backend, _dtype(x), str(x.num_cases), *numbers, _worst(x), runs, _verdict(x)))


def _worst(x: Finding) -> str:
    return f"{x.name}, {x.where}" if x.where else ""


def _verdict(x: Finding) -> str:
    if x.failure:
        return "FAILS"
    if x.worst > 1:
        return "OVER"
    if x.unequal:
        return "DIFFERS"
    return "ok" if x.num_cases else "skipped"


def _reasons(x: Finding) -> Iterator[tuple[str, str]]:
    """(case, what is wrong)."""
    if x.failure:
        yield x.failed_case, " ".join(x.failure.split())
    if x.worst > 1:
        yield x.where, f"error {x.error:.2e} of {x.name} is over the budget {x.budget:.2e}"
    for case, count in x.unequal.items():
        yield case, f"{count} of {x.repeats} runs gave other bits than the first"


def _skipped(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        for case, reason in finding.skipped.items():
            yield f"{_name(finding)}, {case}: {reason}"


def _again(x: Finding, case: str, device: torch.device) -> str:
    interpreted = "TRITON_INTERPRET=1 " if x.backend == "interpreter" else ""
    return f"{interpreted}subquad check --ops {x.op} --device {device}" + (f" --case {case}" if case else "")


def _name(x: Finding) -> str:
    return f"{x.op}, {x.backend}, {_dtype(x)}"


def _dtype(x: Finding) -> str:
    return str(x.dtype).removeprefix("torch.")


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
