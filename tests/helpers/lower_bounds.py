"""Print the lower bounds of a setup.cfg's requirements as pip constraints: `python lower_bounds.py setup.cfg`."""

import configparser
import re
import sys

BOUND = re.compile(r"^([A-Za-z0-9_-]+)(?:\[[^\]]*\])?(?:>=|==)([\w.*]+)")


def lower_bounds(path: str) -> list[str]:
    """`name==version` of each requirement with a lower bound: those of the package, then those of the test extra."""
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    lines = config["options"]["install_requires"].split("\n") + config["options.extras_require"]["test"].split("\n")
    found: dict[str, str] = {}
    for line in lines:
        if match := BOUND.match(line.strip()):
            found.setdefault(*match.groups())
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lower_bounds(sys.argv[1])) + "\n")
