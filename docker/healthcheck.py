"""The coordinator container's health: exit code 0 while `/readyz` answers 200, else 1 and a sentence on stderr."""

import os
import sys
import urllib.error
import urllib.request


def main() -> None:
    """Ask this container's own coordinator, past any proxy that the environment names."""
    address = f"http://127.0.0.1:{os.environ.get('FLEXLORA_PORT', '8000')}/readyz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(address, timeout=4).close()
    except urllib.error.HTTPError as error:
        sys.exit(f"not ready: {error.code} {error.read(2000).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"not answering: {error}")


if __name__ == "__main__":
    main()
