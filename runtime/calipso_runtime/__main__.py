"""The `calipso` command, also as `python -m calipso_runtime`."""

import sys

_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main() -> None:
    """Run the command line, or say which extra brings it."""
    try:
        from calipso_runtime.cli import calipso
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in ("click", "rich"):
            raise
        print(f"error: {package} is not installed: pip install 'calipso[cli]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    calipso(prog_name="calipso")


if __name__ == "__main__":
    main()
