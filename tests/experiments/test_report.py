"""The page of finished runs: its numbers are in the summaries, and it needs no network."""

import html.parser
import json
import re
import shutil

import jax
import pytest

from experiments import claims, machine, registry, tables
from experiments.__main__ import main
from experiments.language import comparison, weight_scale

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Page(html.parser.HTMLParser):
    """Texts, pictures and addresses of a page; fails on tags that do not close."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.links, self.ids = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def leaves(value):
    if isinstance(value, dict):
        for name, entry in value.items():
            yield name
            yield from leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield tables.text(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with figure 4 reproduced at its smallest, and the same run once more."""
    out = tmp_path_factory.mktemp("runs")
    small = ["--seeds", "2", "--quiet", "--set", "test_sequences=2", "--set", "epochs=1"]
    four = ["reproduce", "hidden-dim", "--out", str(out), "--set", "widths=4,8,12"]
    four += ["--set", "targets=2"]
    assert main([*four, *small]) == 0
    assert "hidden-dim/rows.jsonl" in Page((out / "report.html").read_text()).links
    shutil.copytree(out / "hidden-dim", out / "again")
    assert main(["report", str(out), "--out", str(out / "report.html")]) == 0
    jax.config.update("jax_enable_x64", False)
    return out


def test_every_number_on_the_page_comes_from_the_runs(folder):
    page = Page((folder / "report.html").read_text())
    known = set(NUMBER.findall("arXiv:2511.04217 95"))
    claims = []
    for name in ("hidden-dim", "again"):
        summary = json.loads((folder / name / "summary.json").read_text())
        config = json.loads((folder / name / "config.json").read_text())
        claims += summary["claims"]
        known |= set(NUMBER.findall(machine.duration(summary["seconds"])))
        experiment = registry.EXPERIMENTS["hidden-dim"]
        words = [experiment.shows, experiment.see, *leaves(summary), *leaves(config)]
        words += [*tables.MEANINGS, *tables.MEANINGS.values()]
        known |= {number for word in words for number in NUMBER.findall(word)}
    agree = sum(claim["verdict"] == "agrees" for claim in claims)
    assert len(claims) == 16 and f"{agree} of {len(claims)} comparisons" in "".join(page.texts)
    known |= {str(agree), str(len(claims))}
    shown = set(NUMBER.findall(" ".join(page.texts)))
    assert len(shown) > 40 and shown <= known
    for claim in claims:
        assert claim["what"] in page.texts and claim["verdict"] in page.texts


def test_the_page_is_whole_without_a_network(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    assert len(page.images) == 4  # of each run figure 4, and its bend
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert "error of the ticket" in image["alt"] and "curves: " in image["alt"]
        assert "$" not in image["alt"]
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert link.startswith("https://arxiv.org/") or (folder / link).is_file()
    assert {"hidden-dim/rows.jsonl", "again/summary.json"} <= set(page.links)
    for width in ("max-width: 40rem", "prefers-color-scheme: dark", "@media print"):
        assert width in text


def test_report_makes_the_same_page_again_from_any_of_its_folders(folder, tmp_path, capsys):
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(folder), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page) and page.read_bytes() == before
    page_path = tmp_path / "deep" / "page.html"
    assert main(["report", str(folder / "again"), "--out", str(page_path)]) == 0
    copy = Page(page_path.read_text())
    assert len(copy.images) == 2
    (rows,) = [link for link in copy.links if link.endswith("rows.jsonl")]
    assert (page_path.parent / rows).resolve() == (folder / "again" / "rows.jsonl").resolve()


def test_without_a_path_the_page_is_written_to_the_working_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted((folder / "again").iterdir())
    assert main(["report", str(folder / "again"), str(folder / "hidden-dim")]) == 0
    assert (tmp_path / "report.html").is_file()
    assert sorted((folder / "again").iterdir()) == before


def test_names_in_a_run_are_shown_as_text(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "run"
    hostile.mkdir()
    for name in ("summary.json", "config.json"):
        text = (folder / "hidden-dim" / name).read_text()
        (hostile / name).write_text(text.replace('"theory"', '"<img src=x>"'))
    for name in ("hidden_dim.png", "bend.png"):
        (hostile / name).write_bytes(b"")
    assert main(["report", str(hostile)]) == 0
    assert len(Page((tmp_path / "report.html").read_text()).images) == 2


def test_folders_that_hold_no_finished_run_get_one_line(folder, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "summary.json").write_text('{"rows": []}')
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / "summary.json").write_text('{"experiment": "x", "rows": [], "seconds": 1}')
    (renamed / "config.json").write_text('{"choices": {}}')
    for arguments, message in [
        ([], "report must be followed by folders of finished runs"),
        ([str(tmp_path / "none")], "DIR must be a folder of finished runs, with summary.json"),
        ([str(folder / "hidden-dim" / "checkpoints")], "DIR must be a folder of finished runs"),
        ([str(damaged)], "is damaged: it lacks one of experiment, rows, seconds"),
        ([str(renamed)], "config.json is damaged: it lacks options"),
    ]:
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert not (damaged / "report.html").exists()


def test_verdicts_follow_the_intervals():
    inside, below, above = (
        claims.number("n", 1.0, value, 0.1, 9)["verdict"] for value in (1.1, 0.5, 2)
    )
    assert (inside, below, above) == ("agrees", "lower", "higher")
    for low, high, verdict in [(-2, -1, "agrees"), (-1, 1, "open"), (1, 2, "differs")]:
        paired = {"difference": (low + high) / 2, "low": low, "high": high}
        assert claims.below_zero("d", "negative", paired)["verdict"] == verdict
    assert claims.below_zero("d", "negative", {"difference": -1.0})["verdict"] == "open"
    rows = [
        {"depth": d, "width": w, "mean": m}
        for d, w, m in [(1, 4, 0.1), (2, 4, 0.2), (1, 8, 0.3), (2, 8, 0.2)]
    ]
    assert claims.pairs_in_order(rows, "depth", "width") == (1, 2)
    paired = [{"model": "tiny", "scale": 2.83, "difference": -0.1, "low": -0.2, "high": -0.05}]
    compared = weight_scale.compare((1.0, 2.83), {"tiny": {"best_scale": 2.83}}, paired)
    assert [claim["verdict"] for claim in compared] == ["agrees", "agrees"]
    sizes = [{"model": "nano", "width_multiplier": 2.0, "difference": 0.3, "low": 0.1, "high": 0.4}]
    (compared,) = comparison.compare([sizes[0] | {"method": "scaled", "reference": "ticket"}])
    assert compared["verdict"] == "differs" and "nano x2" in compared["what"]
