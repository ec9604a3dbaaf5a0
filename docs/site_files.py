"""Files of the site beside the pages of this folder: front page, API pages, figures, notebooks.

The front page is the README. Pages name figures by their path in the repository
(`../experiments/...`), so that they are visible there too;
the site keeps them under `experiments/`.
"""

import importlib
import pkgutil
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHOWN = (
    "experiments/figures/*.*",
    "experiments/benchmarks/results/*.*",
    "experiments/notebooks/*.ipynb",
)
# Modules that users do not call.
LEFT_OUT = {"__main__", "cli", "checks", "distributed", "machines", "placement"}
# API pages begin with the functions that a user calls first.
CALLED = {
    "construction": ("prune_attention", "solve_attention", "apply_masks", "guaranteed_error"),
    "attention": ("apply", "merge", "from_torch", "from_flax"),
    "edge_popup": ("fit",),
    "hide": ("solve", "make_spec"),
    "models": ("generate",),
    "subset_sum": ("solve",),
    "sweep": ("run", "load"),
    "ticket": ("create", "save", "load", "verify", "materialize", "export"),
}


def modules():
    """Return the names of the modules that have a page."""
    inside = pkgutil.iter_modules([str(ROOT / "slth_jax")])
    return sorted({module.name for module in inside} - LEFT_OUT)


def on_config(config):
    """Add the API's pages to the navigation."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [f"api/{name}.md" for name in modules()]
    return config


def on_files(files, config):
    """Add the front page, the API's pages and the figures."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for name in modules():
        page = f"# {name}\n\n::: slth_jax.{name}\n"
        if name in CALLED:
            public = importlib.import_module(f"slth_jax.{name}").__all__
            members = [n for n in CALLED[name] if n in public]
            members += [n for n in public if n not in members]
            page += "    options: {members: false}\n"
            for member in members:
                page += (
                    f"\n::: slth_jax.{name}.{member}\n    options: {{show_root_heading: true}}\n"
                )
        files.append(File.generated(config, f"api/{name}.md", content=page))
    for shown in SHOWN:
        for path in sorted(ROOT.glob(shown)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links at the site's copies."""
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](").replace(" [Citation](CITATION.cff).", "")
    return markdown.replace("](../experiments/", "](experiments/")
