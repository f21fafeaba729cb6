"""`snakemake --lint` without its wish for an environment per rule: this project has one environment for all."""

import re
import subprocess
import sys

IGNORED = "Specify a conda environment or container for each rule."


def main() -> int:
    """Print what is left of the lints; 1 when something is, or when the workflow cannot be read at all."""
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], capture_output=True, text=True)
    text = done.stdout + done.stderr
    blocks = re.split(r"(?m)^(?=Lints for )", text)
    left = []
    for block in blocks[1:]:
        head, *lints = re.split(r"(?m)^(?=    \* )", block)
        lints = [lint for lint in lints if IGNORED not in lint]
        if lints:
            left.append(head + "".join(lints))
    if len(blocks) == 1 and done.returncode:
        left.append(text)
    print("".join(left) or "snakemake --lint: nothing but the environment per rule", end="\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
