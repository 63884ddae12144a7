"""Installs Debian's chromium, where there is no browser yet: python scripts/install_browser.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

CANDIDATES = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    found = next(filter(None, map(shutil.which, CANDIDATES)), None)
    if found:
        print(f"There is a browser: {found}")
        return 0
    if not shutil.which("apt-get"):
        print("No browser was found, and this is no Debian: install chromium, and put it on the PATH.")
        return 1
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
        done = subprocess.run([*prefix, "apt-get", *arguments], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print(f"`{' '.join([*prefix, 'apt-get', *arguments])}` failed; install chromium by hand.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
