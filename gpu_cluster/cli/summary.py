"""Prints the results of `run`, `compare` and `predict`: tables on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpu_cluster.cli.console import open_console
from gpu_cluster.files import printable
from gpu_cluster.jobs.export import Exported, Undone
from gpu_cluster.jobs.predict import Prediction
from gpu_cluster.manifest import Manifest
from gpu_cluster.report.exports.folders import NOT_EXPORTED
from gpu_cluster.report.tables import comparison_lines, comparison_table, conclusion
from gpu_cluster.results import Comparison, Findings, KChoice, RunResult
from gpu_cluster.run_folder import BAD_FILES, COMPARISON_PLOT, METRICS, PAGE
from gpu_cluster.verdict import beside_verdict
from gpu_cluster.words import count, given_in_words

_MOST_CLUSTERS = 20


def print_summary(result: RunResult) -> None:
    """Print the results of a run, and where they are."""
    console = open_console(soft_wrap=True)
    findings = result.findings
    if findings is None:
        return
    lines = list(_summary(result, findings))
    if console.is_terminal:
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            _print_item(console, name, value, width)
        # Soft wrapping would let the terminal cut the lines of the table anywhere.
        console.print(_cluster_table(findings), soft_wrap=False)
    else:
        for name, value in lines:
            console.print(f"{name}: {value}", markup=False)
        for row in _cluster_rows(findings):
            console.print(f"cluster {row[0]}: {', '.join(filter(None, row[1:]))}", markup=False)
    _print_how_many_more(console, len(findings.clustering.sizes), f"the sizes of all are in {METRICS}")


# Less room than this beside the names of the items, in columns, and their values begin on lines of their own.
_LEAST_ROOM = 40

# Items that are paths or links. They stay whole, so that they can be clicked or copied.
_WHOLE = ("earlier run", "results", "report")


def _print_item(console: Console, name: str, value: str, width: int) -> None:
    """Print a name and its value on a terminal; longer values continue below, at words and indented.

    This is no table, because a table would break the paths and links to fit the terminal.
    """
    beside = console.width - width - 2 >= _LEAST_ROOM
    indent = " " * (width + 2 if beside else 2)
    lines = [value] if name in _WHOLE else _wrapped(console, value, len(indent))
    first = f"{name:{width}}  " if beside else f"{name}\n  "
    console.print(Text.assemble((first, "bold"), f"\n{indent}".join(lines)))


def _wrapped(console: Console, text: str, indent: int) -> list[str]:
    # A word that is longer than a line, such as a link, stays whole.
    return textwrap.wrap(text, max(1, console.width - indent), break_long_words=False, break_on_hyphens=False)


def print_comparison(found: Comparison) -> None:
    """Print the table of a comparison, which in a log is Markdown, what is best, and where the table is."""
    console = open_console(soft_wrap=True)
    files = f"files: {_files(found.manifest, 'compared', BAD_FILES)}"
    if console.is_terminal:
        console.print("\n".join(_wrapped(console, files, 0)), markup=False)
        _print_compared(console, found)
        console.print("\n".join(_wrapped(console, conclusion(found), 0)), markup=False)
    else:
        for line in (files, *comparison_lines(found), conclusion(found)):
            console.print(line, markup=False)
    if found.earlier_run is not None:
        console.print(f"earlier run: moved to {printable(str(found.earlier_run))}", markup=False)
    console.print(f"results: {printable(str(found.folder))}", markup=False)
    console.print(f"plot: {printable(str(found.folder / COMPARISON_PLOT))}", markup=False)


def _print_compared(console: Console, found: Comparison) -> None:
    """Print the table of a comparison on a terminal; the reasons why groups are missing stand below it."""
    titles, rows = comparison_table(found)
    table = Table(pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < 2 else "right", overflow="fold")
    for compared, row in zip(found.rows, rows, strict=True):
        if compared.reason is None:
            table.add_row(*map(Text, row))
    # Soft wrapping would let the terminal cut its lines anywhere.
    console.print(table, soft_wrap=False)
    for compared in found.rows:
        if compared.reason is not None:
            words = f"{compared.features} with {compared.algorithm}: {compared.reason}"
            console.print("\n  ".join(_wrapped(console, words, 2)), markup=False)


def print_prediction(found: Prediction) -> None:
    """Print how many pictures were assigned to each cluster, and where the table is."""
    console = open_console(soft_wrap=True)
    bad_table = "" if found.bad_files is None else printable(found.bad_files.name)
    console.print(f"files: {_files(found.manifest, 'assigned', bad_table)}", markup=False)
    sizes = [(cluster, size) for cluster, size in enumerate(np.bincount(found.labels)) if size]
    for cluster, size in sizes[:_MOST_CLUSTERS]:
        console.print(f"cluster {cluster}: {count(size, 'image')}", markup=False)
    _print_how_many_more(console, len(sizes), f"all are in {printable(found.out.name)}")
    console.print(f"far from the centre of their cluster: {int(found.far.sum())}", markup=False)
    if found.bad_files is not None:
        console.print(f"bad files: {printable(str(found.bad_files))}", markup=False)
    console.print(f"results: {printable(str(found.out))}", markup=False)
    if found.report is not None:
        console.print(f"report: {printable(found.report.absolute().as_uri())}", markup=False)


# Pictures that a summary names.
_MOST_NAMED = 3


def print_exported(found: Exported) -> None:
    """Print what was exported, what was not, and where it is."""
    console = open_console(soft_wrap=True)
    for line in found.lines:
        console.print(_one_line(line), markup=False)
    groups = list(found.groups.items())
    for name, n in groups[:_MOST_CLUSTERS]:
        console.print(f"{name}: {count(n, 'picture')}", markup=False)
    if len(groups) > _MOST_CLUSTERS:
        console.print(f"and {count(len(groups) - _MOST_CLUSTERS, 'more group')}", markup=False)
    if found.n_bad:
        console.print(f"not exported: {count(found.n_bad, 'file')} that the run could not read", markup=False)
    if found.missing:
        named = list(found.missing.items())
        words = "; ".join(f"{_one_line(path)}: {why}" for path, why in named[:_MOST_NAMED])
        more = f"; and {len(named) - _MOST_NAMED:,} more" if len(named) > _MOST_NAMED else ""
        console.print(f"not exported: {count(len(named), 'picture')} of the run ({words}{more})", markup=False)
    if (found.missing or found.n_bad) and found.to == "folders" and not found.lines:
        console.print(f"all that are not exported are in {NOT_EXPORTED}", markup=False)
    if found.lines:
        console.print(f"dry run: nothing was written to {printable(str(found.out))}", markup=False)
    else:
        console.print(f"exported: {count(found.n, 'picture')} to {printable(str(found.out))}", markup=False)


def print_undone(found: Undone, *, dry_run: bool) -> None:
    """Print what became of an export that was undone."""
    console = open_console(soft_wrap=True)
    verb = "would be removed" if dry_run else "removed"
    console.print(
        f"{verb}: {found.removed:,} files and links of the export in {printable(str(found.folder))}", markup=False
    )
    if found.gone:
        console.print(f"no longer there: {found.gone:,}", markup=False)
    if found.changed:
        words = ", ".join(map(_one_line, found.changed[:_MOST_NAMED])) + (
            f", and {len(found.changed) - _MOST_NAMED:,} more" if len(found.changed) > _MOST_NAMED else ""
        )
        console.print(f"changed since, so left as they are: {len(found.changed):,} ({words})", markup=False)
    if found.left is not None:
        remedy = (
            "; if that is a folder of the export under another name, give it its own name back and undo again"
            if found.gone
            else ""
        )
        console.print(f"the folder stays, because it holds {printable(found.left)!r}{remedy}", markup=False)


def _one_line(name: str) -> str:
    """Return a name as text on one line."""
    return printable(name).replace("\n", "\\n")


def _summary(result: RunResult, findings: Findings) -> Iterator[tuple[str, str]]:
    yield "verdict", str(result.verdict)
    yield "files", _files(result.manifest, "clustered", BAD_FILES)
    words = {
        KChoice.AGREEMENT: "where restarts of k-means agree most",
        KChoice.CHORD: "no clear knee; the k farthest from the chord",
    }
    why = words.get(findings.sweep.chosen_by, findings.sweep.chosen_by)
    yield "clusters", f"{findings.clustering.k} ({why})"
    for doubt in beside_verdict(findings.sweep.doubts):
        yield "note", doubt
    yield from _scores(result, findings)
    embeddings = findings.embeddings
    speed = f"{embeddings.n_computed:,} embedded"
    if embeddings.images_per_s is not None:
        speed += f" at {embeddings.images_per_s:.1f} images/s in {embeddings.precision}"
    seconds = sum(result.stages_s.values())
    yield "device", f"{result.device['device']} ({result.device_reason}), {speed}, {seconds:.1f} s in all"
    if result.embeddings is None:
        yield "features", result.config.embed.features
        yield "engine", f"{result.device['engine']} ({result.device['engine_reason']})"
    else:
        yield "embeddings", printable(given_in_words(result.embeddings))
    if result.earlier_run is not None:
        yield "earlier run", f"moved to {printable(str(result.earlier_run))}"
    yield "results", printable(str(result.folder))
    page = result.folder.absolute() / PAGE
    if page.is_file():
        yield "report", printable(page.as_uri())


def _files(manifest: Manifest, done: str, bad_table: str) -> str:
    return f"{manifest.counts()['found']:,} found: {manifest.sum_in_words(done, bad_table)}"


def _scores(result: RunResult, findings: Findings) -> Iterator[tuple[str, str]]:
    """Yield the scores that say most, each with what its number means."""
    scores, n = findings.scores, len(findings.embeddings.rows)
    sampled = f" on a sample of {count(scores.n_silhouette, 'picture')}" if 0 < scores.n_silhouette < n else ""
    meanings = {
        "silhouette": "1: groups far apart; 0: groups that touch; below 0: pictures nearer to another group",
        "adjusted_rand": "1: the clusters are the labels; 0: no more alike than by chance",
        "homogeneity": "1: no cluster mixes labels; 0: every cluster has the same mixture",
    }
    values = dict(scores.internal)
    if scores.external is not None:
        share = f"for {scores.n_labelled:,} of {count(n, 'clustered picture')}"
        yield "labels", f"from {result.manifest.label_source}, {share}"
        values |= scores.external
    for name, meaning in meanings.items():
        if values.get(name) is not None:
            words = name.replace("adjusted_rand", "adjusted Rand index")
            yield words, f"{_number(values[name])}{sampled if name == 'silhouette' else ''} ({meaning})"
    if scores.holdout is not None:
        holdout = scores.holdout
        found = f"silhouette {_number(holdout['silhouette'])}, homogeneity {_number(holdout['homogeneity'])}"
        yield "holdout", f"on {count(int(holdout['n'] or 0), 'image')}: {found}"
    yield "more scores", f"in {METRICS}"


def _print_how_many_more(console: Console, n_clusters: int, where: str) -> None:
    """Print how many clusters a list leaves out, which names the first ones only, and where the others are."""
    if n_clusters > _MOST_CLUSTERS:
        console.print(f"and {count(n_clusters - _MOST_CLUSTERS, 'more cluster')}; {where}", markup=False)


def _cluster_rows(findings: Findings) -> Iterator[tuple[str, str, str]]:
    table = findings.scores.contingency
    for cluster, size in enumerate(findings.clustering.sizes[:_MOST_CLUSTERS]):
        yield str(cluster), count(size, "image"), "" if table is None else table.in_words(cluster, int(size))


def _cluster_table(findings: Findings) -> Table:
    table = Table(pad_edge=False)
    table.add_column("cluster", justify="right")
    table.add_column("size", justify="right")
    if findings.scores.contingency is not None:
        table.add_column("label")
    for row in _cluster_rows(findings):
        table.add_row(*map(Text, row[: len(table.columns)]))
    return table


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
