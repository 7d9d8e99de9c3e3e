"""Known vulnerabilities in the packages of constraints.txt, by pip-audit; where it cannot ask, it says so."""

import json
import subprocess
import sys
from pathlib import Path

COMMAND = ["-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


def main() -> int:
    """1 where a package has a known vulnerability, else 0."""
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *COMMAND],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit: nothing could be asked: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    for package in packages:
        for found in package.get("vulns", ()):
            mended = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"audit: {package['name']} {package['version']}: {found['id']}, mended in {mended}")
    asked = [package for package in packages if "vulns" in package]
    at_risk = sum(bool(package["vulns"]) for package in asked)
    print(f"audit: {at_risk} of {len(asked)} packages have known vulnerabilities")
    if len(asked) < len(packages):
        print(f"audit: of {len(packages) - len(asked)} packages nothing could be learned (offline?)")
    return 1 if at_risk else 0


if __name__ == "__main__":
    sys.exit(main())
