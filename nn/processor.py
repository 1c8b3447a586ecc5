"""Reads fields of /proc/cpuinfo on Linux."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_field(name: str) -> str:
    """Returns the first value of a field of /proc/cpuinfo, such as `vendor_id` or `model name`; "" if there is none."""
    if not CPUINFO.exists():
        return ""
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.partition(":")[0].strip() == name), "")
