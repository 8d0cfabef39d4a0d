from __future__ import annotations

import base64
import hashlib
import sys
from pathlib import Path

import pytest

from classifiers.installed_python import InstalledPython, InstalledPythonSettings, ReadFiles, dependents
from classifiers.strata import fair_shares
from hornbook.documents import planned_row
from hornbook.errors import RecipeError
from hornbook.parts import PartRange, document_rows


def install(site: Path, name: str, files: dict[str, bytes], readme: str = "# Title\n\nHow to use it.\n") -> None:
    """Lay out a wheel as pip would: files, METADATA and RECORD."""
    info = f"{name}-1.0.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n\n{readme}".encode(),
    }
    lines = []
    for path, data in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}")
    (site / info / "RECORD").write_text("\n".join([*lines, f"{info}/RECORD,,"]))


def module(text: str) -> bytes:
    return f"{text}\n{'# filling' * 40}\n".encode()


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "site-packages"
    install(folder, "hb_example", {f"hb_example/m{number}.py": module(f"x = {number}") for number in range(8)})
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def stage(**settings) -> InstalledPython:
    defaults = {"files": 100, "distributions": ("hb_example",), "min_bytes": 1}
    return InstalledPython("web", InstalledPythonSettings(**{**defaults, **settings}), seed=3)


def read_all(stage_context, made: InstalledPython):
    """Read the whole plan in this process (the packages of these tests are not on a worker's path)."""
    import pyarrow.parquet as pq

    context = stage_context(made)
    maker = ReadFiles(made.settings, context.artifact)
    context.artifact.store.write(f"{context.artifact.folder}/plan.parquet", b"")
    pq.write_table(made.plan, context.artifact.store.path(f"{context.artifact.folder}/plan.parquet"))
    maker.setup()
    return maker.make(PartRange(0, made.plan.num_rows))


def test_the_plan_is_a_function_of_seed_and_environment(site):
    assert stage().plan.equals(stage().plan)
    assert stage().extra_identity() == stage().extra_identity()
    other = InstalledPython("web", stage().settings, seed=4)
    assert sorted(other.plan.column("path").to_pylist()) == sorted(stage().plan.column("path").to_pylist())
    assert not other.plan.equals(stage().plan)
    before = stage().extra_identity()
    install(site, "hb_example", {"hb_example/m0.py": module("x = 'another'")})
    assert stage().extra_identity() != before


def test_what_ray_adds_to_the_path_is_not_the_environment(site, monkeypatch):
    """`import ray` puts a folder of vendored packages on sys.path."""
    before = stage().extra_identity()
    vendored = site.parent / "thirdparty_files"
    install(vendored, "hb_example", {"hb_example/vendored.py": module("x = 'vendored'")})
    monkeypatch.setattr(sys, "path", [str(vendored), *sys.path])
    assert stage().extra_identity() == before


def test_real_packages_share_the_plan_fairly():
    plan = InstalledPython("web", InstalledPythonSettings(files=300), seed=1).plan
    counts = plan.column("distribution").value_counts().to_pylist()
    assert plan.num_rows == 300
    assert len(counts) > 50 and max(found["counts"] for found in counts) < 20
    assert "hornbook" not in {found["values"] for found in counts}
    assert len(set(plan.column("sha256").to_pylist())) == 300


def test_documents_carry_where_they_come_from(site, stage_context):
    content = read_all(stage_context, stage())
    rows = content.table.to_pylist()
    assert len(rows) == 9 and content.rejects.num_rows == 0
    (readme,) = [row for row in rows if row["source"] == "python-docs"]
    assert readme["text"] == "# Title\n\nHow to use it.\n"
    assert '"distribution":"hb_example"' in readme["meta"] and '"license":"MIT"' in readme["meta"]


@pytest.mark.parametrize(
    ("reason", "planned", "found"),
    [
        ("changed", module("x = 1"), module("x = 2")),
        ("missing", module("x = 1"), None),
        ("too-long", module("x = 1"), b"x" * 2_000_000),
        ("too-long", b"x = '" + b"y" * 20_000 + b"'\n", ...),
        ("encoding", b"# caf\xe9\n" + module("x = 1"), ...),
        ("empty", b" \n" * 200, ...),
    ],
)
def test_a_file_that_cannot_be_used_is_a_reject(site, stage_context, reason, planned, found):
    install(site, "hb_example", {"hb_example/m0.py": module("x = 0"), "hb_example/bad.py": planned})
    made = stage()
    _ = made.plan
    if found is None:
        (site / "hb_example/bad.py").unlink()
    elif found is not ...:
        (site / "hb_example/bad.py").write_bytes(found)
    content = read_all(stage_context, made)
    (reject,) = content.rejects.to_pylist()
    assert (reject["unit"], reject["reason"]) == ("hb_example/bad.py", reason)
    if reason == "encoding":
        assert "byte 5" in reject["detail"]
    units = [*document_rows(content.table.column("id").to_numpy()), reject["id"]]
    assert sorted(units) == list(range(made.plan.num_rows))
    assert planned_row(content.table.column("id")[0].as_py()) in units


def test_a_package_that_is_not_installed_is_named():
    wrong = InstalledPython("web", InstalledPythonSettings(distributions=("jinja3",)), seed=1)
    with pytest.raises(RecipeError, match=r"'jinja3' is not installed.*jinja2"):
        wrong.check()


def test_fair_shares_add_up_and_favour_no_one():
    assert fair_shares([100, 3, 0, 50], 33) == [15, 3, 0, 15]
    assert fair_shares([2, 2], 10) == [2, 2]
    assert fair_shares([], 5) == []


def test_packages_are_split_by_hash_and_none_stands_on_two_sides(site):
    for number in range(12):
        install(site, f"hb_split_{number}", {f"hb_split_{number}/m.py": module(f"y = {number}")})
    names = tuple(f"hb_split_{number}" for number in range(12))

    def packages(*between):
        return set(stage(distributions=names, packages_between=between).plan.column("distribution").to_pylist())

    low, high = packages(0.0, 0.5), packages(0.5, 1.0)
    assert low and high and not low & high
    assert low | high == packages(0.0, 1.0) == set(names)
    other = InstalledPython("web", stage(distributions=names, packages_between=(0.0, 0.5)).settings, seed=4)
    assert set(other.plan.column("distribution").to_pylist()) != low
    with pytest.raises(RecipeError, match="no range"):
        stage(packages_between=(0.5, 0.5)).check()


def test_packages_are_chosen_by_how_many_others_require_them(site):
    def require(name, *lines):
        install(site, name, {f"{name}/m.py": module(f"z = '{name}'")})
        path = site / f"{name}-1.0.dist-info" / "METADATA"
        head, _, body = path.read_text().partition("\n\n")
        path.write_text("\n".join([head, *(f"Requires-Dist: {line}" for line in lines)]) + f"\n\n{body}")

    require("hb_base")
    require("hb_one", "hb-base>=1", "hb.base ; python_version > '3'", "hb_one[more]")  # one dependent, named twice
    require("hb_two", "HB_Base", 'hb-one ; extra == "more"')  # an extra is no requirement
    require("hornbook", "hb-one", "hb-two")  # what hornbook happens to use
    counts = dependents()
    assert (counts["hb-base"], counts["hb-one"], counts["hb-two"]) == (2, 0, 0)
    names = ("hb_base", "hb_one", "hb_two")

    def chosen(**settings):
        return set(stage(distributions=names, readmes=False, **settings).plan.column("distribution").to_pylist())

    assert chosen(min_dependents=2) == {"hb_base"}
    assert chosen(max_dependents=1) == {"hb_one", "hb_two"}
