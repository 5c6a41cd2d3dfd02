"""Some of the user's own images, decoded in a child process: how many training would skip, or read through a copy."""

import json
import subprocess
import sys
from pathlib import Path

from rsbdali.errors import counted
from rsbdali.tools.doctor.findings import Finding, Level

IMAGES = 200
TIMEOUT_S = 300
NAMED = 3


def check_data(data: Path) -> list[Finding]:
    """Decode up to 200 images, spread evenly over the training set, in a child: a crash there is a finding here."""
    command = [sys.executable, "-m", "rsbdali.tools.doctor.data_check", str(data), str(IMAGES)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return [Finding(Level.FATAL, "data", f"{IMAGES} images did not decode within {TIMEOUT_S} s")]
    return judge_data(child.returncode, child.stdout, child.stderr)


def judge_data(code: int, out: str, err: str) -> list[Finding]:
    """From the exit code and output of `rsbdali.tools.doctor.data_check`."""
    if code:
        lines = err.strip().splitlines()
        said = f"killed by signal {-code}" if code < 0 else lines[-1] if lines else f"status {code}"
        return [Finding(Level.FATAL, "data", f"the images cannot be tried: {said}")]
    found = json.loads(out)
    text = f"{found['tried']} of {counted(found['images'], 'image')} tried in {found['name']}: "
    text += f"{len(found['bad'])} will be replaced, {found['converted']} read through an RGB copy"
    text += f"; {counted(found['left_out'], 'file is', 'files are')} no image" if found["left_out"] else ""
    names = [f"{path} ({reason})" for path, reason in found["bad"][:NAMED]]
    if not names:
        return [Finding(Level.GOOD, "data", text)]
    return [
        Finding(Level.WARNING, "data", "\n".join([text, *names]), "rsbdali index FOLDER --bad-list FILE lists more")
    ]
