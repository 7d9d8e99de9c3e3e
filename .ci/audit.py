"""Report known vulnerabilities of the packages in constraints.txt, from pip-audit; pass with a note if offline."""

import json
import subprocess
import sys
from pathlib import Path

COMMAND = ["-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


def main() -> int:
    """The exit code: 1 if a package has a known vulnerability, else 0."""
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
        print(f"audit: pip-audit failed: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    for package in packages:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no release yet"
            print(f"audit: {package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    audited = [package for package in packages if "vulns" in package]
    at_risk = sum(bool(package["vulns"]) for package in audited)
    print(f"audit: {at_risk} of {len(audited)} packages have known vulnerabilities")
    if len(audited) < len(packages):
        print(f"audit: {len(packages) - len(audited)} packages were not audited (offline?)")
    return 1 if at_risk else 0


if __name__ == "__main__":
    sys.exit(main())
