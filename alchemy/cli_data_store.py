"""`alchemy data check`, repair, compact, log, diff and merge: the care of a store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from alchemy.cli_paths import find_store, say_table
from tace.cli_common import AS_JSON, SETTINGS, WHERE, say_json
from tace.wording import count

SOURCE = click.argument("source", metavar="CAMPAIGN-OR-STORE", type=WHERE)
DAMAGED, SHOWN = 2, 20


@click.command(context_settings=SETTINGS)
@SOURCE
@AS_JSON
def check(source: Path, as_json: bool) -> int:
    """Read every byte of a store and say what is wrong with it.

    \b
    Example:
      alchemy data check campaign.yaml

    Exit code 0: all is well; 2: damaged.
    """
    from alchemy.store import Store
    from alchemy.store.check import facts

    store = Store(find_store(source))
    problems = store.check()
    found = facts(store) if not problems else {}
    if as_json:
        say_json({"store": str(store.path), "problems": problems, **found})
        return DAMAGED if problems else 0
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(f"{count(len(problems), 'problem')}; 'alchemy data repair {source}' saves what is sound")
        return DAMAGED
    rows = ", ".join(f"{n} {table}" for table, n in found["rows"].items() if n)
    size = found["bytes"] / 1e6
    click.echo(f"{store.path}: sound; {rows or 'empty'}; {count(found['commits'], 'commit')} in "
               f"{count(found['files'], 'file')}, {size:.1f} MB")  # fmt: skip
    return 0


@click.command(context_settings=SETTINGS)
@SOURCE
@AS_JSON
def repair(source: Path, as_json: bool) -> int:
    """Save what is sound in a damaged store and say what is lost.

    Damaged files are kept in store.h5.d/quarantine, with a report. A label whose structure is lost
    is lost with it.

    \b
    Example:
      alchemy data repair campaign.yaml

    Exit code 0: the store can be used again; 2: something is still wrong.
    """
    from alchemy.store import Store
    from alchemy.store import repair as repair_store

    result = repair_store(Store(find_store(source)))
    wrong = [note for note in result.notes if note.startswith("still wrong")]
    if as_json:
        say_json(vars(result))
        return DAMAGED if wrong else 0
    if not result.replaced and not result.lost_commits:
        click.echo("nothing to repair" if not wrong else "\n".join(wrong))
        return DAMAGED if wrong else 0
    click.echo(f"replaced: {', '.join(result.replaced) or 'no file'}")
    click.echo(f"rows saved: {result.saved_rows}, lost: {result.lost_rows}")
    for what, names in (("structures", result.lost_structures), ("labels", result.lost_labels)):
        if names:
            more = f", … ({len(names)})" if len(names) > SHOWN else ""
            click.echo(f"lost {what}: {', '.join(names[:SHOWN])}{more}")
    if result.lost_commits:
        click.echo(f"lost commits: {', '.join(map(str, result.lost_commits))}")
    for note in result.notes:
        click.echo(note)
    click.echo(f"report: {result.report}")
    return DAMAGED if wrong else 0


@click.command(context_settings=SETTINGS)
@SOURCE
@click.option("--small", is_flag=True, help="Merge the newest small files only.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="S",
    help="Keep replaced files so many seconds, for readers on other machines.",
)
@click.option("--archive", type=WHERE, metavar="FILE.h5", help="Write everything there, compressed, instead.")
@click.option("--force", is_flag=True, help="Overwrite an archive that exists.")
@AS_JSON
def compact(
    source: Path, small: bool, grace: float, archive: Path | None, force: bool, as_json: bool
) -> None:
    """Merge the files of a store; what can be read does not change.

    Others may read and write meanwhile. Afterwards store.h5 is one HDF5 file with everything up to
    now, for any program (docs/store.md). An archive is one HDF5 file with gzip that 'alchemy data
    merge' takes back; the store stays as it is.

    \b
    Example:
      alchemy data compact campaign.yaml
      alchemy data compact campaign.yaml --archive urea-2026.h5
    """
    from alchemy.store import Store
    from alchemy.store.archive import write_archive

    if archive is not None:
        size = write_archive(Store(find_store(source)), archive, overwrite=force)
        if as_json:
            say_json({"archive": str(archive), "bytes": size})
        else:
            click.echo(f"{archive}: {size / 1e6:.1f} MB")
        return
    result = Store(find_store(source)).compact(full=not small, grace_s=grace)
    if as_json:
        say_json(vars(result))
    elif result.busy:
        click.echo("another process is compacting this store; nothing was done")
    elif result.merged:
        click.echo(f"{count(result.merged, 'file')} merged into {result.written}, {result.removed} removed")
    else:
        click.echo("nothing to merge")


@click.command(context_settings=SETTINGS)
@SOURCE
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N only.")
@AS_JSON
def log(source: Path, limit: int | None, as_json: bool) -> None:
    """The commits of a store, newest first: when, by whom, what they brought.

    \b
    Example:
      alchemy data log campaign.yaml --limit 10
    """
    from alchemy.store import Store
    from alchemy.store import log as history

    found = history(Store(find_store(source)))[::-1][:limit]
    if as_json:
        say_json([vars(commit) for commit in found])
        return
    rows = [
        (
            commit.number,
            datetime.fromtimestamp(commit.time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            commit.by,
            ", ".join(f"{n} {table}" for table, n in commit.rows.items()),
        )
        for commit in found
    ]
    say_table(("commit", "UTC", "by", "rows"), rows)


@click.command(context_settings=SETTINGS)
@SOURCE
@click.argument("other", metavar="[OTHER]", type=WHERE, required=False)
@click.option("--since", type=click.IntRange(min=-1), metavar="N", help="Compare with commit N of the store.")
@AS_JSON
def diff(source: Path, other: Path | None, since: int | None, as_json: bool) -> None:
    """What OTHER has, lacks and says differently; or what came since commit N.

    \b
    Example:
      alchemy data diff campaign.yaml --since 10
      alchemy data diff mine/store.h5 theirs/store.h5
    """
    from alchemy.store import Store
    from alchemy.store import diff as compare

    if (other is None) == (since is None):
        raise click.UsageError("give another store, or --since N")
    store = Store(find_store(source))
    if other is None:
        changes = compare(store.snapshot(since), store.snapshot())
    else:
        changes = compare(store.snapshot(), Store(find_store(other)).snapshot())
    if as_json:
        say_json({name: vars(own) for name, own in changes.items()})
        return
    rows = [(n, len(own.added), len(own.removed), len(own.changed)) for n, own in changes.items()]
    say_table(("what", "added", "removed", "changed"), rows)


@click.command(context_settings=SETTINGS)
@click.argument("target", metavar="TARGET", type=WHERE)
@click.argument("sources", metavar="SOURCE…", type=WHERE, nargs=-1, required=True)
@AS_JSON
def merge(target: Path, sources: tuple[Path, ...], as_json: bool) -> None:
    """Append to TARGET what the SOURCEs, stores or archives, have and it does not.

    Where they contradict each other TARGET stays as it is, and it is said. Doing it again brings
    nothing.

    \b
    Example:
      alchemy data merge all.h5 mine/store.h5 theirs/store.h5
    """
    from alchemy.cli_data_files import new_store
    from alchemy.store import Store, merge_into
    from alchemy.store.archive import is_archive, open_archive

    store = Store(find_store(target) if target.exists() or target.suffix != ".h5" else new_store(target))
    views = [
        (path, open_archive(path) if is_archive(path) else Store(find_store(path)).snapshot())
        for path in sources
    ]
    results = [(path, merge_into(store, view)) for path, view in views]
    if as_json:
        say_json([{"source": str(path), **vars(result)} for path, result in results])
        return
    for path, result in results:
        brought = ", ".join(f"{n} {table}" for table, n in result.added.items() if n) or "nothing new"
        click.echo(f"{path}: {brought}")
        for kept in result.kept[:SHOWN]:
            click.echo(f"  kept: {kept}")
        if len(result.kept) > SHOWN:
            click.echo(f"  … and {len(result.kept) - SHOWN} more that {target} says otherwise")


COMMANDS = (check, repair, compact, log, diff, merge)
