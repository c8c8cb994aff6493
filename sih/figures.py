"""Draw the figures of a run: `python -m sih.figures model=...`."""

from sih.command import READING, command
from sih.config import Config


def run(config: Config) -> int:
    """Draw every figure of a run, unless they are up to date."""
    from sih.running.reading import views_of

    views = views_of(config)
    files = views.figures()
    if "figures" not in views.made:
        print("Unchanged since they were drawn:")
    for file in files:
        print(file)
    return 0


main = command(run, READING)

if __name__ == "__main__":
    main()
