"""What stands beside every figure of a ledger: which machine, and which build of the program."""
import os
import subprocess


def machine():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{names[0]}, {len(os.sched_getaffinity(0))} cores"
    except (OSError, IndexError):
        return "unknown processor"


def commit(program):
    """The commit that `program --version` names."""
    version = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE,
                             text=True).stdout
    return version.partition("(")[2].rstrip(")\n")
