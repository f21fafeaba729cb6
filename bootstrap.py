#!/usr/bin/env python3
"""Create .venv and install exactly what requirements.lock says, and torch for the hardware at hand.

    python3 bootstrap.py

Needs nothing but a Python (any 3.8 or later runs this file; a 3.11, 3.12 or 3.13 has to be on the machine).

    R2Q_TORCH=cpu|cuda   in place of the choice by hardware (a GPU is seen by the program nvidia-smi)
    R2Q_PYTHON=...       the interpreter for .venv, in place of the first one that fits
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
TORCH = "2.13.0"
OLDEST, NEWEST = (3, 11), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5  # pip itself would retry an unreachable index for minutes
NAMES = ("python3.12", "python3.11", "python3.13", "python3", "python")
PROBE = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"


def main():
    torch = wanted_torch()
    if VENV.exists() and not OLDEST <= (version(str(python())) or (0, 0)) <= NEWEST:
        say(".venv is broken or of another Python: making it anew")
        shutil.rmtree(str(VENV))
    if not VENV.exists():
        interpreter = find_python()
        say("making .venv with " + interpreter)
        run(interpreter, "-m", "venv", str(VENV))
    start = time.time()
    say("installing the locked packages, about 150 (a few minutes the first time)")
    pip("-qq", "--no-deps", "--require-hashes", "-r", str(LOCK))
    install_torch(torch)
    pip("-qq", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    run(str(python()), "-m", "pip", "--disable-pip-version-check", "check")
    say(f"ready after {time.time() - start:.0f} s")


def wanted_torch():
    """cpu or cuda, by R2Q_TORCH or by hardware."""
    asked = os.environ.get("R2Q_TORCH") or "auto"
    if asked not in ("auto", "cpu", "cuda"):
        stop(f"R2Q_TORCH is {asked!r}; it must be cpu or cuda")
    if asked != "auto":
        return asked
    return "cuda" if sys.platform == "linux" and shutil.which("nvidia-smi") else "cpu"


def python():
    """The interpreter of .venv."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def version(interpreter):
    """(major, minor) of an interpreter that can make environments, else None."""
    try:
        out = subprocess.run([interpreter, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
        return tuple(map(int, out.stdout.decode().split("."))) if out.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def find_python():
    """The interpreter asked for, or the first that fits."""
    asked = os.environ.get("R2Q_PYTHON")
    seen = []
    for candidate in [asked] if asked else [sys.executable, *NAMES]:
        found = version(candidate)
        if found and OLDEST <= found <= NEWEST:
            return candidate
        label = ".".join(map(str, found)) if found else "does not run, or lacks venv or ensurepip"
        if asked or shutil.which(candidate):
            seen.append(f"{candidate} ({label})")
    looked = ", ".join(dict.fromkeys(seen)) or "no Python at all"
    stop(
        f"Python 3.11, 3.12 or 3.13 with venv and ensurepip is needed; looked at: {looked}.\n"
        "  Debian, Ubuntu: apt install python3.11-venv     anywhere: pip install uv && uv python install 3.12\n"
        "  conda: conda env create -f environment.yml      or name one: R2Q_PYTHON=/path/to/python3.12 make run"
    )


def install_torch(kind):
    """torch built for CPU (0.2 GB) or for CUDA (3 GB with NVIDIA's libraries)."""
    installed = torch_installed()
    if installed and installed[0] == TORCH and installed[1] == kind:
        return
    say(f"installing torch {TORCH} for {kind}")
    again = ["--force-reinstall", "--no-deps"] if installed else []
    if kind == "cuda" or sys.platform == "darwin":
        pip("-qq", *again, f"torch=={TORCH}")  # PyPI's build: CUDA on Linux, plain on macOS
        if kind == "cuda" and again:
            pip("-qq", f"torch=={TORCH}")
        return
    if try_pip("-qq", *again, f"torch=={TORCH}+cpu"):  # a wheel or a mirror that pip is configured with
        return
    if reachable(CPU_INDEX + "/torch/") and try_pip("-qq", *again, f"torch=={TORCH}", "--index-url", CPU_INDEX):
        return
    say("no CPU-only torch can be reached; PyPI's build works, too, but brings NVIDIA's libraries (3 GB)")
    pip("-qq", *again, f"torch=={TORCH}")
    if again:
        pip("-qq", f"torch=={TORCH}")


def torch_installed():
    """(version, cpu or cuda) of the torch in .venv, else None."""
    code = "import torch; print(torch.__version__.split('+')[0], 'cuda' if torch.version.cuda else 'cpu')"
    out = subprocess.run([str(python()), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return out.stdout.decode().split() if out.returncode == 0 else None


def reachable(url):
    """Whether an address answers at once."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except Exception:  # whatever the network says, the answer is no
        return False


def pip(*arguments):
    if not try_pip(*arguments, quiet=False):
        stop(f"pip failed: pip install {' '.join(arguments)}")


def try_pip(*arguments, quiet=True):
    """Whether `pip install` went well."""
    command = [str(python()), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    out = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, stdout=out, stderr=out).returncode == 0


def run(*command):
    code = subprocess.run(command).returncode
    if code:
        stop(f"{' '.join(command)} failed", code)


def say(text):
    print("bootstrap: " + text, flush=True)


def stop(text, code=1):
    print("bootstrap: ERROR: " + text, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
