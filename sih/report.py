"""One self-contained page to share: `python -m sih.report` writes report.html into the run's folder."""

from rich.console import Console

from sih.command import READING, command
from sih.config import Config


def run(config: Config) -> int:
    """Draw the figures and write the page, unless they are up to date."""
    from sih.running.reading import views_of

    views = views_of(config)
    file = views.report()
    word = "Written" if "report" in views.made else "Unchanged"
    Console().print(f"{word}: {file}", soft_wrap=True, highlight=False)
    return 0


main = command(run, READING)

if __name__ == "__main__":
    main()
