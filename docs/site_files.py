"""What the site shows besides the pages of this folder: an API page a module, figures, notebooks.

Pages name figures by their place in the repository (`../experiments/...`), so that they are seen
there too; the site keeps them under `experiments/`.
"""

import pkgutil
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHOWN = (
    "experiments/figures/*.*",
    "experiments/benchmarks/results/*.*",
    "experiments/notebooks/*.ipynb",
)
# Modules that are commands or ground, not what one calls.
LEFT_OUT = {"__main__", "cli", "checks", "distributed", "placement"}


def modules():
    """Return the names of the modules that have a page."""
    found = pkgutil.iter_modules([str(ROOT / "slth_jax")])
    return sorted({module.name for module in found} - LEFT_OUT)


def on_config(config):
    """Put the API's pages where the navigation has room for them."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [f"api/{name}.md" for name in modules()]
    return config


def on_files(files, config):
    """Add the API's pages and the figures."""
    for name in modules():
        page = f"# {name}\n\n::: slth_jax.{name}\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    for shown in SHOWN:
        for path in sorted(ROOT.glob(shown)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links into `experiments/` at the site's copies."""
    return markdown.replace("](../experiments/", "](experiments/")
